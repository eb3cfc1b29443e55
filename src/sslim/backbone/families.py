"""The families, their classes, and how a dense model of transformers becomes one of ours.

The only place that maps names of transformers to names of ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForAudioFrameClassification,
    AutoModelForAudioXVector,
    AutoModelForCTC,
)

from sslim.backbone import modeling_sslim
from sslim.backbone.settings import configuration
from sslim.errors import TeacherError, first_line
from sslim.files import read_json

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""Types that weights may be stored in."""

HEADS: dict[str, tuple[str, Any]] = {
    "": ("Model", AutoModel),
    "ctc": ("ForCTC", AutoModelForCTC),
    "sequence-classification": ("ForSequenceClassification", AutoModelForAudioClassification),
    "frame-classification": ("ForAudioFrameClassification", AutoModelForAudioFrameClassification),
    "x-vector": ("ForXVector", AutoModelForAudioXVector),
}
"""Head kind -> (ending of class names, Auto class of transformers). "" is the bare backbone."""


@dataclass(frozen=True)
class Family:
    """One family: its name in transformers, the stem of our class names, where its backbone sits."""

    name: str
    stem: str
    prefix: str

    @property
    def config_class(self) -> Any:
        return getattr(modeling_sslim, f"{self.stem}Config")

    def model_class(self, head: str = "") -> Any:
        """Our class for a head kind."""
        return getattr(modeling_sslim, self.stem + HEADS[head][0])

    @property
    def dense_config_class(self) -> Any:
        """The configuration class of the dense family in transformers."""
        return self.config_class.__mro__[1]

    def dense_class_name(self, head: str = "") -> str:
        """The name of the dense family's class in transformers for a head kind."""
        return self.stem.removeprefix("Sslim") + HEADS[head][0]

    @property
    def auto_map(self) -> dict[str, str]:
        """What `config.json` says so that transformers finds our classes in the folder."""
        names = {"AutoConfig": f"modeling_sslim.{self.stem}Config"}
        for ending, auto in HEADS.values():
            names[auto.__name__] = f"modeling_sslim.{self.stem}{ending}"
        return names


FAMILIES = {
    family.name: family
    for family in (
        Family("hubert", "SslimHubert", "hubert"),
        Family("wavlm", "SslimWavLM", "wavlm"),
        Family("wav2vec2", "SslimWav2Vec2", "wav2vec2"),
        Family("data2vec-audio", "SslimData2VecAudio", "data2vec_audio"),
    )
}


def family_named(model_type: str) -> Family:
    """The family that a `model_type` names, dense or ours.

    Raises:
        TeacherError: the model is of another kind.
    """
    name = model_type.removeprefix("sslim-")
    if name not in FAMILIES:
        raise TeacherError(
            f"the teacher is a {name[:40]!r} model, which sslim does not know",
            f"use one of {', '.join(FAMILIES)}",
        )
    return FAMILIES[name]


def family_of(config: Any) -> Family:
    """The family of a configuration, dense or ours.

    Raises:
        TeacherError: the model is of another kind.
    """
    return family_named(str(config.model_type))


def head_of(config: Any) -> str:
    """Head kind that a configuration's `architectures` names; pre-training heads count as none."""
    architecture = (getattr(config, "architectures", None) or [""])[0] or ""
    for kind, (ending, _) in HEADS.items():
        if kind and architecture.endswith(ending):
            return kind
    return ""


def read_config(path: Path, source: str) -> Any:
    """The configuration in a `config.json`: of the dense family in transformers, or ours.

    Raises:
        TeacherError: it is no JSON object, of an unknown family, or a value is of the wrong kind or size.
    """
    data = read_json(path, "a configuration", TeacherError)
    name = data.get("model_type")
    if not isinstance(name, str):
        raise TeacherError(
            f"{path} names no model_type", "give the folder of a speech model of transformers"
        )
    family = family_named(name)
    ours = name.startswith("sslim-")
    return configuration(family.config_class if ours else family.dense_config_class, data, source)


def our_config(config: Any, plan: Mapping[str, Any] | None = None, source: str = "") -> Any:
    """Our configuration with every declared setting of a dense one, or of ours.

    Raises:
        TeacherError: a value is of the wrong kind or size, or the model has parts that are not supported.
    """
    family = family_of(config)
    settings = config.to_dict() | {"plan": getattr(config, "plan", None) if plan is None else plan}
    made = configuration(family.config_class, settings, source or "the teacher")
    made.auto_map = family.auto_map
    return made


