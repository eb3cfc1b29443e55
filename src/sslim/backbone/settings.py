"""What a configuration may say: the keys our classes declare, in sizes that a speech model can have.

Everything that becomes a model passes through `configuration`, whoever wrote it. Keys that are not declared
(code to run, pipelines, paths, quantisation) end here: they never reach a folder that we write. Sizes are
bounded before anything is allocated.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from transformers.activations import ACT2FN

from sslim.errors import SslimError, TeacherError, first_line
from sslim.layout import ModelShape
from sslim.plan import MACS_SECONDS, SAMPLING_RATE, PruningPlan

NOT_OF_THE_MODEL = frozenset(
    {
        "transformers_version",
        "dtype",
        "return_dict",  # False gives tuples, which no reader of ours takes
        "is_encoder_decoder",
        "chunk_size_feed_forward",
    }
)
"""Declared keys that say nothing of the model; they keep their defaults."""

WHOLE_NUMBERS = {
    "hidden_size": (1, 16_384),
    "num_hidden_layers": (1, 200),
    "num_attention_heads": (1, 1024),
    "intermediate_size": (1, 131_072),
    "num_conv_pos_embeddings": (1, 4096),
    "num_conv_pos_embedding_groups": (1, 16_384),
    "conv_pos_kernel_size": (1, 4096),
    "num_buckets": (4, 65_536),
    "max_bucket_distance": (2, 1_000_000),
    "vocab_size": (1, 1_000_000),
    "num_labels": (1, 1_000_000),
    "classifier_proj_size": (1, 16_384),
    "xvector_output_dim": (1, 16_384),
    "mask_time_length": (1, 1_000_000),
    "mask_time_min_masks": (0, 1_000_000),
    "mask_feature_length": (1, 1_000_000),
    "mask_feature_min_masks": (0, 1_000_000),
}
LISTS = {
    "conv_dim": (1, 16_384),
    "conv_kernel": (1, 1024),
    "conv_stride": (1, 1024),
    "tdnn_dim": (1, 16_384),
    "tdnn_kernel": (1, 64),
    "tdnn_dilation": (1, 64),
}
CONVOLUTIONS = ("conv_dim", "conv_kernel", "conv_stride")
TIME_DELAY = ("tdnn_dim", "tdnn_kernel", "tdnn_dilation")
MOST_CONVOLUTIONS = 32
MOST_STACKED_CONVOLUTIONS = 64
"""data2vec's positional convolutions."""
LARGEST_NUMBER = 10**9
"""Of numbers that no rule above names."""
LONGEST_INPUT = round(MACS_SECONDS * SAMPLING_RATE)
"""Samples that one frame may read: 10 s, the length that MACs are counted on."""
WORDS = {
    "hidden_act": tuple(ACT2FN),
    "feat_extract_activation": tuple(ACT2FN),
    "feat_extract_norm": ("group", "layer"),
    "ctc_loss_reduction": ("sum", "mean"),
}
SHARES = ("dropout", "layerdrop", "_prob")
"""Endings of keys that hold a share from 0 to 1."""


def declared(config_class: Any) -> set[str]:
    """The keys that say what a model of this configuration class is."""
    return {field.name for field in dataclasses.fields(config_class)} - NOT_OF_THE_MODEL


def settings_of(config: Any) -> dict[str, Any]:
    """A configuration's declared keys and values, as JSON holds them."""
    whole = config.to_dict()
    kept = {name: whole[name] for name in declared(type(config)) if name in whole}
    plain: dict[str, Any] = json.loads(json.dumps(kept, default=str))
    return plain


def configuration(config_class: Any, data: Mapping[str, Any], source: str) -> Any:
    """A configuration of a class (dense or ours), from values that anybody may have written.

    Raises:
        TeacherError: a value is of the wrong kind or size, values contradict each other, or the model has
            parts that are not supported.
    """
    family = config_class.model_type.removeprefix("sslim-")
    if data.get("add_adapter") or data.get("adapter_attn_dim"):
        raise TeacherError(
            f"{source} has adapter layers (add_adapter or adapter_attn_dim), which sslim cannot keep",
            "remove the adapter, or compress the model it was added to",
        )
    defaults = {field.name: field.default for field in dataclasses.fields(config_class)}
    extras = {"num_labels"} if data.get("id2label") is None else set()
    settings = {}
    for name in sorted((declared(config_class) | extras | {"exact_padding"}) & data.keys()):
        problem = _problem(name, data[name], defaults.get(name))
        if problem:
            raise TeacherError(
                f"{source}: {name} in config.json must be {problem}, got {_shown(data[name])}",
                "copy or download config.json again",
            )
        settings[name] = data[name]
    if settings.get("output_hidden_states") is None:
        settings.pop("output_hidden_states", None)
    for names in (CONVOLUTIONS, TIME_DELAY):
        lists = [settings.get(name, defaults[name]) for name in names if name in defaults]
        if len({len(values) for values in lists}) > 1:
            raise TeacherError(
                f"{source}: {', '.join(names)} in config.json differ in length",
                "copy or download config.json again",
            )
    plan = settings.pop("plan", None)
    try:
        config = config_class(**settings)
        shape = _checked(config, family, source)
        if "plan" in declared(config_class):
            config.plan = None if plan is None else _plan(plan, shape).to_dict(shape)
    except SslimError as error:
        raise TeacherError(
            error.problem if source in error.problem else f"{source}: {error.problem}", error.hint
        ) from error
    except Exception as error:  # transformers checks in its own ways, which change
        raise TeacherError(
            f"{source}: config.json is not a {family} configuration: {_all_lines(error)}",
            "copy or download config.json again",
        ) from error
    return config


