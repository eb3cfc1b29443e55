"""Saving: a folder that loads anywhere. Written aside and renamed, so it is whole or not there."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from sslim.backbone import modeling_sslim
from sslim.backbone.families import family_of, register
from sslim.backbone.loading import LoadedModel, quiet_transformers
from sslim.backbone.modeling_sslim import SslimModel, SslimPreTrainedModel
from sslim.errors import OutputError
from sslim.files import swap_folder
from sslim.plan import SAMPLING_RATE

KEPT_FROM_TEACHER = (
    "vocab.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""Files of a fine-tuned teacher that its head goes on needing."""


def under_head(teacher: LoadedModel, student: SslimModel) -> SslimPreTrainedModel:
    """The student under the teacher's head; the residual width does not change, so it fits as it is."""
    if not teacher.head:
        return student
    config = copy.deepcopy(student.config)
    config.plan = student.config.plan
    family = family_of(config)
    config.architectures = [family.model_class(teacher.head).__name__]
    with torch.random.fork_rng(devices=[]):
        whole = family.model_class(teacher.head)(config)
    state = {f"{family.prefix}.{name}": value for name, value in student.state_dict().items()}
    for name, value in teacher.whole.state_dict().items():
        if not name.startswith(f"{family.prefix}."):
            state[name] = value
    whole.load_state_dict(state, strict=True)
    return whole.eval()


def preprocessor(normalise: bool) -> dict[str, Any]:
    """What `preprocessor_config.json` says."""
    return {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": SAMPLING_RATE,
        "do_normalize": normalise,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": True,
    }


def save_folder(
    out: Path,
    whole: SslimPreTrainedModel,
    *,
    normalise: bool,
    run: Mapping[str, Any],
    card: str = "",
    tokenizer_from: Path | None = None,
    finalise: Callable[[Path], tuple[Mapping[str, Any], str]] | None = None,
) -> None:
    """Writes config, weights, model code, preprocessor, `sslim.json` and the model card into `out`.

    Files already in `out` that are not ours (checkpoints, logs) stay. `finalise` is called with the
    folder once the weights are written, and returns `run` and `card` with what is only known then.

    Raises:
        OutputError: the disk is full or the folder cannot be written; nothing half-written is left.
    """
    register()
    out = Path(out)
    aside = out.parent / f".{out.name}.partial"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        whole.config.auto_map = family_of(whole.config).auto_map
        whole.config.architectures = [type(whole).__name__]
        with quiet_transformers():
            whole.save_pretrained(aside)
        shutil.copyfile(modeling_sslim.__file__, aside / "modeling_sslim.py")
        _json(aside / "preprocessor_config.json", preprocessor(normalise))
        if finalise is not None:
            run, card = finalise(aside)
        _json(aside / "sslim.json", dict(run))
        if card:
            (aside / "README.md").write_text(card, encoding="utf-8")
        if tokenizer_from is not None:
            for name in KEPT_FROM_TEACHER:
                if (tokenizer_from / name).is_file():
                    shutil.copyfile(tokenizer_from / name, aside / name)
        out.mkdir(parents=True, exist_ok=True)
        for path in sorted(aside.iterdir()):
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
            path.chmod(0o644)  # safetensors writes for the owner alone; models are shared
            path.replace(out / path.name)
        aside.rmdir()
    except (OSError, SafetensorError) as error:  # safetensors wraps what the disk says in its own
        shutil.rmtree(aside, ignore_errors=True)
        raise OutputError(
            f"cannot write {out}: {getattr(error, 'strerror', None) or error}",
            "free space or choose another folder, then run again with --resume",
        ) from error


def _json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def save_dense(
    out: Path,
    config: Any,
    whole: SslimPreTrainedModel,
    preprocessor_config: Mapping[str, Any],
    files: Mapping[str, str],
) -> None:
    """Writes a dense model as a folder of its family in transformers, weights under their names there.

    Raises:
        OutputError: the folder cannot be written; nothing half-written is left.
    """
    prefix = family_of(config).prefix
    own = dict(whole.state_dict())
    start = f"{prefix}." if type(whole).__name__ != family_of(config).model_class().__name__ else ""
    table = f"{start}encoder.rel_attn_embed.weight"
    if table in own:
        own[f"{start}encoder.layers.0.attention.rel_attn_embed.weight"] = own.pop(table)
    aside = out.parent / f".{out.name}.partial"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        config.save_pretrained(aside)
        weights = {name: tensor.contiguous() for name, tensor in own.items()}
        save_file(weights, aside / "model.safetensors", metadata={"format": "pt"})
        (aside / "model.safetensors").chmod(0o644)
        _json(aside / "preprocessor_config.json", preprocessor_config)
        for name, text in files.items():
            (aside / name).write_text(text, encoding="utf-8")
        swap_folder(aside, out)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise OutputError(
            f"cannot write {out}: {getattr(error, 'strerror', None) or error}",
            "free space or choose another folder",
        ) from error