def our_name(name: str, prefix: str) -> str:
    """Name of a weight in our model, from its name in the dense family (`prefix`: see Family)."""
    body = name.removeprefix(f"{prefix}.")
    head = name[: len(name) - len(body)]
    for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
        if body == f"encoder.pos_conv_embed.conv.{old}":
            body = f"encoder.pos_conv_embed.conv.parametrizations.weight.{new}"
    if body == "encoder.layers.0.attention.rel_attn_embed.weight":
        body = "encoder.rel_attn_embed.weight"
    return head + body


def build(
    config: Any, state: Mapping[str, torch.Tensor], head: str, source: str, *, strict: bool = True
) -> modeling_sslim.SslimPreTrainedModel:
    """Our float32 model of a (dense or pruned) configuration with the given weights.

    Nothing of the configuration's size is allocated before the weights are known to have that size.

    Args:
        config: a dense configuration of transformers, or one of ours.
        state: weights under the names of the dense family or ours.
        head: head kind; "" takes the backbone only, whatever else `state` holds.
        source: where the weights came from, for messages.
        strict: refuse whatever is left over; otherwise only layers that the configuration does not have.

    Raises:
        TeacherError: a weight is missing, left over, of the wrong shape, no number or not finite; its name
            is given.
    """
    family = family_of(config)
    ours = our_config(config, source=source)
    ours.architectures = [family.model_class(head).__name__]
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            model = family.model_class(head)(ours)
    except Exception as error:  # sizes of heads contradict each other in ways of their own
        raise TeacherError(
            f"{source}: no model can be built from config.json: {first_line(error)}",
            "copy or download config.json again",
        ) from error
    wanted = model.state_dict()
    given = {our_name(name, family.prefix): tensor for name, tensor in state.items()}
    if not head and any(name.startswith(f"{family.prefix}.") for name in given):
        start = f"{family.prefix}."
        given = {
            name.removeprefix(start): tensor
            for name, tensor in given.items()
            if name.startswith(start)
        }
    masked = "masked_spec_embed"
    for name in [name for name in given if name.endswith(masked) and name not in wanted]:
        del given[name]  # stored by older versions although SpecAugment is off
    missing = sorted(set(wanted) - set(given))
    # A whole layer more than the configuration says is no head of pre-training, and no such model.
    kinds = {re.sub(r"\d+", "0", name) for name in wanted}
    left = sorted(
        name for name in set(given) - set(wanted) if strict or re.sub(r"\d+", "0", name) in kinds
    )
    wrong = sorted(
        name for name in set(wanted) & set(given) if wanted[name].shape != given[name].shape
    )
    for what, names in (("missing", missing), ("unexpected", left), ("of the wrong shape", wrong)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise TeacherError(
                f"{source}: {len(names)} weight(s) {what}: {', '.join(names[:3])}{more}",
                "check that the file belongs to the configuration beside it",
            )
    for name in wanted:
        problem = unusable(given[name], counts=not wanted[name].is_floating_point())
        # As float32, in which a float64 may be infinite.
        if not problem and not bool(torch.isfinite(given[name].float()).all()):
            problem = "holds NaN or infinity"
        if problem:
            raise TeacherError(
                f"{source}: the weight {name} {problem}", "the file is damaged; download it again"
            )
    model = model.to_empty(device="cpu")
    model.load_state_dict({name: given[name] for name in wanted}, strict=True)
    return model.float().eval()


def unusable(tensor: Any, *, counts: bool = False) -> str:
    """What is wrong with a weight from a foreign file, or ""; its values are not looked at.

    Args:
        tensor: what the file holds under a weight's name.
        counts: whole numbers are right (what a BatchNorm counts).
    """
    if not isinstance(tensor, torch.Tensor):
        return f"is no tensor but a {type(tensor).__name__}"
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        return "is sparse, quantised or without values"
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        return f"claims {tensor.numel():,} values, of which most are not there"
    if tensor.dtype in FLOATS or (counts and tensor.dtype == torch.int64):
        return ""
    return f"is {str(tensor.dtype).removeprefix('torch.')}, not floating-point"


def register() -> None:
    """Makes transformers' Auto classes know our models without `trust_remote_code`. Idempotent."""
    for family in FAMILIES.values():
        config_class = family.config_class
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        config_class.register_for_auto_class()
        for head, (_, auto) in HEADS.items():
            model_class = family.model_class(head)
            auto.register(config_class, model_class, exist_ok=True)
            model_class.register_for_auto_class(auto.__name__)
