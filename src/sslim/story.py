"""The story: a teacher, audio and a budget in; a smaller model that transformers loads out.

    teacher and audio are read and checked      before anything is trained
    joint stage      the student, under gates, learns the teacher while units close
    decision         the gates write a plan within the budget
    surgery          the plan makes a small model
    recovery stage   the same loop distils the small model again
    folder           config, weights, model code, card, `sslim.json`

The method is DPHuBERT's (Peng et al., Interspeech 2023). A run can be interrupted anywhere and resumed.
"""

from __future__ import annotations

import copy
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from sslim.audio import Manifest, read_source
from sslim.audio.shards import Shards, find_shards, first_clips
from sslim.backbone.loading import LoadedModel, load_model
from sslim.backbone.modeling_sslim import SslimModel
from sslim.backbone.saving import save_folder, under_head
from sslim.backbone.units import plan_of, shape_of
from sslim.config import (
    JointConfig,
    RunConfig,
    parse_budget,
    to_dict,
    to_flat_dict,
)
from sslim.distill.cache import TargetCache
from sslim.distill.losses import distillation_loss
from sslim.distill.task import (
    DistillationTask,
    JointTask,
    Projections,
    check_layers,
    normalise,
)
from sslim.errors import AudioError, ConfigError
from sslim.files import write_json
from sslim.plan import MACS_SECONDS, SAMPLING_RATE, PruningPlan
from sslim.prune.budget import Budget
from sslim.prune.surgery import cut
from sslim.recipes import resolve
from sslim.report.card import model_card
from sslim.train.device import choose_precision, device_name, versions
from sslim.train.folder import RUN_FOLDER, create_folder, keep_inputs_apart, may_write, write_run
from sslim.train.processes import Processes, find_processes
from sslim.train.progress import ProgressBar
from sslim.train.stage import Session, run_stage
from sslim.train.state import RunState
from sslim.train.tracking import Trackers

MEASURED_UTTERANCES = 32
"""Utterances on which the distance to the teacher is measured at the end."""


@dataclass(frozen=True)
class CompressionResult:
    """What came out, as it is written to `sslim.json`."""

    out: Path
    family: str
    parameters: int
    dense_parameters: int
    macs_per_second: int
    dense_macs_per_second: int
    file_bytes: int
    layers: dict[int, dict[str, float]]
    """Mapped layer -> cosine similarity and L1 distance to the teacher, through the projections."""
    undecided: int
    units: int
    seconds: float

    def summary_line(self) -> str:
        """One line: parameters, MACs, file size, distance per mapped layer."""
        cosine = " ".join(f"{layer}:{row['cosine']:.3f}" for layer, row in self.layers.items())
        return (
            f"{self.out}: {self.parameters:,} parameters "
            f"({self.parameters / self.dense_parameters:.1%} of {self.dense_parameters:,}), "
            f"{self.macs_per_second / 1e9:.3g} GMACs per second of audio "
            f"({self.macs_per_second / self.dense_macs_per_second:.1%}), "
            f"{self.file_bytes / 1e6:.1f} MB, cosine to the teacher by layer {cosine}"
        )


@dataclass(frozen=True)
class _Run:
    """What both stages share: the training room's session, and what only this story knows."""

    session: Session
    teacher: LoadedModel
    budget: Budget
    layers: tuple[int, ...]

    @property
    def config(self) -> RunConfig:
        return self.session.config

    @property
    def audio(self) -> Manifest | Shards:
        return self.session.audio

    @property
    def folder(self) -> Path:
        return self.session.folder

    @property
    def processes(self) -> Processes:
        return self.session.processes

    def say(self, line: str) -> None:
        self.session.progress.say(line)


