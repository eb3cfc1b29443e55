"""The student to beat: the same size, the same audio, the same number of updates, nothing pruned jointly."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import torch

from sslim.audio import read_source
from sslim.backbone.loading import load_model
from sslim.backbone.saving import save_folder
from sslim.config import RunConfig
from sslim.demo.folder import BaselineFacts
from sslim.distill.prediction import PredictionTask, first_layers
from sslim.distill.task import check_layers
from sslim.runs.state import RunState
from sslim.train.device import choose_precision
from sslim.train.processes import find_processes
from sslim.train.progress import ProgressBar
from sslim.train.stage import Session, run_stage
from sslim.train.tracking import Trackers

STAGE = "distillation only"


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
    processes = find_processes(config.device)
    torch.manual_seed(config.seed)
    student = first_layers(loaded.model, limit)
    task = PredictionTask(
        loaded.model,
        student,
        layers=check_layers(config.layers, loaded.model.config.num_hidden_layers),
        learning_rate=config.stage1.learning_rate,
        normalise_waveform=loaded.normalise,
    )
    task.to(processes.device)
    updates = config.stage1.updates + config.stage2.updates
    run = out / "run"
    run.mkdir(parents=True, exist_ok=True)
    with ProgressBar(progress) as bar:
        session = Session(
            config=replace(config, checkpoint_every=updates),
            audio=manifest,
            folder=run,
            processes=processes,
            precision=choose_precision(config.precision, processes.device),
            progress=bar,
            state=RunState(run, {STAGE: updates}),
            trackers=Trackers((), run, {}),
        )
        run_stage(
            session,
            STAGE,
            task,
            updates=updates,
            warmup_fraction=config.stage1.warmup_fraction,
            first=0,
        )
    facts = BaselineFacts(method="distillation only", updates=updates)
    student = student.cpu().eval()
    save_folder(out, student, normalise=loaded.normalise, facts=facts)
    return time.perf_counter() - began
