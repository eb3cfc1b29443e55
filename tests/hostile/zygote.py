"""A warm process: it has imported torch, transformers and sslim once, and forks a child for each case.

`python -m tests.hostile.zygote`; reads one JSON order per line, answers with one JSON line.
A child has limits on address space, time of the processor and size of files, no network, and a record of each
process that it starts and each class that a pickle names. It lives in a session of its own, which is killed
whole in the end.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import signal
import sys
import time
import traceback
from typing import Any

ROOMS = (
    "sslim.cli",
    "sslim.story",
    "sslim.backbone.convert",
    "sslim.backbone.saving",
    "sslim.deploy.export",
    "sslim.deploy.embed",
    "sslim.deploy.bench",
    "sslim.evaluate.run",
    "sslim.evaluate.suite",
    "sslim.evaluate.fidelity",
    "sslim.evaluate.conditions",
    "sslim.evaluate.verification",
    "sslim.evaluate.diarisation",
    "sslim.report.page",
    "sslim.report.checklist",
    "sslim.report.runs",
    "sslim.demo.run",
    "transformers.models.hubert.modeling_hubert",
    "transformers.models.wav2vec2.feature_extraction_wav2vec2",
    "lhotse.cut",
    "onnxruntime",
    "sklearn.linear_model",
    "rich.table",
    "plotly.graph_objects",
)

HARMLESS = (sys.executable, "git", "uname", "fc-list")
"""What sslim and Python start themselves: workers, a checkout's state, the processor's name, fonts."""


def main() -> None:
    """Serves orders until there are no more."""
    orders = os.fdopen(os.dup(0), "r", encoding="utf-8", errors="surrogateescape")
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    for room in ROOMS:
        try:
            importlib.import_module(room)
        except ImportError as error:
            print(f"not warm: {error}", file=sys.stderr)
    import torch

    torch.set_num_threads(1)
    # OpenBLAS and others must have finished what they do at import before anything forks.
    answers.write(json.dumps({"ready": os.getpid()}) + "\n")
    answers.flush()
    for line in orders:
        answers.write(json.dumps(_serve(json.loads(line))) + "\n")
        answers.flush()


def _serve(order: dict[str, Any]) -> dict[str, Any]:
    sys.stdout.flush()
    sys.stderr.flush()
    base = _address_space()
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            code = _child(order, base)
        except BaseException:  # nothing of a child may ever return into the loop above
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    late = False
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() - start > order["seconds"] and not late:
            late = True
            _kill(child)
        time.sleep(0.004)
    _kill(child)  # whatever it left behind
    return {
        "code": os.waitstatus_to_exitcode(status),
        "late": late,
        "seconds": time.monotonic() - start,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * 1024,
    }


def _kill(child: int) -> None:
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def _address_space() -> int:
    with open("/proc/self/statm", encoding="ascii") as stream:
        return int(stream.read().split()[0]) * resource.getpagesize()


def _child(order: dict[str, Any], base: int) -> int:
    os.setsid()
    os.chdir(order["folder"])
    for number, name, flags in (
        (0, order["stdin"], os.O_RDONLY),
        (1, order["stdout"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        (2, order["stderr"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
    ):
        opened = os.open(name, flags, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    # As under a UTF-8 locale; where none is set Python is more lenient on standard output than users see.
    sys.stdin = os.fdopen(0, "r", encoding="utf-8")
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="strict")
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1)
    os.environ.update(order["environment"])
    _watch(order["events"])
    for kind, limit in (
        (resource.RLIMIT_AS, base + int(order["gibibytes"] * 2**30)),
        (resource.RLIMIT_CPU, order["cpu_seconds"]),
        (resource.RLIMIT_FSIZE, order["most_bytes"]),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (limit, limit))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    sys.argv = ["sslim", *order["words"]]
    try:
        if order.get("function"):
            module, _, function = order["function"].partition(":")
            getattr(importlib.import_module(module), function)(*order["words"])
            return 0
        from sslim.cli import run

        return run(order["words"])
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1


def _watch(events: str) -> None:
    """Notes what a hostile input would like to happen: programs, connections, classes of pickles."""
    record = os.open(events, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    inside = False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal inside
        if inside:
            return
        note = ""
        if event in ("os.system", "os.exec", "os.posix_spawn", "pty.spawn", "subprocess.Popen"):
            first = arguments[0]
            words = arguments[1] if event == "subprocess.Popen" else arguments
            note = "" if first in HARMLESS else f"program {words!r}"
        elif event in ("socket.connect", "socket.getaddrinfo", "urllib.Request", "webbrowser.open"):
            note = "" if _is_local(event, arguments) else f"network {arguments!r}"
        elif event == "pickle.find_class":
            note = "" if _is_harmless(*map(str, arguments)) else f"pickle {arguments!r}"
        if note:
            inside = True
            os.write(record, f"{note[:300]!r}\n".encode("utf-8", "backslashreplace"))
            inside = False
            if note.startswith("network"):
                raise OSError("no network here")

    sys.addaudithook(hook)


def _is_harmless(module: str, name: str) -> bool:
    """Whether a pickle names what workers send each other, and not what runs words."""
    if module in ("builtins", "torch.hub"):
        return module == "builtins" and name not in (
            "eval", "exec", "compile", "open", "getattr", "setattr", "__import__", "breakpoint", "input",
        )  # fmt: skip
    return module.split(".")[0] in ("sslim", "torch", "multiprocessing", "numpy", "collections")


def _is_local(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether a connection is one between processes of this machine, by a name in the file system."""
    return event == "socket.connect" and isinstance(arguments[1], (str, bytes))


if __name__ == "__main__":
    main()
