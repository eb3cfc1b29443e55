"""Decoding: what is heard never depends on how it was read, and no file takes more than it holds."""

from __future__ import annotations

import dataclasses
import os
import re
import struct
import sys
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from sslim.audio import Manifest, Utterance, check_contents, load_audio, loading, read_source
from sslim.audio.batching import collate
from sslim.audio.blocks import duration, read_blocks
from sslim.audio.discovery import find_files
from sslim.audio.loading import crop, load_crop
from sslim.errors import AudioError


def noise(seconds: float, rate: int = 16_000, channels: int = 1, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal((round(seconds * rate), channels))
    return (0.05 * drawn).astype(np.float32)


def write(path: Path, samples: np.ndarray, rate: int = 16_000, **more: Any) -> Path:
    """In pieces: libsndfile's Vorbis encoder dies of large ones."""
    with soundfile.SoundFile(path, "w", rate, samples.shape[1], **more) as file:
        for start in range(0, len(samples), 4000):
            file.write(samples[start : start + 4000])
    return path


def only(path: Path) -> Utterance:
    (utterance,) = read_source(path).utterances
    return utterance


def refusal(path: Path) -> str:
    """What every way of reading a file says of it, in one line each: they agree that it is of no use."""
    said = []
    with pytest.raises(AudioError) as caught:
        read_source([path])
    said.append(str(caught.value))
    with pytest.raises(AudioError) as caught:
        for _ in read_blocks(path):
            pass
    said.append(str(caught.value))
    assert all("\n" not in line for line in said)
    return "\n".join(said)


# --- crops ---------------------------------------------------------------------------------------

FORMATS = [
    ("a.wav", {"subtype": "PCM_16"}),
    ("a.wav", {"subtype": "PCM_24"}),
    ("a.wav", {"subtype": "PCM_U8"}),
    ("a.wav", {"subtype": "IMA_ADPCM"}),
    ("a.wav", {"subtype": "GSM610"}),
    ("a.flac", {}),
    ("a.ogg", {"format": "OGG", "subtype": "VORBIS"}),
    ("a.opus", {"format": "OGG", "subtype": "OPUS"}),
    ("a.mp3", {"format": "MP3"}),
]


@pytest.mark.parametrize("rate", [8000, 16_000, 44_100, 48_000])
@pytest.mark.parametrize(("name", "settings"), FORMATS, ids=str)
def test_a_crop_is_what_the_whole_would_give(
    tmp_path: Path, name: str, settings: dict[str, str], rate: int
) -> None:
    if settings.get("subtype") == "OPUS" and rate == 44_100:
        rate = 24_000
    if settings.get("subtype") == "GSM610" and rate != 8000:
        rate = 8000
    path = write(tmp_path / name, noise(6.0, rate), rate, **settings)
    whole_file = only(path)
    (tmp_path / "m.csv").write_text(f"path,start,end\n{name},{rate // 2 + 7},{5 * rate + 3}\n")
    for utterance in (whole_file, only(tmp_path / "m.csv")):
        whole = load_audio(utterance)
        for seed in range(8):
            part = load_crop(utterance, 12_000, f"{seed}")
            wanted = crop(whole[: int(utterance.seconds * 16_000)], 12_000, f"{seed}")
            assert part.shape == (12_000,)
            assert part.dtype == np.float32
            assert np.abs(part - wanted).max() <= (0.0 if rate == 16_000 else 1e-6)
        assert np.array_equal(load_crop(utterance, 10**6, "x")[: len(whole)], whole[: 10**6]), (
            "shorter than the crop: all of it"
        )


def test_a_long_file_costs_no_more_memory_than_a_short_one(tmp_path: Path) -> None:
    path = write(tmp_path / "long.flac", np.tile(noise(60.0), (20, 1)))
    tracemalloc.start()
    try:
        utterance = only(path)
        load_crop(utterance, 16_000, "x")
        length = sum(len(block) for block in read_blocks(path, seconds=1.0))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert utterance.seconds == 1200
    assert length == 1200 * 16_000
    assert peak < 8 * 2**20, "all of it would be 73 MiB"


def test_a_pause_may_be_heard_but_not_an_utterance_of_nothing_else(tmp_path: Path) -> None:
    pause = noise(4.0)
    pause[: 3 * 16_000] = 0
    crops = [
        load_crop(only(write(tmp_path / "pause.wav", pause)), 8000, f"{seed}") for seed in range(9)
    ]
    assert any(np.abs(part).max() == 0 for part in crops)
    silent = write(tmp_path / "silent.wav", np.full((64_000, 1), 5e-5, np.float32))
    utterance = dataclasses.replace(only(tmp_path / "pause.wav"), path=str(silent), identity="it")
    with pytest.raises(AudioError, match="it is silent"):
        load_crop(utterance, 8000, "x")


def test_a_file_that_is_shorter_than_its_header_says_gives_the_crop_that_there_is(
    tmp_path: Path,
) -> None:
    utterance = only(write(tmp_path / "a.wav", noise(2.0)))
    longer = dataclasses.replace(utterance, seconds=2.05)
    for seed in range(20):
        assert load_crop(longer, 16_000, f"{seed}").shape == (16_000,)
    with pytest.raises(AudioError, match=r"truncated: 2\.00 s of 3\.00 s"):
        for seed in range(20):
            load_crop(dataclasses.replace(utterance, seconds=3.0), 16_000, f"{seed}")


def test_one_channel_can_be_heard(tmp_path: Path) -> None:
    samples = noise(1.0, channels=3)
    utterance = only(write(tmp_path / "a.wav", samples, subtype="FLOAT"))
    assert np.allclose(load_audio(utterance), samples.mean(axis=1), atol=1e-7)
    one = dataclasses.replace(utterance, channels=(2,))
    assert np.array_equal(load_audio(one), samples[:, 2])
    two = dataclasses.replace(utterance, channels=(0, 2))
    assert np.allclose(load_audio(two), samples[:, [0, 2]].mean(axis=1), atol=1e-7)
    with pytest.raises(AudioError, match="has no channel 3: it has 3"):
        load_audio(dataclasses.replace(utterance, channels=(3,)))


# --- headers that do not say, and headers that lie ------------------------------------------------


def flac_of_length(path: Path, samples: int) -> Path:
    """Sets the number of samples in a FLAC file's header; 0: unknown."""
    data = bytearray(path.read_bytes())
    data[21] = (data[21] & 0xF0) | (samples >> 32)
    data[22:26] = (samples & 0xFFFFFFFF).to_bytes(4, "big")
    path.write_bytes(data)
    return path


def test_a_flac_of_unknown_length_is_decoded(tmp_path: Path) -> None:
    samples = noise(5.3)
    path = write(tmp_path / "a.flac", samples)
    known = load_audio(only(path))
    flac_of_length(path, 0)
    utterance = only(path)
    assert utterance.seconds == pytest.approx(5.3)
    assert np.array_equal(load_audio(utterance), known)
    assert np.array_equal(np.concatenate(list(read_blocks(path))), known)
    for seed in "abc":
        assert np.array_equal(load_crop(utterance, 16_000, seed), crop(known, 16_000, seed))
    (tmp_path / "m.csv").write_text("path,start,end\na.flac,16000,32000\na.flac,40000,\n")
    first, last = (load_audio(item) for item in read_source(tmp_path / "m.csv").utterances)
    assert np.array_equal(first, known[16_000:32_000])
    assert np.array_equal(last, known[40_000:])


@pytest.mark.parametrize("samples", [2**36 - 1, 2 * 5 * 16_000, 3600 * 16_000 * 40])
def test_a_flac_whose_header_lies_is_a_sentence(tmp_path: Path, samples: int) -> None:
    good = write(tmp_path / "good.wav", noise(1.0))
    path = flac_of_length(write(tmp_path / "lies.flac", noise(5.0)), samples)
    assert "truncated" in refusal(path)
    manifest = read_source(tmp_path)
    assert [item.path for item in manifest.utterances] == [str(good)]
    # in mid-run, in place of a good file: what is there may still be heard
    os.replace(path, good)
    batch, lost = collate(manifest.utterances, load_crop, max_seconds=0.5, seed="x")
    assert (batch is None) == (len(lost) == 1) == (samples != 160_000)


def test_no_memory_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.wav", noise(1.0))
    utterance = only(path)
    monkeypatch.setattr(loading, "MOST_SAMPLES", 15_000)
    with pytest.raises(AudioError, match=r"more than .* h in one piece"):
        load_audio(utterance)
    monkeypatch.undo()

    def greedy(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(soundfile.SoundFile, "read", greedy)
    with pytest.raises(AudioError, match=r"cannot be decoded: there is not enough memory"):
        load_audio(utterance)


@pytest.mark.parametrize("rate", [1, 3999, 384_001, 1_000_000])
def test_odd_rates_are_refused(tmp_path: Path, rate: int) -> None:
    path = write(tmp_path / "a.wav", noise(1.0))
    data = bytearray(path.read_bytes())
    data[24:28] = struct.pack("<I", rate)
    path.write_bytes(data)
    assert f"has a sampling rate of {rate:,} Hz" in refusal(path)
    assert duration(path) == 0


@pytest.mark.parametrize("rate", [4000, 384_000])
def test_rates_at_the_limits_are_read(tmp_path: Path, rate: int) -> None:
    utterance = only(write(tmp_path / "a.wav", noise(2.0, rate), rate))
    assert len(load_audio(utterance)) == 32_000
    assert load_crop(utterance, 16_000, "x").shape == (16_000,)


def test_many_channels(tmp_path: Path) -> None:
    assert only(write(tmp_path / "a.wav", noise(0.2, channels=64))).seconds == 0.2
    assert "65 channels" in refusal(write(tmp_path / "b.wav", noise(0.2, channels=65)))


@pytest.mark.parametrize("format", ["WAV", "WAVEX", "RF64", "AIFF"])
def test_a_file_cut_short_is_refused(tmp_path: Path, format: str) -> None:
    whole = write(tmp_path / "a.wav", noise(2.0), format=format, subtype="PCM_16")
    assert only(whole).seconds == 2.0
    data = whole.read_bytes()
    path = tmp_path / "cut.wav"
    path.write_bytes(data[: len(data) - 50_000])
    assert "truncated" in refusal(path)
    path.write_bytes(data[:-100])  # a few samples are no matter
    assert only(path).seconds == pytest.approx(2.0, abs=0.01)


@pytest.mark.parametrize("length", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF024])
def test_a_wav_from_a_pipe_has_the_length_it_has(tmp_path: Path, length: int) -> None:
    path = write(tmp_path / "a.wav", noise(2.0), subtype="PCM_16")
    data = bytearray(path.read_bytes())
    data[40:44] = struct.pack("<I", length)
    path.write_bytes(data)
    assert only(path).seconds == 2.0


@pytest.mark.parametrize(
    ("name", "settings"),
    [("a.flac", {}), ("a.mp3", {"format": "MP3"})],
)
def test_embedding_refuses_what_training_refuses(
    tmp_path: Path, name: str, settings: dict[str, str]
) -> None:
    path = write(tmp_path / name, noise(8.0), **settings)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 6])
    refusal(path)


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        (np.full((16_000, 1), 9e-5, np.float32), "is silent"),
        (np.stack([noise(1.0)[:, 0], -noise(1.0)[:, 0]], axis=1), "is silent"),
        (noise(1.0) * 1e30, "has amplitudes of"),
        (noise(1.0) * 32_768, "where full scale is 1"),
        (np.where(np.arange(16_000) == 9000, np.nan, noise(1.0)[:, 0])[:, None], "NaN or infinity"),
        (np.zeros((0, 1), np.float32), "no samples|is empty"),
    ],
)
def test_what_is_no_speech(tmp_path: Path, samples: np.ndarray, reason: str) -> None:
    path = write(tmp_path / "a.wav", samples.astype(np.float32), subtype="FLOAT")
    said = refusal(path)
    assert all(re.search(reason, line) for line in said.splitlines())


