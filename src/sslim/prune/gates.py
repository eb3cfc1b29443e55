"""Hard-concrete gates (Louizos et al. 2018, "Learning sparse neural networks through L0
regularization"): one variable per unit, living beside the model and folded into its weights.

A gated unit's *consumer* weights are multiplied by the gate. Folding costs a weight-sized product
instead of an activation-sized one, and it is pruning: slicing folded weights changes nothing.
A LayerNorm that reads gated channels takes its statistics over the kept channels only, as the smaller
model will.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from sslim.backbone.modeling_sslim import SslimModel
from sslim.backbone.units import UnitGroup, plan_of, shape_of, unit_groups
from sslim.plan import Widths
from sslim.prune.surgery import positions_in

BETA = 2.0 / 3.0
LOWER, UPPER = -0.1, 1.1
NOISE_EDGE = 1e-6
SOFT_FACTOR = 0.8
"""The reference's estimate of a gate's value in evaluation: sigmoid(0.8 * log_alpha / beta)."""
OPEN_SHIFT = -BETA * math.log(-LOWER / UPPER)
INITIAL_DROP_RATE = {
    "conv": 0.01,
    "head": 0.01,
    "ffn": 0.5,
    "attention_block": 0.01,
    "ffn_block": 0.01,
}


def stretch(log_alpha: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Gate values in [0, 1] for uniform noise in (eps, 1 - eps) (Louizos et al. 2018, equation 10)."""
    logits = (torch.log(noise) - torch.log1p(-noise) + log_alpha) / BETA
    return (torch.sigmoid(logits) * (UPPER - LOWER) + LOWER).clamp(0.0, 1.0)


def open_probability(log_alpha: torch.Tensor) -> torch.Tensor:
    """Probability that a gate is not zero (Louizos et al. 2018, equation 12)."""
    return torch.sigmoid(log_alpha + OPEN_SHIFT)


def soft_value(log_alpha: torch.Tensor) -> torch.Tensor:
    """The value a kept gate has in evaluation."""
    return torch.sigmoid(SOFT_FACTOR * log_alpha / BETA)


