"""Audio: every kind of source and of file, what is wrong with it, and updates that can be repeated."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from sslim.audio import Manifest, Skipped, UpdateSampler, load_audio, loading, read_source
from sslim.audio.batching import UpdateStream, collate
from sslim.audio.files import Files
from sslim.audio.loading import load_crop
from sslim.audio.manifest import content_identity
from sslim.audio.source import StreamSettings
from sslim.errors import AudioError


def tone(seconds: float, rate: int = 16_000, channels: int = 1, pitch: float = 220.0) -> np.ndarray:
    times = np.arange(round(seconds * rate)) / rate
    wave = 0.3 * np.sin(2 * np.pi * pitch * times)
    return np.stack([wave] * channels, axis=1).astype(np.float32)


def write(
    path: Path, seconds: float = 1.0, rate: int = 16_000, channels: int = 1, **more: Any
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(seconds, rate, channels), rate, **more)
    return path


# --- kinds of files ------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_any_rate_and_channel_count(tmp_path: Path, rate: int, channels: int) -> None:
    write(tmp_path / "a.wav", 1.0, rate, channels)
    manifest = read_source(tmp_path)
    samples = load_audio(manifest.utterances[0])
    assert manifest.utterances[0].seconds == pytest.approx(1.0)
    assert samples.dtype == np.float32
    assert abs(len(samples) - 16_000) <= 1
    middle = samples[4000:12_000]
    expected = tone(1.0)[4000:12_000, 0]
    assert float(np.abs(middle - expected).max()) < 0.02


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("a.wav", {}),
        ("a.flac", {}),
        ("a.WAV", {"format": "WAV"}),
        ("a.ogg", {"format": "OGG", "subtype": "VORBIS"}),
        ("a.opus", {"format": "OGG", "subtype": "OPUS"}),
        ("a.mp3", {"format": "MP3"}),
    ],
)
def test_every_format(tmp_path: Path, name: str, settings: dict[str, str]) -> None:
    write(tmp_path / "deep" / "er" / name, 2.0, **settings)
    manifest = read_source(tmp_path)
    assert len(manifest.utterances) == 1
    samples = load_audio(manifest.utterances[0])
    assert abs(len(samples) / 16_000 - 2.0) < 0.1
    assert float(np.abs(samples).max()) == pytest.approx(0.3, abs=0.05)


# --- kinds of sources ----------------------------------------------------------------------------


def test_list_tsv_and_sequence_agree_with_the_folder(tmp_path: Path) -> None:
    for name in ("b/2.wav", "a/1.flac", "c.wav"):
        write(tmp_path / name)
    folder = read_source(tmp_path)
    paths = [utterance.path for utterance in folder.utterances]
    assert [Path(path).name for path in paths] == ["c.wav", "1.flac", "2.wav"]
    (tmp_path / "list.txt").write_text("c.wav\n\na/1.flac\nb/2.wav\n")
    (tmp_path / "data.tsv").write_text(
        f"{tmp_path}\nc.wav\t16000\na/1.flac\t16000\nb/2.wav\t16000\n"
    )
    for source in (tmp_path / "list.txt", tmp_path / "data.tsv", paths):
        assert [utterance.path for utterance in read_source(source).utterances] == paths
    assert read_source(tmp_path).summary() == folder.summary()


def test_csv_with_stretches_and_a_choice_of_rows(tmp_path: Path) -> None:
    soundfile.write(
        tmp_path / "packed.wav", np.concatenate([tone(1, pitch=200), tone(1, pitch=900)]), 16_000
    )
    (tmp_path / "m.csv").write_text(
        "path,start,end,split\npacked.wav,0,16000,train\npacked.wav,16000,32000,test\npacked.wav,,,test\n"
    )
    manifest = read_source(tmp_path / "m.csv")
    assert [round(utterance.seconds, 3) for utterance in manifest.utterances] == [1.0, 1.0, 2.0]
    chosen = read_source(tmp_path / "m.csv", where={"split": "test"})
    first, whole = (load_audio(utterance) for utterance in chosen.utterances)
    assert np.array_equal(first, whole[16_000:])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_lhotse_manifests(tmp_path: Path) -> None:
    from lhotse import CutSet, Recording, RecordingSet

    write(tmp_path / "a.wav", 3.0)
    recordings = RecordingSet.from_recordings([Recording.from_file(tmp_path / "a.wav")])
    recordings.to_file(tmp_path / "recordings.jsonl.gz")
    cuts = CutSet.from_manifests(recordings=recordings).cut_into_windows(duration=1.0)
    cuts.to_file(tmp_path / "cuts.jsonl")
    assert [u.seconds for u in read_source(tmp_path / "recordings.jsonl.gz").utterances] == [3.0]
    assert [u.seconds for u in read_source(tmp_path / "cuts.jsonl").utterances] == [1.0] * 3


# --- what can be wrong ---------------------------------------------------------------------------


def test_bad_files_are_skipped_with_a_reason(tmp_path: Path) -> None:
    write(tmp_path / "good.wav")
    (tmp_path / "zero.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("hello")
    data = write(tmp_path / "cut.flac", 5.0).read_bytes()
    (tmp_path / "cut.flac").write_bytes(data[: len(data) // 3])
    soundfile.write(tmp_path / "nan.wav", np.full(16_000, np.nan, np.float32), 16_000, "FLOAT")
    soundfile.write(tmp_path / "silent.wav", np.zeros(16_000), 16_000)
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 16_000)
    write(tmp_path / "blip.wav", 0.01)
    manifest = read_source(tmp_path, min_seconds=0.5)
    assert [Path(utterance.path).name for utterance in manifest.utterances] == ["good.wav"]
    reasons = {Path(item.path).name: item.reason for item in manifest.skipped}
    assert "empty file" in reasons["zero.wav"]
    assert "cannot be read" in reasons["text.wav"]
    assert reasons["cut.flac"]
    assert "NaN" in reasons["nan.wav"]
    assert "silent" in reasons["silent.wav"]
    assert "no samples" in reasons["none.wav"]
    assert "audio.min_seconds=0.5" in reasons["blip.wav"]
    assert all("\n" not in reason for reason in reasons.values())


@pytest.mark.parametrize(
    ("files", "source", "message"),
    [
        ({}, "", "no audio found"),
        ({"a.txt": ""}, "a.txt", "no audio found"),
        ({}, "gone", "does not exist"),
        ({"a.csv": "file,split\nx.wav,train\n"}, "a.csv", "no column 'path'"),
        ({"a.csv": "paht\nx.wav\n"}, "a.csv", r"Did you mean 'paht'\?$"),
        (
            {"a.csv": "path,start,end\nx.wav,20,10\n"},
            "a.csv",
            "line 2: end 10 is not after start 20",
        ),
        ({"a.csv": "path,start\nx.wav,1.5\n"}, "a.csv", "line 2: start is '1.5'"),
        ({"a.tsv": "x.wav\t100\n"}, "a.tsv", "line 1"),
        ({"a.tsv": "/no/such/folder\nx.wav\t100\n"}, "a.tsv", "does not exist"),
        ({"a.txt": "gone.wav\n"}, "a.txt", "No such file"),
        ({"a.pdf": "x"}, "a.pdf", "no kind of audio source"),
        ({"a.jsonl": "not json"}, "a.jsonl", "not a lhotse manifest"),
        ({"a.wav": "text"}, "", "none of the 1 files"),
    ],
)
def test_bad_sources_give_one_line(
    tmp_path: Path, files: dict[str, str], source: str, message: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(AudioError, match=message) as caught:
        read_source(tmp_path / source)
    assert "\n" not in str(caught.value)


def test_all_too_short_names_the_longest_and_the_setting(tmp_path: Path) -> None:
    write(tmp_path / "a.wav", 1.25)
    with pytest.raises(AudioError, match=r"longest has 1\.25 s.*--set audio\.min_seconds"):
        read_source(tmp_path, min_seconds=2.0)


def test_packed_files_are_held_within_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = loading._Decoded(limit=3 * 16_000 * 4)
    monkeypatch.setattr(loading, "_decoded", decoded)
    lines = ["path,start,end"]
    for name in "abcdef":
        write(tmp_path / f"{name}.ogg", 1.0, format="OGG", subtype="OPUS")
        lines += [f"{name}.ogg,0,8000", f"{name}.ogg,8000,16000"]
    (tmp_path / "m.csv").write_text("\n".join(lines))
    manifest = read_source(tmp_path / "m.csv")
    for utterance in manifest.utterances:
        assert len(load_audio(utterance)) == 8000
        assert decoded.held <= decoded.limit
        assert decoded.held == sum(samples.nbytes for samples in decoded.files.values())
    assert len(decoded.files) == 3


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_a_stretch_of_a_lossless_file_is_read_alone(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A word out of an hour-long recording does not decode the hour."""
    monkeypatch.setattr(loading, "_decoded", loading._Decoded(limit=2**30))
    path = write(tmp_path / name, 3.0)
    (tmp_path / "m.csv").write_text(f"path,start,end\n{name},1000,9000\n{name},24000,\n")
    whole = soundfile.read(path, dtype="float32")[0]
    first, second = (load_audio(item) for item in read_source(tmp_path / "m.csv").utterances)
    assert np.array_equal(first, whole[1000:9000])
    assert np.array_equal(second, whole[24_000:])
    assert not loading._decoded.files


