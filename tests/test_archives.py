"""Tar files that anybody may have made: nothing but their bytes is heard, and a bad member costs itself."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from sslim.audio import Skipped, read_source
from sslim.audio.archives import Clip
from sslim.audio.files import Files
from sslim.audio.shards import Shards, find_shards
from sslim.errors import AudioError
from tests.test_shards import (
    MIN_SECONDS,
    heard,
    no_loss,
    noise,
    same,
    shar,
    wav,
    webdataset,
    write_tar,
)


def found(path: Path) -> Shards:
    shards = find_shards(path, MIN_SECONDS)
    assert shards is not None
    return shards


def items(path: Path) -> tuple[list[Clip], list[Skipped]]:
    shards = found(path)
    everything = list(shards.clips())
    return (
        [item for item in everything if isinstance(item, Clip)],
        [item for item in everything if isinstance(item, Skipped)],
    )


def cut_line(name: str, **changes: Any) -> dict[str, Any]:
    recording = {
        "id": name,
        "sources": [{"type": "shar", "channels": [0], "source": ""}],
        "sampling_rate": 16_000,
        "num_samples": 8000,
        "duration": 0.5,
    }
    cut = {"id": name, "start": 0, "duration": 0.5, "channel": 0, "type": "MonoCut"}
    return cut | {"recording": recording} | changes


def write_shar(
    folder: Path, members: dict[str, bytes], lines: list[Any], *, number: str = "000000"
) -> Path:
    write_tar(folder / f"recording.{number}.tar", members)
    with gzip.open(folder / f"cuts.{number}.jsonl.gz", "wt") as stream:
        stream.writelines(
            (line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines
        )
    return folder


HOSTILE: list[dict[str, Any]] = [
    {"type": "command", "channels": [0], "source": "touch PWNED; cat a.wav"},
    {"type": "url", "channels": [0], "source": "pipe:touch PWNED; cat a.wav"},
    {"type": "url", "channels": [0], "source": "file:///etc/hostname"},
    {"type": "file", "channels": [0], "source": "a.wav"},
    {"type": "file", "channels": [0], "source": "pipe:touch PWNED; cat a.wav"},
]


@pytest.mark.parametrize(
    "source", HOSTILE, ids=lambda source: f"{source['type']}-{source['source'][:5]}"
)
@pytest.mark.parametrize(
    "wrapped", ["plain", "padded", "mixed", "data", "meta", "custom", "features"]
)
def test_shar_runs_and_opens_nothing(
    source: dict[str, Any], wrapped: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    soundfile.write(tmp_path / "a.wav", noise(0.5, 1), 16_000)
    evil = cut_line("evil")
    evil["recording"]["sources"] = [source]
    array = {"storage_type": "numpy_files", "storage_path": "touch PWNED", "storage_key": "a.wav"}
    members = {"evil.nodata": b"", "evil.nometa": b""}
    if wrapped in ("padded", "mixed"):
        pad = {"id": "p", "duration": 1, "type": "PaddingCut"}
        tracks = [{"type": "MonoCut", "cut": evil, "offset": 0}, {"type": "PaddingCut", "cut": pad}]
        evil = {"id": "evil", "tracks": tracks, "type": "MixedCut", "duration": 1, "start": 0}
    elif wrapped in ("data", "meta"):
        members = {
            "evil.wav": wav(noise(0.5, 2)),
            "evil.json": json.dumps(evil["recording"]).encode(),
        }
        if wrapped == "meta":
            evil["recording"] = cut_line("evil")["recording"]
    elif wrapped == "custom":
        evil["custom"] = {"target": evil["recording"], "array": array}
    elif wrapped == "features":
        evil["features"] = array | {"type": "fbank", "num_features": 80}
    good = {f"g{n}.wav": wav(noise(0.5, n)) for n in range(8)}
    folder = write_shar(
        tmp_path / "shar", members | good, [evil, *(cut_line(f"g{n}") for n in range(8))]
    )
    clips, skipped = items(folder)
    names = {clip.key.rpartition(":")[2] for clip in clips}
    if wrapped in (
        "data",
        "meta",
    ):  # lhotse takes the bytes beside the cut, whatever its source says
        assert names == {"evil.wav", *good}
        wanted, _ = soundfile.read(io.BytesIO(members["evil.wav"]), dtype="float32")
        assert np.array_equal(clips[0].load(), wanted)
    else:
        assert names == set(good)
        assert [item.path for item in skipped if "evil" in item.path or "line 1" in item.path]
    assert len(heard(found(folder), last=3)) == 3
    assert sorted(os.listdir(tmp_path)) == ["a.wav", "shar"]


@pytest.mark.parametrize("name", ["Speed", "Volume", "ReverbWithImpulseResponse"])
def test_shar_with_transforms_is_refused(name: str, tmp_path: Path) -> None:
    one, two = cut_line("one"), cut_line("two")
    one["recording"]["transforms"] = [{"name": name, "kwargs": {}}]
    facts = two["recording"] | {"transforms": [{"name": name, "kwargs": {"affix_id": True}}]}
    members = {
        "one.wav": wav(noise(0.5, 1)),
        "two.wav": wav(noise(0.5, 2)),
        "two.json": json.dumps(facts).encode(),
        "three.wav": wav(noise(0.5, 3)),
    }
    clips, skipped = items(write_shar(tmp_path, members, [one, two, cut_line("three")]))
    assert [clip.key for clip in clips] == ["recording.000000.tar:three.wav"]
    assert len(skipped) == 2
    assert all(repr(name) in item.reason for item in skipped)


def test_shar_cuts_are_what_lhotse_says(tmp_path: Path) -> None:
    from lhotse import CutSet, Recording

    rate = 48_000
    smooth = np.hanning(48) / 8  # lhotse resamples with another filter
    both = np.stack([np.convolve(noise(2.0, n, rate), smooth, "same") for n in (1, 2)], axis=1)
    soundfile.write(tmp_path / "a.wav", both, rate, subtype="FLOAT")
    whole = Recording.from_file(tmp_path / "a.wav").to_cut()
    cuts = [
        whole.truncate(offset=0.5, duration=1.0).with_id("a.part/1"),
        whole.with_id("whole"),
        whole.with_channels([1]).truncate(offset=0.25, duration=0.5).with_id("second"),
        whole.resample(16_000).truncate(offset=1.0, duration=0.75).with_id("resampled"),
    ]
    (tmp_path / "shar").mkdir()
    CutSet.from_cuts(cuts).to_shar(tmp_path / "shar", fields={"recording": "flac"}, shard_size=3)
    clips, skipped = items(tmp_path / "shar")
    assert not skipped
    for cut, clip in zip(cuts, clips, strict=True):
        wanted = cut.resample(16_000).load_audio().mean(axis=0)
        got = clip.load()
        assert clip.seconds == pytest.approx(cut.duration, abs=1e-4)
        middle = slice(1000, len(wanted) - 1000)
        assert np.abs(got[middle] - wanted[middle]).max() < 0.01


def test_an_uneven_shar_costs_what_is_missing(tmp_path: Path) -> None:
    members = {
        "0.wav": wav(noise(0.5, 0)),
        "0.json": json.dumps(cut_line("0")["recording"]).encode(),
        "2.wav": wav(noise(0.5, 2)),
        "stranger.wav": wav(noise(0.5, 3)),
        "3.wav": wav(noise(0.2, 3)),
        "4.json": b"{}",
        "5.wav": wav(noise(0.5, 5)),
        "5.json": b"[" * 100_000,
    }
    lines = [cut_line(str(number)) for number in range(6)]
    clips, skipped = items(write_shar(tmp_path, members, lines))
    assert [clip.key.partition(":")[2] for clip in clips] == ["0.wav", "2.wav"]
    reasons = {item.path.partition(".tar:")[2]: item.reason for item in skipped}
    assert set(reasons) == {"1", "stranger.wav", "3.wav", "4", "5.wav"}
    assert "no cut of this name" in reasons["stranger.wav"]
    assert "ends at sample 8000, its audio at 3200" in reasons["3.wav"]


def test_a_broken_shar_says_why(tmp_path: Path) -> None:
    folder = write_shar(tmp_path, {"0.wav": wav(noise(0.5, 0))}, ["{broken"])
    with pytest.raises(
        AudioError, match=r"can be used; the first: .*cuts.*line 1: is not a lhotse"
    ):
        heard(found(folder))
    (tmp_path / "cuts.000000.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(AudioError, match=r"cannot be read as text"):
        heard(found(folder))


def tar_with(path: Path, odd: tarfile.TarInfo, clips: int = 6) -> Path:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for clip in range(clips):
            if clip == 1:
                archive.addfile(odd)
            data = wav(noise(0.5, clip))
            member = tarfile.TarInfo(f"{clip}.wav")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE]
)
def test_one_odd_member_costs_itself(kind: bytes, tmp_path: Path) -> None:
    odd = tarfile.TarInfo("odd.wav")
    odd.type, odd.linkname = kind, "/etc/hostname"
    clips, skipped = items(tar_with(tmp_path / "a.tar", odd))
    assert len(clips) == 6
    if kind == tarfile.DIRTYPE:
        assert not skipped
    else:
        assert [item.path.rpartition(":")[2] for item in skipped] == ["odd.wav"]
        assert "is a link or a device" in skipped[0].reason


def huge_member(path: Path, size: int, after: bytes) -> None:
    """A member whose header promises `size` bytes, which a sparse file holds without disk."""
    member = tarfile.TarInfo("huge.wav")
    member.size = size
    with path.open("wb") as stream:
        stream.write(member.tobuf(tarfile.GNU_FORMAT))
        stream.seek(-(-size // 512) * 512, os.SEEK_CUR)
        stream.write(after)


def test_a_huge_member_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sslim.audio.archives.LARGEST_CLIP", 2**20)
    rest = write_tar(tmp_path / "rest.tar", {"good.wav": wav(noise(0.5, 1))}).read_bytes()
    (tmp_path / "rest.tar").unlink()
    huge_member(tmp_path / "a.tar", 8 * 2**20, rest)
    with gzip.open(tmp_path / "b.tar", "wb") as stream:  # a bomb: packed, though not by its name
        stream.write((tmp_path / "a.tar").read_bytes())
    clips, skipped = items(tmp_path)
    assert [clip.key for clip in clips] == ["a.tar:good.wav", "b.tar:good.wav"]
    assert ["8,388,608 bytes" in item.reason for item in skipped] == [True, True]


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_descriptions_are_bounded(kind: bytes, tmp_path: Path) -> None:
    odd = tarfile.TarInfo("x")
    odd.type, odd.size = kind, 2**33
    (tmp_path / "a.tar").write_bytes(odd.tobuf(tarfile.GNU_FORMAT) + b"\0" * 10_240)
    clips, skipped = items(tmp_path)
    assert not clips
    assert "cannot be read to its end" in skipped[0].reason


def test_a_sparse_member_is_passed_over(tmp_path: Path) -> None:
    member = tarfile.TarInfo("sparse.wav")
    member.type, member.size = tarfile.GNUTYPE_SPARSE, 0
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"000060000000000"[:12]  # its real size: 6 GiB of nothing
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    rest = write_tar(tmp_path / "rest.tar", {"good.wav": wav(noise(0.5, 1))}).read_bytes()
    (tmp_path / "rest.tar").unlink()
    (tmp_path / "a.tar").write_bytes(bytes(header) + rest)
    clips, skipped = items(tmp_path)
    assert [clip.key for clip in clips] == ["a.tar:good.wav"]
    assert [item.path.rpartition(":")[2] for item in skipped] == ["sparse.wav"]


def test_what_lies_beside_the_shards(tmp_path: Path) -> None:
    """Names are names, not patterns; folders and pipes that look like shards are none."""
    (tmp_path / "x.tar").mkdir()
    os.mkfifo(tmp_path / "y.tar")
    assert find_shards(tmp_path) is None
    assert find_shards(tmp_path / "y.tar") is None
    assert find_shards("~nosuchuser/x") is None
    write_shar(tmp_path, {"0.wav": wav(noise(0.5, 0))}, [cut_line("0")], number="[ab]")
    write_shar(tmp_path, {"0.wav": wav(noise(0.5, 0))}, [cut_line("0")], number="a.1")
    (tmp_path / "cuts.a.jsonl").write_text("")
    pairs = [(Path(s["audio"]).name, Path(s["cuts"]).name) for s in found(tmp_path).shards]
    assert pairs == [
        ("recording.[ab].tar", "cuts.[ab].jsonl.gz"),
        ("recording.a.1.tar", "cuts.a.1.jsonl.gz"),
    ]
    (tmp_path / "cuts.[ab].jsonl.gz").unlink()
    with pytest.raises(AudioError, match=r"recording\.\[ab\]\.tar has no cuts file beside it"):
        find_shards(tmp_path)


def test_a_shard_that_becomes_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    shards = found(webdataset(tmp_path, shards=2))
    (tmp_path / "audio-0001.tar").unlink()
    os.mkfifo(tmp_path / "audio-0001.tar")
    lost: list[Skipped] = []
    assert len(heard(shards, last=4, lost=lost)) == 4
    assert any("is a pipe, not a file" in item.reason for item in lost)


def test_members_in_name_only(tmp_path: Path) -> None:
    silent = np.zeros(8000, np.float32)
    lying = bytearray(wav(noise(0.5, 1)))
    lying[24:28] = (1).to_bytes(4, "little")
    members = {
        "empty.wav": b"",
        "junk.wav": bytes(range(256)) * 8,
        "slow.wav": bytes(lying),
        "cut.wav": wav(noise(0.5, 2))[:9000],
        "silent.wav": wav(silent),
        "loud.wav": wav(noise(0.5, 3) * 1e6),
    }
    good = {f"{clip}.wav": wav(noise(0.5, clip)) for clip in range(8)}
    write_tar(tmp_path / "0.tar", members | good)
    lost: list[Skipped] = []
    updates = heard(found(tmp_path), last=6, lost=lost)
    assert len(updates) == 6
    reasons = {item.path.rpartition(":")[2]: item.reason for item in lost}
    assert set(reasons) == set(members)
    assert "1 Hz" in reasons["slow.wav"]
    assert "truncated" in reasons["cut.wav"]
    assert all("\n" not in reason for reason in reasons.values())


def test_crops_of_clips_are_those_of_the_whole(tmp_path: Path) -> None:
    from sslim.audio.loading import crop

    for rate in (16_000, 44_100):
        write_tar(tmp_path / "0.tar", {"a.wav": wav(noise(3.0, 1, rate), rate)})
        ((clip,), _) = items(tmp_path)
        for seed in "abcd":
            part, wanted = clip.crop(8000, seed), crop(clip.load()[: 3 * 16_000], 8000, seed)
            assert np.abs(part - wanted).max() <= (0 if rate == 16_000 else 1e-6)


def test_what_is_measured_on_is_spread_and_what_is_lost_is_said(tmp_path: Path) -> None:
    for number in range(4):
        soundfile.write(tmp_path / f"{number}.wav", noise(1.0, number), 16_000)
    source = Files(read_source(tmp_path))
    first, _, third, _ = source.waveforms(4, 9.0, no_loss)
    for chosen, wanted in zip(source.waveforms(2, 9.0, no_loss), (first, third), strict=True):
        assert np.array_equal(chosen, wanted)
    assert [len(clip) for clip in source.waveforms(4, 0.5, no_loss)] == [8000] * 4
    (tmp_path / "1.wav").unlink()
    lost: list[Skipped] = []
    assert len(list(source.waveforms(9, 9.0, lost.append))) == 3
    assert [Path(item.path).name for item in lost] == ["1.wav"]


def test_shards_are_measured_on_what_can_be_decoded(tmp_path: Path) -> None:
    members = {f"{number}.wav": wav(noise(0.5, number)) for number in range(3)}
    short = wav(noise(0.1, 9))
    write_tar(tmp_path / "0.tar", {"no.wav": b"not audio", "short.wav": short, **members})
    assert [len(clip) for clip in found(tmp_path).waveforms(9, 9.0, no_loss)] == [8000] * 3


def test_shards_know_what_they_hold(tmp_path: Path) -> None:
    one = found(webdataset(tmp_path / "one", shards=2)).summary()
    assert found(webdataset(tmp_path / "two", shards=2)).summary() == one
    path = tmp_path / "two" / "audio-0000.tar"
    data = bytearray(path.read_bytes())
    data[len(data) // 2 + 7] ^= 1
    path.write_bytes(data)
    assert found(tmp_path / "two").summary()["fingerprint"] != one["fingerprint"]
    cuts = found(shar(tmp_path / "s"))
    before = cuts.summary()["fingerprint"]
    lines = Path(cuts.shards[0]["cuts"])
    lines.write_bytes(gzip.compress(gzip.decompress(lines.read_bytes()) + b"\n"))
    assert cuts.summary()["fingerprint"] != before


def test_long_clips_fill_a_pool_by_their_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = found(webdataset(tmp_path, shards=2))

    def names(updates: list[Any]) -> set[str]:
        return {name for _, batches in updates for batch in batches for name in batch[0]}

    whole = names(heard(shards, last=1))
    monkeypatch.setattr("sslim.audio.shards.POOL_BYTES", 40_000)
    assert len(names(heard(shards, last=1))) == 2 < len(whole), "what two clips take is enough"
    assert same(heard(shards, last=6)[3:], heard(shards, first=3, last=6))
