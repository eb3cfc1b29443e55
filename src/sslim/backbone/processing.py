"""The small files beside a model: how its audio is normalised, and the tokenizer of a CTC head.

They are read as data and written anew, with the keys that are known here: nothing that names code, and no
content of other files, travels into a folder that we write.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sslim.backbone.contents import PREPROCESSOR
from sslim.backbone.places import Place
from sslim.errors import TeacherError
from sslim.files import read_json
from sslim.plan import SAMPLING_RATE

PROCESSOR = "processor_config.json"
"""Newer versions of transformers keep the preprocessor's settings in here."""
LARGEST_TOKENIZER = 16 * 2**20
"""Bytes of a tokenizer's file."""
MOST_TOKENS = 1_000_000
LONGEST_TOKEN = 1000
"""Characters."""


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


def normalises(place: Place, config: Any) -> bool:
    """Whether waveforms are brought to zero mean and unit variance.

    Without a file that says so, what the family's published models were trained with: those with layer norms
    in the front-end, yes.

    Raises:
        TeacherError: the file cannot be read, is of another kind of model, or wants another sampling rate.
    """
    there = place.bring([PROCESSOR, PREPROCESSOR])
    data = None
    if PROCESSOR in there:
        whole = read_json(place.path / PROCESSOR, "a processor's settings", TeacherError)
        data = whole.get("feature_extractor", whole.get("audio_processor"))
    if data is None and PREPROCESSOR in there:
        data = read_json(place.path / PREPROCESSOR, "a preprocessor's settings", TeacherError)
    if data is None:
        return bool(getattr(config, "feat_extract_norm", "layer") == "layer")
    return _read_preprocessor(data, place.name)


def _read_preprocessor(data: Any, source: str) -> bool:
    """transformers' defaults where a key is missing (older files have no type).

    Raises:
        TeacherError: see `normalises`.
    """
    advice = "copy preprocessor_config.json again, or remove it to go by the kind of model"
    if not isinstance(data, dict):
        raise TeacherError(f"{source}: the settings of its preprocessor are no object", advice)
    kind = data.get("feature_extractor_type", "Wav2Vec2FeatureExtractor")
    if kind != "Wav2Vec2FeatureExtractor" or data.get("feature_size", 1) != 1:
        raise TeacherError(
            f"{source} has the preprocessor of another kind of model ({str(kind)[:60]}, "
            f"feature_size {str(data.get('feature_size', 1))[:20]})",
            advice,
        )
    rate = data.get("sampling_rate", SAMPLING_RATE)
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or rate != SAMPLING_RATE:
        raise TeacherError(
            f"{source} wants audio at {str(rate)[:20]} Hz, sslim works at {SAMPLING_RATE} Hz",
            "use a teacher trained on 16 kHz audio",
        )
    normalise = data.get("do_normalize", True)
    if not isinstance(normalise, bool):
        raise TeacherError(
            f"{source}: do_normalize in its preprocessor's settings is {str(normalise)[:20]!r}, "
            "neither true nor false",
            advice,
        )
    return normalise


def read_tokenizer(folder: Path) -> dict[str, str]:
    """The files of a folder's tokenizer, checked and written anew: name -> text.

    Raises:
        TeacherError: a file is damaged, too large, no tokenizer's, or a link to a place outside the folder.
    """
    return {
        name: json.dumps(clean(_object(folder, name), folder / name), indent=2) + "\n"
        for name, clean in CLEANERS.items()
        if (folder / name).is_symlink() or (folder / name).exists()
    }


