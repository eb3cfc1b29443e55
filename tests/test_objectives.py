"""What a student can be taught: each objective by hand with a corrupted twin, and all of them in training."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForAudioFrameClassification,
    AutoModelForAudioXVector,
    AutoModelForCTC,
)

from sslim.audio.batch import Batch
from sslim.backbone.families import build
from sslim.backbone.heads import EMBEDDED, FINAL, Head
from sslim.backbone.modeling_sslim import SslimModel, SslimPreTrainedModel
from sslim.backbone.reading import FRONT, LOGITS, MASKED, Reader, Reading, deepest_layer
from sslim.config import RunConfig, apply_settings, from_dict, to_dict
from sslim.distill.distance import measure_distance
from sslim.distill.losses import distillation_loss
from sslim.distill.mapping import check_layers
from sslim.distill.masking import SPAN, masked_frames
from sslim.distill.objectives import OBJECTIVES, make_objectives, untrained_layers
from sslim.distill.objectives import clusters as clusters_module
from sslim.distill.objectives.clusters import Clusters, k_means
from sslim.distill.objectives.gram import Gram
from sslim.distill.objectives.masked import Masked, Unmasked
from sslim.distill.objectives.objective import Sizes
from sslim.distill.objectives.output import divergence
from sslim.distill.task import Task
from sslim.distill.view import View
from sslim.errors import ConfigError
from sslim.prune.gates import GatedModel, Gates
from sslim.prune.surgery import cut
from sslim.story import compress
from sslim.train.processes import Processes
from sslim.train.progress import StageBar
from sslim.train.step import Step
from tests.models import CASES, tiny_teacher
from tests.tasks import KINDS, gated_states, gated_task, plain_task, teacher
from tests.test_exactness import largest, random_values
from tests.test_gpu_habits import AskedError, three_updates

ALONE = Processes(0, 1, torch.device("cpu"))
NOTHING = torch.zeros(1, 400)
CLEAR = View(NOTHING, NOTHING)
HEADS = {
    "ctc": AutoModelForCTC,
    "sequence-classification": AutoModelForAudioClassification,
    "frame-classification": AutoModelForAudioFrameClassification,
}


def whole_of(
    kind: str, family: str = "hubert", size: str = "base", **changes: Any
) -> SslimPreTrainedModel:
    """A tiny model under a head."""
    auto = HEADS.get(kind, AutoModelForAudioXVector)
    dense = tiny_teacher(family, size, auto=auto, vocab_size=9, num_labels=4, **changes)
    return build(dense.config, dense.state_dict(), kind, "test")


def clips(count: int = 3) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [0.1 * generator.standard_normal(9000).astype(np.float32) for _ in range(count)]


def task_for(objectives: tuple[str, ...], *, gated: bool, **settings: Any) -> Task:
    """A task of a tiny model under a CTC head, ready to train."""
    whole = whole_of("ctc")
    model = getattr(whole, whole.base_model_prefix)
    head = Head(whole, "ctc")
    if gated:
        task = gated_task(model, objectives=objectives, head=head, **settings)
    else:
        small = copy.deepcopy(model)
        with torch.no_grad():  # some way from its teacher
            for weight in small.parameters():
                weight.add_(0.05 * torch.randn_like(weight) * weight.abs().mean())
        task = plain_task(model, small, objectives=objectives, head=head, **settings)
    task.prepare(clips())
    return task


# --- gram ----------------------------------------------------------------------------------------------


def gram(layers: tuple[int, ...]) -> Gram:
    return Gram(Sizes(2, 3, layers))


def test_similarities_of_frames_by_hand() -> None:
    """Cosines of the student's two frames: 0; of the teacher's: 0.6. Two of four products differ by 0.6."""
    student = {"layer.1": torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])}
    theirs = {"layer.1": torch.tensor([[[5.0, 0.0, 0.0], [0.6, 0.0, 0.8]]])}
    parts = gram((1,))(student, theirs, CLEAR)
    assert float(parts["loss"].detach()) == pytest.approx(2 * 0.36 / 4)
    assert parts.keys() == {"loss", "layerwise"}, "one layer has no next one"
    other = {"layer.1": student["layer.1"].flip(-1) * 3.0}
    assert torch.equal(gram((1,))(other, theirs, CLEAR)["loss"], parts["loss"]), "turned and scaled"
    wrong = {"layer.1": student["layer.1"] + torch.tensor([0.0, 0.1])}
    assert float(gram((1,))(wrong, theirs, CLEAR)["loss"]) != pytest.approx(2 * 0.36 / 4, abs=1e-3)


def test_similarities_between_layers_by_hand() -> None:
    """Each layer alone is as the teacher's; one is turned against the other by a right angle."""
    here = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    turned = torch.tensor([[[0.0, 1.0], [-1.0, 0.0]]])
    theirs = {FRONT: here, "layer.2": here}
    parts = gram((0, 2))({FRONT: here, "layer.2": turned}, theirs, CLEAR)
    assert float(parts["layerwise"]) == 0.0
    assert float(parts["between"]) == pytest.approx(1.0)  # [[1, 0], [0, 1]] and [[0, -1], [1, 0]]
    assert float(parts["loss"].detach()) == pytest.approx(1.0)
    assert float(gram((0, 2))(theirs, theirs, CLEAR)["loss"]) == 0.0, "the twin: not turned"