def compress(
    teacher: str | Path,
    audio: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    recipe: str = "paper",
    config: str | Path | None = None,
    settings: Sequence[str] = (),
    params: str | None = None,
    sparsity: float | None = None,
    resume: bool = False,
    force: bool = False,
    device: str | None = None,
    where: Mapping[str, str] | None = None,
    revision: str | None = None,
    progress: bool = True,
) -> CompressionResult:
    """Compresses `teacher` with unlabelled `audio` and writes a folder that transformers loads.

    Args:
        teacher: hub id, local folder, or checkpoint file.
        audio: a folder (searched recursively), a list of files, a fairseq tsv, a CSV manifest, a lhotse
            manifest, or shards (lhotse Shar, WebDataset), which are streamed.
        out: folder to write.
        recipe: `paper`, `fast` or `demo`.
        config: a TOML file that edits the recipe.
        settings: edits such as `stage1.updates=2000`.
        params: budget on the backbone's parameters, such as `25%` or `24M`.
        sparsity: the share to remove, instead of `params`.
        resume: go on with an interrupted run in `out`.
        force: replace what `out` holds.
        device: `auto`, `cpu`, `cuda`, ...
        where: rows of a CSV manifest to take, as column -> value.
        revision: the branch, tag or commit of a hub id; the same as `owner/name@revision`.
        progress: draw a progress bar on stderr.

    Raises:
        SslimError: the teacher, the audio, a setting, the budget or the output folder cannot be used;
            raised before training starts wherever that can be known.
    """
    began = time.perf_counter()
    resolved = resolve(
        recipe, config=config, settings=settings, params=params, sparsity=sparsity, device=device
    )
    out = Path(out)
    processes = find_processes(resolved.device)
    keep_inputs_apart(out, teacher, audio)
    finished = processes.main and not may_write(out, resume=resume, force=force)
    if processes.agree(float(finished)):
        return _read_result(out)
    with ProgressBar(progress and processes.main) as bar:
        loaded = load_model(teacher, revision=revision)
        run = _check(resolved, loaded, audio, where, out, bar, processes)
        if processes.main:
            if not resume:
                create_folder(out)
            write_run(run.session, _description(run, recipe, audio), resume=resume)
        processes.wait()
        with _noted(run, recipe):
            student, projections, decision = _joint_stage(run)
            student = _recovery_stage(run, student, projections)
            if processes.main:
                _finish(run, student, projections, decision, recipe, audio, out, began)
            processes.wait()
    return _read_result(out)


@contextmanager
def _noted(run: _Run, recipe: str) -> Iterator[None]:
    """Keeps `state.json` true about how the run ends."""
    state = run.session.state
    state.set(status="running", recipe=recipe)
    try:
        with run.session.trackers:
            yield
    except KeyboardInterrupt:
        state.set(status="interrupted")
        raise
    except Exception as error:
        state.set(status="failed", reason=str(error))
        raise
    state.set(status="finished", seconds_left=0.0)


def _check(
    config: RunConfig,
    teacher: LoadedModel,
    audio: str | Path | Sequence[str | Path],
    where: Mapping[str, str] | None,
    out: Path,
    bar: ProgressBar,
    processes: Processes,
) -> _Run:
    """Everything that can be known to be wrong before training is found here."""
    shape, plan = shape_of(teacher.model), plan_of(teacher.model)
    now = plan.count(shape, config.budget_quantity)
    budget = Budget(config.budget_quantity, parse_budget(config.budget, now), now)
    budget.check(plan, shape, config.units)
    layers = check_layers(config.layers, shape.layers)
    folder = out / RUN_FOLDER
    trackers = Trackers(config.trackers if processes.main else (), folder, to_flat_dict(config))
    bar.say("looking at the audio ...")
    heard = _read_audio(config, audio, where, folder, bar)
    bar.say(
        f"{teacher.family} teacher, {now:,} {config.budget_quantity}; {heard.described()}; "
        f"budget {budget.limit:,} {config.budget_quantity}"
    )
    session = Session(
        config=config,
        audio=heard,
        folder=folder,
        processes=processes,
        precision=choose_precision(config.precision, processes.device),
        progress=bar,
        state=RunState(
            folder,
            {"stage1": config.stage1.updates, "stage2": config.stage2.updates},
            writes=processes.main,
        ),
        trackers=trackers,
    )
    return _Run(session, teacher, budget, layers)


def _read_audio(
    config: RunConfig,
    audio: str | Path | Sequence[str | Path],
    where: Mapping[str, str] | None,
    folder: Path,
    bar: ProgressBar,
) -> Manifest | Shards:
    shards = find_shards(audio)
    if shards is not None:
        if where:
            raise AudioError("shards have no columns to choose from", "leave out --where")
        if config.target_cache_gib:
            raise ConfigError(
                "target_cache_gib needs audio that is heard alike each epoch, and shards are not",
                "leave it at 0",
            )
        return shards
    manifest = read_source(
        audio,
        min_seconds=config.audio.min_seconds,
        where=where,
    )
    for skipped in manifest.skipped[:5]:
        bar.say(f"skipped {skipped.path}: {skipped.reason}")
    if len(manifest.skipped) > 5:
        bar.say(f"skipped {len(manifest.skipped) - 5} more; all are listed in {folder}")
    return manifest


