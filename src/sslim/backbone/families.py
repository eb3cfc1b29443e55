"""The families, their classes, and how a dense model of transformers becomes one of ours.

The only place that maps names of transformers to names of ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
from sslim.errors import TeacherError

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


def family_of(config: Any) -> Family:
    """The family of a configuration, dense or ours.

    Raises:
        TeacherError: the model is of another kind.
    """
    name = str(config.model_type).removeprefix("sslim-")
    if name not in FAMILIES:
        raise TeacherError(
            f"the teacher is a {name!r} model, which sslim does not know",
            f"use one of {', '.join(FAMILIES)}",
        )
    return FAMILIES[name]


def head_of(config: Any) -> str:
    """Head kind that a configuration's `architectures` names; pre-training heads count as none."""
    architecture = (getattr(config, "architectures", None) or [""])[0] or ""
    for kind, (ending, _) in HEADS.items():
        if kind and architecture.endswith(ending):
            return kind
    return ""


def our_config(config: Any, plan: dict[str, Any] | None = None) -> Any:
    """Our configuration with every setting of a dense one.

    Raises:
        TeacherError: the model has parts that are not supported (adapters).
    """
    family = family_of(config)
    if getattr(config, "add_adapter", False) or getattr(config, "adapter_attn_dim", None):
        raise TeacherError(
            "the teacher has adapter layers (add_adapter or adapter_attn_dim), which sslim cannot keep",
            "remove the adapter, or compress the model it was added to",
        )
    settings = config.to_dict()
    for name in ("model_type", "auto_map", "_name_or_path", "transformers_version", "dtype"):
        settings.pop(name, None)
    settings.setdefault("plan", None)
    if plan is not None:
        settings["plan"] = plan
    if settings.get("output_hidden_states") is None:
        settings.pop("output_hidden_states", None)
    ours = family.config_class(**settings)
    ours.auto_map = family.auto_map
    return ours


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
    config: Any, state: Mapping[str, torch.Tensor], head: str, source: str
) -> modeling_sslim.SslimPreTrainedModel:
    """Our float32 model of a (dense or pruned) configuration with the given weights, loaded strictly.

    Args:
        config: a dense configuration of transformers, or one of ours.
        state: weights under the names of the dense family or ours.
        head: head kind; "" takes the backbone only, whatever else `state` holds.
        source: where the weights came from, for messages.

    Raises:
        TeacherError: a weight is missing, left over, or of the wrong shape; its name is given.
    """
    family = family_of(config)
    ours = our_config(config)
    ours.architectures = [family.model_class(head).__name__]
    with torch.random.fork_rng(devices=[]):
        model = family.model_class(head)(ours)
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
    left = sorted(set(given) - set(wanted))
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
    model.load_state_dict(
        {name: tensor.to(torch.float32) for name, tensor in given.items()}, strict=True
    )
    return model.float().eval()


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
