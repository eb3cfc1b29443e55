"""Sharded sources: streamed, repeatable, shared among processes, and honest about what is lost."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, Recording

from sslim.audio import Skipped
from sslim.audio.batching import UpdateStream
from sslim.audio.shards import Shards, find_shards
from sslim.audio.source import StreamSettings
from sslim.errors import AudioError, ConfigError
from sslim.recipes import resolve
from sslim.runs.audio import part
from sslim.story import compress
from tests.models import tiny_teacher

# lhotse leaves the tar files it streams to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

MIN_SECONDS = 0.2
SETTINGS = StreamSettings(seconds_per_update=2.0, seconds_per_batch=1.0, max_seconds=1.0, seed=7)
Heard = list[tuple[int, list[tuple[tuple[str, ...], np.ndarray]]]]


def noise(seconds: float, seed: int, rate: int = 16_000) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal(round(seconds * rate))
    return (0.1 * drawn).astype(np.float32)


def wav(samples: np.ndarray, rate: int = 16_000) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format="WAV", subtype="FLOAT")
    return stream.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def webdataset(folder: Path, shards: int = 4, clips: int = 6) -> Path:
    for shard in range(shards):
        members: dict[str, bytes] = {}
        for clip in range(clips):
            seed = shard * clips + clip
            members[f"{seed:03d}.wav"] = wav(noise(0.4 + 0.05 * clip, seed))
            members[f"{seed:03d}.json"] = b"{}"
        write_tar(folder / f"audio-{shard:04d}.tar", members)
    return folder


def shar(folder: Path, clips: int = 16) -> Path:
    source = folder / "source"
    source.mkdir(parents=True)
    cuts = []
    for clip in range(clips):
        path = source / f"{clip}.wav"
        soundfile.write(path, noise(0.4 + 0.03 * clip, clip), 16_000)
        cuts.append(Recording.from_file(path, recording_id=str(clip)).to_cut())
    out = folder / "shar"
    out.mkdir()
    CutSet.from_cuts(cuts).to_shar(out, fields={"recording": "wav"}, shard_size=4)
    return out


@pytest.fixture(params=["webdataset", "shar"])
def shards(request: pytest.FixtureRequest, tmp_path: Path) -> Shards:
    folder = webdataset(tmp_path / "w") if request.param == "webdataset" else shar(tmp_path)
    found = find_shards(folder, MIN_SECONDS)
    assert found is not None
    assert found.kind == request.param
    return found


def heard(
    shards: Shards,
    settings: StreamSettings = SETTINGS,
    first: int = 0,
    last: int = 12,
    lost: list[Skipped] | None = None,
    workers: int = 0,
) -> Heard:
    missing: list[Skipped] = [] if lost is None else lost
    datasets = shards.datasets(settings, first, last)
    with UpdateStream(datasets, workers=workers, on_lost=missing.append) as stream:
        return [
            (update, [(batch.identities, batch.waveforms.numpy()) for batch in batches])
            for update, batches in stream
        ]


def no_loss(item: Skipped) -> None:
    raise AssertionError(item)


def same(one: Heard, other: Heard) -> bool:
    if [update for update, _ in one] != [update for update, _ in other]:
        return False
    for (_, left), (_, right) in zip(one, other, strict=True):
        for (names, audio), (others, more) in zip(left, right, strict=True):
            if names != others or not np.array_equal(audio, more):
                return False
    return True


def test_a_stream_is_a_function_of_its_seed(shards: Shards) -> None:
    whole = heard(shards)
    assert [update for update, _ in whole] == list(range(12))
    assert same(whole, heard(shards))
    assert same(whole, heard(shards, workers=1))
    assert not same(whole, heard(shards, replace(SETTINGS, seed=8)))


def test_a_resumed_stream_goes_on_where_it_was(shards: Shards) -> None:
    assert same(heard(shards)[5:], heard(shards, first=5))


def test_an_epoch_has_every_clip(shards: Shards) -> None:
    """12 updates of 2 s are two epochs or more of these 10 to 13 s."""
    names = {name for _, batches in heard(shards) for names, _ in batches for name in names}
    everything = list(shards.clips())
    assert all(not isinstance(item, Skipped) for item in everything)
    assert len(names) == len(everything)


def test_updates_hear_what_was_asked_for(shards: Shards) -> None:
    for _, batches in heard(shards):
        seconds = sum(audio.size for _, audio in batches) / 16_000
        assert 1.0 < seconds < 3.0
        for _, audio in batches:
            assert audio.size / 16_000 <= 1.0 + 1e-6


def test_processes_share_the_shards(shards: Shards) -> None:
    shares = []
    for rank in range(2):
        settings = replace(SETTINGS, rank=rank, processes=2)
        shares.append(heard(shards, settings, last=2))
    names = [
        {name for _, batches in share for names, _ in batches for name in names} for share in shares
    ]
    assert names[0]
    assert names[1]
    assert not names[0] & names[1], "the first updates of the two come from different shards"


def test_fewer_shards_than_processes_is_a_sentence(tmp_path: Path) -> None:
    found = find_shards(webdataset(tmp_path, shards=1))
    assert found is not None
    with pytest.raises(AudioError, match="1 shards cannot be shared by 2 processes"):
        found.datasets(replace(SETTINGS, rank=1, processes=2), 0, 1)


def test_clips_that_cannot_be_heard_are_reported(tmp_path: Path) -> None:
    silent = wav(np.full(8000, np.nan, dtype=np.float32))
    good = {f"{clip}.wav": wav(noise(0.5, clip)) for clip in range(8)}
    write_tar(tmp_path / "0.tar", {"no.wav": b"not audio", "nan.wav": silent, **good})
    found = find_shards(tmp_path)
    assert found is not None
    lost: list[Skipped] = []
    updates = heard(found, last=2, lost=lost)
    assert len(updates) == 2
    assert {item.path.rpartition(":")[2] for item in lost} == {"no.wav", "nan.wav"}


def test_a_torn_shard_gives_what_it_has(tmp_path: Path) -> None:
    folder = webdataset(tmp_path, shards=2)
    torn = folder / "audio-0001.tar"
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
    found = find_shards(folder)
    assert found is not None
    lost: list[Skipped] = []
    assert len(heard(found, last=4, lost=lost)) == 4
    assert any("audio-0001.tar" in item.path for item in lost)


def test_nothing_long_enough_is_a_sentence(shards: Shards) -> None:
    with pytest.raises(AudioError, match=r"no clip of 5 s or more.*audio.min_seconds"):
        heard(replace(shards, min_seconds=5.0))


def test_other_rates_are_resampled(tmp_path: Path) -> None:
    members = {f"{clip}.wav": wav(noise(0.5, clip, 8000), 8000) for clip in range(4)}
    found = find_shards(write_tar(tmp_path / "a.tar", members))
    assert found is not None
    assert [len(clip) for clip in found.waveforms(2, 1.0, no_loss)] == [8000, 8000]
    assert [len(clip) for clip in found.waveforms(2, 0.25, no_loss)] == [4000, 4000]


def test_what_is_no_sharded_source(tmp_path: Path) -> None:
    assert find_shards(tmp_path) is None
    assert find_shards(tmp_path / "missing.tar") is None
    assert find_shards(["a.wav"]) is None
    write_tar(tmp_path / "recording.000000.tar", {})
    with pytest.raises(AudioError, match="no cuts file beside it"):
        find_shards(tmp_path)


RUN = (
    "seconds_per_update=2",
    "seconds_per_batch=1",
    "audio.min_seconds=0.2",
    "audio.max_seconds=1",
    "precision=float32",
    "workers=0",
    "stage1.updates=3",
    "stage2.updates=2",
)


def test_a_whole_run_on_shards(tmp_path: Path) -> None:
    tiny_teacher("hubert").save_pretrained(tmp_path / "teacher")
    audio = webdataset(tmp_path / "audio")
    result = compress(
        tmp_path / "teacher", audio, tmp_path / "out", params="60%", settings=RUN, progress=False
    )
    assert result.parameters < 0.6 * result.dense_parameters
    assert "4 webdataset shards" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match="target_cache_gib"):
        compress(
            tmp_path / "teacher",
            audio,
            tmp_path / "other",
            params="60%",
            settings=[*RUN, "target_cache_gib=1"],
            progress=False,
        )


@pytest.mark.parametrize("member", [b"not audio", None])
def test_shards_of_which_nothing_is_usable_leave_no_output(
    tmp_path: Path, member: bytes | None
) -> None:
    """What is refused must leave nothing behind that refuses the next try, with better shards."""
    tiny_teacher("hubert").save_pretrained(tmp_path / "teacher")
    unheard = wav(np.full(16_000, np.nan, dtype=np.float32)) if member is None else member
    write_tar(tmp_path / "a.tar", {"bad.wav": unheard})
    with pytest.raises(AudioError, match=r"no clip .* that can be used; the first: .*bad\.wav"):
        compress(
            tmp_path / "teacher",
            tmp_path / "a.tar",
            tmp_path / "out",
            params="60%",
            settings=RUN,
            progress=False,
        )
    assert not (tmp_path / "out").exists()


def test_a_part_of_which_nothing_is_usable_is_not_held_out(tmp_path: Path) -> None:
    """Training would end without anything to measure the result on, or begin without anything to hear."""
    unheard = wav(np.full(16_000, np.nan, dtype=np.float32))
    members = {f"{clip}.wav": unheard for clip in range(7)}
    write_tar(tmp_path / "a.tar", members | {"good.wav": wav(noise(0.5, 1))})
    found = find_shards(tmp_path, MIN_SECONDS)
    assert found is not None
    said: list[str] = []
    config = resolve("paper", params="60%", settings=RUN)
    parts = part(config, found, said.append)
    assert parts.training == found
    assert not parts
    assert "too few clips can be used" in said[0]