def _description(run: _Run, recipe: str, audio: Any) -> dict[str, Any]:
    """What the run is: kept in its folder, and compared when it is resumed."""
    return {
        "config": to_dict(run.config),
        "recipe": recipe,
        "teacher": {
            "source": run.teacher.source,
            "fingerprint": run.teacher.fingerprint,
            "commit": run.teacher.commit,
        },
        "audio": {"source": str(audio), **run.audio.summary()},
        "device": device_name(run.processes.device),
        "processes": run.processes.count,
        "precision": str(run.session.precision).removeprefix("torch."),
        "versions": versions(),
    }


def _joint_stage(run: _Run) -> tuple[SslimModel, Projections, dict[str, Any]]:
    """Joint distillation and pruning, the decision, and the cut; skipped where it is already done."""
    config, done = run.config, run.folder / "pruned"
    student = copy.deepcopy(run.teacher.model)
    if (done / "decision.json").is_file():
        return _load_pruned(run, student, done)
    task = JointTask(
        run.teacher.model,
        student,
        budget=run.budget,
        kinds=config.units,
        gate_learning_rate=config.stage1.gate_learning_rate,
        sparsity_warmup=round(config.stage1.sparsity_warmup_fraction * config.stage1.updates),
        seed=config.seed,
        shrink_every=_shrink_every(config.stage1),
        shrink_multiple=config.stage1.shrink_multiple,
        layers=run.layers,
        learning_rate=config.stage1.learning_rate,
        normalise_waveform=run.teacher.normalise,
        cache=_target_cache(run),
    )
    task.to(run.processes.device)
    run_stage(
        run.session,
        "stage1",
        task,
        updates=config.stage1.updates,
        warmup_fraction=config.stage1.warmup_fraction,
        first=0,
    )
    decision = task.decide()
    if decision.undecided:
        run.say(
            f"warning: {decision.undecided:,} of {task.gates.total:,} gates had not settled; a "
            "global threshold decided them. More updates (--set stage1.updates=...) make a better choice."
        )
    small = cut(task.student, decision.plan, task.gated.folded_state(decision.values))
    facts = {
        "plan": decision.plan.to_dict(),
        "undecided": decision.undecided,
        "units": task.gates.total,
        "shrinks": task.shrinks,
        "shift": decision.shift,
    }
    if run.processes.main:
        _save_pruned(done, small, task.projections, facts)
        shutil.rmtree(run.folder / "checkpoints" / "stage1", ignore_errors=True)
    run.processes.wait()
    return small, task.projections, facts


