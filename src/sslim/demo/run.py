"""`sslim demo`: the main job, offline, in minutes, with honest numbers.

Spoken commands are made on this machine, the embedded teacher is compressed on the training voices, and
teacher, compressed student, a distillation-only student of the same size, and plain log-mel features are
scored as `sslim evaluate` scores any model: which word (said by voices that neither the heads nor the
students have heard), and which voice. What the scores say, and what they do not, is the report's verdict.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from rich.console import Console
from rich.table import Table

from sslim.config import RunConfig
from sslim.demo import teacher_path
from sslim.demo.baseline import distil_only
from sslim.demo.folder import RESULTS, prepare
from sslim.demo.speech import SpeechSet, make_speech
from sslim.errors import OutputError, first_line
from sslim.evaluate.features import FeatureStore
from sslim.evaluate.run import evaluate
from sslim.evaluate.scorer import Settings
from sslim.measurements import Evaluation
from sslim.progress import ProgressBar
from sslim.recipes import resolve
from sslim.records import Interval, Record
from sslim.report.checklist import checklist
from sslim.report.evidence import FOLDER, read_evidence
from sslim.report.page import recommendation, task_sentences, write_report
from sslim.report.verdict import judge
from sslim.report.words import Words
from sslim.runs.folder import settled
from sslim.steps.result import CompressionResult
from sslim.story import compress

PARAMS = "25%"
NAMES = ("teacher", "compressed", "distillation only", "log-mel, no model")
TASKS = {"words": ("ks", "split"), "voices": ("sid", "voice_split")}
"""What is asked -> the task, and the column with train, valid and test."""


@dataclass(frozen=True)
class DemoRow:
    """One line of the table; accuracies are shares of 1, intervals 95% over the test clips."""

    name: str
    parameters: int
    macs_per_second: int
    file_bytes: int
    word_accuracy: float
    word_interval: Interval | None
    voice_accuracy: float
    voice_interval: Interval | None
    seconds_to_make: float


@dataclass(frozen=True, kw_only=True)
class DemoFacts(Record):
    """`results.json`: what the demo measured."""

    KIND: ClassVar[str] = "demo-results"

    out: str
    rows: tuple[DemoRow, ...]
    word_chance: float
    voice_chance: float
    sentences: tuple[str, ...]
    """What the scores say, as the report says it."""
    seconds: float
    settings: tuple[str, ...]
    """Edits of the demo recipe."""


@dataclass(frozen=True)
class DemoResult:
    """Everything the demo measured."""

    out: Path
    rows: tuple[DemoRow, ...]
    word_chance: float
    voice_chance: float
    sentences: tuple[str, ...]
    """What the scores say, as the report says it."""
    seconds: float

    def render(self, console: Console) -> None:
        """Prints the table, and what it says."""
        table = Table(
            title="Small heads on frozen features, accuracy in % with 95% intervals",
            title_justify="left",
        )
        for column in ("features", "parameters", "MACs/s", "words", "voices", "made in"):
            table.add_column(column, justify="left" if column == "features" else "right")
        for row in self.rows:
            table.add_row(
                row.name,
                f"{row.parameters:,}" if row.parameters else "-",
                f"{row.macs_per_second / 1e6:.0f}M" if row.macs_per_second else "-",
                _percent(row.word_accuracy, row.word_interval),
                _percent(row.voice_accuracy, row.voice_interval),
                f"{row.seconds_to_make:.0f} s" if row.seconds_to_make else "-",
            )
        chance = (f"{100 * self.word_chance:.1f}", f"{100 * self.voice_chance:.1f}")
        table.add_row("chance", "-", "-", *chance, "-")
        console.print(table)
        for sentence in self.sentences:
            console.print(sentence, highlight=False, markup=False, soft_wrap=True)


def _percent(score: float, interval: Interval | None) -> str:
    low, high = (100 * edge for edge in interval or (math.nan, math.nan))
    return f"{100 * score:.1f} ({low:.1f}-{high:.1f})"


def run_demo(
    out: str | Path, *, settings: Sequence[str] = (), force: bool = False, progress: bool = True
) -> DemoResult:
    """Runs the demo into the folder `out` and prints one table.

    Args:
        out: speech, both students and the results stay there.
        settings: edits of the demo recipe, such as `stage1.updates=600`.
        force: replace what an earlier demo wrote in `out`; files of others stay.
        progress: show progress on stderr.

    Raises:
        DemoError: espeak-ng is not installed.
        OutputError: `out` holds something else, or cannot be written.
    """
    began = time.perf_counter()
    out = settled(out)
    config = resolve("demo", settings=settings)
    prepare(out, force=force)
    with ProgressBar(progress) as bar:
        bar.say("making spoken commands with espeak-ng ...")
        speech = make_speech(out / "speech", seed=config.seed)
        bar.say(
            f"{speech.clips:,} clips, {speech.seconds / 60:.1f} minutes, {speech.voices} voices"
        )
    where = {"split": "train"}
    student = compress(
        teacher_path(),
        speech.manifest,
        out / "student",
        recipe="demo",
        settings=settings,
        params=PARAMS,
        where=where,
        force=(out / "student").exists(),
        progress=progress,
    )
    with ProgressBar(progress) as bar:
        bar.say("distilling a student of the same size without pruning, to compare ...")
    seconds = distil_only(
        teacher_path(),
        speech.manifest,
        out / "distilled",
        limit=student.parameters,
        config=config,
        where=where,
        progress=progress,
    )
    with ProgressBar(progress) as bar:
        bar.say("scoring words and voices ...")
        evaluations = _scores(out, speech, config, bar)
    result = _result(out, evaluations, student, seconds, began)
    _write(result, settings)
    report = write_report([out / "student"], out / "student" / "report.html")
    console = Console(markup=False, emoji=False)
    result.render(console)
    console.print(student.summary_line(), highlight=False, soft_wrap=True)
    console.print(
        f"{out}: the student is in {out / 'student'} (its README.md says how to load it); "
        f"`sslim inspect {out / 'student'}` shows what was kept, {report} what was saved and lost. "
        f"{result.seconds:.0f} s in all.",
        highlight=False,
        soft_wrap=True,
    )
    return result


def _scores(
    out: Path, speech: SpeechSet, config: RunConfig, bar: ProgressBar
) -> dict[str, Evaluation]:
    """Both tasks, each also written where the student's report looks for evidence."""
    models: list[str | Path] = [teacher_path(), out / "student", out / "distilled", "fbank"]
    evaluations = {}
    # Both tasks hear the same clips: what a model says of one is computed once.
    with tempfile.TemporaryDirectory() as kept:
        settings = Settings(store=FeatureStore(Path(kept)), say=bar.say, on_progress=bar.work)
        for subject, (task, column) in TASKS.items():
            evaluations[subject] = evaluate(
                models,
                task,
                speech.manifest,
                split_column=column,
                settings=settings,
                device=config.device,
            )
            evaluations[subject].write(out / "student" / FOLDER / f"{subject}.json")
    return evaluations