def test_similarities_keep_their_digits_in_bfloat16() -> None:
    torch.manual_seed(0)
    student, theirs = ({"layer.1": 4.0 + torch.randn(2, 30, 16)} for _ in range(2))
    exact = float(gram((1,))(student, theirs, CLEAR)["loss"])
    with torch.autocast("cpu", torch.bfloat16):
        assert float(gram((1,))(student, theirs, CLEAR)["loss"]) == pytest.approx(exact, rel=1e-6)
        rough = [torch.nn.functional.normalize(s["layer.1"], dim=-1) for s in (student, theirs)]
        coarse = (rough[0] @ rough[0].mT - rough[1] @ rough[1].mT).square().mean()
    assert float(coarse) != pytest.approx(exact, rel=1e-3), "the twin: products under autocast"


# --- clusters ------------------------------------------------------------------------------------------


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters_module, "CLUSTERS", 2)


def test_means_by_hand() -> None:
    frames = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.2, 0.0], [10.2, 0.0]])
    for seed in range(5):
        means, spread = k_means(frames, 2, torch.Generator().manual_seed(seed))
        assert sorted(means[:, 0].tolist()) == pytest.approx([0.1, 10.1])
        assert float(spread) == pytest.approx(0.01, rel=1e-3)
    means, _ = k_means(frames, 9, torch.Generator().manual_seed(0))
    assert {tuple(row) for row in means.tolist()} == {tuple(row) for row in frames.tolist()}


def test_units_by_hand(two: None) -> None:
    """Means 0 and 4 with a spread of 1: squared distances of 1.9 are 3.61 and 4.41, so odds of e^8."""
    objective = Clusters(Sizes(1, 3, (2,)))
    frames = torch.tensor([[[-1.0], [1.0], [3.0], [5.0]]])
    objective.prepare([{"layer.2": frames}])
    assert sorted(objective.means.flatten().tolist()) == pytest.approx([0.0, 4.0], abs=1e-5)
    state = {"layer.2": torch.tensor([[[1.9], [2.15]]])}
    parts = objective(state, state, CLEAR)
    by_hand = (math.log1p(math.exp(-8.0)) + math.log1p(math.exp(-12.0))) / 2
    assert float(parts["loss"].detach()) == pytest.approx(by_hand, rel=1e-3)
    assert float(parts["accuracy"]) == 1.0
    away = objective({"layer.2": state["layer.2"] + 0.2}, state, CLEAR)  # 2.1 is nearer to 4
    assert float(away["accuracy"]) == 0.5
    assert float(away["loss"].detach()) == pytest.approx(
        (8.0 + math.log1p(math.exp(-8.0)) + math.exp(-28.0)) / 2, rel=1e-3
    )


