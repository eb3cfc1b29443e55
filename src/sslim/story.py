"""The story: a teacher, audio and a budget in; a smaller model that transformers loads out.

    teacher and audio are read and checked      before anything is trained
    joint       the student, under gates, learns the teacher while units close
    decide      the gates write a plan within the budget, and surgery makes a small model
    recover     the same loop distils the small model again
    save        config, weights, model code, card, `sslim.json`

The method is DPHuBERT's (Peng et al., Interspeech 2023). A run can be interrupted anywhere and resumed: each
step leaves a product to go on from.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from sslim.backbone.places import find
from sslim.config import RunConfig
from sslim.recipes import resolve
from sslim.runs import folder
from sslim.runs.audio import AudioChoice
from sslim.steps.decide import decide
from sslim.steps.inputs import Request, check, check_finished
from sslim.steps.joint import joint
from sslim.steps.opening import claim, look, noted, open_run
from sslim.steps.recover import recover
from sslim.steps.result import CompressionResult
from sslim.steps.save import save
from sslim.steps.step import Step, run_steps
from sslim.train.processes import find_processes
from sslim.train.progress import StageBar
from sslim.train.tracking import check_trackers


def steps_of(config: RunConfig) -> list[Step]:
    """The paper's run."""
    again = [recover(config)] if config.stage2.updates else []
    return [joint(config), decide(), *again, save()]


def compress(
    teacher: str | Path,
    audio: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    recipe: str = "paper",
    config: str | Path | None = None,
    settings: Sequence[str] = (),
    params: str | None = None,
    sparsity: float | None = None,
    resume: bool = False,
    force: bool = False,
    device: str | None = None,
    where: Mapping[str, str] | None = None,
    mix: Mapping[str, float] | Mapping[Path, float] | None = None,
    revision: str | None = None,
    progress: bool = True,
) -> CompressionResult:
    """Compresses `teacher` with unlabelled `audio` and writes a folder that transformers loads.

    Args:
        teacher: hub id, local folder, or checkpoint file.
        audio: a folder (searched recursively), a list of files, a fairseq tsv, a CSV manifest, a lhotse
            manifest, or shards (lhotse Shar, WebDataset), which are streamed.
        out: folder to write.
        recipe: `paper`, `fast` or `demo`.
        config: a TOML file that edits the recipe.
        settings: edits such as `stage1.updates=2000`.
        params: budget on the backbone's parameters, such as `25%` or `24M`.
        sparsity: the share to remove, instead of `params`.
        resume: go on with an interrupted run in `out`.
        force: replace what `out` holds.
        device: `auto`, `cpu`, `cuda`, ...
        where: rows of a CSV manifest to take, as column -> value.
        mix: further sources of audio -> their shares of what is heard; `audio` is the rest.
        revision: the branch, tag or commit of a hub id; the same as `owner/name@revision`.
        progress: draw a progress bar on stderr.

    Raises:
        SslimError: the teacher, the audio, a setting, the budget or the output folder cannot be used;
            raised before training starts wherever that can be known.
    """
    began = time.perf_counter()
    request = Request(
        teacher=teacher if revision is None else find(teacher, revision).name,
        audio=AudioChoice.of(audio, where, mix),
        out=folder.settled(out),
        recipe=recipe,
        config=resolve(
            recipe,
            config=config,
            settings=settings,
            params=params,
            sparsity=sparsity,
            device=device,
        ),
        resume=resume,
        force=force,
    )
    check_trackers(request.config.trackers)
    processes = find_processes(request.config.device)
    with ExitStack() as held, StageBar(progress and processes.main) as bar:
        before = look(request, processes, held)
        if before.record is not None and before.finished:
            if processes.main:
                check_finished(before.record, request, bar.say)
            return CompressionResult.read(request.out)
        inputs = check(request, processes, bar.say)
        steps = steps_of(inputs.config)
        claim(request, inputs, before, processes, held, bar.say)
        run = open_run(request, inputs, before, steps, processes, bar, began)
        with noted(run, request):
            run_steps(run, steps)
    return CompressionResult.read(request.out)
