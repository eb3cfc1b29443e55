"""How fast, measured in turn: every model in every runtime runs once, then every one again.

Figures of one machine at different times of a busy day cannot be compared; figures taken in turn can. Each
contestant lives in a process of its own (`worker.py`), so its peak memory and its first answer are its own.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sslim.deploy.parts import Part, combined
from sslim.deploy.processor import Load, load_now, machine
from sslim.deploy.rates import rates
from sslim.deploy.worker import KINDS
from sslim.errors import ConfigError, SslimError
from sslim.identity import COMPUTATION
from sslim.measurements import Benchmark, Rates, Timing

RUNTIMES = ("torch", "bfloat16", "transformers", "onnx", "onnx-int8")
NOISY = 0.15
"""A row whose quartiles are further apart than this share of its median was measured on a busy machine."""
START_SECONDS = 1.0
"""Audio that the first answer of a fresh process is for."""
LAST_WORDS = 2**16
"""Bytes of what a process wrote to its standard error that are looked at."""
SECONDS, THREADS, REPEATS = (0.025, 3600.0), (1, 1024), (1, 10_000)
"""What can be asked for; 0.025 s is one frame."""


@dataclass(frozen=True)
class Contestant:
    """A model in a runtime: what the worker opens, and what is known of it."""

    model: str
    runtime: str
    path: str
    file_bytes: int
    worst_cosine: float | None = None
    """Of the exported file's layers against the model."""
    passed: bool | None = None
    """Whether the exported file passed its comparison; None: nothing is known, or it is no exported file."""
    fingerprint: str = ""
    """Of what is run: a torch model, or an exported file."""
    model_fingerprint: str = ""
    """Of the torch model behind it."""
    operations: Callable[[float], float] | None = None
    """Of a model in torch: seconds of audio -> additions and multiplications, as its plan counts them."""
    command: tuple[str, ...] = ()
    """Instead of our worker: a program that speaks its lines."""

    def arguments(self, threads: int) -> list[str]:
        if self.command:
            return [*self.command, str(threads)]
        kind = "onnx" if self.runtime.startswith("onnx") else self.runtime
        assert kind in KINDS, kind
        return [sys.executable, "-m", "sslim.deploy.worker", kind, self.path, str(threads)]