def test_clusters_follow_from_the_seed_and_the_audio() -> None:
    made = [task_for(("clusters",), gated=False) for _ in range(2)]
    first, second = (task.objectives.state_dict() for task in made)
    assert set(first) == {f"clusters.{name}" for name in ("means", "weight", "bias")}
    assert all(torch.equal(first[name], second[name]) for name in first)
    made[1].prepare(clips(2))
    other = made[1].objectives.state_dict()
    assert not torch.equal(first["clusters.means"], other["clusters.means"])
    fresh = Clusters(Sizes(32, 3, (0, 1, 3)))
    state = {name: torch.randn(1, 4, 32) for name in fresh.student_reads}
    assert not math.isfinite(float(fresh(state, state, CLEAR)["loss"].detach())), (
        "trained without clusters"
    )


def test_nobody_who_asks_for_no_clips_looks_at_them() -> None:
    task = task_for(("layers", "gram"), gated=False)
    task.prepare(iter(lambda: pytest.fail("looked at"), None))


# --- masked --------------------------------------------------------------------------------------------


def test_the_loss_of_some_frames_by_hand() -> None:
    """Frame 0: L1 1, cosine 1. Frame 1: L1 0.5, cosine 0. Frame 2 is as the teacher's."""
    mine = torch.tensor([[[2.0, 2.0], [1.0, 0.0], [3.0, 4.0]]])
    theirs = torch.tensor([[[1.0, 1.0], [1.0, 1e-9], [3.0, 4.0]]])
    theirs[0, 1] = torch.tensor([0.0, 0.0])
    some = torch.tensor([[True, True, False]])
    parts = distillation_loss([mine], [theirs], some)
    assert float(parts["l1"]) == pytest.approx((1.0 + 0.5) / 2)
    assert float(parts["cosine"]) == pytest.approx((1.0 + 0.0) / 2)
    assert float(parts["loss"].detach()) == pytest.approx(0.75 - 0.5)
    others = distillation_loss([mine], [theirs], ~some)
    assert float(others["loss"]) == pytest.approx(-1.0), "the twin: the mask the other way round"
    whole = distillation_loss([mine], [theirs])
    assert float(whole["loss"]) == pytest.approx((2 * 0.25 - 1.0) / 3)
    assert (
        float(distillation_loss([mine], [theirs], torch.zeros(1, 3, dtype=torch.bool))["loss"]) == 0
    )


def test_masks_follow_from_the_seed_the_update_and_what_is_heard() -> None:
    torch.manual_seed(0)
    audio = torch.randn(40, 4000)
    masks = masked_frames(audio, 150, seed=3, update=7)
    assert masks.shape == (40, 150)
    assert 0.4 < float(masks.float().mean()) < 0.55
    assert torch.equal(masks[11:13], masked_frames(audio[11:13], 150, seed=3, update=7)), "a piece"
    for seed, update in ((3, 8), (4, 7), (2**63 - 1, 10**9)):
        other = masked_frames(audio, 150, seed=seed, update=update)
        assert 0.4 < float((other == masks).float().mean()) < 0.6
    assert len({tuple(row) for row in masks.tolist()}) == 40, "each clip has its own"
    for row in masks.tolist():
        spans = "".join("x" if frame else "." for frame in row).split(".")
        assert all(len(span) >= SPAN for span in spans if span)
    assert not masked_frames(audio, SPAN, seed=3, update=7).any(), (
        "too short for a span beside others"
    )