# --- updates -------------------------------------------------------------------------------------

lengths = st.lists(st.floats(0.3, 20.0), min_size=1, max_size=60)


@given(lengths, st.floats(0.01, 400.0), st.floats(0.1, 30.0), st.integers(0, 5))
def test_an_epoch_has_every_utterance_once(
    seconds: list[float], per_update: float, per_batch: float, seed: int
) -> None:
    sampler = UpdateSampler(
        seconds,
        seconds_per_update=per_update,
        seconds_per_batch=per_batch,
        max_seconds=15,
        seed=seed,
    )
    assert 1 <= sampler.updates_per_epoch <= len(seconds)
    for epoch in (0, 1):
        start = epoch * sampler.updates_per_epoch
        updates = [sampler.update(start + i) for i in range(sampler.updates_per_epoch)]
        assert all(batches for batches in updates)
        heard = sorted(index for batches in updates for batch in batches for index in batch)
        assert heard == sorted(list(range(len(seconds))) * sampler.repeats)
        for batches in updates:
            for batch in batches:
                longest = max(sampler.seconds[index] for index in batch)
                assert len(batch) == 1 or len(batch) * longest <= sampler.batch_seconds + 1e-9


@given(lengths, st.integers(0, 40), st.integers(0, 3))
def test_an_update_is_a_function_of_seed_and_index(
    seconds: list[float], index: int, seed: int
) -> None:
    def sampler() -> UpdateSampler:
        return UpdateSampler(seconds, seconds_per_update=20, seconds_per_batch=8, seed=seed)

    walked = sampler()
    for step in range(index):
        walked.update(step)
    assert walked.update(index) == sampler().update(index) != []


