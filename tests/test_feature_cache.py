"""The folder of features: damaged files, a bound, what killed runs leave, and `sslim cache`."""

from __future__ import annotations

import errno
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from sslim.backbone.frozen import Frozen
from sslim.cli import run as command_line
from sslim.evaluate import cache as cache_module
from sslim.evaluate import features
from sslim.evaluate.clip_table import read_clips
from sslim.evaluate.clips import LabelledClips
from sslim.evaluate.features import FeatureStore, compact
from sslim.evaluate.upstream import open_upstream
from tests import sounds


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> LabelledClips:
    return read_clips(sounds.labelled(tmp_path_factory.mktemp("audio"), clips=20, seconds=0.1))


@pytest.fixture
def upstream() -> Frozen:
    return open_upstream("fbank")


def another(upstream: Frozen, name: str) -> Frozen:
    """A model whose features are the same, under another identity."""
    return replace(upstream, fingerprint=name)


def deaf(upstream: Frozen) -> Frozen:
    def refuse(waveforms: np.ndarray) -> np.ndarray:
        raise AssertionError("computed again")

    return replace(upstream, hidden_states=refuse)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


DAMAGES: dict[str, Any] = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "one byte less": lambda content: content[:-1],
    "zeroes": lambda content: bytes(len(content)),
    "another's": lambda content: b"PK\x03\x04" + 100 * b"x",
    "longer": lambda content: content + b"x",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_computed_again(
    damage: str, data: LabelledClips, upstream: Frozen, tmp_path: Path
) -> None:
    store = FeatureStore(tmp_path)
    pooled = store.pooled(upstream, data.clips)
    frames = [store.frames(upstream, data.clips)[index] for index in range(20)]
    for path in tmp_path.iterdir():
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
    again = FeatureStore(tmp_path)
    assert np.array_equal(again.pooled(upstream, data.clips), pooled)
    found = again.frames(upstream, data.clips)
    assert all(np.array_equal(found[index], frames[index]) for index in range(20))
    # And they are whole again.
    healed = FeatureStore(tmp_path)
    assert np.array_equal(healed.pooled(deaf(upstream), data.clips), pooled)
    kept = healed.frames(deaf(upstream), data.clips)
    assert all(np.array_equal(kept[index], frames[index]) for index in range(20))