def test_masked_frames_are_not_heard_by_the_layers() -> None:
    torch.manual_seed(0)
    model = teacher()
    reader = Reader(model, normalises=False).eval()
    one, other = torch.randn(2, 1, 4000)
    names = (FRONT, "layer.3", MASKED + FRONT, MASKED + "layer.3")
    everything = torch.ones(1, 12, dtype=torch.bool)
    calls = []
    model.feature_extractor.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        heard, else_ = (reader(audio, names, everything) for audio in (one, other))
        open_ = reader(one, names, None)
        some = reader(one, names, torch.arange(12)[None] < 5)
    assert len(calls) == 4, "the front-end runs once, whatever is masked behind it"
    assert torch.equal(heard[MASKED + "layer.3"], else_[MASKED + "layer.3"])
    assert not torch.equal(heard["layer.3"], else_["layer.3"])
    assert torch.equal(heard[MASKED + FRONT], heard[FRONT]), "the front lies before the mask"
    assert torch.equal(heard["layer.3"], some["layer.3"])
    assert torch.equal(open_[MASKED + "layer.3"], open_["layer.3"])
    assert not torch.equal(some[MASKED + "layer.3"], heard[MASKED + "layer.3"])


@pytest.mark.parametrize(("family", "size"), CASES)
@torch.no_grad()
def test_gated_equals_sliced_where_frames_are_masked(family: str, size: str) -> None:
    torch.manual_seed(0)
    waveforms = torch.randn(2, 6000, dtype=torch.float64)
    model = teacher(family, size).double().eval()
    gates = Gates(model, KINDS)
    values, plan = random_values(gates, 1, 0.5)
    gated = GatedModel(model, gates)
    small = cut(model, plan, gated.folded_state(values.double())).eval()
    frames = int(model._get_feat_extract_output_lengths(6000))
    masks = masked_frames(waveforms.float(), frames, seed=0, update=0)
    assert masks.any()
    mine = gated_states(gated, values.double(), waveforms, None, None, masks)
    theirs = small.distillation_features(waveforms, masked_BT=masks)
    assert largest(mine, theirs) < 1e-11
    others = small.distillation_features(waveforms, masked_BT=masks.flip(0))
    assert largest(mine, others) > 1e-4, "the twin: another mask"


def test_a_model_without_a_vector_for_masked_frames_hears_zeros() -> None:
    model = teacher(mask_time_prob=0.0)
    assert model.masked_spec_embed is None
    masks = torch.tensor([[True, False, True]])
    states = model._without_frames(torch.ones(1, 3, 32), masks)
    assert states.sum((0, 2)).tolist() == [0.0, 32.0, 0.0]


def test_masked_and_unmasked_frames_weigh_apart() -> None:
    """The two, each weighed by its frames, are the loss of all frames of a student that hears a mask."""
    torch.manual_seed(0)
    sizes = Sizes(8, 3, (1, 3))
    masks = masked_frames(torch.randn(3, 500), 40, seed=0, update=0)
    theirs = {name: torch.randn(3, 40, 8) for name in ("layer.1", "layer.3")}
    student = {MASKED + name: torch.randn(3, 40, 8) for name in theirs}
    view = View(NOTHING, NOTHING, masked_frames=masks)
    masked, unmasked = (kind(sizes)(student, theirs, view) for kind in (Masked, Unmasked))
    share = float(masks.float().mean())
    whole = distillation_loss(list(student.values()), list(theirs.values()))
    mixed = share * masked["loss"] + (1.0 - share) * unmasked["loss"]
    assert float(mixed.detach()) == pytest.approx(float(whole["loss"]), abs=1e-6)
    wrong = (1.0 - share) * masked["loss"] + share * unmasked["loss"]
    assert float(wrong.detach()) != pytest.approx(float(whole["loss"]), abs=1e-3)
    assert float(Masked(sizes)(student, theirs, CLEAR)["loss"].detach()) == 0.0
    assert torch.equal(Unmasked(sizes)(student, theirs, CLEAR)["loss"], whole["loss"])


