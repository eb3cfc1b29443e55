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
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file, save_file

from sslim.audio import Manifest, Skipped, UpdateSampler, load_audio, read_source
from sslim.audio.batching import Batches
from sslim.backbone.loading import LoadedModel, load_model
from sslim.backbone.modeling_sslim import SslimModel
from sslim.backbone.saving import save_folder, under_head
from sslim.backbone.units import plan_of, shape_of
from sslim.config import (
    SAFE_TO_CHANGE,
    RunConfig,
    difference,
    from_dict,
    parse_budget,
    to_dict,
)
from sslim.distill.losses import distillation_loss
from sslim.distill.task import (
    DistillationTask,
    JointTask,
    Projections,
    check_layers,
    normalise,
)
from sslim.errors import ConfigError, OutputError
from sslim.plan import MACS_SECONDS, PruningPlan
from sslim.prune.budget import Budget
from sslim.prune.surgery import cut
from sslim.recipes import resolve
from sslim.report.card import model_card
from sslim.train import checkpoint
from sslim.train.device import choose_device, choose_precision, device_name, versions
from sslim.train.loop import LoopSettings, train
from sslim.train.progress import ProgressBar

MEASURED_UTTERANCES = 32
"""Utterances on which the distance to the teacher is measured at the end."""

SHRINK_CHANCES = 20
"""How often in the joint stage it is asked whether shrinking the student is worth it."""

