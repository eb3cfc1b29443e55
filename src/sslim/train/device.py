"""Where a run computes, and in which precision."""

from __future__ import annotations

import torch

from sslim.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """`auto`: a GPU if there is one.

    Raises:
        ConfigError: the device does not exist here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device {name!r} cannot be used here",
            "use --device cpu, or auto to take what is there",
        ) from error
    return device


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """`auto`: bfloat16 where products in it are fast, float32 elsewhere."""
    if name == "float32":
        return torch.float32
    if name == "bfloat16" or _fast_bfloat16(device):
        return torch.bfloat16
    return torch.float32


def _fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        # Without these instructions oneDNN emulates bfloat16, several times slower than float32.
        ask = getattr(torch.cpu, "get_capabilities", None)  # not in every torch that we take
        capabilities = ask() if ask is not None else {}
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False