def test_the_front_says_nothing_about_what_is_masked() -> None:
    assert Masked(Sizes(8, 3, (0, 3))).student_reads == (f"{MASKED}layer.3",)
    for name in ("masked", "last_layer"):
        with pytest.raises(ConfigError, match=f"{name} needs a mapped layer above 0"):
            make_objectives([name], Sizes(8, 3, (0,)))


# --- output --------------------------------------------------------------------------------------------


def test_divergence_by_hand() -> None:
    """The teacher says 1/4 and 3/4, the student 1/2 and 1/2."""
    mine, theirs = torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, math.log(3.0)]])
    by_hand = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert float(divergence(mine, theirs, 1.0)) == pytest.approx(by_hand)
    assert float(divergence(mine, 2.0 * theirs, 2.0)) == pytest.approx(4.0 * by_hand)
    assert float(divergence(theirs, mine, 1.0)) != pytest.approx(by_hand, abs=1e-3), "the twin"
    frames = torch.stack([mine, mine]), torch.stack([theirs, mine])  # one of two frames is right
    assert float(divergence(*frames, 1.0)) == pytest.approx(by_hand / 2)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize(("family", "size"), CASES)
@torch.no_grad()
def test_a_head_alone_is_the_model_s(family: str, size: str, kind: str, weighted: bool) -> None:
    if (family, kind) == ("hubert", "frame-classification"):
        pytest.skip("transformers has no such model")
    torch.manual_seed(0)
    whole = whole_of(kind, family, size, use_weighted_layer_sum=weighted)
    head = Head(whole, kind)
    assert head.reads[0] == (EMBEDDED if weighted and kind != "ctc" else FINAL)
    backbone: SslimModel = getattr(whole, whole.base_model_prefix)
    assert not {id(weight) for weight in head.parameters()} & {id(w) for w in whole.parameters()}
    names = {name for name in whole.state_dict() if not name.startswith(whole.base_model_prefix)}
    assert set(head.weights()) == names
    waveforms = torch.randn(2, 4000)
    reader = Reader(backbone, normalises=False, head=head)
    states = reader(waveforms, (LOGITS, *head.reads))
    assert torch.allclose(states[LOGITS], whole(waveforms).logits, atol=1e-6)
    assert torch.equal(head(states), states[LOGITS])
    next(iter(head.parameters())).mul_(1.1)
    assert not torch.allclose(head(states), states[LOGITS], atol=1e-4), (
        "the twin: a weight is spoilt"
    )


def test_what_output_cannot_learn_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"for CTC or classes, and this one has none"):
        make_objectives(["output"], Sizes(32, 3, (0, 3)))
    whole = whole_of(
        "x-vector", "wavlm", tdnn_dim=(16, 16), tdnn_kernel=(3, 1), tdnn_dilation=(1, 1)
    )
    with pytest.raises(ConfigError, match="has a head for x-vector"):
        make_objectives(["output"], Sizes(32, 3, (0, 3), Head(whole, "x-vector")))


# --- all of them ---------------------------------------------------------------------------------------

SETS = [
    ("layers", "gram:10"),
    ("gram",),
    ("clusters:0.1", "layers"),
    ("masked", "unmasked:0.5"),
    ("layers", "masked:0.5"),
    ("output",),
    ("last_layer",),
    tuple(OBJECTIVES),
]


def test_every_objective_is_tried() -> None:
    assert {name.partition(":")[0] for names in SETS[:-1] for name in names} == set(OBJECTIVES)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("objectives", SETS, ids="+".join)
def test_training_lowers_the_loss(objectives: tuple[str, ...], gated: bool) -> None:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"gate_learning_rate": 1e-9} if gated else {}
    task = task_for(objectives, gated=gated, learning_rate=2e-4, **settings)
    step = Step(task, ALONE, precision=torch.float32, clip_norm=10.0)
    audio = [Batch(0.1 * torch.randn(2, 6000), ("one", "two"))]

    def loss() -> float:
        task.begin_update(0)
        with torch.no_grad():
            return float(task(audio[0])["loss"])

    before = loss()
    for _ in range(12):
        step(0, 1.0, audio)  # the same update again, so the same gates and masks
    assert loss() < before - 1e-3 * abs(before)