def test_an_empty_cache_file_is_no_interruption(
    data: LabelledClips, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An EOFError out of the cache was taken for Ctrl-C, at every later evaluation."""
    words = ["evaluate", "fbank", "--task", "ks", "--data", data.source, "--seeds", "1"]
    source = sounds.labelled(tmp_path / "audio", clips=60, seconds=0.05)
    words[5] = str(source)
    words += ["--cache", str(tmp_path / "cache")]
    assert command_line(words) == 0
    first = capsys.readouterr().out
    for path in (tmp_path / "cache").iterdir():
        path.write_bytes(b"")
    assert command_line(words) == 0
    assert capsys.readouterr().out == first


def test_features_of_both_kinds_count_against_the_bound(
    data: LabelledClips, upstream: Frozen, tmp_path: Path
) -> None:
    FeatureStore(tmp_path).frames(upstream, data.clips)
    FeatureStore(tmp_path).pooled(upstream, data.clips)
    limit = size_of(tmp_path) + 30_000
    now = time.time()
    for path in tmp_path.iterdir():
        os.utime(path, (now - 100, now - 100))
    bounded = FeatureStore(tmp_path, limit)
    for name in ("b", "c", "d"):
        bounded.pooled(another(upstream, name), data.clips)
        bounded.frames(another(upstream, name), data.clips)
        assert size_of(tmp_path) <= limit
    # The newest stayed, the oldest made room.
    assert len(FeatureStore(tmp_path, limit).pooled(deaf(another(upstream, "d")), data.clips)) == 20
    with pytest.raises(AssertionError, match="computed again"):
        FeatureStore(tmp_path, limit).pooled(deaf(upstream), data.clips)


def test_what_is_in_use_makes_no_room_for_itself(
    data: LabelledClips, upstream: Frozen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "BATCH_SAMPLES", 4 * 1600)
    store = FeatureStore(tmp_path, 20_000)
    frames = store.frames(upstream, data.clips)
    kept = sorted(tmp_path.iterdir())
    assert 0 < len(kept) < 20
    store.frames(upstream, data.clips)
    assert sorted(tmp_path.iterdir()) == kept, "clips do not push each other out"
    whole = FeatureStore().frames(upstream, data.clips)
    assert all(np.array_equal(frames[index], whole[index]) for index in range(20))


def test_a_full_disk_stops_keeping_not_scoring(
    data: LabelledClips, upstream: Frozen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def full(path: Path) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(cache_module, "written_whole", full)
    store = FeatureStore(tmp_path, say=said.append)
    pooled = store.pooled(upstream, data.clips)
    frames = store.frames(upstream, data.clips)
    assert np.allclose(frames[3].mean(axis=1), pooled[3], atol=5e-3)
    assert len(said) == 1
    assert "No space left on device" in said[0]
    assert not list(tmp_path.iterdir())


def test_what_killed_runs_left_is_removed(
    data: LabelledClips, upstream: Frozen, tmp_path: Path
) -> None:
    name = "frames-" + 32 * "a" + ".npy"
    abandoned = [f"..123-{name}.partial", f".123-{name}", f".{name}.456"]
    others = [".123-notes.npy", "frames-mine.npy", ".hidden", f"{name}.bak", "pooled-x-y.npz"]
    for left in (*abandoned, *others, f"..9-{name}.partial"):
        (tmp_path / left).write_bytes(b"x")
        os.utime(tmp_path / left, (1e9, 1e9))
    os.utime(tmp_path / f"..9-{name}.partial")  # its process may live
    FeatureStore(tmp_path).pooled(upstream, data.clips)
    left_over = {path.name for path in tmp_path.iterdir()}
    assert not left_over & set(abandoned)
    assert left_over >= {*others, f"..9-{name}.partial"}


# --- float16 -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e5, 1e-6, 1e30])
def test_values_beyond_float16_are_kept_as_they_are(
    scale: float, data: LabelledClips, upstream: Frozen, tmp_path: Path
) -> None:
    loud = replace(
        upstream,
        fingerprint="loud",
        hidden_states=lambda audio: scale * upstream.hidden_states(audio),
    )
    found = FeatureStore(tmp_path).frames(loud, data.clips)
    again = FeatureStore(tmp_path).frames(deaf(loud), data.clips)
    nowhere = FeatureStore(tmp_path / "tight", 0).frames(loud, data.clips)
    for index in range(20):
        exact = loud.hidden_states(data.clips[index].waveform()[None])[0]
        assert np.allclose(found[index], exact, rtol=1e-3, atol=scale * 1e-3)
        assert np.array_equal(found[index], again[index])
        assert np.array_equal(found[index], nowhere[index])


def test_one_layer_beyond_float16_is_enough() -> None:
    states = np.random.default_rng(0).standard_normal((3, 10, 8)).astype(np.float32)
    assert compact(states).dtype == np.float16
    assert compact(np.zeros_like(states)).dtype == np.float16
    states[1, 4, 2] = 70_000.0
    assert compact(states).dtype == np.float32


# --- the verb ------------------------------------------------------------------------------------


def test_the_cache_is_shown_and_emptied(
    data: LabelledClips, upstream: Frozen, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "cache"
    words = ["cache", "--cache", str(folder)]
    assert command_line(words) == 0
    assert "0 files, 0.00 MiB" in capsys.readouterr().out
    FeatureStore(folder).frames(upstream, data.clips)
    pieces = sorted(folder.iterdir())
    for path in pieces[:5]:
        os.utime(path, (time.time() - 10 * 86_400,) * 2)
    (folder / "thesis.tex").write_text("mine")
    (folder / "frames-notes.npy").write_text("mine")
    (folder / f"pooled-{32 * '0'}-{32 * '0'}.npz").symlink_to(folder / "thesis.tex")
    assert command_line(words) == 0
    assert "20 files" in capsys.readouterr().out
    assert command_line([*words, "--older-than", "9.5"]) == 0
    assert "removed 5 files" in capsys.readouterr().out
    assert not any(path.exists() for path in pieces[:5])
    assert all(path.exists() for path in pieces[5:])
    assert command_line([*words, "--clear"]) == 0
    assert "removed 15 files" in capsys.readouterr().out
    names = {path.name for path in folder.iterdir()}
    assert names == {"thesis.tex", "frames-notes.npy", f"pooled-{32 * '0'}-{32 * '0'}.npz"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--clear", "--older-than", "3"], "both --clear and --older-than"),
        (["--older-than", "nan"], "takes days from 0"),
        (["--older-than", "-1"], "takes days from 0"),
        (["--cache", "file"], "is not a folder"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    soundfile.write("file", np.zeros(10), 16_000, format="WAV")
    assert command_line(["cache", *words]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1
