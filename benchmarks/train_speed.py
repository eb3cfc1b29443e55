"""How fast a training step is, against the reference implementation and against the machine's own limit.

    python benchmarks/train_speed.py [--reference DIR] [--shape base|small] [--run FOLDER] [--json FILE]

DIR is a checkout of the DPHuBERT repository (github.com/pyf98/DPHuBERT); only its model and its training
step are used. Three moments of the recipe are timed, ours and the reference's in turn (A B A B) on the same
noise, shapes and precision: the joint stage at its start, the joint stage at the target sparsity (where our
student has shrunk and the reference's has not), and the recovery stage. The ratio for the whole recipe weighs
them by the paper's 50,000 + 25,000 updates and by when the student shrinks: as it did in the run in FOLDER, a
folder that `sslim compress` wrote. A third contestant reads the teacher's states from disk
(`target_cache_gib`), which suits audio that is heard many times; the reference has nothing of the kind.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import math
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import HubertConfig

from sslim.audio.batch import Batch
from sslim.backbone.families import our_config
from sslim.backbone.modeling_sslim import SslimModel
from sslim.backbone.units import plan_of, shape_of, table_of
from sslim.device import choose_precision, device_name
from sslim.distill.cache import TargetCache
from sslim.distill.mapping import default_layers
from sslim.distill.objectives import make_objectives
from sslim.distill.objectives.objective import Sizes
from sslim.distill.student import PlainStudent, Student
from sslim.distill.task import Task
from sslim.distill.teacher import Teacher
from sslim.layout import ModelShape
from sslim.plan import MACS_SECONDS, SAMPLING_RATE, PruningPlan
from sslim.prune.budget import Budget
from sslim.prune.student import GatedStudent
from sslim.prune.surgery import cut
from sslim.train.processes import Processes
from sslim.train.step import Step
from sslim.version import versions

SHAPES = {
    "base": HubertConfig(),
    # The small teacher of the other benchmarks.
    "small": HubertConfig(
        hidden_size=192,
        num_hidden_layers=6,
        num_attention_heads=6,
        intermediate_size=768,
        conv_dim=[128] * 7,
        num_conv_pos_embeddings=64,
    ),
}
UNITS = ("conv", "head", "ffn")
BUDGET = 0.25
STAGE1, STAGE2, SPARSITY_WARMUP = 50_000, 25_000, 5_000
"""Updates of the paper's recipe."""


@dataclass
class Contestant:
    """Something that can make one step, and what a step costs in arithmetic."""

    name: str
    step: Callable[[], Any]
    flops: float


def dense_model(config: HubertConfig) -> SslimModel:
    """Random weights and no dropout: both sides then do the same arithmetic."""
    config = HubertConfig(**config.to_dict())
    for name in ("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout"):
        setattr(config, name, 0.0)
    return SslimModel(our_config(config))


def settled_plan(dense: SslimModel) -> PruningPlan:
    """A plan of 25% as gates make it that have learned something: spread around where they start."""
    torch.manual_seed(0)
    student = gated(dense, dense)
    with torch.no_grad():
        student.gates.log_alpha += 2.0 * torch.randn_like(student.gates.log_alpha)
    return student.decide().plan


def gated(teacher: SslimModel, student: SslimModel) -> GatedStudent:
    limits = {"parameters": math.floor(BUDGET * plan_of(teacher).parameters(shape_of(teacher)))}
    return GatedStudent(
        student,
        Budget.of(limits, plan_of(teacher), table_of(teacher)),
        UNITS,
        normalises=False,
        gate_learning_rate=0.02,
        sparsity_warmup=SPARSITY_WARMUP,
        seed=0,
    )


def task_of(teacher: SslimModel, student: Student, rate: float, cache: TargetCache | None) -> Task:
    depth = teacher.config.num_hidden_layers
    sizes = Sizes(teacher.config.hidden_size, depth, default_layers(depth))
    return Task(
        Teacher(teacher, normalises=False, cache=cache),
        student,
        make_objectives(["layers"], sizes),
        weights={"layers": 1.0},
        learning_rate=rate,
    )


