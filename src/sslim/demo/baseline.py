"""The student to beat: the same size, the same audio, the same number of updates, nothing pruned jointly."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from sslim.audio import UpdateSampler, read_source
from sslim.audio.batching import Batches
from sslim.backbone.loading import load_model
from sslim.backbone.saving import save_folder
from sslim.config import RunConfig
from sslim.distill.prediction import PredictionTask, first_layers
from sslim.distill.task import check_layers
from sslim.train.device import choose_device, choose_precision
from sslim.train.loop import LoopSettings, train
from sslim.train.progress import ProgressBar


def distil_only(
    teacher: Path,
    audio: Path,
    out: Path,
    *,
    limit: int,
    config: RunConfig,
    where: dict[str, str],
    progress: bool = True,
) -> float:
    """Trains and saves a plain distilled student of at most `limit` parameters; returns the seconds."""
    began = time.perf_counter()
    loaded = load_model(teacher)
    manifest = read_source(audio, min_seconds=config.audio.min_seconds, where=where)
    device = choose_device(config.device)
    torch.manual_seed(config.seed)
    student = first_layers(loaded.model, limit)
    task = PredictionTask(
        loaded.model,
        student,
        layers=check_layers(config.layers, loaded.model.config.num_hidden_layers),
        learning_rate=config.stage1.learning_rate,
        normalise_waveform=loaded.normalise,
    )
    task.to(device)
    updates = config.stage1.updates + config.stage2.updates
    settings = LoopSettings(
        stage="distillation only",
        updates=updates,
        warmup_fraction=config.stage1.warmup_fraction,
        clip_norm=config.clip_norm,
        device=device,
        precision=choose_precision(config.precision, device),
        log_every=config.log_every,
        checkpoint_every=updates,
        keep_checkpoints=1,
    )
    sampler = UpdateSampler(
        [utterance.seconds for utterance in manifest.utterances],
        seconds_per_update=config.seconds_per_update,
        seconds_per_batch=config.seconds_per_batch or config.seconds_per_update,
        max_seconds=config.audio.max_seconds,
        seed=config.seed,
    )
    run = out / "run"
    run.mkdir(parents=True, exist_ok=True)
    with (
        ProgressBar(progress) as bar,
        Batches(
            manifest,
            sampler,
            first_update=0,
            last_update=updates,
            workers=config.workers,
            max_seconds=config.audio.max_seconds,
        ) as stream,
    ):
        train(task, stream, settings, run, on_progress=bar)
    facts: dict[str, Any] = {"method": "distillation only", "updates": updates}
    student = student.cpu().eval()
    save_folder(out, student, normalise=loaded.normalise, run=facts)
    return time.perf_counter() - began
