"""How fast a model of DPHuBERT's shape is, against HuBERT Base in transformers and against the reference.

    python benchmarks/latency.py [--reference DIR] [--openvino] [--seconds 10] [--json FILE]

Random weights: the arithmetic is the same. The shape keeps 410 of 512 channels in each convolution, 4 of 12
heads and 366 of 3,072 feed-forward units in each layer: the parameters (24 million) and the MACs (a 2.6th) of
the published DPHuBERT. All contestants run in turn, a process each. DIR is a checkout of the DPHuBERT
repository (github.com/pyf98/DPHuBERT), whose model then runs our weights through `sslim export --format
dphubert`. `--openvino` runs the float32 file in OpenVINO as well (pip install openvino).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import HubertConfig, HubertModel

from sslim.backbone.families import build
from sslim.backbone.saving import save_folder
from sslim.backbone.units import plan_of, shape_of
from sslim.deploy.bench import Contestant, contestants, measure
from sslim.deploy.export import export
from sslim.deploy.worker import peak_bytes, waveform
from sslim.plan import LayerPlan, PruningPlan
from sslim.prune.surgery import cut
from sslim.train.device import versions


def make_models(folder: Path, shape: tuple[int, int, int]) -> dict[str, float]:
    """HuBERT Base in transformers' format, and the pruned shape in ours; what they count."""
    torch.manual_seed(0)
    dense = HubertModel(HubertConfig()).eval()
    dense.save_pretrained(folder / "hubert-base")
    whole = build(dense.config, dense.state_dict(), "", "hubert-base")
    full, sizes = plan_of(whole), shape_of(whole)
    channels, heads, units = (tuple(range(count)) for count in shape)
    plan = PruningPlan(
        conv=tuple(channels for _ in full.conv),
        layers=tuple(LayerPlan(heads, units) for _ in full.layers),
    )
    pruned = cut(whole, plan).eval()
    save_folder(folder / "dphubert-shape", pruned, normalise=False, run={"made": "random weights"})
    return {
        "dense_parameters": full.parameters(sizes),
        "parameters": plan.parameters(sizes),
        "macs_ratio": full.macs(sizes) / plan.macs(sizes),
    }


def reference_worker(checkout: str, file: str, threads: int) -> None:
    """The reference's model on the same lines as `sslim.deploy.worker`."""
    sys.path.insert(0, checkout)
    from wav2vec2.model import wav2vec2_model

    torch.set_num_threads(threads)
    data = torch.load(file, weights_only=True)
    model = wav2vec2_model(**data["config"]).eval()
    model.load_state_dict(data["state_dict"], strict=True)
    for line in sys.stdin:
        order = json.loads(line)
        if "front_end" in order:
            print(json.dumps({"share": None}), flush=True)
            continue
        audio = torch.from_numpy(waveform(order["seconds"]))[None]
        start = time.perf_counter()
        with torch.inference_mode():
            model.extract_features(audio)
        spent = time.perf_counter() - start
        print(json.dumps({"time": spent, "peak_bytes": peak_bytes()}), flush=True)


def openvino_worker(file: str, precision: str, threads: int) -> None:
    """OpenVINO on an exported float32 file, on the same lines."""
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": precision,
    }
    request = openvino.Core().compile_model(file, "CPU", settings).create_infer_request()
    for line in sys.stdin:
        order = json.loads(line)
        if "front_end" in order:
            print(json.dumps({"share": None}), flush=True)
            continue
        audio = waveform(order["seconds"])[None]
        start = time.perf_counter()
        request.infer({"waveform": audio, "lengths": np.array([audio.shape[1]])})
        spent = time.perf_counter() - start
        print(json.dumps({"time": spent, "peak_bytes": peak_bytes()}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reference", type=Path)
    parser.add_argument("--openvino", action="store_true")
    parser.add_argument("--shape", type=int, nargs=3, default=(410, 4, 366))
    parser.add_argument("--seconds", type=float, nargs="+", default=[10])
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        counts = make_models(folder, tuple(arguments.shape))
        base, pruned = (str(folder / name) for name in ("hubert-base", "dphubert-shape"))
        entries = contestants([base], ["transformers", "onnx", "onnx-int8"], folder / "a", print)
        entries += contestants(
            [pruned], ["torch", "bfloat16", "onnx", "onnx-int8"], folder / "b", print
        )
        if arguments.reference:
            file = export(pruned, folder / "reference.pth", format="dphubert").path
            command = (sys.executable, __file__, "--worker", str(arguments.reference), str(file))
            entries.append(
                Contestant(
                    "dphubert-shape", "reference", str(file), file.stat().st_size, command=command
                )
            )
        if arguments.openvino:
            file = next(e.path for e in entries if e.model != "hubert-base" and e.runtime == "onnx")
            for precision in ("f32", "bf16"):
                command = (sys.executable, __file__, "--openvino-worker", file, precision)
                size = Path(file).stat().st_size
                entries.append(
                    Contestant(
                        "dphubert-shape", f"openvino {precision}", file, size, command=command
                    )
                )
        found = measure(
            entries,
            threads=arguments.threads,
            seconds=arguments.seconds,
            repeats=arguments.repeats,
            say=print,
        )
    for row in found.rows:
        cosine = "" if row.worst_cosine is None else f"  cosine {row.worst_cosine:.5f}"
        print(
            f"{row.model:15} {row.runtime:12} {row.threads} thread(s) {row.seconds:4g} s: "
            f"{1e3 * row.median:7.1f} ms  {row.ratio:5.2f}x  {row.peak_bytes / 2**20:5.0f} MiB  "
            f"{row.file_bytes / 1e6:6.1f} MB  first answer {row.first_answer:.2f} s{cosine}"
            f"{'  noisy' if row.noisy else ''}"
        )
    if arguments.json:
        command = f"python benchmarks/latency.py --seconds {' '.join(f'{s:g}' for s in arguments.seconds)}"
        command += f" --threads {' '.join(map(str, arguments.threads))}"
        command += " --reference DIR" if arguments.reference else ""
        command += " --openvino" if arguments.openvino else ""
        facts = {"command": command, "versions": versions(), "shape": arguments.shape, **counts}
        text = json.dumps(facts | found.to_dict(), indent=2) + "\n"
        arguments.json.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        reference_worker(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    elif sys.argv[1:2] == ["--openvino-worker"]:
        openvino_worker(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        main()
