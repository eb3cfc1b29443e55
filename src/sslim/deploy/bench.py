"""How fast, measured in turn: every model in every runtime runs once, then every one again.

Figures of one machine at different times of a busy day cannot be compared; figures taken in turn can. Each
contestant lives in a process of its own (`worker.py`), so its peak memory and its first answer are its own.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from sslim.deploy.worker import KINDS
from sslim.errors import ConfigError, SslimError

RUNTIMES = ("torch", "bfloat16", "transformers", "onnx", "onnx-int8")
NOISY = 0.15
"""A row whose quartiles are further apart than this share of its median was measured on a busy machine."""
START_SECONDS = 1.0
"""Audio that the first answer of a fresh process is for."""


@dataclass(frozen=True)
class Contestant:
    """A model in a runtime: what the worker opens, and what is known of it."""

    model: str
    runtime: str
    path: str
    file_bytes: int
    worst_cosine: float | None = None
    """Of the exported file's layers against the model."""
    command: tuple[str, ...] = ()
    """Instead of our worker: a program that speaks its lines."""

    def arguments(self, threads: int) -> list[str]:
        if self.command:
            return [*self.command, str(threads)]
        kind = "onnx" if self.runtime.startswith("onnx") else self.runtime
        assert kind in KINDS, kind
        return [sys.executable, "-m", "sslim.deploy.worker", kind, self.path, str(threads)]


@dataclass(frozen=True)
class Row:
    """One contestant at one number of threads and one length of audio."""

    model: str
    runtime: str
    threads: int
    seconds: float
    median: float
    """Seconds that one run takes."""
    quartiles: tuple[float, float]
    real_time_factor: float
    """Seconds of computing per second of audio."""
    ratio: float
    """How many times as fast as the first contestant of these threads and seconds."""
    peak_bytes: int
    file_bytes: int
    first_answer: float
    """Seconds from starting a process to its answer for 1 s of audio."""
    front_end_share: float | None
    worst_cosine: float | None

    @property
    def noisy(self) -> bool:
        return self.quartiles[1] - self.quartiles[0] > NOISY * self.median

    def cost(self, price_per_hour: float) -> float:
        """Of 1,000 hours of audio on a machine that is rented by the hour."""
        return 1000 * self.real_time_factor * price_per_hour


@dataclass(frozen=True)
class Benchmark:
    """All rows, and the machine."""

    rows: tuple[Row, ...]
    machine: dict[str, Any] = field(default_factory=dict)

    @property
    def noisy(self) -> bool:
        """Whether any row was disturbed."""
        return any(row.noisy for row in self.rows)

    def to_dict(self, price_per_hour: float | None = None) -> dict[str, Any]:
        """For JSON."""
        rows = []
        for row in self.rows:
            facts = asdict(row) | {"noisy": row.noisy}
            if price_per_hour is not None:
                facts["cost_per_1000_hours"] = row.cost(price_per_hour)
            rows.append(facts)
        return {"machine": self.machine, "price_per_hour": price_per_hour, "results": rows}


