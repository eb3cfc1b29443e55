"""What the files of a run say: `run.json` (what it is), `sslim.json` (what came out), `state.json` (where it
stands), and those that only a resume reads.

Each is a `Record`. `runs/record.py` compares, `runs/state.py` and `runs/checkpoint.py` write; report and
command line read the attributes that are here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, ClassVar, Self

from sslim.audio import Skipped
from sslim.backbone.contents import FolderFacts
from sslim.records import Bounds, Count, Name, Positive, Record, from_json

ROUNDING = 1e-6
"""What a cosine may exceed 1 by."""
Cosine = Annotated[float, Bounds(-1 - ROUNDING, 1 + ROUNDING)]
Seconds = Annotated[float, Bounds(0)]


@dataclass(frozen=True)
class TeacherFacts:
    """Whom a run learns from."""

    source: Name
    """As the user called it; its name alone where the folder may be published."""
    fingerprint: str = ""
    commit: str | None = None
    """On the hub."""


@dataclass(frozen=True)
class AudioFacts:
    """The audio of a run. Files and shards know different things of themselves; None: not known."""

    source: str
    """As the user called it; its name alone where the folder may be published."""
    described: str
    """In words."""
    fingerprint: str
    """Of what is heard, wherever it lies."""
    path: str = ""
    """Absolute; empty where several sources are given, or the folder may be published."""
    utterances: int | None = None
    seconds: Seconds | None = None
    skipped: int | None = None
    where: dict[str, str] | None = None
    """Columns and values that chose the rows of a CSV."""
    shards: int | None = None
    bytes: int | None = None
    kind: str | None = None
    """Of shards: `webdataset` or `shar`."""
    mix: dict[str, float] = field(default_factory=dict)
    """Further sources, as the user called them -> their shares; empty where the folder may be published."""
    parts: tuple[dict[str, Any], ...] | None = None
    """Of a mixture: the same of each source, with its share."""


@dataclass(frozen=True)
class SettingChange:
    """A setting that was changed to get past a failure."""

    setting: str
    before: Any
    now: Any
    at: str
    """When, in words."""


@dataclass(frozen=True, kw_only=True)
class RunRecord(Record):
    """`run/run.json`: what a run is. Written once; a resume compares it with what it is given."""

    KIND: ClassVar[str] = "run-record"
    TITLE: ClassVar[str] = "the record of a run"

    id: str = ""
    """Drawn; its states and its result name it. Empty in runs of version 0.1."""
    computation: int | None = None
    """See `identity.COMPUTATION`."""
    config: dict[str, Any]
    """All settings, under the names of `RunConfig`; those of another version may be others."""
    recipe: str = ""
    teacher: TeacherFacts
    audio: AudioFacts
    where: dict[str, str] = field(default_factory=dict)
    """Rows of a CSV that the user asked for."""
    device: str = ""
    processes: int = 1
    precision: str = ""
    versions: dict[str, str]
    """Of everything that decides the result."""
    changed: tuple[SettingChange, ...] = ()
    cleared: bool = False
    """Whether what an earlier run left in the folder is gone."""


@dataclass(frozen=True)
class LayerDistance:
    """One mapped layer of the student against the teacher's, through the learned projection."""

    cosine: Cosine
    l1: Seconds | None = None
    """None in the oldest files."""


@dataclass(frozen=True)
class HeldOutFacts:
    """The distance to the teacher on audio that training never heard."""

    utterances: Count
    seconds: Seconds
    layers: dict[int, LayerDistance]
    """By mapped layer; 0 is the output of the feature projection."""
    chosen: Name
    """How it was chosen, such as `by speaker (3 of 60)`."""
    loss: float | None = None


@dataclass(frozen=True)
class ResultFacts:
    """What came out of a run."""

    family: str
    parameters: Positive
    """Of the backbone."""
    dense_parameters: Positive
    macs_per_second: Positive
    """Per second of audio, in an utterance of 10 s."""
    dense_macs_per_second: Positive
    file_bytes: Count
    """Of the weights on disk."""
    layers: dict[int, LayerDistance]
    """The distance to the teacher on held-out audio, or on training audio where nothing is held out."""
    undecided: Count
    """Gates that had not settled at the decision."""
    units: Count
    """All gates."""
    seconds: Seconds
    hidden_states: Count
    width: Count
    hop: Positive
    """Samples between two frames."""
    normalise: bool
    """Whether waveforms are brought to zero mean and unit variance."""
    head: str = ""
    shrinks: tuple[dict[str, int], ...] = ()
    """Each time that the student shrank in training: the update, and what was left."""
    seconds_waited_for_audio: float = 0.0
    measured_utterances: Count | None = None
    held_out: HeldOutFacts | None = None
    """None where nothing was held out."""

    @property
    def distance(self) -> MeasuredDistance | None:
        """The distance on held-out audio where there was any; None where nothing was measured."""
        held = self.held_out
        layers = held.layers if held else self.layers
        if not layers:
            return None
        return MeasuredDistance(
            layers={layer: layers[layer] for layer in sorted(layers)},
            held_out=held is not None,
            utterances=held.utterances if held else self.measured_utterances or 0,
            seconds=held.seconds if held else 0.0,
            chosen=held.chosen if held else "",
        )


