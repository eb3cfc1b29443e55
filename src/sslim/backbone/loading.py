"""Loading: whatever a user calls a model -> our float32 model, how to feed it, and what it is."""

from __future__ import annotations

import hashlib
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig
from transformers.utils import logging as transformers_logging

from sslim.backbone.families import HEADS, build, family_of, head_of, register
from sslim.backbone.modeling_sslim import SslimModel, SslimPreTrainedModel
from sslim.errors import SslimError, TeacherError
from sslim.plan import SAMPLING_RATE


@dataclass(frozen=True)
class LoadedModel:
    """A model, its head if it has one, and what is needed to feed and to name it."""

    whole: SslimPreTrainedModel
    """The model as it was found: a backbone, or a backbone under a head."""
    head: str
    """Head kind (see families.HEADS), "" for a bare backbone."""
    normalise: bool
    """Whether waveforms must be brought to zero mean and unit variance."""
    source: str
    """What the user called it."""
    folder: Path | None
    """Where tokenizer and processor files lie, if it came from a local folder."""
    fingerprint: str
    """SHA-256 over names and values of the weights."""

    @property
    def model(self) -> SslimModel:
        """The backbone."""
        if isinstance(self.whole, SslimModel):
            return self.whole
        backbone: SslimModel = getattr(self.whole, self.whole.base_model_prefix)
        return backbone

    @property
    def family(self) -> str:
        return family_of(self.whole.config).name

    @property
    def hop(self) -> int:
        """Samples between two frames."""
        return math.prod(self.model.config.conv_stride)

    @property
    def receptive_field(self) -> int:
        """Samples that one frame reads, below which there is no frame."""
        config, samples = self.model.config, 1
        for kernel, stride in zip(
            reversed(config.conv_kernel), reversed(config.conv_stride), strict=True
        ):
            samples = (samples - 1) * stride + kernel
        return samples


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """transformers draws progress bars and warns about what is checked strictly here anyway."""
    hub = logging.getLogger("huggingface_hub")
    hub_level = hub.level
    hub.setLevel(logging.CRITICAL)  # it reports each retry of an unreachable hub
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        hub.setLevel(hub_level)
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def fingerprint(model: torch.nn.Module) -> str:
    """SHA-256 over names, shapes and float32 values of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def load_model(source: str | Path) -> LoadedModel:
    """Loads a hub id, a local folder, or a checkpoint file, as float32 in evaluation mode.

    Raises:
        TeacherError: it does not exist, cannot be read, or is of an unknown family.
        ConversionError: a checkpoint file does not hold what its format promises.
    """
    path = Path(source)
    if path.is_file():
        return _from_file(path)
    config = load_config(source)
    head = head_of(config)
    with quiet_transformers():
        whole = _load_weights(source, config, head)
    return LoadedModel(
        whole=whole,
        head=head,
        normalise=_normalises(source, config),
        source=str(source),
        folder=path if path.is_dir() else None,
        fingerprint=fingerprint(whole),
    )


def load_config(source: str | Path) -> Any:
    """The configuration alone of whatever `load_model` takes.

    Raises:
        TeacherError: as `load_model`.
    """
    register()
    path = Path(source)
    if path.is_file():
        from sslim.backbone.convert import read_checkpoint

        return read_checkpoint(path).config
    if not path.exists() and _looks_like_path(str(source)):
        raise TeacherError(
            f"the teacher {source} does not exist",
            "give a folder with config.json, a checkpoint file, or a hub id such as "
            "facebook/hubert-base-ls960",
        )
    if path.is_dir() and not (path / "config.json").is_file():
        raise TeacherError(
            f"the folder {source} has no config.json", "give a folder saved by save_pretrained"
        )
    with quiet_transformers():
        try:
            config = AutoConfig.from_pretrained(source)
        except (OSError, ValueError, KeyError) as error:
            raise TeacherError(
                f"cannot load {source}: {_first_line(error)}",
                "give a local folder, a checkpoint file, or the id of a model on the hub",
            ) from error
    family_of(config)
    return config


def _looks_like_path(source: str) -> bool:
    """Whether something that does not exist here can be no id of the hub either (owner/name)."""
    return (
        source.startswith((".", "/", "~"))
        or source.count("/") != 1
        or Path(source).suffix
        in {
            ".pt",
            ".pth",
            ".safetensors",
            ".bin",
        }
    )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _load_weights(source: str | Path, config: Any, head: str) -> SslimPreTrainedModel:
    auto = HEADS[head][1]
    try:
        dense, info = auto.from_pretrained(
            source, config=config, dtype=torch.float32, output_loading_info=True
        )
    except SslimError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        raise TeacherError(
            f"cannot load the weights of {source}: {_first_line(error)}",
            "check that the download or copy is complete",
        ) from error
    missing = sorted(info.get("missing_keys", ()))
    wrong = sorted(str(key) for key in info.get("mismatched_keys", ()))
    if missing or wrong:
        raise TeacherError(
            f"{source}: weight {(missing or wrong)[0]} is {'missing' if missing else 'misshapen'}",
            "check that the checkpoint belongs to its config.json",
        )
    if isinstance(dense, SslimPreTrainedModel):
        dense.eval()
        return dense
    return build(config, dense.state_dict(), head, str(source))


def _normalises(source: str | Path, config: Any) -> bool:
    """What the feature extractor says; without one, what the family's models were trained with."""
    from transformers import AutoFeatureExtractor

    with quiet_transformers():
        try:
            extractor = AutoFeatureExtractor.from_pretrained(source)
        except (OSError, ValueError, KeyError):
            return getattr(config, "feat_extract_norm", "layer") == "layer"
    rate = getattr(extractor, "sampling_rate", SAMPLING_RATE)
    if rate != SAMPLING_RATE:
        raise TeacherError(
            f"{source} wants audio at {rate} Hz, sslim works at {SAMPLING_RATE} Hz",
            "use a teacher trained on 16 kHz audio",
        )
    return bool(getattr(extractor, "do_normalize", False))


def _from_file(path: Path) -> LoadedModel:
    from sslim.backbone.convert import read_checkpoint

    checkpoint = read_checkpoint(path)
    head = head_of(checkpoint.config)
    whole = build(checkpoint.config, checkpoint.state, head, str(path))
    return LoadedModel(
        whole=whole,
        head=head,
        normalise=bool(checkpoint.preprocessor["do_normalize"]),
        source=str(path),
        folder=None,
        fingerprint=fingerprint(whole),
    )