RUN_FOLDER = "run"
"""Where a run keeps its log, state and checkpoints, inside the output folder."""


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
    """What both stages share."""

    config: RunConfig
    teacher: LoadedModel
    manifest: Manifest
    budget: Budget
    layers: tuple[int, ...]
    folder: Path
    device: torch.device
    precision: torch.dtype
    progress: ProgressBar


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
    progress: bool = True,
) -> CompressionResult:
    """Compresses `teacher` with unlabelled `audio` and writes a folder that transformers loads.

    Args:
        teacher: hub id, local folder, or checkpoint file.
        audio: a folder (searched recursively), a list of files, a fairseq tsv, a CSV manifest, or a
            lhotse manifest.
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
    _keep_inputs_apart(out, teacher, audio)
    finished = _prepare_folder(out, resume=resume, force=force)
    if finished is not None:
        return finished
    with ProgressBar(progress) as bar:
        loaded = load_model(teacher)
        run = _check(resolved, loaded, audio, where, out, bar)
        if not resume:
            _create_folder(out)
        _write_run(run, recipe, audio, resume)
        student, projections, decision = _joint_stage(run)
        student = _recovery_stage(run, student, projections)
        return _finish(run, student, projections, decision, recipe, audio, out, began)


def _keep_inputs_apart(
    out: Path, teacher: str | Path, audio: str | Path | Sequence[str | Path]
) -> None:
    """The result must not be written over what it is made from."""
    inputs = [("teacher", teacher)]
    if isinstance(audio, (str, Path)):
        inputs.append(("audio", audio))
    for what, path in inputs:
        if Path(path).exists() and Path(path).resolve().is_relative_to(out.resolve()):
            raise OutputError(
                f"the {what} {path} lies in the output folder {out}",
                "choose another folder for OUT",
            )


def _prepare_folder(out: Path, *, resume: bool, force: bool) -> CompressionResult | None:
    """Refuses to overwrite; returns the result where a resumed run had already finished."""
    if out.is_file():
        raise OutputError(f"{out} is a file", "give a folder for the result")
    holds = out.is_dir() and any(out.iterdir())
    if resume:
        if not (out / RUN_FOLDER / "run.json").is_file():
            raise OutputError(f"{out} holds no run to resume", "run without --resume to start one")
        if (out / "sslim.json").is_file():
            facts = json.loads((out / "sslim.json").read_text(encoding="utf-8"))
            return _result(out, facts["result"])
        return None
    if holds and not force:
        raise OutputError(
            f"{out} already holds something",
            "use --resume to go on, --force to replace it, or a new folder",
        )
    if holds and not ((out / RUN_FOLDER).is_dir() or (out / "sslim.json").is_file()):
        raise OutputError(
            f"{out} holds files that are not from sslim, and --force would remove them",
            "choose an empty folder, or empty this one yourself",
        )
    return None


def _create_folder(out: Path) -> None:
    """Only now, when everything has been checked, goes what `--force` replaces."""
    try:
        if out.is_dir():
            shutil.rmtree(out)
        (out / RUN_FOLDER).mkdir(parents=True)
    except OSError as error:
        raise OutputError(
            f"cannot create {out}: {error.strerror}", "choose another folder"
        ) from error


def _check(
    config: RunConfig,
    teacher: LoadedModel,
    audio: str | Path | Sequence[str | Path],
    where: Mapping[str, str] | None,
    out: Path,
    bar: ProgressBar,
) -> _Run:
    """Everything that can be known to be wrong before training is found here."""
    shape, plan = shape_of(teacher.model), plan_of(teacher.model)
    now = plan.count(shape, config.budget_quantity)
    budget = Budget(config.budget_quantity, parse_budget(config.budget, now), now)
    budget.check(plan, shape, config.units)
    layers = check_layers(config.layers, shape.layers)
    device = choose_device(config.device)
    bar.say("looking at the audio ...")
    manifest = read_source(
        audio,
        min_seconds=config.audio.min_seconds,
        max_seconds=config.audio.max_seconds,
        where=where,
    )
    for skipped in manifest.skipped[:5]:
        bar.say(f"skipped {skipped.path}: {skipped.reason}")
    if len(manifest.skipped) > 5:
        bar.say(f"skipped {len(manifest.skipped) - 5} more; all are listed in {out / RUN_FOLDER}")
    bar.say(
        f"{teacher.family} teacher, {now:,} {config.budget_quantity}; "
        f"{len(manifest.utterances):,} utterances, {manifest.seconds / 3600:.2f} h; "
        f"budget {budget.limit:,} {config.budget_quantity}"
    )
    return _Run(
        config=config,
        teacher=teacher,
        manifest=manifest,
        budget=budget,
        layers=layers,
        folder=out / RUN_FOLDER,
        device=device,
        precision=choose_precision(config.precision, device),
        progress=bar,
    )


def _write_run(run: _Run, recipe: str, audio: Any, resume: bool) -> None:
    """Writes what the run is, or checks that a resumed run is still the same."""
    facts = {
        "config": to_dict(run.config),
        "recipe": recipe,
        "teacher": {"source": run.teacher.source, "fingerprint": run.teacher.fingerprint},
        "audio": {"source": str(audio), **run.manifest.summary()},
    }
    path = run.folder / "run.json"
    if not resume:
        checkpoint.write_json(path, facts)
        checkpoint.write_json(
            run.folder / "skipped.json",
            {"skipped": [asdict(item) for item in run.manifest.skipped]},
        )
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    changed = difference(from_dict(before["config"]), run.config)
    unsafe = {name: pair for name, pair in changed.items() if name not in SAFE_TO_CHANGE}
    if unsafe:
        listed = ", ".join(
            f"{name} ({old} before, {new} now)" for name, (old, new) in unsafe.items()
        )
        raise ConfigError(
            f"the run in {run.folder.parent} was started with other settings: {listed}",
            "resume with the same settings, or start anew with --force",
        )
    if before["teacher"]["fingerprint"] != run.teacher.fingerprint:
        raise ConfigError(
            f"the run in {run.folder.parent} was started with another teacher",
            f"resume with {before['teacher']['source']}, or start anew with --force",
        )
    if before["audio"] != json.loads(json.dumps(facts["audio"])):
        run.progress.say("warning: the audio is not what the run was started with")


def _loop(run: _Run, stage: str, updates: int, warmup_fraction: float) -> LoopSettings:
    return LoopSettings(
        stage=stage,
        updates=updates,
        warmup_fraction=warmup_fraction,
        clip_norm=run.config.clip_norm,
        device=run.device,
        precision=run.precision,
        log_every=run.config.log_every,
        checkpoint_every=run.config.checkpoint_every,
        keep_checkpoints=run.config.keep_checkpoints,
    )


def _train(run: _Run, task: DistillationTask, settings: LoopSettings, first: int) -> None:
    """Runs one stage; `first` is its first update in the run's one sequence of updates."""
    task.to(run.device)
    saved = checkpoint.found(run.folder / "checkpoints" / settings.stage)
    start = saved[-1] if saved else None
    done = int(checkpoint.load(start)[1]["update"]) if start else 0
    config = run.config
    sampler = UpdateSampler(
        [utterance.seconds for utterance in run.manifest.utterances],
        seconds_per_update=config.seconds_per_update,
        seconds_per_batch=config.seconds_per_batch or automatic_batch_seconds(run),
        max_seconds=config.audio.max_seconds,
        seed=config.seed,
    )
    # A fresh stage starts from noise that depends on the seed alone, however it was reached.
    torch.manual_seed(config.seed + first)

    lost: set[str] = set()

    def report_lost(item: Skipped) -> None:
        if item.path in lost:
            return
        lost.add(item.path)
        run.progress.say(f"warning: skipped {item.path}: {item.reason}")

    with Batches(
        run.manifest,
        sampler,
        first_update=first + done,
        last_update=first + settings.updates,
        workers=config.workers,
        max_seconds=config.audio.max_seconds,
        pin_memory=run.device.type == "cuda",
        on_lost=report_lost,
    ) as stream:
        numbered = ((update - first, audio) for update, audio in stream)
        train(task, numbered, settings, run.folder, start=start, on_progress=run.progress)