def flops_per_second(shape: ModelShape, teacher: PruningPlan, student: PruningPlan) -> float:
    """Of one second of audio: the teacher forwards, the student forwards and backwards (twice as much)."""
    return 2.0 * (teacher.macs(shape) + 3.0 * student.macs(shape)) / MACS_SECONDS


def ours(
    config: HubertConfig,
    moment: str,
    plan: PruningPlan,
    audio: torch.Tensor,
    device: torch.device,
    precision: torch.dtype,
    kept: Path | None = None,
) -> Contestant:
    """One of our steps; with the folder `kept`, the teacher's states come from there."""
    torch.manual_seed(0)
    cache = None if kept is None else TargetCache(kept, 2**40)
    teacher, student = (dense_model(config) for _ in range(2))
    student.load_state_dict(teacher.state_dict())
    shape, dense = shape_of(teacher), plan_of(teacher)
    if moment == "joint stage, at the target":
        # What `closed_for_good` leaves: 1.05 times the budget, sizes in multiples of 8.
        student = cut(student, plan)
    elif moment == "recovery stage":
        student = cut(student, plan)
    if moment == "recovery stage":
        task = task_of(teacher, PlainStudent(student, normalises=False), 1e-4, cache)
    else:
        task = task_of(teacher, gated(teacher, student), 2e-4, cache)
    task.to(device)
    step = Step(task, Processes(0, 1, device), precision=precision, clip_norm=10.0)
    made = 0

    def run() -> None:
        nonlocal made
        step(made, 1.0, [Batch(batch, ("noise",) * len(batch)) for batch in audio])
        made += 1

    audio_seconds = sum(batch.numel() for batch in audio) / SAMPLING_RATE
    now = dense if moment == "joint stage, at the start" else plan
    return Contestant("sslim", run, flops_per_second(shape, dense, now) * audio_seconds)


