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
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from sslim.audio.held_out import HeldOut
from sslim.audio.shards import Shards
from sslim.backbone.loading import LoadedModel, load_model
from sslim.backbone.modeling_sslim import SslimModel
from sslim.backbone.places import find
from sslim.backbone.saving import save_folder, under_head
from sslim.backbone.units import plan_of, shape_of, table_of
from sslim.config import JointConfig, RunConfig, parse_budget, to_dict, to_flat_dict
from sslim.distill.cache import TargetCache
from sslim.distill.distance import Distance, measure_distance
from sslim.distill.mapping import check_layers
from sslim.distill.objectives import (
    learned_head,
    make_objectives,
    untrained_layers,
    weights_of,
)
from sslim.distill.objectives.objective import Sizes
from sslim.distill.student import PlainStudent, Student
from sslim.distill.task import CLIPS_TO_PREPARE, Task
from sslim.distill.teacher import Teacher
from sslim.errors import AudioError, OutputError, TeacherError, first_line
from sslim.files import read_json, written_whole
from sslim.plan import MACS_SECONDS, PruningPlan
from sslim.prune.budget import Budget
from sslim.prune.student import GatedStudent
from sslim.prune.surgery import cut
from sslim.recipes import resolve
from sslim.report.card import model_card
from sslim.runs import checkpoint, folder, record
from sslim.runs.audio import clips_to_measure, part, read_audio
from sslim.runs.beginning import begin, go_on
from sslim.runs.folder import RUN_FOLDER
from sslim.runs.state import RunState
from sslim.train.device import choose_precision, device_name
from sslim.train.processes import Processes, find_processes
from sslim.train.progress import ProgressBar
from sslim.train.stage import Session, run_stage
from sslim.train.tracking import Trackers, check_trackers

MEASURED_UTTERANCES = 200
"""Held-out utterances, at most, on which the distance to the teacher is measured at the end."""


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
    """Mapped layer -> cosine similarity and L1 distance to the teacher, through the projections, on audio
    that was held out of training; on training audio where `held_out` is empty."""
    undecided: int
    units: int
    seconds: float
    held_out: dict[str, Any]
    """What was held out of training: `utterances` and `seconds` that were measured, how they were `chosen`,
    `layers` as above, and the `loss`. Empty where nothing was held out."""

    def summary_line(self) -> str:
        """One line: parameters, MACs, file size, distance per mapped layer."""
        cosine = " ".join(f"{layer}:{row['cosine']:.3f}" for layer, row in self.layers.items())
        return (
            f"{self.out}: {self.parameters:,} parameters "
            f"({self.parameters / self.dense_parameters:.1%} of {self.dense_parameters:,}), "
            f"{self.macs_per_second / 1e9:.3g} GMACs per second of audio "
            f"({self.macs_per_second / self.dense_macs_per_second:.1%}), "
            f"{self.file_bytes / 1e6:.1f} MB, cosine to the teacher by layer {cosine} {self._heard()}"
        )

    def _heard(self) -> str:
        if not self.held_out:
            return "on audio that was trained on"
        return f"on {self.held_out['utterances']:,} held-out utterances"


@dataclass(frozen=True)
class _Inputs:
    """What a run is made from, checked."""

    config: RunConfig
    teacher: LoadedModel
    audio: HeldOut
    """In two parts: what is trained on, and what is not."""
    budget: Budget
    layers: tuple[int, ...]
    sizes: Sizes
    """What the objectives are made for."""
    record: dict[str, Any]
    """As a new run of this would be recorded."""


