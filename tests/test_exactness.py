"""The exactness contract: gated model = sliced model = reloaded model, for every family, size, unit
kind, random plans and random soft gate values (1e-5, float32, evaluation mode)."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from sslim.backbone.families import build, register
from sslim.backbone.modeling_sslim import SslimModel
from sslim.backbone.saving import save_folder
from sslim.backbone.units import plan_of, shape_of
from sslim.errors import BudgetError
from sslim.layout import KINDS
from sslim.plan import PruningPlan
from sslim.prune.gates import GatedModel, Gates
from sslim.prune.surgery import cut
from tests.models import ALL_CASES, CASES, POSITIONAL_CASES, tiny_teacher
from tests.tasks import gated_states

TOLERANCE = 1e-5


def model_of(family: str, size: str) -> SslimModel:
    dense = tiny_teacher(family, size)
    return build(dense.config, dense.state_dict(), "", "test")


def random_values(gates: Gates, seed: int, share: float) -> tuple[torch.Tensor, PruningPlan]:
    """Random soft values with some units closed, and the plan that keeps the open ones."""
    generator = random.Random(seed)
    now = gates.plan.kept
    values, kept = [], {}
    for axis, size in zip(gates.axes, gates.sizes, strict=True):
        mask = [generator.random() < share for _ in range(size)]
        if axis.at_least and not any(mask):
            mask[generator.randrange(size)] = True
        values += [generator.uniform(0.05, 1.0) if open_ else 0.0 for open_ in mask]
        kept[axis.name] = tuple(
            unit for unit, open_ in zip(now[axis.name], mask, strict=True) if open_
        )
    return torch.tensor(values), gates.plan.replaced(kept, gates.layout.shape)


def largest(left: list[torch.Tensor], right: list[torch.Tensor]) -> float:
    assert len(left) == len(right)
    return max(float((a - b).abs().max()) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize(("family", "size"), CASES)
@pytest.mark.parametrize("kinds", [*[(kind,) for kind in KINDS], KINDS], ids=lambda k: "+".join(k))
@torch.no_grad()
def test_gated_equals_sliced(family: str, size: str, kinds: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    waveforms = torch.randn(2, 3000)
    mask = torch.ones(2, 3000, dtype=torch.long)
    mask[1, 2100:] = 0
    for seed, share in enumerate((0.6, 0.3, 0.9, 0.0)):
        model = model_of(family, size)
        dense = model.distillation_features(waveforms)
        gates = Gates(model, kinds)
        values, plan = random_values(gates, seed, share)
        gated_model = GatedModel(model.eval(), gates)
        gated = gated_states(gated_model, values, waveforms)
        small = cut(model, plan, gated_model.folded_state(values)).eval()
        assert largest(gated, small.distillation_features(waveforms)) < TOLERANCE
        padded = largest(
            gated_states(gated_model, values, waveforms, mask),
            small.distillation_features(waveforms, mask),
        )
        assert padded < TOLERANCE
        # In float64 nothing but the order of summation is left, so the bound can be far tighter.
        doubled = GatedModel(model.double().eval(), gates)
        exact = cut(model, plan, doubled.folded_state(values.double())).eval()
        exactly = gated_states(doubled, values.double(), waveforms.double())
        assert largest(exactly, exact.distillation_features(waveforms.double())) < 1e-11
        assert largest(gated, dense) > 1e-3, "the plan changed nothing, so nothing was tested"
        assert plan.parameters(shape_of(model)) == sum(p.numel() for p in small.parameters())
        assert plan_of(small) == plan


TAPS: dict[str, Callable[[int], tuple[int, ...]]] = {
    "all": lambda size: tuple(range(size)),
    "first": lambda size: (0,),
    "last": lambda size: (size - 1,),
    "own frame": lambda size: (size // 2,),
    "both ends": lambda size: (0, size - 1),
    "past": lambda size: (0, 1, 2),
    "future": lambda size: (size - 3, size - 1),
    "a hole": lambda size: (0, 1, *range(3, size)),
    "every other": lambda size: tuple(range(1, size, 2)),
}
"""Sets of a kernel's taps that are easily got wrong."""


def gates_on_taps(model: SslimModel, first: int) -> tuple[GatedModel, torch.Tensor, PruningPlan]:
    """Soft gates on the taps of set number `first`, and of the sets after it for further convolutions."""
    gates = Gates(model, ("tap",))
    sets, values, kept = list(TAPS.values()), [], {}
    for axis in gates.axes:
        units = sets[(first + axis.layer) % len(sets)](axis.size)
        kept[axis.name] = units
        values += [
            0.05 + 0.9 * torch.rand(()) if unit in units else 0.0 for unit in range(axis.size)
        ]
    plan = gates.plan.replaced(kept, shape_of(model))
    return GatedModel(model.eval(), gates), torch.tensor(values, dtype=torch.float64), plan