def test_several_are_weighed_and_named() -> None:
    torch.manual_seed(0)
    task = task_for(("layers", "gram:10", "output:0.5"), gated=False)
    task.begin_update(0)
    figures = task(Batch(0.1 * torch.randn(2, 6000), ("one", "two")))
    parts = [float(figures[f"{name}.loss"]) for name in ("layers", "gram", "output")]
    loss = float(figures["loss"].detach())
    assert loss == pytest.approx(parts[0] + 10 * parts[1] + 0.5 * parts[2], abs=1e-6)
    assert loss != pytest.approx(sum(parts), abs=1e-4)
    assert {"l1", "cosine", "gram.layerwise", "gram.between", "output.agreement"} <= set(figures)
    trained = {weight for group in task.parameter_groups() for weight in group["params"]}
    assert trained == set(task.parameters())
    assert {name.partition(".")[0] for name in task.objectives.state_dict()} == {"layers", "output"}


@pytest.mark.parametrize("normalises", [False, True])
def test_nothing_in_an_update_asks_the_device(normalises: bool) -> None:
    task = task_for(tuple(OBJECTIVES), gated=True, normalises=normalises)
    three_updates(task)


def test_a_mask_made_by_asking_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The corrupted twin: frames chosen by an index of truths."""

    def asking(self: Masked, student: Reading, teacher: Reading, view: View) -> Any:
        assert view.masked_frames is not None
        name = self.teacher_reads[0]
        chosen = [s[view.masked_frames] for s in (student[MASKED + name], teacher[name])]
        return {"loss": (chosen[0] - chosen[1]).abs().mean()}

    monkeypatch.setattr(Masked, "forward", asking)
    with pytest.raises(AskedError):
        three_updates(task_for(("masked",), gated=True))


@pytest.mark.parametrize("objectives", [("gram:1",), ("output",), ("masked", "unmasked")])
def test_the_distance_is_measured_whatever_was_taught(objectives: tuple[str, ...]) -> None:
    task = task_for(objectives, gated=False)
    distance = measure_distance(task, clips(2), layers=(0, 3), device=ALONE.device)
    assert distance.utterances == 2
    assert set(distance.layers) == {0, 3}
    assert all(0.5 < row["cosine"] < 1.0 for row in distance.layers.values())
    twin = plain_task(task.teacher.model, copy.deepcopy(task.teacher.model))
    itself = measure_distance(twin, clips(2), layers=(0, 3), device=ALONE.device)
    assert all(row["cosine"] > 0.999 for row in itself.layers.values())


# --- settings ------------------------------------------------------------------------------------------


def test_all_layers() -> None:
    config = apply_settings(RunConfig(), ["layers=all"])
    assert check_layers(config.layers, 4) == (0, 1, 2, 3, 4)
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert apply_settings(config, ["layers=0,2"]).layers == (0, 2)
    for wrong in ("everything", "0,all", "al"):
        with pytest.raises(ConfigError, match="each entry a whole number, or all"):
            apply_settings(RunConfig(), [f"layers={wrong}"])


def test_layers_that_nothing_trains_are_named() -> None:
    def warned(names: list[str], layers: tuple[int, ...]) -> str:
        sizes = Sizes(32, 3, layers, Head(whole_of("ctc"), "ctc"))
        return untrained_layers(make_objectives(names, sizes), sizes)

    assert "nothing above layer 2 of 3 is trained" in warned(["layers"], (0, 2))
    assert "nothing above layer 1 of 3" in warned(["masked", "gram"], (0, 1))
    assert warned(["layers"], (0, 2, 3)) == ""
    assert warned(["layers", "output"], (0, 2)) == "", "the head reads the last layer"
    assert deepest_layer([FRONT, EMBEDDED], 3) == 0


# --- whole runs ----------------------------------------------------------------------------------------

SETTINGS = [
    "seconds_per_update=2",
    "seconds_per_batch=1",
    "audio.min_seconds=0.2",
    "audio.max_seconds=1",
    "stage1.updates=4",
    "stage2.updates=3",
    "workers=0",
    "log_every=1",
    "checkpoint_every=2",
    "precision=float32",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Audio, a bare teacher and one under a head."""
    folder = tmp_path_factory.mktemp("objectives")
    tiny_teacher("hubert").save_pretrained(folder / "bare")
    tiny_teacher("hubert", auto=AutoModelForCTC, vocab_size=9).save_pretrained(folder / "ctc")
    (folder / "audio").mkdir()
    for number, clip in enumerate(clips(8)):
        soundfile.write(folder / "audio" / f"{number}.wav", clip, 16_000)
    return folder


