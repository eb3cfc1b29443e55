"""Where something is computed, and in which precision."""

from __future__ import annotations

import contextlib
import ctypes
import platform

import torch

from sslim.errors import ConfigError

MOST_BETWEEN_LOOKS = 10
"""Updates after which a GPU is looked at in any case."""


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


def looks_every(device: torch.device, log_every: int) -> int:
    """Updates between two looks at the device's figures, where the settings leave it open.

    A look makes a GPU wait, so it happens with the log; but a request to stop is obeyed at a look, and a log
    that is written rarely must not keep a cluster waiting.
    """
    return 1 if device.type == "cpu" else min(log_every, MOST_BETWEEN_LOOKS)


def keep_freed_memory() -> None:
    """Lets glibc keep what a step frees for the next step.

    By default each large tensor is fetched from the kernel and given back, page by page and zeroed: an eighth
    of a training step on a CPU. Does nothing where the C library is another.
    """
    map_most, trim_threshold = -4, -1  # M_MMAP_MAX and M_TRIM_THRESHOLD in malloc.h
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - musl and others have no such function
        library.mallopt(map_most, 0)
        library.mallopt(trim_threshold, -1)


def device_name(device: torch.device) -> str:
    """What a person calls it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({torch.get_num_threads()} threads, {platform.machine()})"