def test_antiphase_of_16_bits_is_silent(tmp_path: Path) -> None:
    left = noise(1.0)[:, 0]
    path = write(tmp_path / "a.wav", np.stack([left, -left], axis=1), subtype="PCM_16")
    assert "is silent" in refusal(path)


# --- what is no file -----------------------------------------------------------------------------


def test_a_pipe_is_never_waited_for(tmp_path: Path) -> None:
    write(tmp_path / "a.wav", noise(1.0))
    os.mkfifo(tmp_path / "b.wav")
    (tmp_path / "c.wav").mkdir()
    (tmp_path / "d.wav").symlink_to("/dev/zero")
    manifest = read_source(tmp_path)
    assert len(manifest.utterances) == 1
    reasons = {Path(item.path).name: item.reason for item in manifest.skipped}
    assert reasons == {
        "b.wav": "cannot be read: is a pipe, not a file",
        "d.wav": "cannot be read: is a device, not a file",
    }
    for path, _ in find_files(tmp_path):
        if path.name != "a.wav":
            assert duration(path) == 0
            with pytest.raises(AudioError, match="not a file"):
                next(read_blocks(path))
    # in mid-run
    (tmp_path / "a.wav").unlink()
    os.mkfifo(tmp_path / "a.wav")
    batch, lost = collate(manifest.utterances, load_crop, max_seconds=0.5, seed="x")
    assert batch is None
    assert "is a pipe" in lost[0].reason


