"""Features of long and live audio: resumable, equal to the whole where they can be, measured where not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from sslim.audio.blocks import read_blocks
from sslim.backbone.frozen import ALL, LAST, Frozen, Layer
from sslim.backbone.saving import save_folder
from sslim.cli import run
from sslim.deploy import embed as embedding
from sslim.deploy.embed import embed
from sslim.deploy.export import export
from sslim.deploy.extractor import Extractor, open_extractor
from sslim.deploy.signals import speech_like
from sslim.deploy.streaming import Chunking, chunking_error, features
from sslim.errors import AudioError, ConfigError, OutputError
from tests.test_export import loaded_model

HOP, FIELD = 320, 400


def local() -> Extractor:
    """A model without context: each frame is what it reads, so any cut must give the whole."""

    def hidden_states(waveforms: np.ndarray, layer: Layer = ALL) -> np.ndarray:
        count = (waveforms.shape[1] - FIELD) // HOP + 1
        index = np.arange(count)[:, None] * HOP + np.arange(FIELD)
        return waveforms[:, index]

    model = Frozen(
        name="local",
        layers=1,
        width=FIELD,
        hop=HOP,
        shortest=FIELD,
        parameters=0,
        macs_per_second=0,
        fingerprint="local",
        model_fingerprint="local",
        numbers="",
        hidden_states=hidden_states,
    )
    return Extractor(model, LAST)


@given(
    samples=st.integers(400, 60_000),
    block=st.integers(1, 20_000),
    lengths=st.tuples(st.integers(1, 40), st.integers(0, 20), st.integers(0, 20)),
    batch=st.integers(1, 4),
    done=st.integers(0, 5),
)
def test_cutting_loses_and_doubles_nothing(
    samples: int, block: int, lengths: tuple[int, int, int], batch: int, done: int
) -> None:
    waveform = np.arange(samples, dtype=np.float32)
    chunking = Chunking(*(frames * HOP / 16_000 for frames in lengths))
    whole = local().extract([waveform])[0]
    first = min(done, len(whole) // lengths[0]) * lengths[0]
    blocks = (waveform[start : start + block] for start in range(0, samples, block))
    parts = list(features(local(), blocks, chunking, batch=batch, first=first))
    cut = np.concatenate([whole[:first], *parts])
    assert np.array_equal(cut, whole)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "model"
    loaded = loaded_model("hubert")
    save_folder(out, loaded.whole, normalise=False, card="# A model\n")
    return out


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recordings")
    (folder / "deep").mkdir()
    soundfile.write(folder / "long.wav", speech_like(1, 9.0), 16_000, subtype="FLOAT")
    soundfile.write(folder / "deep" / "short.flac", speech_like(2, 1.0), 16_000)
    return folder


SHORT = Chunking(2.0, 1.0, 1.0)


@pytest.mark.parametrize("format", ["npz", "safetensors", "parquet"])
@pytest.mark.parametrize("layer", ["last", "2", "all"])
def test_every_format_and_layer(
    format: str, layer: str, model: Path, recordings: Path, tmp_path: Path
) -> None:
    done = embed(model, recordings, tmp_path / "out", format=format, layer=layer, chunking=SHORT)
    assert [file.file for file in done.files] == [f"long.{format}", f"deep/short.{format}"]
    assert done.error is not None
    assert done.error.cosine > 0.9
    extractor = open_extractor(model, layer)
    short, _ = soundfile.read(recordings / "deep" / "short.flac", dtype="float32")
    wanted = extractor.extract([short])[0]
    path = tmp_path / "out" / "deep" / f"short.{format}"
    if format == "npz":
        with np.load(path, allow_pickle=False) as file:
            got = file["features"]
            assert int(str(file["hop"])) == HOP
    elif format == "safetensors":
        got = load_file(path)["features"]
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        rows = parquet.read_table(path)["features"].combine_chunks()
        got = np.asarray(rows.flatten()).reshape(wanted.shape)
    assert np.abs(got - wanted).max() < 1e-6
    assert [path.name for path in (tmp_path / "out").rglob(".*")] == [embedding.LOCK]


def test_an_interrupted_run_goes_on(
    model: Path, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    embed(model, recordings, whole, chunking=SHORT, batch=1)

    calls = [0]
    original = embedding.features

    def dying(*arguments: Any, **options: Any) -> Iterator[np.ndarray]:
        for part in original(*arguments, **options):
            calls[0] += 1
            if calls[0] == 4:
                raise KeyboardInterrupt
            yield part

    out = tmp_path / "out"
    monkeypatch.setattr(embedding, "features", dying)
    with pytest.raises(KeyboardInterrupt):
        embed(model, recordings, out, chunking=SHORT, batch=1)
    monkeypatch.setattr(embedding, "features", original)
    assert json.loads((out / "embed.json").read_text())["files"] == []
    (partial,) = (out / embedding.WORK).iterdir()
    assert partial.stat().st_size == 3 * 100 * 32 * 4
    with partial.open("ab") as stream:
        stream.write(b"torn")  # a write that a power cut stopped
    with pytest.raises(OutputError, match="is not empty"):
        embed(model, recordings, out, chunking=SHORT)
    with pytest.raises(ConfigError, match="layer is 2"):
        embed(model, recordings, out, chunking=SHORT, layer="2", resume=True)
    embed(model, recordings, out, chunking=SHORT, batch=1, resume=True)
    for name in ("long.npz", "deep/short.npz"):
        with np.load(whole / name) as one, np.load(out / name) as other:
            assert np.array_equal(one["features"], other["features"])
    assert len(json.loads((out / "embed.json").read_text())["files"]) == 2


def test_finished_recordings_are_remembered_when_a_later_one_is_interrupted(
    model: Path, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = embedding._one

    def dying(extractor: Any, recording: Path, *rest: Any) -> Any:
        if recording.name == "short.flac":
            raise KeyboardInterrupt
        return original(extractor, recording, *rest)

    monkeypatch.setattr(embedding, "_one", dying)
    with pytest.raises(KeyboardInterrupt):
        embed(model, recordings, tmp_path / "out", chunking=SHORT)
    monkeypatch.setattr(embedding, "_one", original)
    embed(model, recordings, tmp_path / "out", chunking=SHORT, resume=True)
    files = json.loads((tmp_path / "out" / "embed.json").read_text())["files"]
    assert [file["file"] for file in files] == ["long.npz", "deep/short.npz"]


def test_an_exported_file_gives_the_same(model: Path, recordings: Path, tmp_path: Path) -> None:
    export(model, tmp_path / "m.onnx")
    embed(tmp_path / "m.onnx", recordings, tmp_path / "a", chunking=SHORT)
    embed(model, recordings, tmp_path / "b", chunking=SHORT)
    with np.load(tmp_path / "a" / "long.npz") as one, np.load(tmp_path / "b" / "long.npz") as other:
        assert np.abs(one["features"] - other["features"]).max() < 1e-4
    with pytest.raises(ConfigError, match="--all-layers"):
        open_extractor(tmp_path / "m.onnx", "1")


def test_context_helps_and_the_error_is_measured(model: Path) -> None:
    extractor = open_extractor(model)
    waveform = speech_like(3, 12.0)
    near = chunking_error(extractor, waveform, Chunking(1.0, 4.0, 4.0))
    none = chunking_error(extractor, waveform, Chunking(1.0, 0.0, 0.0))
    whole = chunking_error(extractor, waveform, Chunking(20.0, 5.0, 5.0))
    assert near.relative_error < none.relative_error
    assert whole.relative_error == 0.0


def test_blocks_resample_as_a_whole(tmp_path: Path) -> None:
    soxr = pytest.importorskip("soxr")
    audio = speech_like(4, 3.0)
    soundfile.write(tmp_path / "a.wav", audio, 22_050, subtype="FLOAT")
    blocks = np.concatenate(list(read_blocks(tmp_path / "a.wav", seconds=0.37)))
    wanted = soxr.resample(audio, 22_050, 16_000)
    assert abs(len(blocks) - len(wanted)) <= 1
    count = min(len(blocks), len(wanted))
    assert np.abs(blocks[:count] - wanted[:count]).max() < 1e-3


def test_bad_recordings_are_sentences_and_cost_nothing_else(
    model: Path, recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    bad = speech_like(5, 1.0)
    bad[9000] = np.nan
    soundfile.write(folder / "a.wav", bad, 16_000, subtype="FLOAT")
    soundfile.write(folder / "b.wav", speech_like(5, 0.02), 16_000)
    (folder / "c.wav").write_bytes(b"RIFF")
    soundfile.write(folder / "d.wav", speech_like(5, 1.0), 16_000)
    assert run(["embed", str(model), str(folder), str(tmp_path / "out")]) == 2
    errors = capsys.readouterr().err
    assert "NaN or infinity" in errors
    assert "too short" in errors
    assert "3 recording(s) could not be used" in errors
    assert (tmp_path / "out" / "d.npz").exists()
    assert run(["embed", str(model), str(recordings), str(tmp_path / "o"), "--format", "csv"]) == 2
    assert run(["embed", str(model), str(recordings), str(tmp_path / "o"), "--layer", "9"]) == 2
    assert run(["embed", str(model), str(recordings), str(tmp_path / "o"), "--chunk", "0"]) == 2
    assert not (tmp_path / "o").exists()
    with pytest.raises(AudioError, match="does not exist"):
        embed(model, tmp_path / "nowhere", tmp_path / "o")