@pytest.mark.parametrize("first", range(len(TAPS)), ids=list(TAPS))
@pytest.mark.parametrize(("family", "size"), ALL_CASES)
@torch.no_grad()
def test_a_kept_tap_keeps_its_offset(family: str, size: str, first: int, tmp_path: Path) -> None:
    """For audio of any length, in padded batches, reloaded as well."""
    register()
    torch.manual_seed(first)
    waveforms, mask = torch.randn(2, 4000), torch.ones(2, 4000, dtype=torch.long)
    mask[1, 2900:] = 0
    gated, values, plan = gates_on_taps(model_of(family, size), first)
    small = cut(gated.model, plan, gated.folded_state(values.float())).eval()
    save_folder(tmp_path / "small", small, normalise=False)
    again = AutoModel.from_pretrained(tmp_path / "small").eval()
    assert plan.parameters(shape_of(small)) == sum(p.numel() for p in again.parameters())
    before = model_of(family, size).distillation_features(waveforms)
    assert largest(gated_states(gated, values.float(), waveforms), before) > 1e-3, (
        "nothing was tested"
    )
    inputs = ((waveforms,), (waveforms, mask), (waveforms[:1, :400],))
    for each in inputs:
        wanted = gated_states(gated, values.float(), *each)
        assert largest(wanted, small.distillation_features(*each)) < TOLERANCE
        assert largest(wanted, again.distillation_features(*each)) < TOLERANCE
    gated.model.double()
    exact = cut(gated.model, plan, gated.folded_state(values)).eval()
    for each in inputs:
        doubles = (each[0].double(), *each[1:])
        assert (
            largest(gated_states(gated, values, *doubles), exact.distillation_features(*doubles))
            < 1e-11
        )


@pytest.mark.parametrize(("family", "size"), POSITIONAL_CASES)
@torch.no_grad()
def test_taps_moved_by_a_frame_are_not_exact(family: str, size: str) -> None:
    """The corrupted twin: the same weights where the plan names other taps."""
    waveforms = torch.randn(2, 4000)
    gated, values, plan = gates_on_taps(model_of(family, size), list(TAPS).index("past"))
    wrong = plan.replaced({"tap.0": (1, 2, 3)}, shape_of(gated.model))
    small = cut(gated.model, plan, gated.folded_state(values.float())).eval()
    moved = cut(gated.model, wrong).eval()
    moved.load_state_dict(small.state_dict())
    wanted = gated_states(gated, values.float(), waveforms)
    assert largest(wanted, moved.distillation_features(waveforms)) > 1e-3


@pytest.mark.parametrize(("family", "size"), CASES)
@torch.no_grad()
def test_reloaded_equals_sliced(family: str, size: str, tmp_path: Path) -> None:
    register()
    torch.manual_seed(1)
    model = model_of(family, size)
    gates = Gates(model, KINDS)
    values, plan = random_values(gates, 5, 0.5)
    gated_model = GatedModel(model.eval(), gates)
    waveforms = torch.randn(2, 3000)
    gated = gated_states(gated_model, values, waveforms)
    small = cut(model, plan, gated_model.folded_state(values)).eval()
    save_folder(tmp_path / "small", small, normalise=False)
    reloaded = AutoModel.from_pretrained(tmp_path / "small").eval()
    assert type(reloaded) is type(small)
    assert largest(gated, reloaded.distillation_features(waveforms)) < TOLERANCE
    states = small(waveforms, output_hidden_states=True).hidden_states
    again = reloaded(waveforms, output_hidden_states=True).hidden_states
    assert largest(list(states), list(again)) == 0.0


@torch.no_grad()
def test_a_shifted_plan_is_not_exact() -> None:
    """The corrupted twin: the same comparison with a plan off by one unit must fail."""
    model = model_of("hubert", "base")
    gates = Gates(model, ("ffn",))
    values, plan = random_values(gates, 3, 0.5)
    gated_model = GatedModel(model.eval(), gates)
    waveforms = torch.randn(2, 3000)
    gated = gated_states(gated_model, values, waveforms)
    units = plan.layers[0].ffn or ()
    shifted = tuple(sorted({(unit + 1) % gates.sizes[0] for unit in units}))
    wrong = plan.replaced({"ffn.0": shifted}, shape_of(model))
    small = cut(model, wrong, gated_model.folded_state(values)).eval()
    assert largest(gated, small.distillation_features(waveforms)) > 1e-3


@pytest.mark.parametrize(("family", "size"), CASES)
@torch.no_grad()
def test_cutting_twice_equals_cutting_once(family: str, size: str) -> None:
    model = model_of(family, size)
    gates = Gates(model, KINDS)
    _, first = random_values(gates, 1, 0.7)
    half = cut(model, first)
    _, second = random_values(Gates(half, KINDS), 2, 0.6)
    waveforms = torch.randn(1, 2000)
    once = cut(model, second).eval().distillation_features(waveforms)
    twice = cut(half, second).eval().distillation_features(waveforms)
    assert largest(once, twice) < TOLERANCE


def test_a_cut_cannot_bring_units_back() -> None:
    model = model_of("hubert", "base")
    _, plan = random_values(Gates(model, KINDS), 1, 0.5)
    small = cut(model, plan)
    with pytest.raises(BudgetError, match="no longer has"):
        cut(small, PruningPlan.dense(shape_of(model)))


@torch.no_grad()
def test_wavlm_keeps_its_position_bias_when_the_first_attention_block_goes() -> None:
    model = model_of("wavlm", "base")
    base = plan_of(model)
    small = cut(model, base.replaced({"attention_block.0": ()}, shape_of(model))).eval()
    assert small.encoder.layers[0].attention is None
    table = model.encoder.rel_attn_embed
    assert small.encoder.rel_attn_embed is not None
    assert table is not None
    assert torch.equal(small.encoder.rel_attn_embed.weight, table.weight)
    waveforms = torch.randn(1, 3000)
    before = small.distillation_features(waveforms)
    small.encoder.rel_attn_embed.weight.zero_()
    assert largest(before, small.distillation_features(waveforms)) > 1e-4