def _problem(name: str, value: Any, default: Any) -> str:
    """What a value must be, where it is not; "" where it is."""
    if name in LISTS:
        low, high = LISTS[name]
        fits = isinstance(value, (list, tuple)) and 1 <= len(value) <= MOST_CONVOLUTIONS
        if not fits or not all(_whole(item) and low <= item <= high for item in value):
            return f"1 to {MOST_CONVOLUTIONS} whole numbers from {low} to {high}"
    elif name in WHOLE_NUMBERS:
        low, high = WHOLE_NUMBERS[name]
        if not (_whole(value) and low <= value <= high):
            return f"a whole number from {low} to {high}"
    elif name in WORDS:
        if not (isinstance(value, str) and value in WORDS[name]):
            return f"one of {', '.join(WORDS[name][:4])}{', ...' if len(WORDS[name]) > 4 else ''}"
    elif name in ("id2label", "label2id"):
        if not _labels(value):
            return "a table of names and numbers"
    elif name == "architectures":
        names = value if isinstance(value, list) else [value]
        if value is not None and not all(isinstance(item, str) for item in names):
            return "a list of names"
    elif name == "plan":
        return ""  # checked against the shape
    elif isinstance(default, bool) or name == "exact_padding":
        if not isinstance(value, bool) and not (value is None and name == "output_hidden_states"):
            return "true or false"
    elif name.endswith(SHARES):
        if not (_number(value) and 0 <= value <= 1):
            return "a number from 0 to 1"
    elif name == "layer_norm_eps":
        if not (_number(value) and 0 < value <= 1):
            return "a number above 0, at most 1"
    elif value is None or isinstance(value, str):
        if value is None and default is not None and not name.endswith("_token_id"):
            return "a number"
        if isinstance(value, str) and not (default is None and len(value) <= 200):
            return "a number"
    elif isinstance(value, list):
        if not (name.endswith("_token_id") and all(map(_whole, value)) and len(value) < 1000):
            return "a number"
    elif not _number(value):
        return "a number"
    return ""


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST_NUMBER


def _number(value: Any) -> bool:
    return _whole(value) or (
        isinstance(value, float) and math.isfinite(value) and abs(value) <= LARGEST_NUMBER
    )


def _labels(value: Any) -> bool:
    if value is None:
        return True
    _, most = WHOLE_NUMBERS["num_labels"]
    return (
        isinstance(value, dict)
        and 1 <= len(value) <= most
        and all(isinstance(item, str) or _whole(item) for pair in value.items() for item in pair)
    )


def _checked(config: Any, family: str, source: str) -> ModelShape:
    """Holds sizes against each other.

    Raises:
        TeacherError: they do not fit.
    """

    def refuse(what: str) -> None:
        raise TeacherError(f"{source}: {what} in config.json", "copy or download config.json again")

    for name in ("num_attention_heads", "num_conv_pos_embedding_groups"):
        if config.hidden_size % getattr(config, name):
            refuse(
                f"hidden_size {config.hidden_size} is no multiple of {name} {getattr(config, name)}"
            )
    if family == "wavlm" and config.max_bucket_distance <= config.num_buckets // 4:
        refuse("max_bucket_distance is not above a quarter of num_buckets")
    depth = config.num_conv_pos_embeddings
    if family == "data2vec-audio" and depth > MOST_STACKED_CONVOLUTIONS:
        refuse(f"num_conv_pos_embeddings is above {MOST_STACKED_CONVOLUTIONS}")
    shape = ModelShape.from_config(config)
    if shape.shortest_input > LONGEST_INPUT:
        refuse(f"one frame reads {shape.shortest_input} samples, more than {LONGEST_INPUT},")
    return shape


def _plan(data: Any, shape: ModelShape) -> PruningPlan:
    """The plan of a configuration, exactly as `PruningPlan.to_dict` writes it.

    Raises:
        TeacherError: it is none.
        BudgetError: it does not fit the model.
    """

    def indices(value: Any) -> bool:
        return isinstance(value, (list, tuple)) and all(map(_whole, value))

    try:
        rows = [
            *data["conv"],
            *(layer[part] for layer in data["layers"] for part in ("heads", "ffn")),
            *data.get("axes", {}).values(),
        ]
        if not all(row is None or indices(row) for row in rows):
            raise ValueError
        plan = PruningPlan.from_dict(data, shape)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise TeacherError(
            "the plan in config.json is not one that sslim writes", "copy config.json again"
        ) from error
    plan.validate(shape)
    return plan


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # ValueError: a whole number of thousands of digits
        return f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _all_lines(error: BaseException) -> str:
    """transformers' checks say in the second line what is wrong."""
    return first_line(ValueError(" ".join(str(error).split())))