def test_updates_hear_what_was_asked_for() -> None:
    generator = np.random.default_rng(0)
    seconds = generator.uniform(2, 16, 2000).tolist()
    sampler = UpdateSampler(seconds, seconds_per_update=160, seconds_per_batch=40)
    heard = [
        sum(len(batch) * min(seconds[i] for i in batch) for batch in sampler.update(update))
        for update in range(sampler.updates_per_epoch)
    ]
    assert np.mean(heard) == pytest.approx(160, rel=0.05)
    assert max(heard) < 1.3 * 160
    assert min(heard) > 0.6 * 160


def test_data_shorter_than_an_update_are_heard_several_times() -> None:
    sampler = UpdateSampler([2.0, 3.0], seconds_per_update=50, seconds_per_batch=10)
    batches = sampler.update(3)
    assert sum(len(batch) for batch in batches) == 20
    assert sampler.update(3) == batches


def corpus(tmp_path: Path, count: int = 12) -> Manifest:
    for index in range(count):
        soundfile.write(
            tmp_path / f"{index:02}.wav", tone(0.5 + 0.1 * index, pitch=200 + 30 * index), 16_000
        )
    return read_source(tmp_path)


def collect(manifest: Manifest, first: int, last: int, workers: int, lost: list[Skipped]) -> Any:
    settings = StreamSettings(seconds_per_update=4, seconds_per_batch=2, max_seconds=1.0, seed=1)
    datasets = Files(manifest).datasets(settings, first, last)
    with UpdateStream(datasets, workers=workers, on_lost=lost.append) as stream:
        return list(stream)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_stream_goes_on_where_it_was(tmp_path: Path, workers: int) -> None:
    manifest = corpus(tmp_path)
    state = torch.get_rng_state()
    whole = collect(manifest, 0, 6, workers, [])
    assert torch.equal(torch.get_rng_state(), state), (
        "reading audio must not touch training's noise"
    )
    rest = collect(manifest, 3, 6, 0, [])
    assert [update for update, _ in whole] == list(range(6))
    for (left_update, left), (right_update, right) in zip(whole[3:], rest, strict=True):
        assert left_update == right_update
        for a, b in zip(left, right, strict=True):
            assert a.identities == b.identities
            assert torch.equal(a.waveforms, b.waveforms)
            assert a.waveforms.shape[1] <= 16_000


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_vanishes_is_left_out_and_reported(tmp_path: Path, workers: int) -> None:
    manifest = corpus(tmp_path)
    (tmp_path / "03.wav").unlink()
    (tmp_path / "05.wav").write_text("broken")
    lost: list[Skipped] = []
    updates = collect(manifest, 0, 3, workers, lost)
    heard = {
        Path(name).name for _, batches in updates for batch in batches for name in batch.identities
    }
    assert {Path(item.path).name for item in lost} == {"03.wav", "05.wav"}
    assert heard == {f"{index:02}.wav" for index in range(12)} - {"03.wav", "05.wav"}