@dataclass(frozen=True)
class _Run:
    """What both stages share: the training room's session, and what only this story knows."""

    session: Session
    inputs: _Inputs
    record: dict[str, Any]

    @property
    def teacher(self) -> LoadedModel:
        return self.inputs.teacher

    @property
    def config(self) -> RunConfig:
        return self.session.config

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
    config_now = resolve(
        recipe, config=config, settings=settings, params=params, sparsity=sparsity, device=device
    )
    if revision is not None:
        teacher = find(teacher, revision).name
    out = folder.settled(out)
    check_trackers(config_now.trackers)
    processes = find_processes(config_now.device)
    folder.keep_inputs_apart(out, teacher, audio)
    with ExitStack() as held, ProgressBar(progress and processes.main) as bar:
        before: dict[str, Any] = {}
        locked = False
        if processes.main:
            folder.check_writable(out, resume=resume, force=force)
            locked = (out / RUN_FOLDER).is_dir()
            if locked:
                folder.hold(out, held)
        mended: dict[str, Any] = {}
        if resume:
            before = record.read_record(out / RUN_FOLDER)
            mended = record.compare_settings(out, before, config_now)
            record.compare_where(out, before, where)
        if processes.agree(float(resume and folder.is_finished(out, before))):
            if processes.main:
                _check_finished(before, config_now, teacher, audio, where, out, bar)
            return _read_result(out)
        inputs = _check(config_now, recipe, teacher, audio, where, out, bar, processes)
        if processes.main and resume:
            shards = isinstance(inputs.audio.training, Shards)
            go_on(out, before, inputs.record, config_now, mended, shards=shards, say=bar.say)
        elif processes.main:
            begin(out, inputs.record, inputs.audio, held, locked=locked, force=force, say=bar.say)
        processes.wait()
        run = _open(inputs, out, bar, processes, resumed=resume, mended=bool(mended))
        with _noted(run, recipe, forced=force):
            student, objectives, decision = _joint_stage(run)
            _recovery_stage(run, student, objectives, decision)
            if processes.main:
                _finish(run, student, objectives, decision, out, began)
            processes.wait()
    return _read_result(out)


def _check(
    config: RunConfig,
    recipe: str,
    teacher: str | Path,
    audio: str | Path | Sequence[str | Path],
    where: Mapping[str, str] | None,
    out: Path,
    bar: ProgressBar,
    processes: Processes,
) -> _Inputs:
    """Everything that can be known to be wrong before training is found here."""
    weights_of(config.objectives)
    loaded = load_model(teacher)
    shape, plan = shape_of(loaded.model), plan_of(loaded.model)
    now = plan.count(shape, config.budget_quantity)
    layout = table_of(loaded.model)
    limits = {config.budget_quantity: parse_budget(config.budget, now)}
    budget = Budget.of(limits, plan, layout)
    budget.check(plan, layout, config.units)
    layers = check_layers(config.layers, shape.layers)
    sizes = Sizes(shape.hidden_size, shape.layers, layers, loaded.head_alone(), config.seed)
    if warning := untrained_layers(
        make_objectives(list(weights_of(config.objectives)), sizes), sizes
    ):
        bar.say(warning)
    bar.say("looking at the audio ...")
    heard = read_audio(config, audio, where, bar.say)
    folder.keep_audio_apart(out, heard)
    parts = part(config, heard, bar.say)
    bar.say(
        f"{loaded.family} teacher, {now:,} {config.budget_quantity}; {parts.training.described()}; "
        f"held out {parts.chosen}; budget {budget.described()}"
    )
    what = record.new_record(
        config,
        recipe=recipe,
        teacher={
            "source": loaded.source,
            "fingerprint": loaded.fingerprint,
            "commit": loaded.commit,
        },
        audio={**record.place_of(audio), **heard.summary()},
        where=where,
        device=device_name(processes.device),
        processes=processes.count,
        precision=choose_precision(config.precision, processes.device),
    )
    return _Inputs(config, loaded, parts, budget, layers, sizes, what)


def _check_finished(
    before: Mapping[str, Any],
    config: RunConfig,
    teacher: str | Path,
    audio: str | Path | Sequence[str | Path],
    where: Mapping[str, str] | None,
    out: Path,
    bar: ProgressBar,
) -> None:
    """Refuses to give a finished run's result for other inputs than its own.

    Inputs that are named as they were and are not there any more are no longer needed.
    """
    folder.check_result(out)
    gone = "{} cannot be looked at any more ({}); the run is finished and does not need it"
    try:
        record.compare_teacher(out, before, load_model(teacher).fingerprint)
    except TeacherError as error:
        if str(teacher) != before["teacher"].get("source"):
            raise
        bar.say(gone.format(f"the teacher {teacher}", error.problem))
    try:
        record.compare_audio(out, before, read_audio(config, audio, where, bar.say).summary())
    except AudioError as error:
        if str(audio) != before["audio"].get("source"):
            raise
        bar.say(gone.format("the audio", error.problem))
    folder.clear_after(out)


