"""What figures were taken on: the processor, by its maker's numbers, and who else was using it."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from sslim.measurements import Machine

UNITS = {
    "avx2": "avx2",
    "avx512f": "avx512",
    "avx512_vnni": "avx512_vnni",
    "avx_vnni": "avx_vnni",
    "avx512_bf16": "avx512_bf16",
    "avx512_fp16": "avx512_fp16",
    "amx_tile": "amx",
    "amx_bf16": "amx_bf16",
    "amx_int8": "amx_int8",
    "asimd": "neon",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
    "sve2": "sve2",
    "sme": "sme",
}
"""Flags of /proc/cpuinfo that decide how fast products are -> the names that people use."""

MAKERS = {"GenuineIntel": "Intel", "AuthenticAMD": "AMD", "0x41": "ARM", "0x61": "Apple"}
LOOKED_SECONDS = 1.0


def processor(cpuinfo: str | None = None) -> Machine:
    """The first processor; numbers are None, units empty, where nobody says them.

    Args:
        cpuinfo: text of /proc/cpuinfo; None: this machine's, where there is one.
    """
    if cpuinfo is None:
        try:
            cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        except OSError:
            cpuinfo = ""
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    units = [name for flag, name in UNITS.items() if flag in flags]
    if not cpuinfo and platform.machine() in ("arm64", "aarch64"):
        units = ["neon"]  # every 64-bit ARM has it
    maker = fields.get("vendor_id") or fields.get("CPU implementer", "")
    return Machine(
        processor=fields.get("model name") or platform.processor() or platform.machine(),
        vendor=MAKERS.get(maker, maker) or None,
        family=_number(fields.get("cpu family") or fields.get("CPU architecture")),
        model=_number(fields.get("model") or fields.get("CPU part")),
        stepping=_number(fields.get("stepping") or fields.get("CPU revision")),
        vector_units=tuple(units),
    )


def _number(text: str | None) -> int | None:
    try:
        return int(text or "", 0)
    except ValueError:
        return None


def machine() -> Machine:
    """The processor, its cores, and the libraries that compute."""
    libraries: dict[str, Any] = {}
    for name in ("torch", "transformers", "onnxruntime"):
        with contextlib.suppress(PackageNotFoundError):
            libraries[name] = version(name)
    return replace(processor(), cores=os.cpu_count(), **libraries)


def named(machine: Machine) -> str:
    """A machine in one line."""
    numbers = [
        f"{word} {number}"
        for word, number in (
            ("family", machine.family),
            ("model", machine.model),
            ("stepping", machine.stepping),
        )
        if number is not None
    ]
    units = ", ".join(machine.vector_units) or "no vector units known"
    vendor = f"{machine.vendor}: " if machine.vendor else ""
    return f"{vendor}{machine.processor} ({', '.join([*numbers, units])})"


class Load:
    """Cores that others keep busy, from its making to `others`.

    Args:
        ours: processes whose work does not count, with this one.
    """

    def __init__(self, ours: list[int] | None = None) -> None:
        self.ours = [os.getpid(), *(ours or [])]
        self._began = time.perf_counter()
        self._busy, self._own = _busy_seconds(), self._own_seconds()

    def others(self) -> float:
        """So many cores, on average: 0 on a quiet machine."""
        spent = max(time.perf_counter() - self._began, 1e-9)
        work = _busy_seconds() - self._busy - (self._own_seconds() - self._own)
        return round(max(0.0, work / spent), 2)

    def _own_seconds(self) -> float:
        total = 0.0
        for process in self.ours:
            try:
                times = psutil.Process(process).cpu_times()
                total += times.user + times.system
            except psutil.Error:
                continue
        return total


def load_now() -> float:
    """Cores that others keep busy, over `LOOKED_SECONDS` in which this program does nothing."""
    load = Load()
    time.sleep(LOOKED_SECONDS)
    return load.others()


def _busy_seconds() -> float:
    """Of all cores together; what a host takes away from a virtual machine is busy, too."""
    times = psutil.cpu_times()
    # On Linux, guests' time is part of the user's already.
    idle = times.idle + getattr(times, "iowait", 0.0)
    guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
    return float(sum(times) - idle - guests)