def test_a_file_of_another_rate_in_mid_run_is_left_out(tmp_path: Path) -> None:
    manifest = read_source(write(tmp_path / "a.wav", noise(1.0)))
    write(tmp_path / "a.wav", noise(3.0, 8000), 8000)
    batch, lost = collate(manifest.utterances, load_crop, max_seconds=0.5, seed="x")
    assert batch is None
    assert "has 8,000 Hz now, and had 16,000 Hz" in lost[0].reason
    with pytest.raises(AudioError, match="8,000 Hz now"):
        load_audio(manifest.utterances[0])


# --- the kept files ------------------------------------------------------------------------------


def test_threads_share_the_kept_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_decoded", loading._Decoded(limit=2 * 16_000 * 4))
    utterances = []
    for number in range(6):
        path = write(tmp_path / f"{number}.ogg", noise(1.0, seed=number), format="OGG")
        whole = only(path)
        utterances.append(dataclasses.replace(whole, start=0, end=8000, seconds=0.5))
    wanted = [load_audio(item) for item in utterances]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    failures: list[BaseException] = []

    def work(first: int) -> None:
        try:
            for turn in range(60):
                place = (first + turn) % 6
                assert np.array_equal(load_audio(utterances[place]), wanted[place])
        except BaseException as error:
            failures.append(error)

    try:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not failures
    held = loading._decoded
    assert held.held == sum(samples.nbytes for samples in held.files.values()) <= held.limit


