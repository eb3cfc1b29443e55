"""A kept feature is found again by what it was computed from: contents, settings, code; nothing else.

Each test changes one thing and sees the features change, or changes only names and places and sees that
nothing is computed again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from transformers import AutoModel, Wav2Vec2FeatureExtractor

from sslim import identity
from sslim.backbone.frozen import Frozen
from sslim.evaluate.clip_table import read_clips
from sslim.evaluate.clips import Clip
from sslim.evaluate.conditions import named_conditions, noise_conditions, reverberation, speed
from sslim.evaluate.fbank import LogMel
from sslim.evaluate.features import FeatureStore
from sslim.evaluate.scorer import CLEAN, Condition, Settings
from sslim.evaluate.upstream import log_mel_upstream, open_upstream
from tests.models import tiny_teacher

NAMES = ("a.wav", "b.wav")


def wave(seed: int, samples: int = 8000) -> np.ndarray:
    draw = np.random.default_rng(seed)
    tone = np.sin(2 * np.pi * (200 + 150 * seed) * np.arange(samples) / 16_000)
    return (0.1 * tone + 0.05 * draw.standard_normal(samples)).astype(np.float32)


def corpus(folder: Path, rows: Sequence[str] = ("a.wav,,", "b.wav,,")) -> Path:
    folder.mkdir(parents=True)
    for seed, name in enumerate(NAMES):
        soundfile.write(folder / name, wave(seed), 16_000)
    path = folder / "clips.csv"
    lines = [f"{row},test" for row in rows]
    path.write_text("\n".join(["path,start,end,split", *lines]) + "\n")
    return path


def sounds_in(folder: Path, **files: int) -> Path:
    """A folder of noises or rooms, each made from its seed."""
    folder.mkdir()
    for name, seed in files.items():
        soundfile.write(folder / f"{name}.wav", wave(seed, 3000), 16_000)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with weights, configuration and preprocessor."""
    folder = tmp_path_factory.mktemp("model")
    tiny_teacher("hubert").save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(folder)
    return folder


@dataclass
class Cache:
    """A cache, and how often a model was asked while it was used."""

    folder: Path
    calls: int = 0

    def pooled(self, upstream: Frozen, clips: Sequence[Clip], condition: Condition) -> np.ndarray:
        def extract(waveforms: np.ndarray) -> np.ndarray:
            self.calls += 1
            return upstream.hidden_states(waveforms)

        self.calls = 0
        settings = Settings(store=FeatureStore(self.folder))
        return settings.pooled(replace(upstream, hidden_states=extract), clips, condition)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


FBANK = log_mel_upstream(LogMel())


def changed(
    cache: Cache, before: tuple[Frozen, Path, Condition], after: tuple[Frozen, Path, Condition]
) -> None:
    """The second features are computed, differ from the first, and are those of an empty cache."""
    first = cache.pooled(before[0], read_clips(before[1]).clips, before[2])
    assert cache.calls > 0
    again = cache.pooled(before[0], read_clips(before[1]).clips, before[2])
    assert cache.calls == 0
    assert np.array_equal(first, again)
    second = cache.pooled(after[0], read_clips(after[1]).clips, after[2])
    assert cache.calls > 0
    assert not np.array_equal(first, second)
    fresh = Cache(cache.folder.with_name("fresh"))
    assert np.array_equal(second, fresh.pooled(after[0], read_clips(after[1]).clips, after[2]))


# --- the model -----------------------------------------------------------------------------------


def edited(folder: Path, copy: Path, file: str, **values: Any) -> Path:
    """A copy of a model with some settings changed and its weights as they were."""
    shutil.copytree(folder, copy)
    facts = json.loads((copy / file).read_text()) | values
    (copy / file).write_text(json.dumps(facts))
    return copy


def other_weights(folder: Path, copy: Path) -> Path:
    shutil.copytree(folder, copy)
    found = AutoModel.from_pretrained(copy)
    found.encoder.layers[1].feed_forward.output_dense.bias.data += 0.1
    found.save_pretrained(copy)
    return copy


