"""One contestant of a benchmark, alone in its process: `python -m sslim.deploy.worker KIND PATH THREADS`.

Reads a line of JSON, runs, writes a line of JSON. {"seconds": s} gives {"time": seconds it took,
"peak_bytes": ...}; {"front_end": s} gives {"share": the convolutional front-end's part of the time, or null}.
A process each, as peak memory and the first answer are a process's; lines, so that they take turns.

KIND: `torch`, `bfloat16` (our model), `transformers` (a dense model's own class), `onnx` (an exported file;
then torch is never imported).
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

RATE = 16_000
KINDS = ("torch", "bfloat16", "transformers", "onnx")
Runner = Callable[[np.ndarray], Any]


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


def open_onnx(path: str, threads: int) -> tuple[Runner, Callable[[float], float | None]]:
    """An exported file, and its front-end's share."""
    from sslim.backbone.exported import ExportedModel, onnxruntime

    file = ExportedModel(path, threads=threads)

    def share(seconds: float) -> float | None:
        runtime = onnxruntime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.enable_profiling = True
        options.log_severity_level = 3
        with tempfile.TemporaryDirectory() as folder:
            options.profile_file_prefix = str(Path(folder) / "profile")
            session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            audio = waveform(seconds)
            feed = {"waveform": audio[None], "lengths": np.array([len(audio)])}
            for _ in range(3):
                session.run(None, feed)
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        front = everything = 0
        for event in events:
            name = event["name"]
            if event.get("cat") == "Node" and name.endswith("_kernel_time"):
                if name.startswith("chunk/"):
                    continue  # inside a loop, which is counted itself
                everything += event["dur"]
                front += event["dur"] * name.startswith("front_end/")
        return front / everything if everything else None

    return (lambda audio: file([audio])), share


def open_torch(
    kind: str, path: str, threads: int
) -> tuple[Runner, Callable[[float], float | None]]:
    """A model in torch, and its front-end's share."""
    import torch

    torch.set_num_threads(threads)
    model: Any
    if kind == "transformers":
        from transformers import AutoModel

        model = AutoModel.from_pretrained(path, trust_remote_code=False).eval()
    else:
        from sslim.backbone.loading import load_model

        model = load_model(path).whole
    precision = torch.bfloat16 if kind == "bfloat16" else torch.float32

    @torch.inference_mode()
    def run(audio: np.ndarray) -> Any:
        with torch.autocast("cpu", precision, enabled=precision is not torch.float32):
            return model(torch.from_numpy(audio)[None])

    def share(seconds: float) -> float | None:
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
        return sum(spent) / whole

    return run, share


def main() -> None:
    """Answers lines until there are no more."""
    kind, path, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    run, share = open_onnx(path, threads) if kind == "onnx" else open_torch(kind, path, threads)
    for line in sys.stdin:
        order = json.loads(line)
        answer: dict[str, Any]
        if "front_end" in order:
            answer = {"share": share(order["front_end"])}
        else:
            audio = waveform(order["seconds"])
            start = time.perf_counter()
            run(audio)
            answer = {"time": time.perf_counter() - start, "peak_bytes": peak_bytes()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
