"""Where a run computes, in which precision, and with what."""

from __future__ import annotations

import platform
from importlib import metadata

import torch

import sslim
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


def device_name(device: torch.device) -> str:
    """What a person calls it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({torch.get_num_threads()} threads, {platform.machine()})"


def versions() -> dict[str, str]:
    """Versions of what decides the result."""
    names = ("torch", "transformers", "soundfile", "soxr")
    return {
        "sslim": sslim.__version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in names},
    }