def _sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host on the device; from pinned memory, so that the copy waits for nothing."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class KeptLayerNorm(nn.LayerNorm):
    """A LayerNorm with statistics over the kept channels only, as the smaller model's will be.

    Closed channels come out with some value or other; their gates multiply it by zero. The statistics are
    float32 at least, under autocast as well: torch's own LayerNorm, which the smaller model uses, sees to
    that, and a gated model that did not would be another model than the one that is cut from it.
    """

    kept: torch.Tensor

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__(norm.normalized_shape, eps=norm.eps)
        self.weight, self.bias = norm.weight, norm.bias
        self.register_buffer("kept", torch.ones_like(norm.weight.detach()), persistent=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        with torch.autocast(x.device.type, enabled=False):  # it would make the products bfloat16
            share = (self.kept / self.kept.sum().clamp(min=1.0)).to(x.dtype)
            centred = x - (x @ share)[..., None]
            variance = (centred.square() @ share)[..., None]
            normed = centred * torch.rsqrt(variance + self.eps) * self.weight + self.bias
        return normed if _lifts_norms(input.device.type) else normed.to(input.dtype)


def _lifts_norms(device_type: str) -> bool:
    """Whether torch's own LayerNorm would return float32: under autocast, except on a CPU."""
    return device_type != "cpu" and torch.is_autocast_enabled(device_type)


class Gates(nn.Module):
    """All gates of a model: one vector `log_alpha`, cut into one stretch per unit group."""

    def __init__(self, model: SslimModel, kinds: Iterable[str], *, seed: int = 0) -> None:
        super().__init__()
        self.groups: list[UnitGroup] = unit_groups(model, kinds)
        self.sizes = [group.size for group in self.groups]
        self.shape = shape_of(model)
        self.plan = plan_of(model)
        """What the gated model keeps before any gate closes."""
        self.total = sum(self.sizes)
        """Units when the gates were made; noise is drawn for all of them, whatever is left."""
        generator = torch.Generator().manual_seed(seed)
        starts = []
        for group in self.groups:
            rate = INITIAL_DROP_RATE[group.kind]
            mean = math.log((1.0 - rate) / rate)
            starts.append(mean + 0.01 * torch.randn(group.size, generator=generator))
        self.log_alpha = nn.Parameter(torch.cat(starts) if starts else torch.zeros(0))
        self.origin = torch.arange(self.total)
        """Place of each unit left among all those for which noise is drawn; no buffer, because it stays on
        the host, where the noise is made."""

    def split(self, vector: torch.Tensor) -> dict[str, torch.Tensor]:
        """A vector over all units, as group name -> its part."""
        parts = vector.split(self.sizes)
        return {group.name: part for group, part in zip(self.groups, parts, strict=True)}

    def sample(self, noise: torch.Tensor) -> torch.Tensor:
        """Stochastic gate values (all units,) for uniform noise (all units,)."""
        return stretch(self.log_alpha, noise)

    def noise(self, seed: int, update: int) -> torch.Tensor:
        """Uniform noise that depends on (seed, update) alone, so that every process draws the same."""
        generator = torch.Generator().manual_seed((seed * 1_000_003 + update) % 2**63)
        uniform = torch.rand(self.total, generator=generator)[self.origin]
        uniform = uniform * (1.0 - 2.0 * NOISE_EDGE) + NOISE_EDGE
        return _sent(uniform, self.log_alpha.device)

    def shrunk(self, smaller: SslimModel) -> tuple[Gates, torch.Tensor]:
        """Gates of a model cut from this one's, with the same values and the same noise per unit.

        Returns:
            The gates, and the positions of their units among this one's, (units left,).
        """
        plan = plan_of(smaller)
        positions = positions_in(self.plan, plan)
        kinds = {group.kind for group in self.groups}
        left = Gates(smaller, kinds)
        offset, starts = 0, {}
        for group in self.groups:
            starts[group.name] = offset
            offset += group.size
        parts = [
            torch.tensor(positions[group.name], dtype=torch.long) + starts[group.name]
            for group in left.groups
        ]
        index = torch.cat(parts)
        left.origin = self.origin[index]
        index = index.to(self.log_alpha.device)
        left.log_alpha = nn.Parameter(self.log_alpha.detach()[index].clone())
        left.total = self.total
        return left, index

    def expected_widths(self) -> Widths:
        """Expected number of open units everywhere, differentiable in `log_alpha`."""
        opened = self.split(open_probability(self.log_alpha))
        return self.widths({name: part.sum() for name, part in opened.items()})

    def widths(self, open_units: Mapping[str, torch.Tensor | int]) -> Widths:
        """Widths of the whole model, given the open units of each gated group."""
        now = self.plan.widths()

        def pick(kind: str, fixed: Iterable[int]) -> list[torch.Tensor | int]:
            return [open_units.get(f"{kind}.{index}", size) for index, size in enumerate(fixed)]

        return Widths(
            conv=pick("conv", now.conv),
            heads=pick("head", now.heads),
            ffn=pick("ffn", now.ffn),
            attention_block=pick("attention_block", now.attention_block),
            ffn_block=pick("ffn_block", now.ffn_block),
        )

    def fold(
        self, weights: Mapping[str, torch.Tensor], values: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Consumer weights times gate values (all units,); only the weights that change."""
        folded: dict[str, torch.Tensor] = {}
        for group, gate in zip(self.groups, values.split(self.sizes), strict=True):
            for part in group.consumers:
                weight = folded.get(part.weight, weights[part.weight])
                if part.dim is None:
                    folded[part.weight] = weight * gate
                    continue
                scale = gate.repeat_interleave(part.span) if part.span > 1 else gate
                view = [1] * weight.dim()
                view[part.dim] = -1
                folded[part.weight] = weight * scale.view(view)
        return folded

    def kept_masks(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        """For each LayerNorm that reads gated channels: buffer name -> 1 where the gate is open."""
        masks: dict[str, torch.Tensor] = {}
        for group, gate in zip(self.groups, values.split(self.sizes), strict=True):
            for norm in group.norms:
                masks[f"{norm}.kept"] = (gate.detach() > 0).to(gate.dtype)
        return masks


class GatedModel(nn.Module):
    """A model whose weights are multiplied by gates on the way in.

    The model's LayerNorms over gated channels are exchanged for `KeptLayerNorm`; weight names stay.
    """

    def __init__(self, model: SslimModel, gates: Gates) -> None:
        super().__init__()
        self.model = model
        self.gates = gates
        for group in gates.groups:
            for name in group.norms:
                parent, _, leaf = name.rpartition(".")
                norm = model.get_submodule(name)
                if isinstance(norm, nn.LayerNorm) and not isinstance(norm, KeptLayerNorm):
                    setattr(model.get_submodule(parent), leaf, KeptLayerNorm(norm))

    def forward(self, values: torch.Tensor, *args: Any, **kwargs: Any) -> list[torch.Tensor]:
        """Runs `distillation_features` under gate values (all units,)."""
        weights = dict(self.model.named_parameters())
        changed = {**self.gates.fold(weights, values), **self.gates.kept_masks(values)}
        changed = {f"model.{name}": tensor for name, tensor in changed.items()}
        return functional_call(_Features(self.model), changed, args, kwargs)

    def folded_state(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        """The model's whole state with gates folded in, ready for surgery."""
        state = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        state.update(self.gates.fold(state, values.detach()))
        return state


class _Features(nn.Module):
    """`functional_call` runs a module's forward; this makes `distillation_features` the forward."""

    def __init__(self, model: SslimModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> list[torch.Tensor]:
        return self.model.distillation_features(*args, **kwargs)
