"""The end of a run: the student is measured on audio it never heard, and written as a folder."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save_file

from sslim.backbone.modeling_sslim import SslimModel
from sslim.backbone.saving import save_folder, under_head
from sslim.backbone.units import plan_of, shape_of
from sslim.config import to_dict
from sslim.distill.distance import Distance, measure_distance
from sslim.distill.objectives import learned_head
from sslim.errors import AudioError
from sslim.files import written_whole
from sslim.plan import MACS_SECONDS
from sslim.report.card import model_card
from sslim.runs import folder, record
from sslim.runs.audio import clips_to_measure
from sslim.runs.facts import DecisionFacts, HeldOutFacts, LayerDistance, ResultFacts, RunFacts
from sslim.steps.step import Product, Run, Step

MEASURED_UTTERANCES = 200
"""Held-out utterances, at most, on which the distance to the teacher is measured."""


def save() -> Step:
    """Measuring, the folder, its card. Its product is the folder, so it leaves none for a resume."""
    return Step("save", _save)


def _save(run: Run, before: Product | None) -> Product:
    assert before is not None
    if run.processes.main:
        _write(run, before)
    return before


def _write(run: Run, product: Product) -> None:
    distance = _measure(run, product)
    model = product.student.model.cpu().eval()
    assert product.decision is not None
    facts = _facts(run, _result(run, model, product.decision, distance))
    if "layers" in product.objectives:
        projections = product.objectives["layers"].state_dict()
        with written_whole(run.session.folder / "projections.safetensors") as path:
            save_file({name: value.cpu().contiguous() for name, value in projections.items()}, path)
    # Last of all, for it says that the run is finished; clearing up is done again where it was cut short.
    save_folder(
        run.out,
        under_head(run.teacher, model, learned_head(product.objectives)),
        normalise=run.teacher.normalise,
        facts=facts,
        tokenizer_from=run.teacher.folder if run.teacher.head else None,
        finalise=lambda out: _with_size(out, facts),
    )
    folder.clear_after(run.out)


def _measure(run: Run, product: Product) -> Distance:
    """The distance to the teacher on held-out audio; on training audio where nothing is held out."""
    audio = run.inputs.audio.held_out or run.inputs.audio.training
    distance = measure_distance(
        run.task(product, 0.0, cached=False),
        clips_to_measure(run.config, audio, MEASURED_UTTERANCES, run.say),
        device=run.processes.device,
        layers=run.inputs.sizes.layers,
    )
    if not distance.utterances:
        raise AudioError(
            "training is done, but none of the audio to measure the result on can be read any more",
            "bring it back and run again with --resume",
        )
    return distance


def _result(
    run: Run, model: SslimModel, decision: DecisionFacts, distance: Distance
) -> ResultFacts:
    shape, plan, dense = shape_of(model), plan_of(model), plan_of(run.teacher.model)
    layers = {layer: LayerDistance(**row) for layer, row in distance.layers.items()}
    held_out = HeldOutFacts(
        distance.utterances, distance.seconds, layers, run.inputs.audio.chosen, distance.loss
    )
    return ResultFacts(
        family=run.teacher.family,
        head=run.teacher.head,
        parameters=plan.parameters(shape),
        dense_parameters=dense.parameters(shape),
        macs_per_second=round(plan.macs(shape) / MACS_SECONDS),
        dense_macs_per_second=round(dense.macs(shape) / MACS_SECONDS),
        file_bytes=0,
        layers=layers,
        measured_utterances=distance.utterances,
        held_out=held_out if run.inputs.audio else None,
        undecided=decision.undecided,
        units=decision.units,
        shrinks=decision.shrinks,
        seconds=time.perf_counter() - run.began,
        seconds_waited_for_audio=sum(run.session.waited.values()),
        hidden_states=shape.layers + 1,
        width=shape.hidden_size,
        hop=run.teacher.hop,
        normalise=run.teacher.normalise,
    )


def _facts(run: Run, result: ResultFacts) -> RunFacts:
    now = run.record
    source = Path(now.teacher.source)
    audio = record.audio_facts(Path(now.audio.source).name, run.inputs.audio.training)
    return RunFacts(
        name=run.out.resolve().name,
        run=now.id,
        recipe=now.recipe,
        config=to_dict(run.config),
        changed=now.changed,
        # Names only: the folder may be published, and `run/run.json` has the paths.
        teacher=replace(now.teacher, source=source.name if source.exists() else now.teacher.source),
        audio=replace(audio, path=""),
        device=now.device,
        precision=now.precision,
        versions=now.versions,
        result=result,
    )


def _with_size(out: Path, facts: RunFacts) -> tuple[RunFacts, str]:
    """The facts with the real size of the weights on disk, known only once they are written; and the card."""
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    facts = replace(facts, result=replace(facts.result, file_bytes=size))
    return facts, model_card(facts)
