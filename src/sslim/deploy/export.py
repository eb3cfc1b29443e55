"""Exporting, readable top to bottom: find audio, write the graph, run it, compare, then give it its name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sslim import __version__
from sslim.backbone.exported import ExportedModel
from sslim.backbone.loading import LoadedModel, load_model
from sslim.backbone.units import plan_of, shape_of
from sslim.deploy.arithmetic import Arithmetic, Float32, Int8
from sslim.deploy.calibration import input_ranges
from sslim.deploy.foreign import save_dphubert
from sslim.deploy.graph import FLOAT, INT64
from sslim.deploy.network import Network
from sslim.deploy.signals import Signals, find_signals
from sslim.deploy.verify import Check, check_export
from sslim.errors import ConfigError, ExportError, OutputError
from sslim.plan import MACS_SECONDS, SAMPLING_RATE
from sslim.report.card import with_export

FORMATS = ("onnx", "onnx-int8", "dphubert")
MAX_DIFFERENCE = 1e-4
"""What a float32 export may differ from the model, in units of `verify.LayerCheck.difference`."""
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
    notes: tuple[str, ...] = ()
    probe: Mapping[str, Any] | None = None
    """Scores of model and file on a labelled task, where labels were given."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "file": self.path.name,
            "format": self.format,
            "bytes": self.bytes,
            "audio": self.audio,
            "passed": self.passed,
            "worst_cosine": self.check.cosine if self.check else None,
            "worst_difference": self.check.difference if self.check else None,
            "check": asdict(self.check) if self.check else None,
            "notes": list(self.notes),
            "probe": None if self.probe is None else dict(self.probe),
        }


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
        force: replace `out`, and keep a file that failed the comparison.
        say: told what is going on.

    Raises:
        TeacherError: the model cannot be loaded.
        ExportError: it cannot be exported, or differs from the model (and `force` is not given).
        OutputError: `out` exists (and `force` is not given) or cannot be written.
    """
    out = Path(out)
    if format not in FORMATS:
        raise ConfigError(f"the format {format!r} is unknown", f"use one of {', '.join(FORMATS)}")
    if out.is_dir():
        raise OutputError(f"{out} is a folder", f"name a file in it: {out / ending(format)}")
    if out.exists() and not force:
        raise OutputError(f"{out} exists", "use --force to replace it, or another name")
    loaded = load_model(model)
    if format == "dphubert":
        save_dphubert(loaded, out)
        notes = ("the backbone alone: the format has no heads",) if loaded.head else ()
        return _finish(loaded, Export(out, format, out.stat().st_size, None, "", True, notes))
    signals = find_signals(loaded.folder, audio, where or {})
    remarks: list[str] = []
    if format == "onnx-int8" and signals.made_here:
        remarks.append("ranges come from signals made here; give speech like yours with --audio")
    say(f"comparing on {signals.described}")
    arithmetic = _arithmetic(loaded, format, signals, seven_bit)
    aside = out.with_name(f".{out.name}.partial.onnx")
    twin = out.with_name(f".{out.name}.layers.onnx")
    probe = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _write(loaded, arithmetic(), aside, all_layers)
        if not all_layers or loaded.head:
            _write(loaded, arithmetic(), twin, True, features=True)
        file = ExportedModel(aside, threads=0)
        layers = ExportedModel(twin) if twin.exists() else file
        check = check_export(loaded, file, layers, signals.check)
        passed, problem = _judge(check, format, min_cosine)
        if labels is not None:
            probe = _probe(model, twin if twin.exists() else aside, task, labels, where or {}, say)
        if not passed and not force:
            raise ExportError(
                f"{out.name} was not written: {problem}",
                "give speech like yours with --audio, export as onnx (float32), or keep it with --force",
            )
        if not passed:
            remarks.append(f"kept although {problem}")
        aside.replace(out)
    except OSError as error:
        raise OutputError(
            f"cannot write {out}: {error.strerror or error}", "free space or choose another folder"
        ) from error
    finally:
        aside.unlink(missing_ok=True)
        twin.unlink(missing_ok=True)
    size = out.stat().st_size
    made = Export(out, format, size, check, signals.described, passed, tuple(remarks), probe)
    return _finish(loaded, made)


def _probe(
    model: str | Path,
    file: Path,
    task: str,
    labels: str | Path,
    where: Mapping[str, str],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """The same head, trained on features of the model and of the file."""
    from sslim.evaluate.run import evaluate
    from sslim.evaluate.scorer import Settings

    found = evaluate([model, file], task, labels, where=where, settings=Settings(say=say))
    ours, exported = found.results
    return {
        "task": task,
        "metric": ours.metric,
        "model": ours.score,
        "model_interval": list(ours.interval),
        "file": exported.score,
        "file_interval": list(exported.interval),
    }


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
        metadata(loaded),
    )
    with path.open("wb") as stream:
        stream.write(proto.SerializeToString())
        stream.flush()
        os.fsync(stream.fileno())


def metadata(loaded: LoadedModel) -> dict[str, str]:
    """What an exported file says of itself, as strings."""
    config = loaded.model.config
    shape, plan = shape_of(loaded.model), plan_of(loaded.model)
    facts = {
        "version": __version__,
        "family": loaded.family,
        "source": Path(loaded.source).name,
        "fingerprint": loaded.fingerprint,
        "head": loaded.head,
        "layers": config.num_hidden_layers + 1,
        "width": config.hidden_size,
        "parameters": plan.parameters(shape),
        "macs_per_second": round(plan.macs(shape) / MACS_SECONDS),
    }
    found = {
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
        found["labels"] = json.dumps(labels)
    return found


def _labels(loaded: LoadedModel) -> list[str]:
    """Names of the classes, in order; of a CTC head, the symbols of its vocabulary."""
    if loaded.head == "ctc" and loaded.folder and (loaded.folder / "vocab.json").is_file():
        vocabulary = json.loads((loaded.folder / "vocab.json").read_text(encoding="utf-8"))
        return [symbol for symbol, _ in sorted(vocabulary.items(), key=lambda item: item[1])]
    if loaded.head in ("sequence-classification", "frame-classification", "x-vector"):
        names: Any = loaded.model.config.id2label
        return [str(names[index]) for index in sorted(names)]
    return []


def _judge(check: Check, format: str, min_cosine: float) -> tuple[bool, str]:
    if format == "onnx":
        worst = max(check.difference, check.batching)
        return (
            worst <= MAX_DIFFERENCE,
            f"it differs from the model by {worst:.1e} ({MAX_DIFFERENCE:g})",
        )
    if not check.cosine >= min_cosine:
        layer = min(check.layers, key=lambda row: row.cosine)
        return (
            False,
            f"layer {layer.layer} has a cosine of {layer.cosine:.4f} (wanted {min_cosine:g})",
        )
    if not check.batching <= MAX_DIFFERENCE:
        return False, f"batching changes its results by {check.batching:.1e} ({MAX_DIFFERENCE:g})"
    return True, ""


def _finish(loaded: LoadedModel, made: Export) -> Export:
    """Puts the figures beside the file and into the card of the folder it was made from."""
    facts = made.to_dict() | {"model": loaded.source, "fingerprint": loaded.fingerprint}
    text = json.dumps(facts, indent=2) + "\n"
    made.path.with_name(made.path.name + ".json").write_text(text, encoding="utf-8")
    card = None if loaded.folder is None else loaded.folder / "README.md"
    if card is not None and card.is_file() and (card.parent / "sslim.json").is_file():
        card.write_text(with_export(card.read_text(encoding="utf-8"), facts), encoding="utf-8")
    return made