@pytest.mark.parametrize("workers", [0, 1])
def test_when_everything_vanishes_the_run_stops_with_a_sentence(
    tmp_path: Path, workers: int
) -> None:
    manifest = corpus(tmp_path)
    for path in tmp_path.glob("*.wav"):
        path.unlink()
    with pytest.raises(AudioError, match=r"none of the .* can be read any more.*--resume"):
        collect(manifest, 0, 3, workers, [])


def test_crops_are_as_long_as_the_shortest(tmp_path: Path) -> None:
    manifest = corpus(tmp_path)
    batch, lost = collate(manifest.utterances[:4], load_crop, max_seconds=9.0, seed="x")
    assert batch is not None
    assert not lost
    assert tuple(batch.waveforms.shape) == (4, 8000)
    again, _ = collate(manifest.utterances[:4], load_crop, max_seconds=9.0, seed="x")
    other, _ = collate(manifest.utterances[:4], load_crop, max_seconds=9.0, seed="y")
    assert again is not None
    assert other is not None
    assert torch.equal(batch.waveforms, again.waveforms)
    assert not torch.equal(batch.waveforms, other.waveforms)


def test_processes_share_a_batch_as_one_would_have_made_it(tmp_path: Path) -> None:
    manifest = corpus(tmp_path)
    alone, _ = collate(manifest.utterances[2:7], load_crop, max_seconds=0.6, seed="x")
    assert alone is not None
    for processes in (2, 3):
        for rank in range(processes):
            share, _ = collate(
                manifest.utterances[2:7],
                load_crop,
                max_seconds=0.6,
                seed="x",
                rank=rank,
                processes=processes,
            )
            assert share is not None
            assert share.identities == alone.identities[rank::processes]
            assert torch.equal(share.waveforms, alone.waveforms[rank::processes])
    nothing, lost = collate(
        manifest.utterances[:1], load_crop, max_seconds=1, seed="x", rank=1, processes=2
    )
    assert nothing is None
    assert not lost


def test_fixed_crops_are_the_same_batches_in_another_order() -> None:
    seconds = np.random.default_rng(0).uniform(1, 4, 60).tolist()
    sampler = UpdateSampler(seconds, seconds_per_update=15, seconds_per_batch=5, fixed_crops=True)
    count = sampler.updates_per_epoch
    epochs = [
        [(sampler.update(index), sampler.crop_seed(index)) for index in range(start, start + count)]
        for start in (0, count, 5 * count)
    ]
    assert epochs[0] != epochs[1] != epochs[2]
    by_seed = [{seed: batches for batches, seed in epoch} for epoch in epochs]
    assert len(by_seed[0]) == count
    assert by_seed[0] == by_seed[1] == by_seed[2], "the same crops of the same batches"
    heard = sorted(index for batches, _ in epochs[0] for batch in batches for index in batch)
    assert heard == list(range(60))


def test_fixed_crops_of_data_shorter_than_an_update() -> None:
    sampler = UpdateSampler(
        [2.0, 3.0], seconds_per_update=50, seconds_per_batch=10, fixed_crops=True
    )
    assert sampler.update(0) == sampler.update(4)
    assert sampler.crop_seed(0) == sampler.crop_seed(4)


# --- identity ------------------------------------------------------------------------------------


def test_an_utterance_is_its_contents_and_its_stretch(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", 1.0)
    write(tmp_path / "b" / "other.wav", 1.0)
    whole = read_source(path).utterances[0]
    same = read_source(tmp_path / "b").utterances[0]
    assert content_identity(whole) == content_identity(same)
    identities = {
        content_identity(dataclasses.replace(whole, start=start, end=end, channels=channels))
        for start, end, channels in [
            (None, None, ()),
            (0, 100, ()),
            (0, 101, ()),
            (1, 100, ()),
            (None, None, (0,)),
        ]
    }
    assert len(identities) == 5
    state = path.stat()
    soundfile.write(path, tone(1.0, pitch=221.0), 16_000)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert path.stat().st_size == state.st_size
    assert content_identity(whole) not in identities
    path.unlink()
    with pytest.raises(AudioError, match=r"a\.wav cannot be read: No such file"):
        content_identity(whole)
    os.mkfifo(path)
    with pytest.raises(AudioError, match=r"a\.wav cannot be read: is a pipe, not a file"):
        content_identity(whole)
