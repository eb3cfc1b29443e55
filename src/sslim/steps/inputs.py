"""What a run is made from: as the user asked for it, and once it has been read and checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sslim.audio.source import HeldOut
from sslim.backbone.loaded import LoadedModel
from sslim.backbone.loading import load_model
from sslim.backbone.units import plan_of, shape_of, table_of
from sslim.config import RunConfig, parse_budget
from sslim.device import choose_precision, device_name, looks_every
from sslim.distill.mapping import check_layers
from sslim.distill.objectives import make_objectives, untrained_layers, weights_of
from sslim.distill.objectives.objective import Sizes
from sslim.errors import AudioError, TeacherError
from sslim.prune.budget import Budget
from sslim.recipes import Known, complete
from sslim.runs import folder, record
from sslim.runs.audio import AudioChoice, part, read_audio
from sslim.runs.facts import RunRecord, TeacherFacts
from sslim.train.processes import Processes

Say = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What the user asked for."""

    teacher: str | Path
    audio: AudioChoice
    out: Path
    recipe: str
    config: RunConfig
    """The recipe with all that was edited, checked by itself."""
    resume: bool
    force: bool


@dataclass(frozen=True)
class Inputs:
    """What a run is made from, checked."""

    config: RunConfig
    """Complete: nothing is left to be chosen but what the memory holds (`seconds_per_batch`)."""
    teacher: LoadedModel
    audio: HeldOut
    """In two parts: what is trained on, and what is not."""
    budget: Budget
    sizes: Sizes
    """What the objectives are made for; among it the mapped layers."""
    record: RunRecord
    """As a new run of this would be recorded."""


def check(request: Request, processes: Processes, say: Say) -> Inputs:
    """Everything that can be known to be wrong before training is found here.

    Raises:
        SslimError: the teacher, the audio, the budget or a setting cannot be used.
    """
    config = request.config
    weights_of(config.objectives)
    teacher = load_model(request.teacher)
    shape, plan, layout = shape_of(teacher.model), plan_of(teacher.model), table_of(teacher.model)
    dense = plan.count(shape, config.budget_quantity)
    limits = {config.budget_quantity: parse_budget(config.budget, dense)}
    budget = Budget.of(limits, plan, layout)
    budget.check(plan, layout, config.units)
    layers = check_layers(config.layers, shape.layers)
    sizes = Sizes(shape.hidden_size, shape.layers, layers, teacher.head_alone(), config.seed)
    warning = untrained_layers(make_objectives(list(weights_of(config.objectives)), sizes), sizes)
    if warning:
        say(warning)
    say("looking at the audio ...")
    source = read_audio(config, request.audio, say)
    folder.keep_audio_apart(request.out, source)
    audio = part(config, source, say)
    say(
        f"{teacher.family} teacher, {dense:,} {config.budget_quantity}; {audio.training.described()}; "
        f"held out {audio.chosen}; budget {budget.described()}"
    )
    facts = record.new_record(
        config,
        recipe=request.recipe,
        teacher=TeacherFacts(teacher.source, teacher.fingerprint, teacher.commit),
        audio=record.audio_facts(request.audio.audio, source, request.audio.mix),
        where=request.audio.where,
        device=device_name(processes.device),
        processes=processes.count,
        precision=choose_precision(config.precision, processes.device),
    )
    known = Known(
        layers=layers,
        precision=facts.precision,
        check_every=looks_every(processes.device, config.log_every),
    )
    return Inputs(complete(config, known), teacher, audio, budget, sizes, facts)


def check_finished(before: RunRecord, request: Request, say: Say) -> None:
    """Refuses to give a finished run's result for other inputs than its own.

    Inputs that are named as they were and are not there any more are no longer needed.

    Raises:
        ConfigError, OutputError: the run was made from something else, or its result is damaged.
    """
    out = request.out
    folder.check_result(out)
    gone = "{} cannot be looked at any more ({}); the run is finished and does not need it"
    try:
        record.compare_teacher(out, before, load_model(request.teacher).fingerprint)
    except TeacherError as error:
        if str(request.teacher) != before.teacher.source:
            raise
        say(gone.format(f"the teacher {request.teacher}", error.problem))
    try:
        source = read_audio(request.config, request.audio, say)
        record.compare_audio(out, before, record.audio_facts(request.audio.audio, source))
    except AudioError as error:
        if str(request.audio.audio) != before.audio.source:
            raise
        say(gone.format("the audio", error.problem))
    folder.clear_after(out)