def _open(
    inputs: _Inputs,
    out: Path,
    bar: ProgressBar,
    processes: Processes,
    *,
    resumed: bool,
    mended: bool,
) -> _Run:
    """What lives in the run's folder, now that it is there."""
    path = out / RUN_FOLDER
    now = record.read_record(path)
    config = inputs.config
    stages = {"stage1": config.stage1.updates, "stage2": config.stage2.updates}
    state = RunState(path, stages, writes=processes.main, resumed=resumed)
    if mended:
        state.facts.pop("seconds_per_batch", None)
    session = Session(
        config=config,
        audio=inputs.audio.training,
        folder=path,
        processes=processes,
        precision=choose_precision(config.precision, processes.device),
        progress=bar,
        state=state,
        trackers=Trackers(config.trackers if processes.main else (), path, to_flat_dict(config)),
        mended=mended,
        run=now["id"],
    )
    return _Run(session, inputs, now)


@contextmanager
def _noted(run: _Run, recipe: str, *, forced: bool) -> Iterator[None]:
    """Keeps `state.json` true about how the run ends, and says how to go on."""
    state = run.session.state
    state.set(status="running", recipe=recipe)
    advice = f"Run the same command with --resume{' instead of --force' if forced else ''}"
    try:
        with run.session.trackers:
            yield
    except KeyboardInterrupt as error:
        state.set(status="interrupted")
        error.add_note(advice)
        raise
    except Exception as error:
        state.set(status="failed", reason=str(error), error=type(error).__name__)
        error.add_note(advice)
        raise
    state.set(status="finished", seconds_left=0.0)


def _joint_stage(run: _Run) -> tuple[SslimModel, nn.ModuleDict, dict[str, Any]]:
    """Joint distillation and pruning, the decision, and the cut; skipped where it is already done."""
    config = run.config
    decided = _decided(run)
    if decided is not None:
        return decided
    student = GatedStudent(
        copy.deepcopy(run.teacher.model),
        run.inputs.budget,
        config.units,
        normalises=run.teacher.normalise,
        gate_learning_rate=config.stage1.gate_learning_rate,
        sparsity_warmup=round(config.stage1.sparsity_warmup_fraction * config.stage1.updates),
        seed=config.seed,
        shrink_every=_shrink_every(config.stage1),
        shrink_multiple=config.stage1.shrink_multiple,
    )
    task = _task(run, student, _objectives(run), config.stage1.learning_rate)
    audio = run.inputs.audio.training
    task.prepare(clips_to_measure(config, audio, CLIPS_TO_PREPARE, run.say))
    run_stage(
        run.session,
        "stage1",
        task,
        updates=config.stage1.updates,
        warmup_fraction=config.stage1.warmup_fraction,
        first=0,
    )
    decision = student.decide()
    if decision.undecided:
        run.say(
            f"warning: {decision.undecided:,} of {student.gates.total:,} gates had not settled; a "
            "global threshold decided them. More updates (--set stage1.updates=...) make a better choice."
        )
    small = student.cut(decision)
    facts = {
        "plan": decision.plan.to_dict(),
        "undecided": decision.undecided,
        "units": student.gates.total,
        "shrinks": student.shrinks,
        "shift": decision.shift,
    }
    if run.processes.main:
        # Stage 1's own states stay until stage 2 has one: there is always something whole to go back to.
        tensors = {f"{_MODEL}{name}": value for name, value in small.state_dict().items()}
        for name, value in task.objectives.state_dict().items():
            tensors[f"{_OBJECTIVES}{name}"] = value
        checkpoint.write(
            run.folder / "pruned",
            tensors,
            {"update": config.stage1.updates, "run": run.session.run, "decision": facts},
        )
    run.processes.wait()
    return small, task.objectives, facts