class Worker:
    """A contestant's process. Ends with `close`, so use it in `contextlib.closing`.

    Raises:
        SslimError: the process ended; its last line says why.
    """

    def __init__(self, contestant: Contestant, threads: int) -> None:
        self.contestant = contestant
        # The same package as here, wherever it was imported from.
        package = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}
        # A file takes whatever a process says; a pipe that nobody reads would stop it.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
        start = time.perf_counter()
        self.process = subprocess.Popen(
            contestant.arguments(threads),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
        )
        try:
            self.run(START_SECONDS)
        except BaseException:
            self.close()
            raise
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
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError:
            raise SslimError(
                f"{self.contestant.model} cannot be measured in {self.contestant.runtime}: "
                f"{self._last_words()}",
                "leave that runtime out with --runtime, or mend what it says",
            ) from None
        return answer

    def run(self, seconds: float) -> dict[str, Any]:
        """Runs on so much audio: the time it took and the peak memory so far."""
        return self.ask({"seconds": seconds})

    def parts(self, seconds: float) -> dict[str, Any]:
        """What the parts of the model take: `front_end` (a share) and `parts`; None where it is not known."""
        return self.ask({"parts": seconds})

    def _last_words(self) -> str:
        self.process.kill()
        self.process.communicate()
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - LAST_WORDS))
        errors = self._errors.read().decode("utf-8", "replace")
        lines = [line.strip() for line in errors.splitlines() if line.strip()]
        # A traceback's last line starts with the kind of error, which says nothing to a user.
        return (
            lines[-1].split("Error: ", 1)[-1][:300] if lines else f"code {self.process.returncode}"
        )

    def close(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.communicate()
        self._errors.close()


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
    from sslim.backbone.exported import ExportedModel
    from sslim.backbone.loading import load_config, load_model
    from sslim.deploy.export import export
    from sslim.errors import TeacherError
    from sslim.identity import content_of

    for runtime in runtimes:
        if runtime not in RUNTIMES:
            raise ConfigError(
                f"the runtime {runtime!r} is unknown", f"use some of {', '.join(RUNTIMES)}"
            )
    runtimes = list(dict.fromkeys(runtimes))
    models = list(dict.fromkeys(models))
    short = [Path(model).name or model for model in models]
    entries: list[Contestant] = []
    for number, model in enumerate(models):
        # Two models of one name are told apart by what the user called them.
        name = short[number] if Counter(short)[short[number]] == 1 else model
        if model.endswith(".onnx"):
            if not Path(model).is_file():
                raise TeacherError(f"the file {model} does not exist", "make it with sslim export")
            file = ExportedModel(model)
            cosine, passed = _checked(file)
            entries.append(
                Contestant(
                    name,
                    _format_of(file),
                    model,
                    Path(model).stat().st_size,
                    worst_cosine=cosine,
                    passed=passed,
                    fingerprint=content_of(model),
                    model_fingerprint=str(file.facts.get("fingerprint", "")),
                )
            )
            continue
        loaded = load_model(model)
        identity = loaded.fingerprint
        # As it lies on the disk: what was loaded is a class of ours, whatever it was.
        pruned = load_config(model).model_type.startswith("sslim-")
        operations = _operations(loaded)
        del loaded
        weights = Path(model) / "model.safetensors"
        weight_bytes = weights.stat().st_size if weights.is_file() else 0
        for runtime in runtimes:
            if runtime == "transformers" and pruned:
                continue  # no class of theirs takes a pruned model
            if runtime in ("torch", "bfloat16", "transformers"):
                entries.append(
                    Contestant(
                        name,
                        runtime,
                        model,
                        weight_bytes,
                        fingerprint=identity,
                        model_fingerprint=identity,
                        operations=operations,
                    )
                )
                continue
            say(f"exporting {name} as {runtime}")
            path = folder / f"{number}-{runtime}.onnx"
            made = export(model, path, format=runtime, force=True, card=False)
            assert made.check is not None
            if not made.passed:
                say(f"{name} as {runtime}: {made.notes[-1]}")
            entries.append(
                Contestant(
                    name,
                    runtime,
                    str(made.path),
                    made.bytes,
                    worst_cosine=made.check.cosine,
                    passed=made.passed,
                    fingerprint=made.fingerprint,
                    model_fingerprint=made.model_fingerprint,
                )
            )
    return entries


def _operations(loaded: Any) -> Callable[[float], float]:
    from sslim.backbone.units import plan_of, shape_of

    shape, plan = shape_of(loaded.model), plan_of(loaded.model)
    return lambda seconds: 2.0 * plan.macs(shape, seconds)


def _format_of(file: Any) -> str:
    """The runtime that an exported file is compared in: int8 beside float32 would be no like with like."""
    return "onnx-int8" if file.facts.get("format") == "onnx-int8" else "onnx"


def _checked(file: Any) -> tuple[float | None, bool | None]:
    """Worst cosine of an exported file and whether it passed, as it says itself; None: it does not say."""
    try:
        facts = json.loads(file.metadata["check"])
        return float(facts["worst_cosine"]), bool(facts["passed"])
    except (KeyError, TypeError, ValueError):
        return None, None


def measure(
    entries: Sequence[Contestant],
    *,
    threads: Sequence[int] = (1,),
    seconds: Sequence[float] = (1, 5, 10, 30),
    repeats: int = 9,
    say: Callable[[str], None] = lambda line: None,
) -> Benchmark:
    """Runs all contestants in turn, `repeats` times each, at every number of threads and length.

    The core's own rate of large products takes its turns with them.

    Raises:
        ConfigError: a number is out of bounds.
        SslimError: a contestant's process ended.
    """
    for values, (low, high), quantity in (
        (seconds, SECONDS, "seconds of audio"),
        (threads, THREADS, "threads"),
        ((repeats,), REPEATS, "repeats"),
    ):
        for value in values:
            if not low <= value <= high:
                raise ConfigError(
                    f"{value:g} {quantity} cannot be measured", f"give {low:g} to {high:g}"
                )
    about = replace(machine(), load_before=load_now())
    rows: list[Timing] = []
    rates_at: dict[str, Rates] = {}
    others: list[float] = []
    for count in dict.fromkeys(threads):
        with ExitStack() as processes:
            workers = [processes.enter_context(closing(Worker(entry, count))) for entry in entries]
            core = processes.enter_context(
                closing(Worker(Contestant("large products", "rates", "", 0), count))
            )
            load = Load([worker.process.pid for worker in (*workers, core)])
            rounds: list[dict[str, Any]] = []
            measured: list[tuple[float, list[list[float]], list[int]]] = []
            for length in sorted(set(seconds)):
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
                    rounds.append(core.run(length)["rates"])
                measured.append((length, times, peaks))
            others.append(load.others())
            rates_at[str(count)] = rates(rounds)
            # Profiling opens an exported file once more; that memory must not count, so shares come last.
            rows += [
                _row(
                    worker,
                    count,
                    length,
                    times[number],
                    peaks[number],
                    times[0],
                    rates_at[str(count)],
                )
                for length, times, peaks in measured
                for number, worker in enumerate(workers)
            ]
    about = replace(
        about,
        load_during=max(others, default=0.0),
        load_after=load_now(),
        rates=next(iter(rates_at.values()), Rates()),
        rates_at=rates_at,
    )
    return Benchmark(results=tuple(rows), machine=about, computation=COMPUTATION)


def is_noisy(quartiles: tuple[float, float], median: float) -> bool:
    """Whether runs differ so much that the machine was not quiet."""
    return quartiles[1] - quartiles[0] > NOISY * median


def _row(
    worker: Worker,
    threads: int,
    seconds: float,
    times: list[float],
    peak: int,
    first: list[float],
    core: Rates,
) -> Timing:
    entry = worker.contestant
    shares = worker.parts(seconds)
    parts = {name: Part(**part) for name, part in (shares["parts"] or {}).items()}
    total, reached = combined(parts), core
    if not parts and entry.operations is not None:
        total = Part(float_operations=entry.operations(seconds))
        reached = replace(core, float32=core.bfloat16) if entry.runtime == "bfloat16" else core
    quartiles = statistics.quantiles(times, n=4) if len(times) > 1 else [times[0]] * 3
    median = statistics.median(times)
    # Of pairs taken in turn, so that a slow minute slows both of a pair.
    ratio = statistics.median(a / b for a, b in zip(first, times, strict=True))
    return Timing(
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
        noisy=is_noisy((quartiles[0], quartiles[2]), median),
        front_end_share=shares["front_end"],
        worst_cosine=entry.worst_cosine,
        passed=entry.passed,
        fingerprint=entry.fingerprint,
        model_fingerprint=entry.model_fingerprint,
        parts={
            **{name: part.time(core) for name, part in parts.items()},
            # Profiling takes time of its own; all together take what was measured without.
            "whole": replace(total, seconds=median).time(reached),
        },
    )