@dataclass(frozen=True)
class MeasuredDistance:
    """How far the student is from its teacher, as the run itself measured it."""

    layers: dict[int, LayerDistance]
    """Mapped layer (0: the front, the output of the feature projection) -> cosine and L1, through the learned
    projections."""
    held_out: bool
    """Whether training never heard that audio."""
    utterances: int
    """0: an old run, which does not say."""
    seconds: float
    chosen: str
    """How held-out audio was chosen, such as `by speaker`."""


@dataclass(frozen=True)
class StageSettings:
    """Of the settings of a stage, what is shown."""

    updates: Count


@dataclass(frozen=True)
class ShownSettings:
    """Of the settings of a run, what card and report show. Each must be there: nothing is filled in."""

    stage1: StageSettings
    stage2: StageSettings
    seconds_per_update: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class RunFacts(FolderFacts):
    """`sslim.json` of a compressed folder. The folder may be published: names only, no paths."""

    KIND: ClassVar[str] = "run"
    READS: ClassVar[tuple[str, ...]] = ()
    TITLE: ClassVar[str] = "the description of a finished run"

    name: str = ""
    """Of the folder."""
    run: str = ""
    """The run's id, see `RunRecord`."""
    recipe: str = ""
    config: dict[str, Any]
    """All settings, under the names of `RunConfig`; those of another version may be others."""
    changed: tuple[SettingChange, ...] = ()
    teacher: TeacherFacts
    audio: AudioFacts
    """What was trained on."""
    device: Name
    precision: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    result: ResultFacts

    @cached_property
    def settings(self) -> ShownSettings:
        """What is shown of `config`.

        Raises:
            RecordError: it is not there.
        """
        return from_json(ShownSettings, self.config, "config.")

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Self:
        """As `Record.from_dict`; what is shown of the settings is looked at as well."""
        found = super().from_dict(facts)
        _ = found.settings
        return found


@dataclass(frozen=True)
class DecisionFacts:
    """What the gates decided."""

    plan: dict[str, Any]
    """See `PruningPlan.to_dict`."""
    undecided: int
    units: int
    shrinks: tuple[dict[str, int], ...]
    """See `ResultFacts`."""
    shift: float
    """Of all logits, to meet the budget."""


@dataclass(frozen=True, kw_only=True)
class CheckpointFacts(Record):
    """`state.json` of a saved state: the tensors' other half."""

    KIND: ClassVar[str] = "checkpoint"
    TITLE: ClassVar[str] = "the facts of a saved state"

    update: int = 0
    """Updates of the stage that were made before it."""
    run: str = ""
    """Id of the run that it belongs to."""
    sha256: str = ""
    """Of the tensors."""
    stage: str = ""
    seed: int = 0
    seconds_per_batch: float | None = None
    """Measured once; a resumed run goes on with the same batches."""
    structure: dict[str, Any] = field(default_factory=dict)
    """What the task needs to take the shape that it had."""
    decision: DecisionFacts | None = None
    """Of a stage after the decision, for a resume that has nothing else left."""


@dataclass(frozen=True, kw_only=True)
class StateFacts(Record):
    """`run/state.json`: where a run stands. What a file does not say, or says without sense, is None."""

    KIND: ClassVar[str] = "run-state"
    TITLE: ClassVar[str] = "the state of a run"

    status: str | None = None
    """`starting`, `running`, `interrupted`, `failed`, `finished`."""
    step: str | None = None
    """Of the run's list: `joint`, `decide`, `recover`, `save`."""
    stage: str | None = None
    """The training that is at work or was last, as in the settings."""
    recipe: str | None = None
    host: str | None = None
    process: Annotated[int, Bounds(0, 2.0**62)] | None = None
    written: Annotated[float, Bounds(0, 2.0**62)] | None = None
    """Unix time."""
    update: Count | None = None
    updates: Count | None = None
    """Of the stage."""
    seconds_per_update: Seconds | None = None
    seconds_per_batch: Seconds | None = None
    seconds_left: Seconds | None = None
    """Of all stages, at the present pace."""
    waiting_share: Seconds | None = None
    """Of the stage's time, what went into waiting for audio."""
    reason: str | None = None
    """Why it failed."""
    error: str | None = None
    """The name of the error."""


@dataclass(frozen=True, kw_only=True)
class SkippedAudio(Record):
    """`run/skipped.json`: what of the audio is not used."""

    KIND: ClassVar[str] = "skipped"
    TITLE: ClassVar[str] = "a list of skipped audio"

    skipped: tuple[Skipped, ...]