def _result(
    out: Path,
    evaluations: dict[str, Evaluation],
    student: CompressionResult,
    distilled_seconds: float,
    began: float,
) -> DemoResult:
    words, voices = evaluations["words"].results, evaluations["voices"].results
    folders = (teacher_path(), out / "student", out / "distilled", None)
    seconds = (0.0, student.seconds, distilled_seconds, 0.0)
    rows = tuple(
        DemoRow(
            name=name,
            parameters=word.parameters,
            macs_per_second=word.macs_per_second,
            file_bytes=0 if folder is None else (folder / "model.safetensors").stat().st_size,
            word_accuracy=word.score,
            word_interval=word.interval,
            voice_accuracy=voice.score,
            voice_interval=voice.interval,
            seconds_to_make=took,
        )
        for name, word, voice, folder, took in zip(
            NAMES, words, voices, folders, seconds, strict=True
        )
    )
    evidence, english = read_evidence(out / "student"), Words("en")
    verdict, items = judge(evidence), checklist(evidence, english)
    sentences = (*task_sentences(verdict, english), recommendation(verdict, items, english))
    return DemoResult(
        out, rows, words[0].chance, voices[0].chance, sentences, time.perf_counter() - began
    )


def _write(result: DemoResult, settings: Sequence[str]) -> None:
    path = result.out / RESULTS
    try:
        facts = vars(result) | {"out": str(result.out), "settings": tuple(settings)}
        DemoFacts(**facts).write(path)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {first_line(error)}", "free space, then run again with --force"
        ) from error
