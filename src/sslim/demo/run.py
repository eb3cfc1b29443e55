"""`sslim demo`: the main job, offline, in minutes, with honest numbers.

Spoken commands are made on this machine, the embedded teacher is compressed on the training voices, and
teacher, compressed student, a distillation-only student of the same size, and plain log-mel features are
compared by linear probes on frozen features: which word (said by voices that neither the probe nor the
students have heard), and which voice.
"""

from __future__ import annotations

import csv
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from rich.console import Console
from rich.table import Table

from sslim.backbone.loading import LoadedModel, load_model
from sslim.backbone.units import plan_of, shape_of
from sslim.demo import teacher_path
from sslim.demo.baseline import distil_only
from sslim.demo.speech import SpeechSet, make_speech
from sslim.distill.task import normalise
from sslim.errors import OutputError
from sslim.evaluate.fbank import log_mel
from sslim.evaluate.probe import LabelledFeatures, ProbeScore, pooled_features, probe
from sslim.plan import MACS_SECONDS
from sslim.recipes import resolve
from sslim.report.page import write_report
from sslim.story import CompressionResult, compress

PARAMS = "25%"
RESULTS = "results.json"


@dataclass(frozen=True)
class DemoRow:
    """One line of the table."""

    name: str
    parameters: int
    macs_per_second: int
    file_bytes: int
    word_accuracy: float
    word_deviation: float
    voice_accuracy: float
    voice_deviation: float
    seconds_to_make: float


@dataclass(frozen=True)
class DemoResult:
    """Everything the demo measured."""

    out: Path
    rows: tuple[DemoRow, ...]
    word_chance: float
    voice_chance: float
    seconds: float

    def render(self, console: Console) -> None:
        """Prints the table."""
        table = Table(title="Linear probes on frozen features, accuracy in %", title_justify="left")
        for column in ("features", "parameters", "MACs/s", "words", "voices", "made in"):
            table.add_column(column, justify="left" if column == "features" else "right")
        for row in self.rows:
            table.add_row(
                row.name,
                f"{row.parameters:,}" if row.parameters else "-",
                f"{row.macs_per_second / 1e6:.0f}M" if row.macs_per_second else "-",
                f"{100 * row.word_accuracy:.1f} ± {100 * row.word_deviation:.1f}",
                f"{100 * row.voice_accuracy:.1f} ± {100 * row.voice_deviation:.1f}",
                f"{row.seconds_to_make:.0f} s" if row.seconds_to_make else "-",
            )
        chance = (f"{100 * self.word_chance:.1f}", f"{100 * self.voice_chance:.1f}")
        table.add_row("chance", "-", "-", *chance, "-")
        console.print(table)