def reference(
    folder: Path,
    config: HubertConfig,
    moment: str,
    plan: PruningPlan,
    audio: torch.Tensor,
    device: torch.device,
    precision: torch.dtype,
) -> Callable[[], None]:
    """The reference's own training step, without Lightning around it."""
    lightning, model = imported(folder)
    dense = dict(
        extractor_mode="group_norm",
        extractor_conv_layer_config=[
            list(row)
            for row in zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True)
        ],
        extractor_conv_bias=False,
        encoder_embed_dim=config.hidden_size,
        encoder_projection_dropout=0.0,
        encoder_pos_conv_kernel=config.num_conv_pos_embeddings,
        encoder_pos_conv_groups=config.num_conv_pos_embedding_groups,
        encoder_num_layers=config.num_hidden_layers,
        encoder_use_attention=[True] * config.num_hidden_layers,
        encoder_use_feed_forward=[True] * config.num_hidden_layers,
        encoder_num_heads=[config.num_attention_heads] * config.num_hidden_layers,
        encoder_head_dim=config.hidden_size // config.num_attention_heads,
        encoder_attention_dropout=0.0,
        encoder_ff_interm_features=[config.intermediate_size] * config.num_hidden_layers,
        encoder_ff_interm_dropout=0.0,
        encoder_dropout=0.0,
        encoder_layer_norm_first=False,
        encoder_layer_drop=0.0,
        aux_num_out=None,
        normalize_waveform=False,
    )
    changed = dict(dense)
    joint = moment != "recovery stage"
    if joint:
        changed |= dict.fromkeys(
            (
                "extractor_prune_conv_channels",
                "encoder_prune_attention_heads",
                "encoder_prune_feed_forward_intermediate",
            ),
            True,
        )
    else:
        rows = zip(plan.conv, config.conv_kernel, config.conv_stride, strict=True)
        changed["extractor_conv_layer_config"] = [
            [len(kept), kernel, stride] for kept, kernel, stride in rows
        ]
        changed["encoder_num_heads"] = [len(layer.heads or ()) for layer in plan.layers]
        changed["encoder_ff_interm_features"] = [len(layer.ffn or ()) for layer in plan.layers]
        changed["encoder_use_attention"] = [bool(layer.heads) for layer in plan.layers]
        changed["encoder_use_feed_forward"] = [bool(layer.ffn) for layer in plan.layers]
    teacher = model.wav2vec2_model(**dense).requires_grad_(False)
    layers = default_layers(config.num_hidden_layers)
    front, deep = (nn.Linear(config.hidden_size, config.hidden_size) for _ in range(2))
    module = lightning.DistillModule(
        teacher_model=teacher,
        student_model=model.wav2vec2_model(**changed),
        distill_mode="layer2layer",
        distill_layers=list(layers),
        distill_linear_projs=nn.ModuleList([front, *[deep] * (len(layers) - 1)]),
        distill_loss=lightning.DistillLoss(0.0, 1.0, 1.0, "raw"),
        learning_rate=2e-4,
        weight_decay=0.0,
        warmup_updates=1,
        max_updates=10**6,
        use_reg=joint,
        reg_learning_rate=0.02,
        target_sparsity=1.0 - BUDGET,
        sparsity_warmup_updates=SPARSITY_WARMUP,
        tsv_dir=None,
        train_subset="",
        seconds_per_batch=0,
        num_workers=0,
    ).to(device)
    module.global_step = SPARSITY_WARMUP
    # torch refuses the negative rate that the reference uses to climb; `maximize` is the same step.
    reached = [weight for group in groups_of(module, joint) for weight in group["params"]]
    optimiser = torch.optim.AdamW(groups_of(module, joint))
    module.train()

    def run() -> None:
        optimiser.zero_grad(set_to_none=True)
        for batch in audio:
            lengths = torch.full((len(batch),), batch.shape[1], device=device)
            with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                loss = module.training_step((batch, lengths), 0) / len(audio)
            loss.backward()
        nn.utils.clip_grad_norm_(reached, 10.0)
        optimiser.step()

    return run


def groups_of(module: Any, joint: bool) -> list[dict[str, Any]]:
    named = list(module.student_model.named_parameters())
    weights = [weight for name, weight in named if "log_alpha" not in name]
    weights += list(module.distill_linear_projs.parameters())
    groups: list[dict[str, Any]] = [{"params": weights, "lr": 2e-4, "weight_decay": 0.0}]
    if joint:
        gates = [weight for name, weight in named if "log_alpha" in name]
        groups += [
            {"params": gates, "lr": 0.02, "weight_decay": 0.0},
            {
                "params": [module.lambda1, module.lambda2],
                "lr": 0.02,
                "weight_decay": 0.0,
                "maximize": True,
            },
        ]
    return groups


def imported(folder: Path) -> tuple[Any, Any]:
    """The reference's modules, with stand-ins for what its step does not use."""

    class LightningModule(nn.Module):
        def log_dict(self, figures: dict[str, Any]) -> None:
            pass

    stand_ins: dict[str, dict[str, Any]] = {
        "pytorch_lightning": {"LightningModule": LightningModule},
        "dataset": {},
        "dataset.audio_dataset": dict.fromkeys(
            ("BucketizeBatchSampler", "DistributedBatchSampler", "CollateFnAudio", "AudioDataset")
        ),
    }
    for name, members in stand_ins.items():
        module = types.ModuleType(name)
        vars(module).update(members)
        sys.modules[name] = module
    schedule = torch.optim.lr_scheduler
    if not hasattr(schedule, "_LRScheduler"):
        schedule._LRScheduler = schedule.LRScheduler  # type: ignore[attr-defined]
    sys.path.insert(0, str(folder))
    return importlib.import_module("lightning"), importlib.import_module("wav2vec2.model")