def automatic_batch_seconds(run: _Run) -> float:
    """Audio that passes through the models at once, when the settings leave it open.

    Memory is what limits: HuBERT Base (768 x 12) trains about 4 s of audio per GiB beside its teacher, with
    room to spare. On a CPU larger batches gain nothing once the cores are busy.
    """
    cuda = run.device.type == "cuda"
    if cuda:
        memory = torch.cuda.get_device_properties(run.device).total_memory
    else:
        memory = psutil.virtual_memory().available
    size = run.teacher.model.config.hidden_size * run.teacher.model.config.num_hidden_layers
    fits = 4.0 * memory / 2**30 * 768 * 12 / size
    return max(run.config.audio.max_seconds, min(640.0 if cuda else 32.0, fits))


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
        shrink_every=max(1, config.stage1.updates // SHRINK_CHANCES),
        layers=run.layers,
        learning_rate=config.stage1.learning_rate,
        normalise_waveform=run.teacher.normalise,
    )
    settings = _loop(run, "stage1", config.stage1.updates, config.stage1.warmup_fraction)
    _train(run, task, settings, 0)
    decision = task.decide()
    if decision.undecided:
        run.progress.say(
            f"warning: {decision.undecided:,} of {task.gates.total:,} gates had not settled; a "
            "global threshold decided them. More updates (--set stage1.updates=...) make a better choice."
        )
    small = cut(task.student, decision.plan, task.gated.folded_state(decision.values))
    facts = {
        "plan": decision.plan.to_dict(),
        "undecided": decision.undecided,
        "units": task.gates.total,
        "shrunk_at": task.shrunk_at,
        "shift": decision.shift,
    }
    _save_pruned(done, small, task.projections, facts)
    shutil.rmtree(run.folder / "checkpoints" / "stage1", ignore_errors=True)
    return small, task.projections, facts


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
    checkpoint.write_json(folder / "decision.json", facts)  # last: its presence says "complete"


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
    )
    settings = _loop(run, "stage2", config.updates, config.warmup_fraction)
    _train(run, task, settings, run.config.stage1.updates)
    return student


@torch.no_grad()
def measure_layers(
    run: _Run, student: SslimModel, projections: Projections
) -> tuple[dict[int, dict[str, float]], int]:
    """Cosine and L1 per mapped layer on the first utterances, one at a time, in evaluation mode."""
    torch.nn.Module.to(student, run.device).eval()
    projections = projections.to(run.device)
    sums = {layer: {"cosine": 0.0, "l1": 0.0} for layer in run.layers}
    utterances = run.manifest.utterances[:MEASURED_UTTERANCES]
    for utterance in utterances:
        samples = load_audio(utterance)[: int(run.config.audio.max_seconds * 16_000)]
        waveforms = torch.from_numpy(samples)[None].to(run.device)
        if run.teacher.normalise:
            waveforms = normalise(waveforms)
        last = run.layers[-1]
        theirs = run.teacher.model.distillation_features(waveforms, last_layer=last)
        mine = student.distillation_features(waveforms, last_layer=last)
        projected = projections([mine[layer] for layer in run.layers])
        for layer, state in zip(run.layers, projected, strict=True):
            parts = distillation_loss([state], [theirs[layer]])
            for name in ("cosine", "l1"):
                sums[layer][name] += float(parts[name]) / len(utterances)
    return sums, len(utterances)


def _finish(
    run: _Run,
    student: SslimModel,
    projections: Projections,
    decision: Mapping[str, Any],
    recipe: str,
    audio: Any,
    out: Path,
    began: float,
) -> CompressionResult:
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
        "seconds": time.perf_counter() - began,
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
        },
        "audio": {"source": Path(str(audio)).name, **run.manifest.summary()},
        "device": device_name(run.device),
        "precision": str(run.precision).removeprefix("torch."),
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
    return _result(out, result)


def _measure_file(folder: Path, facts: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The real size of the weights on disk, known only once they are written."""
    facts["result"]["file_bytes"] = sum(
        path.stat().st_size for path in folder.glob("*.safetensors")
    )
    return facts, model_card(facts)


def _result(out: Path, result: Mapping[str, Any]) -> CompressionResult:
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
