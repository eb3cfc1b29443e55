"""Exporting, readable top to bottom: find audio, write the graph, run it, compare, then give it its name."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from sslim.backbone.contents import CARD, RECORD
from sslim.backbone.exported import ExportedModel
from sslim.backbone.loaded import LoadedModel
from sslim.backbone.loading import load_model
from sslim.backbone.units import plan_of, shape_of
from sslim.deploy.arithmetic import Arithmetic, Float32, Int8
from sslim.deploy.calibration import input_ranges
from sslim.deploy.foreign import save_dphubert
from sslim.deploy.graph import FLOAT, INT64
from sslim.deploy.network import Network
from sslim.deploy.outputs import cannot_write, kind_of, prepare_file
from sslim.deploy.signals import Signals, find_signals
from sslim.deploy.verify import check_export
from sslim.errors import (
    ConfigError,
    ExportError,
    OutputError,
    SslimError,
    TeacherError,
    first_line,
)
from sslim.files import fsync_file, read_json, write_text, written_whole
from sslim.identity import COMPUTATION, content_of
from sslim.measurements import Check, ExportFacts, LabelledScores
from sslim.plan import MACS_SECONDS, SAMPLING_RATE
from sslim.report.card import with_export
from sslim.version import __version__

FORMATS = ("onnx", "onnx-int8", "dphubert")
MAX_DIFFERENCE = 1e-4
"""What a float32 export may differ from the model, in units of `LayerCheck.difference`."""
MIN_COSINE = 0.999
"""What every layer of an int8 export must reach."""
MOST_BYTES = 2**31 - 2**20
"""Protocol buffers end at 2 GiB."""


@dataclass(frozen=True)
class Export:
    """A file that was written, and how far it is from its model."""

    path: Path
    format: str
    bytes: int
    check: Check | None
    """None for a DPHuBERT file, which holds the same float32 weights and was read back."""
    audio: str
    passed: bool
    fingerprint: str
    """Identity of the file: its contents."""
    model_fingerprint: str
    """Identity of the torch model that it was made from."""
    notes: tuple[str, ...] = ()
    probe: LabelledScores | None = None
    """Where labels were given."""

    def facts(self, model: str = "") -> ExportFacts:
        """The description that lies beside the file.

        Args:
            model: what the user called the model.
        """
        return ExportFacts(
            file=self.path.name,
            format=self.format,
            bytes=self.bytes,
            passed=self.passed,
            worst_cosine=self.check.cosine if self.check else None,
            worst_difference=self.check.difference if self.check else None,
            audio=self.audio,
            fingerprint=self.fingerprint,
            model_fingerprint=self.model_fingerprint,
            model=model,
            check=self.check,
            notes=self.notes,
            probe=self.probe,
            computation=COMPUTATION,
        )


def export(
    model: str | Path,
    out: str | Path,
    *,
    format: str = "onnx",
    audio: str | Path | None = None,
    where: Mapping[str, str] | None = None,
    labels: str | Path | None = None,
    task: str = "ks",
    all_layers: bool = False,
    seven_bit: bool = False,
    min_cosine: float = MIN_COSINE,
    force: bool = False,
    card: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> Export:
    """Writes `model` as one deployable file, runs that file and compares it before it gets its name.

    Args:
        model: a folder, hub id or checkpoint file, dense or compressed.
        out: the file to write; beside it comes `OUT.json` with what was measured.
        format: `onnx` (float32), `onnx-int8`, or `dphubert` (the reference's `.pth`).
        audio: a source of speech like yours, to fix int8 ranges and to compare with; without it the run's own
            training audio where it still lies, else signals made here.
        where: rows of a CSV source, and of `labels`.
        labels: a CSV of labelled clips (see `sslim evaluate`) on which model and file are both scored.
        task: what the labels are for.
        all_layers: give out every hidden state as well.
        seven_bit: int8 weights of 7 bits, for processors without VNNI.
        min_cosine: what every layer of an int8 file must reach.
        force: replace an earlier export at `out`, and keep a file that failed the comparison (it then says
            so, as its description and the card do).
        card: note the file in the card of the model's folder.
        say: told what is going on.

    Raises:
        ConfigError: a setting is not right.
        TeacherError: the model cannot be loaded.
        ExportError: it cannot be exported, gives values that are not finite, or differs from the model (and
            `force` is not given).
        OutputError: `out` exists (and `force` is not given, or it is no export) or cannot be written.
    """
    out = Path(out)
    if format not in FORMATS:
        raise ConfigError(f"the format {format!r} is unknown", f"use one of {', '.join(FORMATS)}")
    if not -1 <= min_cosine <= 1:
        raise ConfigError(f"min_cosine is {min_cosine:g}", "give a number from -1 to 1")
    if where and audio is None and labels is None:
        raise ConfigError("--where chooses rows, and of nothing here", "give --audio or --labels")
    _check_target(out, format, force)
    loaded = load_model(model)
    if format == "dphubert":
        with _writing(out) as aside:
            save_dphubert(loaded, aside)
            notes = ("the backbone alone: the format has no heads",) if loaded.head else ()
            made = _described(loaded, out, aside, format, None, "", True, notes)
        return _on_the_card(loaded, made) if card else made
    signals = find_signals(loaded.folder, audio, where or {}, calibrates=format == "onnx-int8")
    remarks = list(signals.remarks)
    if format == "onnx-int8" and signals.made_here:
        remarks.append("ranges come from signals made here; give speech like yours with --audio")
    say(f"comparing on {signals.described}")
    arithmetic = _arithmetic(loaded, format, signals, seven_bit)
    twin = out.with_name(f".{out.name}.layers.onnx")
    probe = None
    try:
        with _writing(out) as aside:
            _write(loaded, arithmetic(), aside, all_layers)
            if not all_layers or loaded.head or labels is not None:
                _write(loaded, arithmetic(), twin, True, features=True)
            file = ExportedModel(aside, threads=0)
            layers = ExportedModel(twin) if twin.exists() else file
            check = check_export(loaded, file, layers, signals.check, signals.long)
            passed, problem = _judge(check, format, min_cosine)
            if labels is not None:
                probe = _probe(model, twin, task, labels, where or {}, say)
            if not passed and not force:
                raise ExportError(
                    f"{out.name} was not written: {problem}",
                    "give speech like yours with --audio, export as onnx (float32), or keep it with --force",
                )
            if not passed:
                remarks.append(f"FAILED its comparison and was kept: {problem}")
            _append(aside, check, passed)
            made = _described(
                loaded, out, aside, format, check, signals.described, passed, tuple(remarks), probe
            )
    finally:
        with contextlib.suppress(OSError):
            twin.unlink(missing_ok=True)
    return _on_the_card(loaded, made) if card else made


def _check_target(out: Path, format: str, force: bool) -> None:
    """Refuses a file that cannot be written, or that holds what is not ours, before anything is computed."""
    kind = kind_of(out)
    if kind == "folder":
        raise OutputError(f"{out} is a folder", f"name a file in it: {out / ending(format)}")
    description = _description_of(out)
    earlier = _earlier(description)
    if kind_of(description) and earlier is None:
        raise OutputError(
            f"{description}, where the file's description goes, is no description of an export",
            "choose another name for the file",
        )
    if kind or out.is_symlink():
        if not force:
            raise OutputError(f"{out} exists", "use --force to replace it, or another name")
        if kind != "file" or not _is_export(out, earlier):
            raise OutputError(
                f"{out} is no file that sslim export wrote, or was changed since",
                "choose another name, or remove it yourself",
            )
    for path in (out, description):
        prepare_file(path)


def _description_of(out: Path) -> Path:
    return out.with_name(out.name + ".json")


def _earlier(description: Path) -> ExportFacts | None:
    """What an earlier export said of itself."""
    try:
        facts = ExportFacts.read(description)
    except OutputError:
        return None
    return facts if facts.format in FORMATS else None


def _is_export(out: Path, earlier: ExportFacts | None) -> bool:
    """Whether a file is the one that its description describes, or says of itself that it is an export."""
    if earlier is not None and earlier.file == out.name:
        if earlier.model_fingerprint is not None:
            return earlier.fingerprint == content_of(out)
        return earlier.bytes == out.stat().st_size  # of a version that knew no more
    try:
        ExportedModel(out)
    except SslimError:
        return False
    return True


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[Path]:
    """The place aside of the file; what the disk says becomes a sentence."""
    try:
        with written_whole(out) as aside:
            yield aside
    except OSError as error:
        raise cannot_write(out, error) from error


def _probe(
    model: str | Path,
    file: Path,
    task: str,
    labels: str | Path,
    where: Mapping[str, str],
    say: Callable[[str], None],
) -> LabelledScores:
    """The same head, trained on features of the model and of the file."""
    from sslim.evaluate.run import evaluate
    from sslim.evaluate.scorer import Settings

    evaluation = evaluate([model, file], task, labels, where=where, settings=Settings(say=say))
    ours, exported = evaluation.results
    return LabelledScores(
        task, ours.metric, ours.score, ours.interval, exported.score, exported.interval
    )


def ending(format: str) -> str:
    """A usual file name for a format."""
    return {"onnx": "model.onnx", "onnx-int8": "model-int8.onnx", "dphubert": "model.pth"}[format]


def _arithmetic(
    loaded: LoadedModel, format: str, signals: Signals, seven_bit: bool
) -> Callable[[], Arithmetic]:
    """Makes an arithmetic per graph: what it has quantised belongs to one."""
    if format == "onnx":
        return Float32
    ranges = input_ranges(loaded, signals.calibration)
    levels = 63 if seven_bit else 127
    return lambda: Int8(ranges, levels)


def _write(
    loaded: LoadedModel,
    arithmetic: Arithmetic,
    path: Path,
    all_layers: bool,
    features: bool = False,
) -> None:
    """The graph as a file; `features` gives features out even where there is a head."""
    network = Network(loaded, arithmetic)
    network.write()
    width, batch, time = loaded.model.config.hidden_size, "batch", "frames"
    outputs: dict[str, tuple[str, int, list[str | int]]] = {}
    if loaded.head and not features:
        per_frame = loaded.head in ("ctc", "frame-classification")
        shape: list[str | int] = [batch, time, "classes"] if per_frame else [batch, "classes"]
        outputs["logits"] = (network.logits(), FLOAT, shape)
        if loaded.head == "x-vector":
            outputs["embeddings"] = (network.embeddings, FLOAT, [batch, "width"])
    else:
        outputs["last_hidden_state"] = (network.features(network.last), FLOAT, [batch, time, width])
    if all_layers:
        shape = [len(network.layers), batch, time, width]
        outputs["hidden_states"] = (network.hidden_states(), FLOAT, shape)
    outputs["frame_lengths"] = (network.frames_B, INT64, [batch])
    if sum(len(tensor.raw_data) for tensor in network.graph.initializers) > MOST_BYTES:
        raise ExportError(
            f"{loaded.source} takes more than 2 GiB, where an ONNX file ends",
            "export it as onnx-int8, or compress it first",
        )
    proto = network.graph.model(
        {"waveform": (FLOAT, [batch, "samples"]), "lengths": (INT64, [batch])},
        outputs,
        metadata(loaded, "onnx-int8" if isinstance(arithmetic, Int8) else "onnx"),
    )
    path.write_bytes(proto.SerializeToString())


def _append(path: Path, check: Check, passed: bool) -> None:
    """Adds to a file's metadata how it compared: protocol buffers are merged by writing one after another."""
    facts = {
        "passed": passed,
        "worst_cosine": check.cosine,
        "worst_difference": check.difference,
        "batching": check.batching,
    }
    proto = onnx.ModelProto()
    helper.set_model_props(proto, {"check": json.dumps(facts)})
    with path.open("ab") as stream:
        stream.write(proto.SerializeToString())


def metadata(loaded: LoadedModel, format: str) -> dict[str, str]:
    """What an exported file says of itself, as strings."""
    config = loaded.model.config
    shape, plan = shape_of(loaded.model), plan_of(loaded.model)
    facts = {
        "version": __version__,
        "format": format,
        "family": loaded.family,
        "source": Path(loaded.source).name,
        "fingerprint": loaded.fingerprint,
        "head": loaded.head,
        "layers": config.num_hidden_layers + 1,
        "width": config.hidden_size,
        "parameters": plan.parameters(shape),
        "macs_per_second": round(plan.macs(shape) / MACS_SECONDS),
    }
    properties = {
        "sslim": json.dumps(facts),
        "sampling_rate": str(SAMPLING_RATE),
        "hop": str(loaded.hop),
        "receptive_field": str(loaded.receptive_field),
        "normalisation": "zero mean and unit variance, computed inside"
        if loaded.normalise
        else "none",
    }
    labels = _labels(loaded)
    if labels:
        properties["labels"] = json.dumps(labels)
    return properties


def _labels(loaded: LoadedModel) -> list[str]:
    """Names of the classes, in order; of a CTC head, the symbols of its vocabulary."""
    if loaded.head == "ctc" and loaded.folder and (loaded.folder / "vocab.json").is_file():
        vocabulary = read_json(loaded.folder / "vocab.json", "a vocabulary", TeacherError)
        numbers = vocabulary.values()
        if not all(type(number) is int for number in numbers):
            raise TeacherError(
                f"{loaded.folder / 'vocab.json'} is no vocabulary: symbols need whole numbers",
                "restore or remove it",
            )
        return sorted(vocabulary, key=lambda symbol: int(vocabulary[symbol]))
    if loaded.head in ("sequence-classification", "frame-classification", "x-vector"):
        names: Any = loaded.model.config.id2label
        return [str(names[index]) for index in sorted(names)]
    return []


def _judge(check: Check, format: str, min_cosine: float) -> tuple[bool, str]:
    """Whether a file may be used, and what is wrong. No comparison here is passed by NaN."""
    if format == "onnx":
        worst = float(np.max([check.difference, check.batching]))
        return (
            worst <= MAX_DIFFERENCE,
            f"it differs from the model by {worst:.1e} ({MAX_DIFFERENCE:g})",
        )
    if not check.cosine >= min_cosine:
        layer = check.layers[int(np.argmin([row.cosine for row in check.layers]))]
        return (
            False,
            f"layer {layer.layer} has a cosine of {layer.cosine:.4f} (wanted {min_cosine:g})",
        )
    if not check.batching <= MAX_DIFFERENCE:
        return False, f"batching changes its results by {check.batching:.1e} ({MAX_DIFFERENCE:g})"
    return True, ""


def _described(
    loaded: LoadedModel,
    out: Path,
    aside: Path,
    format: str,
    check: Check | None,
    audio: str,
    passed: bool,
    notes: tuple[str, ...] = (),
    probe: LabelledScores | None = None,
) -> Export:
    """Writes the description of a file that is about to get its name."""
    fsync_file(aside)  # whatever the disk has to say, it says now
    made = Export(
        path=out,
        format=format,
        bytes=aside.stat().st_size,
        check=check,
        audio=audio,
        passed=passed,
        fingerprint=content_of(aside),
        model_fingerprint=loaded.fingerprint,
        notes=notes,
        probe=probe,
    )
    made.facts(loaded.source).write(_description_of(out))
    return made


def _on_the_card(loaded: LoadedModel, made: Export) -> Export:
    """Puts the figures into the card of the folder it was made from; where that cannot be, a note says so."""
    card = None if loaded.folder is None else loaded.folder / CARD
    if card is None or not card.is_file() or not (card.parent / RECORD).is_file():
        return made
    facts = made.facts()
    if not made.passed:
        facts = replace(facts, format=f"{made.format} (FAILED its comparison)")
    try:
        write_text(card, with_export(card.read_text(encoding="utf-8"), facts))
    except (OSError, ValueError) as error:
        note = f"the card {card} does not mention the file: {first_line(error)}"
        return replace(made, notes=(*made.notes, note))
    return made
