"""Files of other programs, read strictly: fairseq, torchaudio, DPHuBERT and DPWavLM.

What a file is, is told by what it holds. The outcome is a configuration and weights under the names of
transformers; nothing here loads a model or writes a folder.
"""

from __future__ import annotations

from pathlib import Path

from sslim.backbone.formats.checkpoint import Checkpoint
from sslim.backbone.formats.fairseq import from_fairseq, is_fairseq
from sslim.backbone.formats.reading import read_file
from sslim.backbone.formats.torchaudio import from_torchaudio, is_torchaudio
from sslim.backbone.settings import configuration
from sslim.errors import ConversionError, SslimError, TeacherError, first_line

__all__ = ["Checkpoint", "read_checkpoint"]


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
            return _bounded(from_fairseq(data, path), path)
        if is_torchaudio(data):
            return _bounded(from_torchaudio(data, path, family), path)
    except SslimError:
        raise
    except Exception as error:  # what a file contradicts first cannot be foreseen
        raise ConversionError(
            f"{path} contradicts its own format ({type(error).__name__}: {first_line(error)})",
            "the file is damaged, or from a version that sslim does not know",
        ) from error
    names = list(data)[:5] if isinstance(data, dict) else [type(data).__name__]
    held = ", ".join(name[:60] if isinstance(name, str) else type(name).__name__ for name in names)
    raise ConversionError(
        f"{path} is not a checkpoint that sslim knows: it holds {held or 'nothing'}",
        "give a fairseq .pt, a torchaudio state dict or a DPHuBERT .pth",
    )


def _bounded(checkpoint: Checkpoint, path: Path) -> Checkpoint:
    """A checkpoint whose sizes are as believable as those of any other configuration.

    Raises:
        ConversionError: one is not; whoever asked for the configuration alone would believe it.
    """
    found = checkpoint.config
    try:
        configuration(type(found), found.to_dict(), str(path))
    except TeacherError as error:
        problem = error.problem.replace(" in config.json", "").replace("config.json", "it")
        raise ConversionError(problem, "the file is damaged, or not what it seems") from error
    return checkpoint
