"""Foreign checkpoints -> Hugging Face folders, strictly: fairseq, torchaudio, DPHuBERT and DPWavLM.

What a file is, is told by what it holds. Dense models become folders of the dense family, pruned ones
folders of ours. A weight that is missing, left over or misshapen is an error that names it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sslim.backbone.convert.checkpoint import Checkpoint
from sslim.backbone.convert.fairseq import from_fairseq, is_fairseq
from sslim.backbone.convert.reading import read_file
from sslim.backbone.convert.torchaudio import from_torchaudio, is_torchaudio
from sslim.errors import ConversionError, OutputError, TeacherError

__all__ = ["Checkpoint", "Converted", "convert", "read_checkpoint"]


@dataclass(frozen=True)
class Converted:
    """What was found in a file and where it went."""

    out: Path
    family: str
    source_format: str
    parameters: int
    notes: tuple[str, ...]

    def summary_line(self) -> str:
        """One line for the user."""
        notes = f" ({'; '.join(self.notes)})" if self.notes else ""
        return f"{self.out}: {self.family}, {self.parameters:,} parameters, from {self.source_format}{notes}"


def read_checkpoint(file: str | Path, *, family: str | None = None) -> Checkpoint:
    """Reads a foreign file into a configuration and weights under Hugging Face names.

    Args:
        file: a `.pt`, `.pth` or `.safetensors` file.
        family: "hubert" or "wav2vec2", where the file does not say (torchaudio, DPHuBERT).

    Raises:
        ConversionError: the file is no checkpoint, or not of a format that is known.
    """
    path = Path(file)
    data = read_file(path)
    try:
        if is_fairseq(data):
            return from_fairseq(data, path)
        if is_torchaudio(data):
            return from_torchaudio(data, path, family)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise ConversionError(
            f"{path} contradicts its own format ({type(error).__name__}: {error})",
            "the file is damaged, or from a version that sslim does not know",
        ) from error
    names = list(data)[:5] if isinstance(data, dict) else [type(data).__name__]
    raise ConversionError(
        f"{path} is not a checkpoint that sslim knows: it holds {', '.join(map(str, names)) or 'nothing'}",
        "give a fairseq .pt, a torchaudio state dict or a DPHuBERT .pth",
    )


def convert(
    file: str | Path, out: str | Path, *, force: bool = False, family: str | None = None
) -> Converted:
    """Writes a foreign checkpoint as a folder that transformers loads.

    Raises:
        ConversionError: see `read_checkpoint`; or a weight is missing, left over or misshapen.
        OutputError: `out` exists (and `force` is not given) or cannot be written.
    """
    from sslim.backbone.families import build, head_of
    from sslim.backbone.saving import save_dense, save_folder
    from sslim.files import swap_folder

    out = Path(out)
    if out.exists() and not force:
        raise OutputError(f"{out} exists", "use --force to replace it, or another name")
    checkpoint = read_checkpoint(file, family=family)
    head = head_of(checkpoint.config)
    try:
        whole = build(checkpoint.config, checkpoint.state, head, str(file))
    except TeacherError as error:
        raise ConversionError(error.problem, "the file is damaged, or not what it seems") from error
    if out.exists():
        if not out.is_dir() or not ((out / "config.json").is_file() or not any(out.iterdir())):
            raise OutputError(f"{out} is not a model folder", "choose another name")
        if Path(file).resolve().is_relative_to(out.resolve()):
            raise OutputError(f"{file} lies in {out}", "choose another name")
    if whole.config.plan is None and not whole.config.conv_output_scale:
        save_dense(out, checkpoint.config, whole, checkpoint.preprocessor, checkpoint.files)
    else:
        facts = {"converted_from": {"file": Path(file).name, "format": checkpoint.source_format}}
        fresh = out.with_name(f".{out.name}.new")
        normalise = bool(checkpoint.preprocessor["do_normalize"])
        save_folder(fresh, whole, normalise=normalise, run=facts)
        swap_folder(fresh, out)
    return Converted(
        out=out,
        family=str(checkpoint.config.model_type).removeprefix("sslim-"),
        source_format=checkpoint.source_format,
        parameters=sum(parameter.numel() for parameter in whole.parameters()),
        notes=checkpoint.notes,
    )
