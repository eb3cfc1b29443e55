"""How fast a model of DPHuBERT's shape is, against HuBERT Base in transformers and against the reference.

    python benchmarks/latency.py [--reference DIR] [--openvino] [--seconds 10] [--json FILE]

Random weights: the arithmetic is the same. The smooth shape keeps 410 of 512 channels in each convolution, 4
of 12 heads and 366 of 3,072 feed-forward units in each layer: the parameters (24 million) and the MACs (a
2.6th) of the published DPHuBERT. The uneven shape has as many, in widths as gates make them: drawn from a
seed, odd, other ones in each layer. All contestants run in turn, a process each, and the core's own rate of
large products takes its turns with them. DIR is a checkout of the DPHuBERT repository
(github.com/pyf98/DPHuBERT), whose model then runs our weights through `sslim export --format dphubert`.
`--openvino` runs the float32 file in OpenVINO as well (pip install openvino). Prints lines, then a table for
docs/deploy.md.
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
from sslim.cli.bench import remarks
from sslim.deploy.bench import Contestant, contestants, measure
from sslim.deploy.export import export
from sslim.deploy.processor import named
from sslim.deploy.worker import peak_bytes, waveform
from sslim.files import write_json
from sslim.layout import ModelShape
from sslim.measurements import Benchmark
from sslim.plan import PruningPlan
from sslim.prune.surgery import cut
from sslim.version import versions

SMOOTH, UNEVEN = "dphubert-shape", "uneven-shape"


def make_models(folder: Path, shape: tuple[int, int, int], seed: int = 0) -> dict[str, float]:
    """HuBERT Base in transformers' format, and the pruned shapes in ours; what they count."""
    torch.manual_seed(0)
    dense = HubertModel(HubertConfig()).eval()
    dense.save_pretrained(folder / "hubert-base")
    model = build(dense.config, dense.state_dict(), "", "hubert-base")
    full, sizes = plan_of(model), shape_of(model)
    depth = sizes.layers
    smooth = plan_with(sizes, [shape[0]] * len(full.conv), [shape[1]] * depth, [shape[2]] * depth)
    uneven = uneven_plan(full, sizes, smooth, seed)
    for name, plan in ((SMOOTH, smooth), (UNEVEN, uneven)):
        save_folder(folder / name, cut(model, plan).eval(), normalise=False)
    return {
        "dense_parameters": full.parameters(sizes),
        "parameters": smooth.parameters(sizes),
        "macs_ratio": full.macs(sizes) / smooth.macs(sizes),
        "uneven_seed": seed,
        "uneven_parameters": uneven.parameters(sizes),
        "uneven_macs_ratio": full.macs(sizes) / uneven.macs(sizes),
    }


def plan_with(sizes: ModelShape, conv: list[int], heads: list[int], ffn: list[int]) -> PruningPlan:
    """The first so many units of each kind."""
    counts = {"conv": conv, "head": heads, "ffn": ffn}
    kept = {
        f"{kind}.{index}": tuple(range(count))
        for kind, each in counts.items()
        for index, count in enumerate(each)
    }
    return PruningPlan.dense(sizes).replaced(kept, sizes)


