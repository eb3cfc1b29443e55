"""What was measured of a model, as files say it: scores, fidelity, times, and how an exported file compares.

`evaluate`, `bench` and `export` write these records, the report reads them; they may come from another
machine and another version. Scores are shares of 1, intervals are of 95%; a `fingerprint` is of what was run,
a `model_fingerprint` of the torch model behind it. Fields with a default were not in all versions' files.

Pure Python.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

from sslim.records import Bounds, Count, Interval, Name, Positive, Record

MOST_ROWS = 1000
"""Models in a file, values in a column of groups, conditions."""
BUSY = 0.5
"""Cores of other work above which times are not worth much."""
ROUNDING = 1e-6
"""What a cosine may exceed 1 by."""
Cosine = Annotated[float, Bounds(-1 - ROUNDING, 1 + ROUNDING)]
Few = Bounds(0, MOST_ROWS)


# --- sslim evaluate -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ConditionScore:
    """A score under a condition, such as noise."""

    score: float
    interval: Interval | None = None
    change: float = 0.0
    """Against clean audio."""
    identity: str = ""
    """Of the condition: its settings, and the contents of what it takes from files."""


@dataclass(frozen=True)
class Result:
    """One model on one task: a line of the table."""

    model: Name
    task: Name
    metric: Name
    higher_is_better: bool
    score: float
    difference: float
    """To the first model, on the same items."""
    parameters: Count
    """0 for features that are no model."""
    macs_per_second: Count
    chance: float
    """The score of a guess: the most frequent answer, silence, a coin."""
    interval: Interval | None = None
    """Bootstrap over the test part's items."""
    per_seed: tuple[float, ...] = ()
    difference_interval: Interval | None = None
    others: dict[str, float] = field(default_factory=dict)
    """The task's further metrics."""
    floor: float | None = None
    """The score of log-mel features on the same items, where they were scored."""
    learning_rate: float = 0.0
    items: Count = 0
    """Test clips, trials, recordings or queries."""
    conditions: Annotated[dict[str, ConditionScore], Few] = field(default_factory=dict)
    fingerprint: str | None = None
    model_fingerprint: str | None = None
    numbers: str = ""
    """What the features were computed in and on."""
    seconds: float = 0.0

    @property
    def is_log_mel(self) -> bool:
        """Whether it is of log-mel features, which are no model."""
        return self.parameters == 0 and self.macs_per_second == 0


@dataclass(frozen=True)
class GroupScore:
    """A model's score over the test clips of one group."""

    clips: Count
    score: float
    interval: Interval | None = None


@dataclass(frozen=True)
class Gap:
    """The largest distance between two groups, of one model."""

    best: str
    worst: str
    gap: float
    widened: float | None = None
    """Over the first model's; None for the first."""
    widened_interval: Interval | None = None


@dataclass(frozen=True)
class GroupReport:
    """Scores over the values of one column."""

    column: Name
    scores: dict[str, Annotated[dict[str, GroupScore], Few]]
    """Model -> group -> score."""
    gaps: dict[str, Gap] = field(default_factory=dict)
    sentences: Annotated[tuple[str, ...], Few] = ()


@dataclass(frozen=True)
class ScoredData:
    """The clips of an evaluation."""

    source: str = ""
    where: dict[str, str] = field(default_factory=dict)
    split_column: str = ""
    folds: str | None = None
    clips: dict[str, int] = field(default_factory=dict)
    """In each part."""
    test_audio: str = ""
    """Identity of what was heard: the same audio under any names, in any order."""


@dataclass(frozen=True, kw_only=True)
class Evaluation(Record):
    """What `sslim evaluate` measured on one task, and what is needed to repeat it."""

    KIND: ClassVar[str] = "scores"
    TITLE: ClassVar[str] = "scores"

    task: str = ""
    results: Annotated[tuple[Result, ...], Few]
    groups: Annotated[tuple[GroupReport, ...], Few] = ()
    notes: tuple[str, ...] = ()
    data: ScoredData | None = None
    computation: int | None = None
    """See `identity.COMPUTATION`."""
    seeds: tuple[int, ...] = ()
    schedule: dict[str, Any] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)
    random_labels: bool = False
    """Whether the training labels were shuffled, to see what a score is worth."""
    precision: str = ""
    device: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def write(self, path: Path) -> None:
        """As `Record.write`; makes the folder."""
        path.parent.mkdir(parents=True, exist_ok=True)
        super().write(path)