def run_demo(
    out: str | Path, *, settings: Sequence[str] = (), force: bool = False, progress: bool = True
) -> DemoResult:
    """Runs the demo into the folder `out` and prints one table.

    Args:
        out: speech, both students and the results stay there.
        settings: edits of the demo recipe, such as `stage1.updates=600`.
        force: replace an earlier demo in `out`.
        progress: show progress on stderr.

    Raises:
        DemoError: espeak-ng is not installed.
        OutputError: `out` holds something else, or cannot be written.
    """
    began = time.perf_counter()
    out = Path(out)
    config = resolve("demo", settings=settings)
    _prepare(out, force)
    console = Console()
    say = Console(stderr=True, quiet=not progress).print
    say("making spoken commands with espeak-ng ...")
    speech = make_speech(out / "speech", seed=config.seed)
    say(f"{speech.clips:,} clips, {speech.seconds / 60:.1f} minutes, {speech.voices} voices")
    where = {"split": "train"}
    student = compress(
        teacher_path(),
        speech.manifest,
        out / "student",
        recipe="demo",
        settings=settings,
        params=PARAMS,
        where=where,
        progress=progress,
    )
    say("distilling a student of the same size without pruning, to compare ...")
    seconds = distil_only(
        teacher_path(),
        speech.manifest,
        out / "distilled",
        limit=student.parameters,
        config=config,
        where=where,
        progress=progress,
    )
    say("probing frozen features ...")
    result = _measure(out, speech, student, seconds, began)
    facts = asdict(result) | {"out": str(out), "settings": list(settings)}
    (out / RESULTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    write_evidence(result, out / "student")
    report = write_report([out / "student"], out / "student" / "report.html")
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


def write_evidence(result: DemoResult, student: Path) -> None:
    """The probes' scores as a report reads them, without intervals: these probes have none."""
    rows = []
    for task, chance in (("word", result.word_chance), ("voice", result.voice_chance)):
        first = getattr(result.rows[0], f"{task}_accuracy")
        for row in result.rows:
            score = getattr(row, f"{task}_accuracy")
            rows.append(
                {
                    "model": "student" if row.name == "compressed" else row.name,
                    "task": f"{task}s",
                    "metric": "accuracy",
                    "higher_is_better": True,
                    "score": score,
                    "interval": None,
                    "difference": score - first,
                    "difference_interval": None,
                    "parameters": row.parameters,
                    "macs_per_second": row.macs_per_second,
                    "chance": chance,
                    "conditions": {},
                }
            )
    folder = student / "evidence"
    folder.mkdir(exist_ok=True)
    text = json.dumps({"results": rows}, indent=2) + "\n"
    (folder / "demo.json").write_text(text, encoding="utf-8")


def _prepare(out: Path, force: bool) -> None:
    """Makes room; removes only what an earlier demo left."""
    ours = {"speech", "student", "distilled", RESULTS}
    found = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file", "give a folder")
    if found - ours:
        raise OutputError(
            f"{out} holds {sorted(found - ours)[0]}, which is not ours", "name another folder"
        )
    if found and not force:
        raise OutputError(f"{out} holds an earlier demo", "use --force to replace it")
    for name in found:
        shutil.rmtree(out / name) if (out / name).is_dir() else (out / name).unlink()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot create {out}: {error.strerror}", "name another folder"
        ) from error


def _measure(
    out: Path, speech: SpeechSet, student: CompressionResult, distilled_seconds: float, began: float
) -> DemoResult:
    """Probes every set of features on both tasks."""
    with speech.manifest.open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    clips = [soundfile.read(speech.folder / row["path"], dtype="float32")[0] for row in rows]
    models = (
        ("teacher", load_model(teacher_path()), teacher_path(), 0.0),
        ("compressed", load_model(out / "student"), out / "student", student.seconds),
        ("distillation only", load_model(out / "distilled"), out / "distilled", distilled_seconds),
    )
    table = []
    chance = (0.0, 0.0)
    for name, loaded, folder, seconds in models:
        words, voices = _probes(extractor_of(loaded), clips, rows)
        shape, plan = shape_of(loaded.model), plan_of(loaded.model)
        table.append(
            DemoRow(
                name,
                plan.parameters(shape),
                round(plan.macs(shape) / MACS_SECONDS),
                (folder / "model.safetensors").stat().st_size,
                words.mean,
                words.std,
                voices.mean,
                voices.std,
                seconds,
            )
        )
        chance = words.chance, voices.chance
    words, voices = _probes(log_mel, clips, rows)
    baseline = (words.mean, words.std, voices.mean, voices.std)
    table.append(DemoRow("log-mel, no model", 0, 0, 0, *baseline, 0.0))
    return DemoResult(out, tuple(table), *chance, time.perf_counter() - began)


def extractor_of(loaded: LoadedModel) -> Callable[[np.ndarray], np.ndarray]:
    """Waveform (samples,) -> hidden states (layers + 1, frames, width)."""

    @torch.no_grad()
    def extract(waveform: np.ndarray) -> np.ndarray:
        waveforms = torch.from_numpy(waveform)[None]
        if loaded.normalise:
            waveforms = normalise(waveforms)
        states = loaded.model(waveforms, output_hidden_states=True).hidden_states
        features: np.ndarray = torch.cat(states).numpy()
        return features

    return extract


def _probes(
    extract: Callable[[np.ndarray], np.ndarray], clips: list[np.ndarray], rows: list[dict[str, str]]
) -> tuple[ProbeScore, ProbeScore]:
    """Word accuracy on held-out voices, voice accuracy on held-out words."""
    features = pooled_features(extract, clips)

    def score(label: str, split: str) -> ProbeScore:
        labelled = LabelledFeatures(features, [row[label] for row in rows])
        train, valid, test = (
            labelled.where([row[split] == part for row in rows])
            for part in ("train", "valid", "test")
        )
        return probe(train, valid, test)

    return score("label", "split"), score("speaker", "voice_split")
