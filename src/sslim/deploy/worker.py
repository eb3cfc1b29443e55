"""One contestant of a benchmark, alone in its process: `python -m sslim.deploy.worker KIND PATH THREADS`.

Reads a line of JSON, runs, writes a line of JSON. {"seconds": s} gives {"time": seconds it took,
"peak_bytes": ...}; {"parts": s} gives {"front_end": the convolutional front-end's part of the time, or null,
"parts": what each part of an exported file took and computed (`parts.py`), or null}.
A process each, as peak memory and the first answer are a process's; lines, so that they take turns.

KIND: `torch`, `bfloat16` (our model), `transformers` (a dense model's own class), `onnx` (an exported file;
then torch is never imported), `rates` (large products, whatever was asked: {"rates": `rates.timed`}).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

RATE = 16_000
KINDS = ("torch", "bfloat16", "transformers", "onnx", "rates")
Runner = Callable[[np.ndarray], Any]
Answer = dict[str, Any]
Shares = Callable[[float], Answer]


def waveform(seconds: float) -> np.ndarray:
    """The same noise for every contestant, (samples,) float32."""
    random = np.random.default_rng(0)
    return (0.1 * random.standard_normal(round(seconds * RATE))).astype(np.float32)


def peak_bytes() -> int:
    """The most memory this process has held."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def open_onnx(path: str, threads: int) -> tuple[Runner, Shares]:
    """An exported file, and what its parts take."""
    from sslim.backbone.exported import ExportedModel
    from sslim.deploy.parts import by_part, combined, profile

    file = ExportedModel(path, threads=threads)

    def shares(seconds: float) -> Answer:
        parts = by_part(profile(path, waveform(seconds), threads))
        total = combined(parts).seconds
        return {
            "front_end": parts["front_end"].seconds / total if total else None,
            "parts": {name: asdict(part) for name, part in parts.items()},
        }

    return (lambda audio: file([audio])), shares


def open_torch(kind: str, path: str, threads: int) -> tuple[Runner, Shares]:
    """A model in torch, and its front-end's share."""
    import torch

    torch.set_num_threads(threads)
    model: Any
    if kind == "transformers":
        from transformers import AutoModel

        # No code of the folder's is run, and nobody is asked: the answer would be read from our orders.
        model = AutoModel.from_pretrained(path, trust_remote_code=False).eval()
    else:
        from sslim.backbone.loading import load_model

        model = load_model(path).whole
    precision = torch.bfloat16 if kind == "bfloat16" else torch.float32

    @torch.inference_mode()
    def run(audio: np.ndarray) -> Any:
        with torch.autocast("cpu", precision, enabled=precision is not torch.float32):
            return model(torch.from_numpy(audio)[None])

    def shares(seconds: float) -> Answer:
        backbone = getattr(model, model.base_model_prefix, model)
        spent = [0.0]
        front: Any = backbone.feature_extractor
        before = front.register_forward_pre_hook(lambda *_: spent.append(-time.perf_counter()))
        after = front.register_forward_hook(lambda *_: spent.append(time.perf_counter()))
        audio = waveform(seconds)
        run(audio)
        spent.clear()
        start = time.perf_counter()
        for _ in range(3):
            run(audio)
        whole = time.perf_counter() - start
        before.remove()
        after.remove()
        return {"front_end": sum(spent) / whole, "parts": None}

    return run, shares


def open_rates(threads: int) -> Callable[[], Answer]:
    """Large products, ready to be timed."""
    from sslim.deploy.rates import products, timed

    ready = products(threads)
    return lambda: {"rates": timed(ready)}


def main() -> None:
    """Answers lines until there are no more."""
    # What a library prints is no answer: it goes where its warnings go.
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    kind, path, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if kind == "rates":
        answer_rates = open_rates(threads)
    elif kind == "onnx":
        run, shares = open_onnx(path, threads)
    else:
        run, shares = open_torch(kind, path, threads)
    for line in sys.stdin:
        order = json.loads(line)
        answer: Answer
        if kind == "rates":
            answer = answer_rates()
        elif "parts" in order:
            answer = shares(order["parts"])
        else:
            audio = waveform(order["seconds"])
            start = time.perf_counter()
            run(audio)
            answer = {"time": time.perf_counter() - start, "peak_bytes": peak_bytes()}
        print(json.dumps(answer), file=lines, flush=True)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