@dataclass(frozen=True, kw_only=True)
class SuiteScores(Record):
    """What `sslim evaluate --suite` measured: the rows of all its tasks."""

    KIND: ClassVar[str] = "suite"
    TITLE: ClassVar[str] = "the scores of a suite"

    suite: str
    results: Annotated[tuple[Result, ...], Few]
    missing: tuple[str, ...] = ()
    """What was not scored, a sentence each."""
    computation: int | None = None
    versions: dict[str, str] = field(default_factory=dict)
    test_audio: dict[str, str] = field(default_factory=dict)
    """Task -> identity of its test part."""
    superb_score: dict[str, float | None] = field(default_factory=dict)
    """Model -> score; None unless all tasks are there."""


# --- sslim evaluate --task fidelity -------------------------------------------------------------------


@dataclass(frozen=True)
class LayerFidelity:
    """One layer of the student against the same layer of its teacher."""

    layer: Count
    cosine: Cosine
    """Mean over frames of the cosine similarity."""
    l1: float | None = None
    """Mean absolute difference, in units of the teacher's mean absolute value."""
    cka: float | None = None
    """Linear centred kernel alignment (Kornblith et al. 2019): 1 where one is a rotation of the other. None
    where a layer does not vary."""


@dataclass(frozen=True)
class WorstClip:
    """A clip on which the last layer differs much."""

    clip: str
    cosine: float


@dataclass(frozen=True)
class Fidelity:
    """A student against its teacher, without labels."""

    model: Name
    layers: Annotated[tuple[LayerFidelity, ...], Bounds(1, MOST_ROWS)]
    utterances: Positive
    seconds: float = 0.0
    """Of audio."""
    worst: tuple[WorstClip, ...] = ()
    """Worst first."""
    fingerprint: str | None = None
    model_fingerprint: str | None = None
    teacher_fingerprint: str | None = None
    teacher_model_fingerprint: str | None = None
    numbers: str = ""


@dataclass(frozen=True, kw_only=True)
class FidelityReport(Record):
    """What `sslim evaluate --task fidelity` measured: every model against the first."""

    KIND: ClassVar[str] = "fidelity"
    TITLE: ClassVar[str] = "fidelity"

    results: Annotated[tuple[Fidelity, ...], Few]
    computation: int | None = None
    versions: dict[str, str] = field(default_factory=dict)
    source: str = ""
    where: dict[str, str] = field(default_factory=dict)
    skipped: int = 0
    test_audio: str = ""


# --- sslim bench --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PartTime:
    """What a part of a model takes and computes."""

    seconds: float
    gflop: float
    gop_int8: float
    of_rate: float | None
    """Share of the core's rate; None where that is not known or the part has no product."""


@dataclass(frozen=True)
class Timing:
    """One model in one runtime at one number of threads and one length of audio."""

    model: Name
    runtime: Name
    threads: Positive
    seconds: Annotated[float, Bounds(1e-3, 1e7)]
    median: Annotated[float, Bounds(1e-9, 1e9)]
    """Seconds that one run takes."""
    quartiles: Interval
    real_time_factor: Annotated[float, Bounds(1e-12, 1e9)]
    """Seconds of computing per second of audio."""
    ratio: Annotated[float, Bounds(1e-9, 1e9)]
    """How many times as fast as the first model of these threads and seconds."""
    peak_bytes: Count
    file_bytes: Count
    first_answer: float
    """Seconds from starting a process to its answer for 1 s of audio."""
    noisy: bool
    """Whether the quartiles are so far apart that the machine was not quiet."""
    front_end_share: float | None = None
    worst_cosine: float | None = None
    """Of an exported file's layers against the model."""
    passed: bool | None = None
    """Whether an exported file passed its comparison; None: not known, or no exported file."""
    fingerprint: str | None = None
    model_fingerprint: str | None = None
    parts: dict[str, PartTime] = field(default_factory=dict)
    """Of an exported file, by part; `whole` is all together, known of models in torch as well."""
    cost_per_1000_hours: float | None = None
    """Of audio, where a price was given."""

    def cost(self, price_per_hour: float) -> float:
        """Of 1,000 hours of audio on a machine that is rented by the hour."""
        return 1000 * self.real_time_factor * price_per_hour


@dataclass(frozen=True)
class Rates:
    """What a core reaches at best in large products: GFLOP/s, GOP/s for int8; None: not measured."""

    float32: Annotated[float, Bounds(0)] | None = None
    bfloat16: Annotated[float, Bounds(0)] | None = None
    int8: Annotated[float, Bounds(0)] | None = None
    libraries: dict[str, str] = field(default_factory=dict)
    """Format -> the library that reached it."""
    all: dict[str, dict[str, float]] = field(default_factory=dict)
    """Format -> library -> rate."""