class Worker:
    """A contestant's process. Use as a context manager.

    Raises:
        SslimError: the process ended; its last line says why.
    """

    def __init__(self, contestant: Contestant, threads: int) -> None:
        self.contestant = contestant
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        start = time.perf_counter()
        self.process = subprocess.Popen(
            contestant.arguments(threads),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.run(START_SECONDS)
        self.first_answer = time.perf_counter() - start

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """One line to the process, one line back."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise SslimError(
                f"{self.contestant.model} cannot be measured in {self.contestant.runtime}: "
                f"{self._last_words()}",
                "leave that runtime out with --runtime, or mend what it says",
            )
        answer: dict[str, Any] = json.loads(line)
        return answer

    def run(self, seconds: float) -> dict[str, Any]:
        """Runs on so much audio: the time it took and the peak memory so far."""
        return self.ask({"seconds": seconds})

    def front_end_share(self, seconds: float) -> float | None:
        """Part of the time that the convolutional front-end takes."""
        share: float | None = self.ask({"front_end": seconds})["share"]
        return share

    def _last_words(self) -> str:
        _, errors = self.process.communicate()
        lines = [line.strip() for line in errors.splitlines() if line.strip()]
        # A traceback's last line starts with the kind of error, which says nothing to a user.
        return (
            lines[-1].split("Error: ", 1)[-1][:300] if lines else f"code {self.process.returncode}"
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.communicate()


def contestants(
    models: Sequence[str],
    runtimes: Sequence[str],
    folder: Path,
    say: Callable[[str], None] = lambda line: None,
) -> list[Contestant]:
    """Each model in each runtime; exports what is not exported yet into `folder`.

    Args:
        models: folders, hub ids, or exported `.onnx` files (which have one runtime).
        runtimes: of `RUNTIMES`.
        folder: for the files.
        say: told what is going on.

    Raises:
        ConfigError: a runtime is unknown.
        TeacherError: a model cannot be loaded.
    """
    from sslim.backbone.loading import load_config
    from sslim.deploy.export import export
    from sslim.errors import TeacherError

    for runtime in runtimes:
        if runtime not in RUNTIMES:
            raise ConfigError(
                f"the runtime {runtime!r} is unknown", f"use some of {', '.join(RUNTIMES)}"
            )
    found: list[Contestant] = []
    for number, model in enumerate(models):
        name = Path(model).name or model
        if model.endswith(".onnx"):
            if not Path(model).is_file():
                raise TeacherError(f"the file {model} does not exist", "make it with sslim export")
            found.append(Contestant(name, "onnx", model, Path(model).stat().st_size))
            continue
        config = load_config(model)
        weights = Path(model) / "model.safetensors"
        weight_bytes = weights.stat().st_size if weights.is_file() else 0
        for runtime in runtimes:
            if runtime == "transformers" and config.model_type.startswith("sslim-"):
                continue  # no class of theirs takes a pruned model
            if runtime in ("torch", "bfloat16", "transformers"):
                found.append(Contestant(name, runtime, model, weight_bytes))
                continue
            say(f"exporting {name} as {runtime}")
            made = export(model, folder / f"{number}-{runtime}.onnx", format=runtime, force=True)
            assert made.check is not None
            found.append(Contestant(name, runtime, str(made.path), made.bytes, made.check.cosine))
    return found


def measure(
    entries: Sequence[Contestant],
    *,
    threads: Sequence[int] = (1,),
    seconds: Sequence[float] = (1, 5, 10, 30),
    repeats: int = 9,
    say: Callable[[str], None] = lambda line: None,
) -> Benchmark:
    """Runs all contestants in turn, `repeats` times each, at every number of threads and length.

    Raises:
        SslimError: a contestant's process ended.
    """
    rows: list[Row] = []
    for count in threads:
        workers: list[Worker] = []
        try:
            for entry in entries:
                workers.append(Worker(entry, count))
            found: list[tuple[float, list[list[float]], list[int]]] = []
            for length in sorted(seconds):
                say(f"{count} thread(s), {length:g} s of audio")
                for worker in workers:
                    worker.run(length)  # the first run of a length plans its memory
                times: list[list[float]] = [[] for _ in workers]
                peaks = [0] * len(workers)
                for _ in range(repeats):
                    for number, worker in enumerate(workers):
                        answer = worker.run(length)
                        times[number].append(answer["time"])
                        peaks[number] = answer["peak_bytes"]
                found.append((length, times, peaks))
            # Shares come last: profiling opens an exported file once more, and that memory is nobody's need.
            for length, times, peaks in found:
                for worker, own, peak in zip(workers, times, peaks, strict=True):
                    rows.append(_row(worker, count, length, own, peak, times[0]))
        finally:
            for worker in workers:
                worker.__exit__(None, None, None)
    return Benchmark(tuple(rows), machine())


def _row(
    worker: Worker,
    threads: int,
    seconds: float,
    times: list[float],
    peak: int,
    first: list[float],
) -> Row:
    entry = worker.contestant
    quartiles = statistics.quantiles(times, n=4) if len(times) > 1 else [times[0]] * 3
    median = statistics.median(times)
    # Of pairs taken in turn, so that a slow minute slows both of a pair.
    ratio = statistics.median(a / b for a, b in zip(first, times, strict=True))
    return Row(
        model=entry.model,
        runtime=entry.runtime,
        threads=threads,
        seconds=seconds,
        median=median,
        quartiles=(quartiles[0], quartiles[2]),
        real_time_factor=median / seconds,
        ratio=ratio,
        peak_bytes=peak,
        file_bytes=entry.file_bytes,
        first_answer=worker.first_answer,
        front_end_share=worker.front_end_share(seconds),
        worst_cosine=entry.worst_cosine,
    )


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, Any] = {"processor": _processor(), "cores": os.cpu_count()}
    for name in ("torch", "transformers", "onnxruntime"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