_MODEL, _OBJECTIVES = "task.student.reader.model.", "task.objectives."
"""What the names of a plain student's weights, and of what it learned by, begin with in a saved state."""


def _objectives(run: _Run) -> nn.ModuleDict:
    """What the student is taught, as new."""
    return make_objectives(list(weights_of(run.config.objectives)), run.inputs.sizes)


def _task(
    run: _Run,
    student: Student,
    objectives: nn.ModuleDict,
    learning_rate: float,
    *,
    cache: bool = True,
) -> Task:
    teacher = Teacher(
        run.teacher.model,
        normalises=run.teacher.normalise,
        cache=_target_cache(run) if cache else None,
        head=run.teacher.head_alone(),
    )
    task = Task(
        teacher,
        student,
        objectives,
        weights=weights_of(run.config.objectives),
        learning_rate=learning_rate,
        seed=run.config.seed,
    )
    return task.to(run.processes.device)


def _shrink_every(stage: JointConfig) -> int:
    """Updates between two chances to shrink; 0: none."""
    return max(1, stage.updates // stage.shrink_chances) if stage.shrink_chances else 0


def _target_cache(run: _Run) -> TargetCache | None:
    gib = run.config.target_cache_gib
    if not gib:
        return None
    return TargetCache(run.folder / "targets", int(gib * 2**30), run.processes.count)


def _decided(run: _Run) -> tuple[SslimModel, nn.ModuleDict, dict[str, Any]] | None:
    """The pruned model where it has been made already: from `pruned/`, else from a state of stage 2."""
    states = run.folder / "checkpoints"
    state: checkpoint.State | None = None
    damaged = ""
    if (run.folder / "pruned").is_dir():
        try:
            state = checkpoint.read(run.folder / "pruned")
        except OutputError as error:
            damaged = error.problem
            run.say(f"warning: {damaged}; looking for another way to go on")
    if state is None and checkpoint.found(states / "stage2"):
        state = checkpoint.newest(states / "stage2", run.session.run, run.say)
    if state is None or state.facts.get("run") != run.session.run:
        if damaged and not checkpoint.found(states / "stage1"):
            raise OutputError(
                f"{damaged}, and nothing is left from before it",
                "begin anew with --force instead of --resume",
            )
        return None
    facts = state.facts["decision"]
    small = cut(copy.deepcopy(run.teacher.model), PruningPlan.from_dict(facts["plan"]))
    objectives = _objectives(run)
    for module, prefix in ((small, _MODEL), (objectives, _OBJECTIVES)):
        own = {
            name.removeprefix(prefix): value
            for name, value in state.tensors.items()
            if name.startswith(prefix)
        }
        module.load_state_dict(own)
    return small, objectives, facts


def _recovery_stage(
    run: _Run, model: SslimModel, objectives: nn.ModuleDict, decision: Mapping[str, Any]
) -> None:
    """Distils the small model again."""
    config = run.config.stage2
    if config.updates == 0:
        return
    student = PlainStudent(model, normalises=run.teacher.normalise)
    run_stage(
        run.session,
        "stage2",
        _task(run, student, objectives, config.learning_rate),
        updates=config.updates,
        warmup_fraction=config.warmup_fraction,
        first=run.config.stage1.updates,
        carried={"decision": dict(decision)},
    )


def _measure(run: _Run, model: SslimModel, objectives: nn.ModuleDict) -> Distance:
    """The distance to the teacher on held-out audio; on training audio where nothing is held out."""
    inputs = run.inputs
    audio = inputs.audio.held_out if inputs.audio else inputs.audio.training
    student = PlainStudent(model, normalises=run.teacher.normalise)
    distance = measure_distance(
        _task(run, student, objectives, 0.0, cache=False),
        clips_to_measure(run.config, audio, MEASURED_UTTERANCES, run.say),
        layers=inputs.layers,
        device=run.processes.device,
    )
    if not distance.utterances:
        raise AudioError(
            "training is done, but none of the audio to measure the result on can be read any more",
            "bring it back and run again with --resume",
        )
    return distance


def _finish(
    run: _Run,
    student: SslimModel,
    objectives: nn.ModuleDict,
    decision: Mapping[str, Any],
    out: Path,
    began: float,
) -> None:
    """Measures, writes the folder and its card, and clears what only a resume would need."""
    inputs, now = run.inputs, run.inputs.record
    distance = _measure(run, student, objectives)
    student = student.cpu().eval()
    shape, plan = shape_of(student), plan_of(student)
    dense = plan_of(run.teacher.model)
    held_out = {**asdict(distance), "chosen": inputs.audio.chosen} if inputs.audio else None
    result: dict[str, Any] = {
        "family": run.teacher.family,
        "head": run.teacher.head,
        "parameters": plan.parameters(shape),
        "dense_parameters": dense.parameters(shape),
        "macs_per_second": round(plan.macs(shape) / MACS_SECONDS),
        "dense_macs_per_second": round(dense.macs(shape) / MACS_SECONDS),
        "file_bytes": 0,
        "layers": distance.layers,
        "measured_utterances": distance.utterances,
        "held_out": held_out,
        "undecided": decision["undecided"],
        "units": decision["units"],
        "shrinks": decision["shrinks"],
        "seconds": time.perf_counter() - began,
        "seconds_waited_for_audio": sum(run.session.waited.values()),
        "hidden_states": shape.layers + 1,
        "width": shape.hidden_size,
        "hop": run.teacher.hop,
        "normalise": run.teacher.normalise,
    }
    source = Path(now["teacher"]["source"])
    facts: dict[str, Any] = {
        "name": out.resolve().name,
        "run": run.session.run,
        "recipe": now["recipe"],
        "config": to_dict(run.config),
        "changed": run.record.get("changed", []),
        # Names only: the folder may be published, and `run/run.json` has the paths.
        "teacher": {
            **now["teacher"],
            "source": source.name if source.exists() else now["teacher"]["source"],
        },
        "audio": {**inputs.audio.training.summary(), "source": Path(now["audio"]["source"]).name},
        **{name: now[name] for name in ("device", "precision", "versions")},
        "result": result,
    }
    if "layers" in objectives:
        projections = objectives["layers"].state_dict()
        with written_whole(run.folder / "projections.safetensors") as path:
            save_file({name: value.cpu().contiguous() for name, value in projections.items()}, path)
    # Last of all, for it says that the run is finished; clearing up is done again where it was cut short.
    save_folder(
        out,
        under_head(run.teacher, student, learned_head(objectives)),
        normalise=run.teacher.normalise,
        run=facts,
        tokenizer_from=run.teacher.folder if run.teacher.head else None,
        finalise=lambda folder: _measure_file(folder, facts),
    )
    folder.clear_after(out)


def _measure_file(folder: Path, facts: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The real size of the weights on disk, known only once they are written."""
    sizes = [path.stat().st_size for path in folder.glob("*.safetensors")]
    facts["result"]["file_bytes"] = sum(sizes)
    return facts, model_card(facts)


def _read_result(out: Path) -> CompressionResult:
    path = out / "sslim.json"
    try:
        result = dict(read_json(path, "the description of a finished run")["result"])
        held_out = dict(result.get("held_out") or {})
        if held_out:
            held_out["layers"] = _layers(held_out["layers"])
        names = [item.name for item in fields(CompressionResult) if item.name != "out"]
        known = {**{name: result[name] for name in names if name in result}, "held_out": held_out}
        return CompressionResult(out=out, **known | {"layers": _layers(result["layers"])})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise OutputError(
            f"{path} does not describe a finished run ({first_line(error)})",
            "restore it, or begin anew with --force",
        ) from error


def _layers(rows: Mapping[str, Any]) -> dict[int, dict[str, float]]:
    return {int(layer): dict(row) for layer, row in rows.items()}
