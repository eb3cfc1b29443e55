"""The model card: what the folder holds, what it cost, what was measured and what was not."""

from __future__ import annotations

import json
import re

from sslim.measurements import ExportFacts
from sslim.report.quoting import code, one_line, prose
from sslim.runs.facts import ResultFacts, RunFacts

CARD = """---
library_name: transformers
pipeline_tag: feature-extraction
tags: [speech, self-supervised, compressed, sslim, {family}]
{base_model}---

# {title}

A {family} model compressed by [sslim](https://pypi.org/project/sslim/) with joint distillation and
structured pruning (DPHuBERT, Peng et al., Interspeech 2023). Its licence follows from the teacher's and
the audio's; neither is known to sslim.

```python
from transformers import AutoFeatureExtractor, AutoModel

extractor = AutoFeatureExtractor.from_pretrained({name})
model = AutoModel.from_pretrained({name}, trust_remote_code=True).eval()
inputs = extractor(waveform_16khz, sampling_rate=16000, return_tensors="pt")
states = model(**inputs, output_hidden_states=True).hidden_states  # {count} x (1, frames, {width})
```

Input: 16 kHz mono waveforms{normalised}. One frame every {hop} samples ({milliseconds} ms). Index 0 of
`hidden_states` is the input of the first layer, index k the output of layer k, as in the dense family.

## Size

| | teacher | this model | ratio |
|---|---|---|---|
| parameters of the backbone | {dense_parameters:,} | {parameters:,} | {parameter_share:.1%} |
| MACs per second of audio (of a 10 s utterance) | {dense_macs:,} | {macs:,} | {mac_share:.1%} |
| `model.safetensors` (float32) | | {file_bytes:,} bytes | |

## Distance to the teacher

{measured}, through the projections learned in distillation where any were, at the mapped layers and the front
(the output of the feature projection):

| layer | cosine similarity | L1 distance |
|---|---|---|
{layers}

## How it was made

- teacher: {teacher} (its fingerprint {fingerprint})
- audio: {heard}, from {audio}
- recipe: {recipe}; {stage1} updates of joint distillation and pruning, {stage2} updates of recovery,
  {seconds_per_update:g} s of audio each; seed {seed}
- gates that had not settled at the decision: {undecided:,} of {units:,}
- time: {minutes:.1f} minutes on {device}, {precision}
- versions: {versions}

Everything is in `sslim.json`.

## Not measured here

Scores on any task, on noise or on groups of speakers, and latency. Measure them on your own data before
you rely on this model.
"""


HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def _base_model(source: str) -> str:
    """The hub refuses cards whose base model is no id of the hub."""
    return f"base_model: {source}\n" if HUB_ID.fullmatch(source) else ""


def _measured(result: ResultFacts) -> str:
    """On which audio the distance was measured."""
    known = result.distance
    if known is not None and known.held_out:
        return (
            f"Measured on {known.utterances:,} utterances ({known.seconds:,.0f} s, chosen "
            f"{prose(known.chosen)}) that training never heard"
        )
    count = f" ({known.utterances:,} utterances)" if known is not None and known.utterances else ""
    return f"Measured on audio that was trained on{count}, so it is farther on other audio"


def model_card(facts: RunFacts) -> str:
    """The card's text from the facts of a finished run (see `sslim.json`).

    Names that somebody else chose (of folders, teachers, audio) are made harmless: they can start no heading,
    link or tag in a page that is published.
    """
    result, settings, known = facts.result, facts.settings, facts.result.distance
    rows = "\n".join(
        f"| {layer or 'front'} | {row.cosine:.4f} | {'-' if row.l1 is None else f'{row.l1:.4f}'} |"
        for layer, row in ({} if known is None else known.layers).items()
    )
    versions = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    return CARD.format(
        family=result.family,
        title=prose(facts.name),
        name=json.dumps(one_line(facts.name), ensure_ascii=False),
        teacher=code(facts.teacher.source),
        base_model=_base_model(facts.teacher.source),
        fingerprint=facts.teacher.fingerprint[:16],
        count=result.hidden_states,
        width=result.width,
        normalised=", zero mean and unit variance" if result.normalise else ", as they are",
        hop=result.hop,
        milliseconds=f"{result.hop / 16:g}",
        dense_parameters=result.dense_parameters,
        parameters=result.parameters,
        parameter_share=result.parameters / result.dense_parameters,
        dense_macs=result.dense_macs_per_second,
        macs=result.macs_per_second,
        mac_share=result.macs_per_second / result.dense_macs_per_second,
        file_bytes=result.file_bytes,
        measured=_measured(result),
        layers=rows,
        heard=prose(facts.audio.described),
        audio=code(facts.audio.source),
        recipe=prose(facts.recipe),
        stage1=settings.stage1.updates,
        stage2=settings.stage2.updates,
        seconds_per_update=settings.seconds_per_update,
        seed=settings.seed,
        undecided=result.undecided,
        units=result.units,
        minutes=result.seconds / 60,
        device=prose(facts.device),
        precision=facts.precision,
        versions=prose(versions),
    )


EXPORTS = "## Exported files"
EXPORTS_HEAD = f"""{EXPORTS}

Written and compared by `sslim export`; the figures are the worst of all layers.

| file | format | bytes | cosine | difference | compared on |
|---|---|---|---|---|---|
"""


def with_export(card: str, facts: ExportFacts) -> str:
    """The card with a line about one exported file (see `ExportFacts`), in place of an earlier one."""
    cosine, difference = facts.worst_cosine, facts.worst_difference
    start = f"| {code(facts.file)} |"
    line = (
        f"{start} {prose(facts.format)} | {facts.bytes:,} "
        f"| {'-' if cosine is None else f'{cosine:.5f}'} "
        f"| {'-' if difference is None else f'{difference:.1e}'} | {prose(facts.audio or '-')} |"
    )
    lines = card.rstrip().split("\n")
    if EXPORTS not in lines:
        return "\n".join([*lines, "", f"{EXPORTS_HEAD}{line}\n"])
    at = lines.index(EXPORTS)
    lines[at:] = [row for row in lines[at:] if not row.startswith(start)]
    # The last row of this table; what people wrote below it stays there.
    last = max((n for n in range(at, len(lines)) if lines[n].startswith("|")), default=at)
    return "\n".join([*lines[: last + 1], line, *lines[last + 1 :]]) + "\n"