def seconds_of(step: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def products_per_second(device: torch.device, precision: torch.dtype) -> float:
    """Floating point operations per second of a large matrix product, the machine's own limit."""
    size = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(size, size, device=device, dtype=precision) for _ in range(2))
    times = [seconds_of(lambda: left @ right, device) for _ in range(12)]
    return 2.0 * size**3 / statistics.median(times[2:])


def peak_memory(arguments: argparse.Namespace, who: str, moment: str) -> float | None:
    """Bytes at the peak of a process that does nothing else but two such steps."""
    command = [sys.executable, __file__, "--alone", who, moment, "--shape", arguments.shape]
    command += ["--seconds", str(arguments.seconds), "--batch", str(arguments.batch)]
    command += ["--precision", arguments.precision, "--device", arguments.device]
    if arguments.reference:
        command += ["--reference", str(arguments.reference)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        print(answer.stderr, file=sys.stderr)
        return None
    return float(answer.stdout.split()[-1])


def alone(contestant: Callable[[], Any], device: torch.device) -> None:
    for _ in range(2):
        contestant()
    if device.type == "cuda":
        print(torch.cuda.max_memory_allocated())
    else:
        # Not getrusage: a child process inherits the peak of the process that started it.
        status = Path("/proc/self/status").read_text(encoding="ascii")
        print(1024 * int(status.partition("VmHWM:")[2].split()[0]))


def mean_joint_seconds(start: float, target: float, run: Path) -> float:
    """Our mean step time in the joint stage, with a student that shrinks when that of `run` did.

    Between the two sizes that were timed, time is taken as linear in the student's arithmetic.
    """
    facts = json.loads((run / "sslim.json").read_text(encoding="utf-8"))
    result, updates = facts["result"], facts["config"]["stage1"]["updates"]
    full = result["dense_macs_per_second"]
    least = result["macs_per_second"]
    steps = [(0, full), *((row["update"], row["macs_per_second"]) for row in result["shrinks"])]
    ends = [*(update for update, _ in steps[1:]), updates]
    total = 0.0
    for (began, size), ended in zip(steps, ends, strict=True):
        # How far that student had come from the dense model to the run's final size.
        way = (full - size) / (full - least)
        total += (ended - began) / updates * (start + way * (target - start))
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reference", type=Path, help="a checkout of the DPHuBERT repository")
    parser.add_argument("--shape", choices=SHAPES, default="base")
    parser.add_argument("--run", type=Path, help="a compressed folder whose shrinks are taken")
    parser.add_argument("--batch", type=int, default=2, help="clips in a batch")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each clip")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--alone", nargs=2, metavar=("WHO", "MOMENT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    precision = choose_precision(arguments.precision, device)
    config = SHAPES[arguments.shape]
    noise = torch.Generator().manual_seed(0)
    clips = torch.randn(arguments.batch, round(arguments.seconds * SAMPLING_RATE), generator=noise)
    audio = [0.1 * clips.to(device)]
    dense = dense_model(config)
    plan = settled_plan(dense)
    shape, full = shape_of(dense), plan_of(dense)
    del dense
    if arguments.alone:
        who, moment = arguments.alone
        if who == "sslim":
            step = ours(config, moment, plan, audio, device, precision).step
        else:
            step = reference(arguments.reference, config, moment, plan, audio, device, precision)
        alone(step, device)
        return
    limit = products_per_second(device, precision)
    audio_seconds = arguments.batch * arguments.seconds
    rows: dict[str, dict[str, Any]] = {}
    for moment in ("joint stage, at the start", "joint stage, at the target", "recovery stage"):
        mine = ours(config, moment, plan, audio, device, precision)
        steps: dict[str, Callable[[], Any]] = {"sslim": mine.step}
        kept = tempfile.TemporaryDirectory()
        targets_folder = Path(kept.name)
        steps["kept"] = ours(config, moment, plan, audio, device, precision, targets_folder).step
        if arguments.reference:
            steps["reference"] = reference(
                arguments.reference, config, moment, plan, audio, device, precision
            )
        times: dict[str, list[float]] = {name: [] for name in steps}
        for round_ in range(arguments.rounds + 2):
            for name, step in steps.items():
                seconds = seconds_of(step, device)
                if round_ >= 2:  # the first two warm caches up
                    times[name].append(seconds)
        row: dict[str, Any] = {
            "seconds": statistics.median(times["sslim"]),
            "spread": [min(times["sslim"]), max(times["sslim"])],
            "flops": mine.flops,
        }
        row["seconds_with_kept_targets"] = statistics.median(times["kept"])
        row["audio_seconds_per_second"] = audio_seconds / row["seconds"]
        row["utilisation"] = mine.flops / row["seconds"] / limit
        row["peak_bytes"] = peak_memory(arguments, "sslim", moment)
        if arguments.reference:
            row["reference_seconds"] = statistics.median(times["reference"])
            row["reference_spread"] = [min(times["reference"]), max(times["reference"])]
            pairs = zip(times["reference"], times["sslim"], strict=True)
            row["ratio"] = statistics.median(
                theirs / ours_seconds for theirs, ours_seconds in pairs
            )
            row["reference_peak_bytes"] = peak_memory(arguments, "reference", moment)
        rows[moment] = row
        show(moment, row)
        del mine, steps
        kept.cleanup()
        gc.collect()
    facts: dict[str, Any] = {
        "command": "python benchmarks/train_speed.py "
        + " ".join(
            {str(arguments.reference): "DIR", str(arguments.run): "RUN"}.get(arg, arg)
            for arg in sys.argv[1:]
        ),
        "hardware": f"{device_name(device)}, {platform.machine()}",
        "precision": str(precision).removeprefix("torch."),
        "versions": versions(),
        "shape": arguments.shape,
        "clips": arguments.batch,
        "seconds_per_clip": arguments.seconds,
        "matrix_product_flops_per_second": limit,
        "plan": {
            "parameters": plan.parameters(shape),
            "dense_parameters": full.parameters(shape),
            "macs": plan.macs(shape),
            "dense_macs": full.macs(shape),
        },
        "moments": rows,
    }
    if arguments.reference and arguments.run:
        start, target, recovery = rows.values()
        # The reference's student stays dense through the joint stage: its two times there are one.
        theirs = STAGE1 * statistics.mean((start["reference_seconds"], target["reference_seconds"]))
        theirs += STAGE2 * recovery["reference_seconds"]
        for key, name in (
            ("recipe_ratio", "seconds"),
            ("recipe_ratio_with_kept_targets", "seconds_with_kept_targets"),
        ):
            joint = mean_joint_seconds(start[name], target[name], arguments.run)
            facts[key] = theirs / (STAGE1 * joint + STAGE2 * recovery[name])
        print(
            f"whole recipe: {facts['recipe_ratio']:.2f} x the reference's speed, with targets kept on disk "
            f"{facts['recipe_ratio_with_kept_targets']:.2f} x"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def show(moment: str, row: dict[str, Any]) -> None:
    line = (
        f"{moment}: {1000 * row['seconds']:.0f} ms, {row['audio_seconds_per_second']:.1f} s of audio per "
        f"second, {row['utilisation']:.0%} of a matrix product's speed"
    )
    if row["peak_bytes"]:
        line += f", peak {row['peak_bytes'] / 2**30:.2f} GiB"
    if "ratio" in row:
        line += f"; reference {1000 * row['reference_seconds']:.0f} ms, ratio {row['ratio']:.2f}"
        if row["reference_peak_bytes"]:
            line += f", peak {row['reference_peak_bytes'] / 2**30:.2f} GiB"
    line += f"; targets kept: {1000 * row['seconds_with_kept_targets']:.0f} ms"
    print(line, flush=True)


if __name__ == "__main__":
    main()
