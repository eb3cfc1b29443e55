"""A part of the audio that training never hears."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sslim.audio.archives import Clip
from sslim.audio.batching import UpdateStream
from sslim.audio.files import Files
from sslim.audio.manifest import Manifest, Utterance
from sslim.audio.shards import Shards, find_shards
from sslim.audio.source import Source
from tests.test_shards import MIN_SECONDS, SETTINGS, no_loss, shar, webdataset


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


def utterances(source: Source | None) -> tuple[Utterance, ...]:
    if source is None:
        return ()
    assert isinstance(source, Files)
    return source.manifest.utterances


@pytest.mark.parametrize(
    ("count", "held"),
    [(0, 0), (3, 0), (4, 1), (8, 2), (63, 15), (64, 16), (320, 16), (400, 20), (20_000, 256)],
)
def test_how_much_is_held_out(count: int, held: int) -> None:
    audio = manifest(count)
    parts = Files(audio).hold_out(0.05, 0)
    assert len(utterances(parts.held_out)) == held
    both = set(utterances(parts.held_out)) | set(utterances(parts.training))
    assert both == set(audio.utterances)
    assert len(utterances(parts.training)) == count - held
    assert bool(parts) is bool(held)
    wanted = f"by file ({held} of {count:,})" if held else "nothing: too little audio"
    assert parts.chosen == wanted


@given(st.integers(0, 400), st.integers(0, 50), st.integers(0, 50), st.integers(0, 9), st.randoms())
def test_no_group_is_in_both_parts_and_the_order_is_nothing(
    count: int, speakers: int, files: int, seed: int, order: object
) -> None:
    audio = manifest(count, speakers=speakers, files=files)
    parts = Files(audio).hold_out(0.05, seed)
    held, kept = utterances(parts.held_out), utterances(parts.training)
    assert sorted(held + kept, key=str) == sorted(audio.utterances, key=str)
    assert len(held) <= count / 4
    if "speaker" in parts.chosen:
        assert not {item.speaker for item in held} & {item.speaker for item in kept}
    else:
        assert not {item.path for item in held} & {item.path for item in kept}
    mixed = list(audio.utterances)
    order.shuffle(mixed)  # type: ignore[attr-defined]
    again = Files(replace(audio, utterances=tuple(mixed))).hold_out(0.05, seed)
    assert set(utterances(again.held_out)) == set(held)
    assert again.chosen == parts.chosen


def test_speakers_stay_together_and_decide_where_they_are_known() -> None:
    parts = Files(manifest(600, speakers=60)).hold_out(0.05, 0)
    assert parts.chosen == "by speaker (3 of 60)"
    nearly = manifest(600, speakers=60)
    some = tuple(
        replace(item, speaker="" if place < 20 else item.speaker)
        for place, item in enumerate(nearly.utterances)
    )
    parts = Files(replace(nearly, utterances=some)).hold_out(0.05, 0)
    assert "by speaker" in parts.chosen
    assert all(item.speaker for item in utterances(parts.held_out))
    # two speakers with half of everything each: a speaker is no small part
    assert "by file" in Files(manifest(600, speakers=2)).hold_out(0.05, 0).chosen
    packed = Files(manifest(600, files=2)).hold_out(0.05, 0)
    assert packed.chosen == "nothing: its files are too large to spare one"
    assert not packed


def test_another_seed_or_spelling(tmp_path: Path) -> None:
    def held(audio: Manifest, seed: int = 0) -> set[str]:
        part = Files(audio).hold_out(0.05, seed).held_out
        return {audio.relative(item.path) for item in utterances(part)}

    audio = manifest(400)
    assert held(audio) != held(audio, seed=1)
    elsewhere = tuple(
        replace(item, path=item.path.replace("/corpus", "/moved/x/../corpus"))
        for item in audio.utterances
    )
    assert held(replace(audio, utterances=elsewhere, root="/moved/corpus")) == held(audio)
    assert Files(audio).hold_out(0, 0).training == Files(audio)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("kind", ["webdataset", "shar"])
def test_shards(kind: str, tmp_path: Path) -> None:
    folder = webdataset(tmp_path / "w", shards=4, clips=6) if kind == "webdataset" else None
    folder = folder or shar(tmp_path, clips=24)
    found = find_shards(folder, MIN_SECONDS)
    assert found is not None
    parts = found.hold_out(0.05, 3)
    assert parts.chosen == "by clip (6 of 24)"

    def names(audio: Source | None) -> set[str]:
        assert isinstance(audio, Shards)
        return {item.identity for item in audio.clips() if isinstance(item, Clip)}

    held, kept = names(parts.held_out), names(parts.training)
    assert len(held) == 6
    assert not held & kept
    assert held | kept == names(found)
    assert parts.held_out is not None
    assert len(list(parts.held_out.waveforms(64, 9.0, no_loss))) == 6
    with UpdateStream(parts.training.datasets(SETTINGS, 0, 12)) as stream:
        heard = {name for _, batches in stream for batch in batches for name in batch.identities}
    assert heard == kept
    one = find_shards(webdataset(tmp_path / "s", shards=1, clips=3))
    assert one is not None
    assert one.hold_out(0.05, 0).chosen == "nothing: too little audio"
