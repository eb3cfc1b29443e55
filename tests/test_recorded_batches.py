"""What is heard in an update, compared with digests that were recorded once: resumed runs rely on it.

The audio is made from Python's generator, in 16 bits and at 16 kHz, so that no resampler's last digits count.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sslim.audio import read_source
from sslim.audio.batch import Batch
from sslim.audio.batching import UpdateStream
from sslim.audio.files import Files
from sslim.audio.shards import find_shards
from sslim.audio.source import Source, StreamSettings

RECORDED = Path(__file__).parent / "recorded" / "batches.json"
CASES = {
    "plain": {},
    "wide": {"seconds_per_update": 6.0, "seconds_per_batch": 6.0},
    "narrow": {"seconds_per_batch": 0.5},
    "seed": {"seed": 11},
    "fixed crops": {"fixed_crops": True},
    "short data": {"seconds_per_update": 40.0, "seconds_per_batch": 4.0},
    "short data, fixed crops": {
        "seconds_per_update": 40.0,
        "seconds_per_batch": 4.0,
        "fixed_crops": True,
    },
    "process 1 of 2": {"rank": 0, "processes": 2},
    "process 2 of 2": {"rank": 1, "processes": 2},
    "fixed crops, process 2 of 3": {"rank": 1, "processes": 3, "fixed_crops": True},
}
SETTINGS = {
    "seconds_per_update": 3.0,
    "seconds_per_batch": 1.5,
    "max_seconds": 1.2,
    "seed": 7,
    "rank": 0,
    "processes": 1,
    "fixed_crops": False,
}


def sound(number: int) -> np.ndarray:
    samples = 8000 + 611 * number
    return np.frombuffer(random.Random(number).randbytes(2 * samples), dtype="<i2")


def files(folder: Path) -> Path:
    """18 files, the last three of them as two stretches each."""
    folder.mkdir()
    rows = ["path,start,end"]
    for number in range(18):
        samples = sound(number)
        name = f"{number:02}.{'flac' if number % 3 else 'wav'}"
        soundfile.write(folder / name, samples, 16_000, subtype="PCM_16")
        middle = len(samples) // 2
        stretches = [(0, middle), (middle, len(samples))] if number > 14 else [("", "")]
        rows += [f"{name},{start},{end}" for start, end in stretches]
    (folder / "clips.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder / "clips.csv"


def shards(folder: Path) -> Path:
    folder.mkdir()
    for shard in range(4):
        with tarfile.open(folder / f"{shard}.tar", "w") as archive:
            for number in range(6 * shard, 6 * shard + 6):
                stream = io.BytesIO()
                soundfile.write(stream, sound(number), 16_000, format="WAV", subtype="PCM_16")
                member = tarfile.TarInfo(f"{number:02}.wav")
                member.size = len(stream.getvalue())
                archive.addfile(member, io.BytesIO(stream.getvalue()))
    return folder


def updates(path: Path, case: dict[str, object], first: int, last: int) -> UpdateStream:
    source: Source | None = find_shards(path, min_seconds=0.3)
    source = source or Files(read_source(path, min_seconds=0.3))
    settings = StreamSettings(**{**SETTINGS, **case})
    return UpdateStream(source.datasets(settings, first, last))


def digests(stream: Iterable[tuple[int, list[Batch]]], folder: Path) -> list[str]:
    """For each update, a hash over its number, the names of its rows and all samples."""
    found = []
    for update, batches in stream:
        result = hashlib.sha256(str(update).encode())
        for batch in batches:
            names = [name.removeprefix(f"{folder}/") for name in batch.identities]
            result.update(json.dumps([names, list(batch.waveforms.shape)]).encode())
            result.update(batch.waveforms.numpy().tobytes())
        found.append(result.hexdigest()[:16])
    return found


@pytest.mark.parametrize("make", [files, shards])
def test_updates_are_what_they_were(make: object, tmp_path: Path) -> None:
    path = make(tmp_path / "audio")
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))[make.__name__]
    for name, case in CASES.items():
        with updates(path, case, 0, 8) as stream:
            assert digests(stream, tmp_path / "audio") == recorded[name], name
    with updates(path, {}, 5, 8) as stream:
        assert digests(stream, tmp_path / "audio") == recorded["plain"][5:]
    with updates(path, {"seed": 8}, 0, 8) as stream:
        assert not set(digests(stream, tmp_path / "audio")) & set(recorded["plain"])