@dataclass(frozen=True)
class Machine:
    """What was measured on. Older files say the processor's name alone."""

    processor: str = ""
    vendor: str | None = None
    family: int | None = None
    model: int | None = None
    stepping: int | None = None
    vector_units: tuple[str, ...] = ()
    cores: int | None = None
    torch: str | None = None
    transformers: str | None = None
    onnxruntime: str | None = None
    load_before: Annotated[float, Bounds(0)] | None = None
    """Cores that others kept busy before, during and after."""
    load_during: Annotated[float, Bounds(0)] | None = None
    load_after: Annotated[float, Bounds(0)] | None = None
    rates: Rates = Rates()
    """Of the first number of threads."""
    rates_at: dict[str, Rates] = field(default_factory=dict)
    """Number of threads -> rates."""

    @property
    def loads(self) -> tuple[float, float, float]:
        """Cores that others kept busy before, during and after; 0 where nobody looked."""
        return self.load_before or 0.0, self.load_during or 0.0, self.load_after or 0.0


@dataclass(frozen=True, kw_only=True)
class Benchmark(Record):
    """What `sslim bench` measured."""

    KIND: ClassVar[str] = "bench"
    TITLE: ClassVar[str] = "a benchmark"

    results: Annotated[tuple[Timing, ...], Bounds(1, MOST_ROWS)]
    machine: Machine
    price_per_hour: Annotated[float, Bounds(0, 1e9)] | None = None
    """Of the machine."""
    computation: int | None = None

    @property
    def noisy(self) -> bool:
        """Whether any row was disturbed."""
        return any(row.noisy for row in self.results)

    @property
    def busy(self) -> bool:
        """Whether others used the machine."""
        return any(load > BUSY for load in self.machine.loads)

    def at_price(self, price_per_hour: float) -> Benchmark:
        """With what the machine's rent makes of it."""
        rows = tuple(
            replace(row, cost_per_1000_hours=row.cost(price_per_hour)) for row in self.results
        )
        return replace(self, results=rows, price_per_hour=price_per_hour)


# --- sslim export -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerCheck:
    """One hidden state (0: the input of the first layer) of an exported file against the model."""

    layer: int
    cosine: float
    """Mean over frames."""
    difference: float
    """Largest absolute difference, in units of the layer's standard deviation where that is above one."""


@dataclass(frozen=True)
class Check:
    """What was compared of an exported file and its model, and what came out."""

    layers: tuple[LayerCheck, ...]
    output: float
    """Largest difference of what the file gives out (features or logits), in the same units."""
    batching: float
    """The same between utterances in one padded batch and alone, through the file."""
    utterances: int
    seconds: float
    longest: float = 0.0
    """Seconds of the longest waveform that was compared."""

    @property
    def cosine(self) -> float:
        """Of the worst layer; NaN where one is."""
        return _worst([layer.cosine for layer in self.layers], min)

    @property
    def difference(self) -> float:
        """Of the worst layer, or of the output; NaN where one is."""
        return _worst([self.output, *(layer.difference for layer in self.layers)], max)


@dataclass(frozen=True)
class LabelledScores:
    """Scores of a model and of the file that was exported from it, on a labelled task."""

    task: str
    metric: str
    model: float
    model_interval: Interval | None
    file: float
    file_interval: Interval | None


@dataclass(frozen=True, kw_only=True)
class ExportFacts(Record):
    """What `sslim export` wrote, beside the file that it describes."""

    KIND: ClassVar[str] = "export"
    TITLE: ClassVar[str] = "the description of an export"

    file: Name
    format: Name
    bytes: Positive
    passed: bool
    worst_cosine: Cosine | None = None
    """Of all layers; None for a format that holds the same weights and was read back."""
    worst_difference: float | None = None
    audio: str = ""
    """What was compared on, in words."""
    fingerprint: str | None = None
    model_fingerprint: str | None = None
    model: str = ""
    """What the user called it."""
    check: Check | None = None
    notes: tuple[str, ...] = ()
    probe: LabelledScores | None = None
    computation: int | None = None


def _worst(values: Sequence[float], choose: Callable[[Sequence[float]], float]) -> float:
    """The smallest or largest; NaN where one is, which `min` and `max` would pass over."""
    return math.nan if any(math.isnan(value) for value in values) else choose(values)