CHANGES: dict[str, Callable[[Path, Path], Path]] = {
    "weights": other_weights,
    "activation": lambda folder, copy: edited(folder, copy, "config.json", hidden_act="relu"),
    "norm": lambda folder, copy: edited(folder, copy, "config.json", layer_norm_eps=0.1),
    "heads": lambda folder, copy: edited(folder, copy, "config.json", num_attention_heads=2),
    "normalise": lambda folder, copy: edited(
        folder, copy, "preprocessor_config.json", do_normalize=True
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_model_has_other_features(
    change: str, model: Path, cache: Cache, tmp_path: Path
) -> None:
    source = corpus(tmp_path / "audio")
    copy = CHANGES[change](model, tmp_path / "copy")
    changed(cache, (open_upstream(model), source, CLEAN), (open_upstream(copy), source, CLEAN))


def test_other_numbers_are_other_features(model: Path, cache: Cache, tmp_path: Path) -> None:
    source = corpus(tmp_path / "audio")
    half = open_upstream(model, precision="bfloat16")
    changed(cache, (open_upstream(model), source, CLEAN), (half, source, CLEAN))
    assert half.fingerprint == open_upstream(model).fingerprint, "it is the same model"


@pytest.mark.parametrize(
    "setting",
    [
        {"window": 320},
        {"hop": 200},
        {"fft": 1024},
        {"bands": 40},
        {"lowest": 50.0},
        {"highest": 7000.0},
        {"floor": 1e-3},
    ],
    ids=str,
)
def test_another_setting_of_log_mels_is_another_model(
    setting: dict[str, Any], cache: Cache, tmp_path: Path
) -> None:
    source = corpus(tmp_path / "audio")
    changed(cache, (FBANK, source, CLEAN), (log_mel_upstream(LogMel(**setting)), source, CLEAN))


def test_code_that_computes_otherwise_finds_nothing(
    model: Path, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = read_clips(corpus(tmp_path / "audio")).clips
    noise = sounds_in(tmp_path / "noise", n=7)
    for opened in (lambda: open_upstream(model), lambda: open_upstream("fbank")):
        for condition in (lambda: CLEAN, lambda: noise_conditions(noise, [5.0])[0]):
            cache.pooled(opened(), clips, condition())
            cache.pooled(opened(), clips, condition())
            assert cache.calls == 0
            with monkeypatch.context() as newer:
                newer.setattr(identity, "COMPUTATION", identity.COMPUTATION + 1)
                cache.pooled(opened(), clips, condition())
                assert cache.calls > 0


# --- the audio -----------------------------------------------------------------------------------


def test_another_recording_under_the_same_name_size_and_time(cache: Cache, tmp_path: Path) -> None:
    """Two corpora of equally long clips from archives with fixed times."""
    first, second = corpus(tmp_path / "first"), corpus(tmp_path / "second")
    soundfile.write(second.parent / "a.wav", wave(9), 16_000)
    for folder in (first.parent, second.parent):
        for name in NAMES:
            os.utime(folder / name, (1e9, 1e9))
    assert (first.parent / "a.wav").stat().st_size == (second.parent / "a.wav").stat().st_size
    found = []
    for folder in (first.parent, second.parent):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            found.append(cache.pooled(FBANK, read_clips("clips.csv").clips, CLEAN))
            assert cache.calls == 1, "the second corpus shares b.wav with the first"
    assert not np.array_equal(found[0][0], found[1][0])
    assert np.array_equal(found[0][1], found[1][1])


def test_a_recording_replaced_in_place(cache: Cache, tmp_path: Path) -> None:
    source = corpus(tmp_path / "audio")
    first = cache.pooled(FBANK, read_clips(source).clips, CLEAN)
    times = (source.parent / "a.wav").stat()
    soundfile.write(source.parent / "a.wav", wave(9), 16_000)
    os.utime(source.parent / "a.wav", ns=(times.st_atime_ns, times.st_mtime_ns))
    second = cache.pooled(FBANK, read_clips(source).clips, CLEAN)
    assert [bool(same) for same in (first == second).all(axis=(1, 2))] == [False, True]


def test_another_stretch(cache: Cache, tmp_path: Path) -> None:
    whole = corpus(tmp_path / "whole")
    parts = corpus(tmp_path / "parts", ("a.wav,0,4000", "b.wav,100,4100"))
    others = corpus(tmp_path / "others", ("a.wav,0,4001", "b.wav,101,4101"))
    changed(cache, (FBANK, whole, CLEAN), (FBANK, parts, CLEAN))
    shutil.rmtree(cache.folder.with_name("fresh"))
    changed(Cache(tmp_path / "another"), (FBANK, parts, CLEAN), (FBANK, others, CLEAN))


# --- the condition -------------------------------------------------------------------------------


def conditions(tmp_path: Path) -> dict[str, tuple[Condition, Condition]]:
    """Pairs that differ in one thing; folders that differ have the same name."""
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir(), other.mkdir()
    noise, noises = sounds_in(one / "noise", n=7), sounds_in(other / "noise", n=8)
    more = tmp_path / "more"
    more.mkdir()
    rooms, others = sounds_in(one / "rooms", r=1), sounds_in(other / "rooms", r=2)
    return {
        "noise": (noise_conditions(noise, [5])[0], noise_conditions(noises, [5])[0]),
        "a file more": (
            noise_conditions(noise, [5])[0],
            noise_conditions(sounds_in(more / "noise", n=7, m=8, o=9, p=10, q=11), [5])[0],
        ),
        "snr": (noise_conditions(noise, [5])[0], noise_conditions(noise, [6])[0]),
        "rooms": (reverberation(rooms), reverberation(others)),
        "speed": (speed(0.9), speed(1.1)),
        "kind": (named_conditions(["telephone"])[0], named_conditions(["clipping"])[0]),
        "share": (named_conditions(["clipping"])[0], named_conditions(["clipping"])[1]),
    }


@pytest.mark.parametrize("kind", ["noise", "a file more", "snr", "rooms", "speed", "kind", "share"])
def test_another_condition_has_other_features(kind: str, cache: Cache, tmp_path: Path) -> None:
    source = corpus(tmp_path / "audio")
    before, after = conditions(tmp_path)[kind]
    changed(cache, (FBANK, source, before), (FBANK, source, after))
    if kind in ("noise", "a file more", "rooms"):
        assert before.name == after.name, "the name is for people"


def test_a_condition_that_alters_needs_an_identity(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs an identity"):
        Condition("louder", lambda waveform, clip: 2 * waveform)
    clips = read_clips(corpus(tmp_path / "audio")).clips
    with pytest.raises(ValueError, match="needs the identity"):
        FeatureStore(cache.folder).pooled(FBANK, clips, alter=lambda waveform, clip: 2 * waveform)


# --- what changes nothing ------------------------------------------------------------------------


def test_names_and_places_change_nothing(model: Path, cache: Cache, tmp_path: Path) -> None:
    """Everything is moved and renamed; not one clip is computed again, under no condition."""
    source = corpus(tmp_path / "audio")
    noise = sounds_in(tmp_path / "noise", n=7, m=8, o=9)
    rooms = sounds_in(tmp_path / "rooms", r=1, s=2)
    here = tmp_path / "model"
    shutil.copytree(model, here)

    def all_of(noise: Path, rooms: Path) -> list[Condition]:
        return [CLEAN, *noise_conditions(noise, [5, 0]), reverberation(rooms), speed(0.9)]

    upstream, clips = open_upstream(here), read_clips(source).clips
    first = [cache.pooled(upstream, clips, one) for one in all_of(noise, rooms)]
    frames = FeatureStore(cache.folder).frames(upstream, clips)[1]

    moved = tmp_path / "somewhere" / "else"
    moved.parent.mkdir()
    source.parent.rename(moved)
    (moved / "a.wav").rename(moved / "z.wav")
    rows = (moved / "clips.csv").read_text().replace("a.wav", "z.wav")
    (moved / "table.csv").write_text(rows)
    os.utime(moved / "z.wav", (1e9, 1e9))
    (noise / "n.wav").rename(noise / "z.wav")
    (rooms / "r.wav").rename(rooms / "z.wav")
    others = noise.rename(tmp_path / "hums"), rooms.rename(tmp_path / "halls")
    upstream = open_upstream(here.rename(tmp_path / "net"), name="another")
    clips = read_clips(moved / "table.csv").clips
    for before, condition in zip(first, all_of(*others), strict=True):
        assert np.array_equal(cache.pooled(upstream, clips, condition), before), condition.name
        assert cache.calls == 0, condition.name

    def deaf(waveforms: np.ndarray) -> np.ndarray:
        raise AssertionError

    kept = FeatureStore(cache.folder).frames(replace(upstream, hidden_states=deaf), clips)
    assert np.array_equal(kept[1], frames)