def _object(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    real, home = path.resolve(), folder.resolve()
    inside = [home]
    if home.parent.name == "snapshots":  # the hub's cache: files are links to its blobs
        inside.append(home.parents[2])
    if not any(real.is_relative_to(place) for place in inside):
        raise TeacherError(
            f"{path} is a link to {real}, outside the model's folder", "replace it by the file"
        )
    if path.is_file() and path.stat().st_size > LARGEST_TOKENIZER:
        raise TeacherError(
            f"{path} is larger than {LARGEST_TOKENIZER // 2**20} MiB, which no tokenizer is",
            "remove it, or replace it by the tokenizer's file",
        )
    return read_json(path, "a tokenizer's file", TeacherError)


def _refuse(path: Path, what: str) -> TeacherError:
    return TeacherError(f"{path} {what}", "copy it again, or remove it")


def _text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST_TOKEN


def _number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_TOKENS


def _vocabulary(data: dict[str, Any], path: Path) -> dict[str, Any]:
    """Symbol -> number; of a model for several languages, language -> such a table."""
    tables = [table for table in data.values() if isinstance(table, dict)] or [data]
    whole = tables == [data] or len(tables) == len(data)
    if not whole or sum(map(len, tables)) > MOST_TOKENS or not all(map(_text, data)):
        raise _refuse(path, "is no table of symbols")
    for table in tables:
        if not all(_text(symbol) and _number(number) for symbol, number in table.items()):
            raise _refuse(path, "is no table of symbols and whole numbers")
    return data


TOKEN_FIELDS = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")


def _token(value: Any) -> Any:
    """A token as text or as an object of transformers, which names its own class at most."""
    if value is None or _text(value):
        return value
    if isinstance(value, dict) and _text(value.get("content")):
        kept = {name: value[name] for name in TOKEN_FIELDS if name in value}
        if all(isinstance(item, bool) for name, item in kept.items() if name != "content"):
            return kept
    raise ValueError


TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "pad_token",
    "sep_token",
    "cls_token",
    "mask_token",
)
TOKEN_LISTS = ("additional_special_tokens", "extra_special_tokens")


def _special_tokens(data: dict[str, Any], path: Path) -> dict[str, Any]:
    try:
        kept = {name: _token(data[name]) for name in TOKENS if name in data}
        for name in TOKEN_LISTS:
            if isinstance(data.get(name), list):
                kept[name] = [_token(item) for item in data[name]]
    except ValueError:
        raise _refuse(path, "holds something else than tokens") from None
    return kept


PLAIN: dict[str, Callable[[Any], bool]] = {
    "word_delimiter_token": _text,
    "replace_word_delimiter_char": _text,
    "do_lower_case": lambda value: isinstance(value, bool),
    "target_lang": _text,
    "clean_up_tokenization_spaces": lambda value: isinstance(value, bool),
    "return_attention_mask": lambda value: isinstance(value, bool),
    "do_normalize": lambda value: isinstance(value, bool),
    "model_max_length": lambda value: isinstance(value, (int, float)) and value > 0,
    "padding_side": lambda value: value in ("left", "right"),
    "tokenizer_class": lambda value: (
        re.fullmatch(r"Wav2Vec2\w*|PreTrainedTokenizerFast", str(value)) is not None
    ),
    "processor_class": lambda value: re.fullmatch(r"Wav2Vec2\w*", str(value)) is not None,
}
"""Key of tokenizer_config.json -> whether a value can be one. Other keys stay behind."""


def _tokenizer_config(data: dict[str, Any], path: Path) -> dict[str, Any]:
    kept = _special_tokens(data, path)
    for name, fits in PLAIN.items():
        if data.get(name) is not None:
            if not fits(data[name]):
                raise _refuse(path, f"says something unknown of {name}: {str(data[name])[:60]!r}")
            kept[name] = data[name]
    added = data.get("added_tokens_decoder")
    if isinstance(added, dict):
        try:
            kept["added_tokens_decoder"] = {
                str(int(number)): _token(token) for number, token in added.items()
            }
        except ValueError:
            raise _refuse(path, "holds something else than tokens") from None
    return kept


FAST = (
    "version",
    "truncation",
    "padding",
    "added_tokens",
    "normalizer",
    "pre_tokenizer",
    "post_processor",
    "decoder",
    "model",
)


def _fast(data: dict[str, Any], path: Path) -> dict[str, Any]:
    """`tokenizer.json` of the tokenizers library, which holds data and no names of code."""
    if not isinstance(data.get("model"), dict):
        raise _refuse(path, "holds no tokenizer")
    return {name: data[name] for name in FAST if name in data}


CLEANERS: Mapping[str, Callable[[dict[str, Any], Path], dict[str, Any]]] = {
    "vocab.json": _vocabulary,
    "tokenizer_config.json": _tokenizer_config,
    "tokenizer.json": _fast,
    "special_tokens_map.json": _special_tokens,
    "added_tokens.json": _vocabulary,
}
"""File of a fine-tuned teacher that its head goes on needing -> what is kept of its content."""