def _shrink_every(stage: JointConfig) -> int:
    """Updates between two chances to shrink; 0: none."""
    return max(1, stage.updates // stage.shrink_chances) if stage.shrink_chances else 0


def _target_cache(run: _Run) -> TargetCache | None:
    gib = run.config.target_cache_gib
    if not gib:
        return None
    return TargetCache(run.folder / "targets", int(gib * 2**30), run.processes.count)


def _save_pruned(
    folder: Path, student: SslimModel, projections: Projections, facts: dict[str, Any]
) -> None:
    folder.mkdir(exist_ok=True)
    tensors = {f"student.{name}": value for name, value in student.state_dict().items()}
    tensors |= {f"projections.{name}": value for name, value in projections.state_dict().items()}
    save_file(
        {name: value.detach().cpu().contiguous() for name, value in tensors.items()},
        folder / "state.safetensors",
    )
    write_json(folder / "decision.json", facts)  # last: its presence says "complete"


def _load_pruned(
    run: _Run, student: SslimModel, folder: Path
) -> tuple[SslimModel, Projections, dict[str, Any]]:
    facts = json.loads((folder / "decision.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "state.safetensors")
    small = cut(student, PruningPlan.from_dict(facts["plan"]))
    projections = Projections(small.config.hidden_size, run.layers)
    for module, prefix in ((small, "student."), (projections, "projections.")):
        module.load_state_dict(
            {
                name.removeprefix(prefix): value
                for name, value in tensors.items()
                if name.startswith(prefix)
            }
        )
    return small, projections, facts


def _recovery_stage(run: _Run, student: SslimModel, projections: Projections) -> SslimModel:
    """Distils the small model again."""
    config = run.config.stage2
    if config.updates == 0:
        return student
    task = DistillationTask(
        run.teacher.model,
        student,
        layers=run.layers,
        learning_rate=config.learning_rate,
        normalise_waveform=run.teacher.normalise,
        projections=projections,
        cache=_target_cache(run),
    )
    task.to(run.processes.device)
    run_stage(
        run.session,
        "stage2",
        task,
        updates=config.updates,
        warmup_fraction=config.warmup_fraction,
        first=run.config.stage1.updates,
    )
    return student


@torch.no_grad()
def measure_layers(
    run: _Run, student: SslimModel, projections: Projections
) -> tuple[dict[int, dict[str, float]], int]:
    """Cosine and L1 per mapped layer on the first utterances, one at a time, in evaluation mode."""
    torch.nn.Module.to(student, run.processes.device).eval()
    projections = projections.to(run.processes.device)
    sums = {layer: {"cosine": 0.0, "l1": 0.0} for layer in run.layers}
    clips = list(first_clips(run.audio, MEASURED_UTTERANCES, run.config.audio.min_seconds))
    for clip in clips:
        samples = clip[: int(run.config.audio.max_seconds * SAMPLING_RATE)]
        waveforms = torch.from_numpy(samples)[None].to(run.processes.device)
        if run.teacher.normalise:
            waveforms = normalise(waveforms)
        last = run.layers[-1]
        theirs = run.teacher.model.distillation_features(waveforms, last_layer=last)
        mine = student.distillation_features(waveforms, last_layer=last)
        projected = projections([mine[layer] for layer in run.layers])
        for layer, state in zip(run.layers, projected, strict=True):
            parts = distillation_loss([state], [theirs[layer]])
            for name in ("cosine", "l1"):
                sums[layer][name] += float(parts[name]) / len(clips)
    return sums, len(clips)


def _finish(
    run: _Run,
    student: SslimModel,
    projections: Projections,
    decision: Mapping[str, Any],
    recipe: str,
    audio: Any,
    out: Path,
    began: float,
) -> None:
    """Measures, writes the folder and its card, and clears what only a resume would need."""
    layers, measured = measure_layers(run, student, projections)
    student = student.cpu().eval()
    shape, plan = shape_of(student), plan_of(student)
    dense = plan_of(run.teacher.model)
    hop = 1
    for stride in shape.conv_strides:
        hop *= stride
    result: dict[str, Any] = {
        "family": run.teacher.family,
        "head": run.teacher.head,
        "parameters": plan.parameters(shape),
        "dense_parameters": dense.parameters(shape),
        "macs_per_second": round(plan.macs(shape) / MACS_SECONDS),
        "dense_macs_per_second": round(dense.macs(shape) / MACS_SECONDS),
        "file_bytes": 0,
        "layers": layers,
        "measured_utterances": measured,
        "undecided": decision["undecided"],
        "units": decision["units"],
        "shrinks": decision["shrinks"],
        "seconds": time.perf_counter() - began,
        "seconds_waited_for_audio": sum(run.session.waited.values()),
        "hidden_states": shape.layers + 1,
        "width": shape.hidden_size,
        "hop": hop,
        "normalise": run.teacher.normalise,
    }
    facts: dict[str, Any] = {
        "name": out.name,
        "recipe": recipe,
        "config": to_dict(run.config),
        # Names only: the folder may be published, and `run/run.json` has the paths.
        "teacher": {
            "source": Path(run.teacher.source).name
            if Path(run.teacher.source).exists()
            else run.teacher.source,
            "fingerprint": run.teacher.fingerprint,
            "commit": run.teacher.commit,
        },
        "audio": {"source": Path(str(audio)).name, **run.audio.summary()},
        "device": device_name(run.processes.device),
        "precision": str(run.session.precision).removeprefix("torch."),
        "versions": versions(),
        "result": result,
    }
    whole = under_head(run.teacher, student)
    save_folder(
        out,
        whole,
        normalise=run.teacher.normalise,
        run=facts,
        tokenizer_from=run.teacher.folder,
        finalise=lambda folder: _measure_file(folder, facts),
    )
    save_file(
        {
            name: value.detach().cpu().contiguous()
            for name, value in projections.state_dict().items()
        },
        run.folder / "projections.safetensors",
    )
    shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)
    shutil.rmtree(run.folder / "pruned", ignore_errors=True)
    shutil.rmtree(run.folder / "targets", ignore_errors=True)


def _measure_file(folder: Path, facts: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The real size of the weights on disk, known only once they are written."""
    facts["result"]["file_bytes"] = sum(
        path.stat().st_size for path in folder.glob("*.safetensors")
    )
    return facts, model_card(facts)


def _read_result(out: Path) -> CompressionResult:
    result = json.loads((out / "sslim.json").read_text(encoding="utf-8"))["result"]
    return CompressionResult(
        out=out,
        family=result["family"],
        parameters=result["parameters"],
        dense_parameters=result["dense_parameters"],
        macs_per_second=result["macs_per_second"],
        dense_macs_per_second=result["dense_macs_per_second"],
        file_bytes=result["file_bytes"],
        layers={int(layer): row for layer, row in result["layers"].items()},
        undecided=result["undecided"],
        units=result["units"],
        seconds=result["seconds"],
    )