def uneven_plan(
    full: PruningPlan, sizes: ModelShape, smooth: PruningPlan, seed: int
) -> PruningPlan:
    """Widths as gates make them: odd ones from a seed, with the parameters of `smooth` (to less than two
    feed-forward units) and its MACs (to 2%)."""
    random = np.random.default_rng(seed)
    unit = 2 * sizes.hidden_size + 1  # parameters of a feed-forward unit, the smallest there is
    while True:
        conv = [int(len(kept) * random.uniform(0.65, 0.95)) | 1 for kept in full.conv]
        heads = [int(random.integers(1, 8)) for _ in full.layers]
        ffn = [int(random.uniform(60, 700)) | 1 for _ in full.layers]
        missing = smooth.parameters(sizes) - plan_with(sizes, conv, heads, ffn).parameters(sizes)
        for layer in range(len(ffn)):
            step = 2 * round(missing / unit / (len(ffn) - layer) / 2)  # odd stays odd
            ffn[layer] += step
            missing -= step * unit
        plan = plan_with(sizes, conv, heads, ffn)
        if min(ffn) > 0 and abs(plan.macs(sizes) / smooth.macs(sizes) - 1) < 0.02:
            return plan


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
        if "parts" in order:
            print(json.dumps({"front_end": None, "parts": None}), flush=True)
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
        if "parts" in order:
            print(json.dumps({"front_end": None, "parts": None}), flush=True)
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
    parser.add_argument("--seed", type=int, default=0, help="of the uneven widths")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        counts = make_models(folder, tuple(arguments.shape), arguments.seed)
        base, pruned, uneven = (str(folder / name) for name in ("hubert-base", SMOOTH, UNEVEN))
        entries = contestants([base], ["transformers", "onnx", "onnx-int8"], folder / "a", print)
        entries += contestants(
            [pruned], ["torch", "bfloat16", "onnx", "onnx-int8"], folder / "b", print
        )
        entries += contestants([uneven], ["onnx", "onnx-int8"], folder / "c", print)
        if arguments.reference:
            file = export(pruned, folder / "reference.pth", format="dphubert").path
            command = (sys.executable, __file__, "--worker", str(arguments.reference), str(file))
            entries.append(
                Contestant(SMOOTH, "reference", str(file), file.stat().st_size, command=command)
            )
        if arguments.openvino:
            file = next(e.path for e in entries if e.model == SMOOTH and e.runtime == "onnx")
            for precision in ("f32", "bf16"):
                command = (sys.executable, __file__, "--openvino-worker", file, precision)
                size = Path(file).stat().st_size
                entries.append(
                    Contestant(SMOOTH, f"openvino {precision}", file, size, command=command)
                )
        benchmark = measure(
            entries,
            threads=arguments.threads,
            seconds=arguments.seconds,
            repeats=arguments.repeats,
            say=print,
        )
    for row in benchmark.results:
        cosine = "" if row.worst_cosine is None else f"  cosine {row.worst_cosine:.5f}"
        reached = row.parts["whole"].of_rate
        print(
            f"{row.model:15} {row.runtime:12} {row.threads} thread(s) {row.seconds:4g} s: "
            f"{1e3 * row.median:7.1f} ms  {row.ratio:5.2f}x  {row.peak_bytes / 2**20:5.0f} MiB  "
            f"{row.file_bytes / 1e6:6.1f} MB  first answer {row.first_answer:.2f} s{cosine}"
            f"{'' if reached is None else f'  {reached:.0%} of the rate'}{'  noisy' if row.noisy else ''}"
            f"{'  FAILED its comparison' if row.passed is False else ''}"
        )
    print(named(benchmark.machine))
    print("\n".join(remarks(benchmark, arguments.repeats)))
    print("\n" + table(benchmark))
    if arguments.json:
        command = f"python benchmarks/latency.py --seconds {' '.join(f'{s:g}' for s in arguments.seconds)}"
        command += f" --threads {' '.join(map(str, arguments.threads))}"
        command += f" --repeats {arguments.repeats}"
        command += " --reference DIR" if arguments.reference else ""
        command += " --openvino" if arguments.openvino else ""
        facts = {"command": command, "versions": versions(), "shape": arguments.shape, **counts}
        write_json(arguments.json, facts | benchmark.to_dict())


def table(benchmark: Benchmark) -> str:
    """The longest audio in one thread, as docs/deploy.md has it."""
    longest = max(row.seconds for row in benchmark.results)
    first = min(row.threads for row in benchmark.results)
    lines = [
        "| model | runtime | time | faster | of the core's rate | peak memory | file | first answer |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in benchmark.results:
        if (row.seconds, row.threads) == (longest, first):
            reached = row.parts["whole"].of_rate
            lines.append(
                f"| {row.model} | {row.runtime} | {1e3 * row.median:.0f} ms | {row.ratio:.1f}x "
                f"| {'' if reached is None else f'{reached:.0%}'} | {row.peak_bytes / 2**20:.0f} MiB "
                f"| {row.file_bytes / 1e6:.0f} MB | {row.first_answer:.2f} s |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        reference_worker(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    elif sys.argv[1:2] == ["--openvino-worker"]:
        openvino_worker(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        main()