def test_manifests_know_what_they_hold(tmp_path: Path) -> None:
    """A fingerprint is of contents: not of names, nor of sizes and times."""
    (tmp_path / "one").mkdir()
    for number in range(3):
        write(tmp_path / "one" / f"{number}.wav", noise(1.0, seed=number))
    before = read_source(tmp_path / "one").summary()
    (tmp_path / "one").rename(tmp_path / "two")
    moved = read_source(tmp_path / "two").summary()
    assert moved == before
    path = tmp_path / "two" / "1.wav"
    state = path.stat()
    write(path, noise(1.0, seed=9))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert path.stat().st_size == state.st_size
    assert read_source(tmp_path / "two").summary()["fingerprint"] != before["fingerprint"]


def test_what_is_not_decoded_before_training_is_known_by_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sslim.audio.manifest.CHECKED_HOURS", 1.5 / 3600)
    for number in range(4):
        write(tmp_path / f"{number}.flac", noise(1.0, seed=number))
    manifest = read_source(tmp_path)
    assert {Path(path).name for path in manifest.checked_files} == {"0.flac", "1.flac"}
    before = manifest.summary()["fingerprint"]
    (tmp_path / "3.flac").unlink()
    assert manifest.summary()["fingerprint"] == before, "a finished run can still say what it heard"
    write(tmp_path / "3.flac", noise(1.0, seed=7))
    assert read_source(tmp_path).summary()["fingerprint"] != before


def test_the_check_can_be_shared(tmp_path: Path) -> None:
    for number in range(5):
        write(tmp_path / f"{number}.wav", noise(1.0, seed=number))
    write(tmp_path / "silent.wav", np.zeros((16_000, 1), np.float32))
    write(tmp_path / "nan.wav", np.full((16_000, 1), np.nan, np.float32), subtype="FLOAT")
    alone = read_source(tmp_path)
    looked_at = read_source(tmp_path, check=False)
    assert len(looked_at.utterances) == 7
    found = [check_contents(looked_at, rank=rank, processes=3) for rank in range(3)]
    together = looked_at.without([item for part in found for item in part])
    assert together.utterances == alone.utterances
    assert sorted(together.skipped, key=str) == sorted(alone.skipped, key=str)
    assert together.summary() == alone.summary()
    assert isinstance(together, Manifest)