def run(place: Path, out: Path, *more: str, teacher: str = "ctc", **options: Any) -> Any:
    settings = [*SETTINGS, *more]
    options = {"progress": False} | options
    return compress(
        place / teacher, place / "audio", out, settings=settings, params="50%", **options
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(
    ("objectives", "stop"),
    [
        ("layers:1,gram:10,clusters:0.1", 3),
        ("masked,unmasked:0.5", 3),
        ("output", 6),
        ("clusters", 1),
    ],
)
def test_an_interrupted_run_goes_on_bit_for_bit(
    place: Path, objectives: str, stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = f"objectives={objectives}"
    result = run(place, tmp_path / "whole", setting)
    assert set(result.layers) == {0, 1, 2, 3}
    steps = 0

    def interrupt(*_: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == stop:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(StageBar, "__call__", interrupt)
        run(place, tmp_path / "cut", setting)
    run(place, tmp_path / "cut", setting, resume=True)
    logs = [(tmp_path / name / "run" / "metrics.jsonl").read_text() for name in ("whole", "cut")]
    assert logs[0] == logs[1]
    whole, cut_short = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut_short[name]) for name in whole)


def test_the_head_that_was_learned_is_the_result_s(place: Path, tmp_path: Path) -> None:
    dense = AutoModelForCTC.from_pretrained(place / "ctc")
    run(place, tmp_path / "taught", "objectives=output")
    run(place, tmp_path / "kept")
    taught, kept = (AutoModelForCTC.from_pretrained(tmp_path / n) for n in ("taught", "kept"))
    assert torch.equal(kept.lm_head.weight, dense.lm_head.weight)
    difference = (taught.lm_head.weight - dense.lm_head.weight).abs().max().item()
    assert 1e-6 < difference < 0.1
    assert AutoModel.from_pretrained(tmp_path / "taught").num_parameters() > 0


def test_what_cannot_be_taught_is_said_before_training(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="this one has none"):
        run(place, tmp_path / "out", "objectives=layers,output", teacher="bare")
    assert not (tmp_path / "out").exists()
    run(place, tmp_path / "out", "layers=0,2", teacher="bare", progress=True)
    said = capsys.readouterr().err
    assert "warning: nothing above layer 2 of 3 is trained" in " ".join(said.split())


def test_the_same_masks_whatever_fits_the_memory() -> None:
    """A batch that is cut into pieces hears the same masks, so the gradients are the same."""
    gradients = []
    for largest_batch in (None, 6000):
        torch.manual_seed(0)
        task = task_for(("masked", "unmasked"), gated=True)
        step = Step(task, ALONE, precision=torch.float32, clip_norm=10.0)
        step.largest = largest_batch
        step(0, 1.0, [Batch(0.1 * torch.randn(3, 6000), ("one", "two", "three"))])
        grads = [weight.grad for weight in task.student.model.parameters()]
        gradients.append(torch.cat([grad.flatten() for grad in grads if grad is not None]))
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-6)
