"""A part of the audio that training never hears."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sslim.audio.archives import Clip
from sslim.audio.held_out import hold_out
from sslim.audio.manifest import Manifest, Utterance
from sslim.audio.shards import ShardBatches, Shards, StreamSettings, find_shards, first_clips
from tests.test_shards import shar, webdataset


def utterance(path: str, start: int | None = None, speaker: str = "") -> Utterance:
    identity = path if start is None else f"{path}[{start}:{start + 100}]"
    end = None if start is None else start + 100
    return Utterance(path, start, end, 16_000, 2.0, identity, speaker=speaker)


def manifest(count: int, *, speakers: int = 0, files: int = 0) -> Manifest:
    return Manifest(
        tuple(
            utterance(
                f"/corpus/{i % files if files else i}.wav",
                100 * i if files else None,
                f"s{i % speakers}" if speakers else "",
            )
            for i in range(count)
        ),
        (),
        "/corpus",
    )


@pytest.mark.parametrize(
    ("count", "held"),
    [(0, 0), (3, 0), (4, 1), (8, 2), (63, 15), (64, 16), (320, 16), (400, 20), (20_000, 256)],
)
def test_how_much_is_held_out(count: int, held: int) -> None:
    audio = manifest(count)
    parts = hold_out(audio, share=0.05, seed=0)
    assert isinstance(parts.held_out, Manifest)
    assert isinstance(parts.training, Manifest)
    assert len(parts.held_out.utterances) == held
    both = set(parts.held_out.utterances) | set(parts.training.utterances)
    assert both == set(audio.utterances)
    assert len(parts.training.utterances) == count - held
    assert bool(parts) is bool(held)
    wanted = f"by file ({held} of {count:,})" if held else "nothing: too little audio"
    assert parts.chosen == wanted


@given(st.integers(0, 400), st.integers(0, 50), st.integers(0, 50), st.integers(0, 9), st.randoms())
def test_no_group_is_in_both_parts_and_the_order_is_nothing(
    count: int, speakers: int, files: int, seed: int, order: object
) -> None:
    audio = manifest(count, speakers=speakers, files=files)
    parts = hold_out(audio, share=0.05, seed=seed)
    assert isinstance(parts.held_out, Manifest)
    assert isinstance(parts.training, Manifest)
    held, kept = parts.held_out.utterances, parts.training.utterances
    assert sorted(held + kept, key=str) == sorted(audio.utterances, key=str)
    assert len(held) <= count / 4
    if "speaker" in parts.chosen:
        assert not {item.speaker for item in held} & {item.speaker for item in kept}
    else:
        assert not {item.path for item in held} & {item.path for item in kept}
    mixed = list(audio.utterances)
    order.shuffle(mixed)  # type: ignore[attr-defined]
    again = hold_out(replace(audio, utterances=tuple(mixed)), share=0.05, seed=seed)
    assert isinstance(again.held_out, Manifest)
    assert set(again.held_out.utterances) == set(held)
    assert again.chosen == parts.chosen


def test_speakers_stay_together_and_decide_where_they_are_known() -> None:
    parts = hold_out(manifest(600, speakers=60), share=0.05, seed=0)
    assert parts.chosen == "by speaker (3 of 60)"
    nearly = manifest(600, speakers=60)
    some = tuple(
        replace(item, speaker="" if place < 20 else item.speaker)
        for place, item in enumerate(nearly.utterances)
    )
    parts = hold_out(replace(nearly, utterances=some), share=0.05, seed=0)
    assert isinstance(parts.held_out, Manifest)
    assert "by speaker" in parts.chosen
    assert all(item.speaker for item in parts.held_out.utterances)
    # two speakers with half of everything each: a speaker is no small part
    assert "by file" in hold_out(manifest(600, speakers=2), share=0.05, seed=0).chosen
    packed = hold_out(manifest(600, files=2), share=0.05, seed=0)
    assert packed.chosen == "nothing: its files are too large to spare one"
    assert not packed


def test_another_seed_or_spelling(tmp_path: Path) -> None:
    def held(audio: Manifest, seed: int = 0) -> set[str]:
        part = hold_out(audio, share=0.05, seed=seed).held_out
        assert isinstance(part, Manifest)
        return {audio.relative(item.path) for item in part.utterances}

    audio = manifest(400)
    assert held(audio) != held(audio, seed=1)
    elsewhere = tuple(
        replace(item, path=item.path.replace("/corpus", "/moved/x/../corpus"))
        for item in audio.utterances
    )
    assert held(replace(audio, utterances=elsewhere, root="/moved/corpus")) == held(audio)
    assert hold_out(audio, share=0, seed=0).training == audio


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("kind", ["webdataset", "shar"])
def test_shards(kind: str, tmp_path: Path) -> None:
    folder = webdataset(tmp_path / "w", shards=4, clips=6) if kind == "webdataset" else None
    folder = folder or shar(tmp_path, clips=24)
    found = find_shards(folder)
    assert found is not None
    parts = hold_out(found, share=0.05, seed=3)
    assert parts.chosen == "by clip (6 of 24)"

    def names(audio: Manifest | Shards) -> set[str]:
        assert isinstance(audio, Shards)
        items = list(audio.clips(list(range(len(audio.shards)))))
        return {item.identity for item in items if isinstance(item, Clip)}

    held, kept = names(parts.held_out), names(parts.training)
    assert len(held) == 6
    assert not held & kept
    assert held | kept == names(found)
    assert len(list(first_clips(parts.held_out, 64))) == 6
    assert isinstance(parts.training, Shards)
    settings = StreamSettings(2.0, 1.0, 0.2, 1.0, 7)
    with ShardBatches(parts.training, settings, first_update=0, last_update=12) as stream:
        heard = {name for _, batches in stream for batch in batches for name in batch.identities}
    assert heard == kept
    one = find_shards(webdataset(tmp_path / "s", shards=1, clips=3))
    assert one is not None
    assert hold_out(one, share=0.05, seed=0).chosen == "nothing: too little audio"
