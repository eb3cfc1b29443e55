"""Sources that anybody may have written: folders with loops, odd names, lists of junk, lhotse's cuts."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from sslim.audio import Manifest, load_audio, read_source
from sslim.audio.discovery import find_files
from sslim.errors import AudioError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def tone(pitch: float, seconds: float = 1.0, rate: int = 16_000) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)).astype(
        np.float32
    )


def write(path: Path, seconds: float = 1.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(220.0, seconds), 16_000)
    return path


def names(manifest: Manifest) -> list[str]:
    return [Path(utterance.path).name for utterance in manifest.utterances]


def sentence(source: Any, **more: Any) -> str:
    with pytest.raises(AudioError) as caught:
        read_source(source, **more)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    return str(caught.value)


# --- folders -------------------------------------------------------------------------------------


def test_loops_of_links_are_walked_once(tmp_path: Path) -> None:
    write(tmp_path / "a.wav")
    write(tmp_path / "deep" / "b.wav")
    (tmp_path / "one").symlink_to(".")
    (tmp_path / "deep" / "two").symlink_to("..")
    elsewhere = tmp_path.parent / f"{tmp_path.name}-elsewhere"
    write(elsewhere / "c.wav")
    (tmp_path / "link").symlink_to(elsewhere)
    (tmp_path / "link2").symlink_to(elsewhere)
    assert names(read_source(tmp_path)) == ["a.wav", "b.wav", "c.wav"]
    assert [path.name for path, _ in find_files(tmp_path)] == ["a.wav", "b.wav", "c.wav"]


def test_folders_that_cannot_be_read_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.wav")
    closed = tmp_path / "closed"
    write(closed / "b.wav")
    scandir = os.scandir

    def denied(path: Any) -> Any:  # the tests may run as root, whom no mode keeps out
        if str(path) == str(closed):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    manifest = read_source(tmp_path)
    assert names(manifest) == ["a.wav"]
    assert [(item.path, item.reason) for item in manifest.skipped] == [
        (str(closed), "the folder cannot be read: Permission denied")
    ]
    with pytest.raises(AudioError, match="closed: the folder cannot be read: Permission denied"):
        find_files(tmp_path)
    (tmp_path / "a.wav").unlink()
    assert "closed: the folder cannot be read" in sentence(tmp_path)


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.wav")
    write(tmp_path / "plain.wav").rename(tmp_path / name)
    (tmp_path / "list.txt").write_bytes(b"caf\xe9.wav\n")
    (tmp_path / "m.csv").write_bytes(b"path,start,end\ncaf\xe9.wav,0,8000\n")
    (tmp_path / "d.tsv").write_bytes(os.fsencode(tmp_path) + b"\ncaf\xe9.wav\t16000\n")
    for source in (tmp_path, tmp_path / "list.txt", tmp_path / "m.csv", tmp_path / "d.tsv"):
        manifest = read_source(source)
        assert names(manifest) == [name]
        assert len(load_audio(manifest.utterances[0])) in (8000, 16_000)
        assert len(manifest.summary()["fingerprint"]) == 64
        json.dumps(manifest.summary())
    assert [path.name for path, _ in find_files(tmp_path)] == [name]


# --- lists ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["txt", "scp", "tsv", "csv", "jsonl"])
def test_junk_is_a_sentence(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"junk.{ending}"
    for junk in (
        b"\0" * 100,
        b"path\n" + b"a\0b.wav\n",
        bytes(range(256)) * 50,
        b"x" * (17 * 2**20),
        b"path\n" + b"x" * 200_000,
        b"path\n" + b"y" * 300 + b".wav\n",
        b'path\n"never closed\n' + b"x,y\n" * 50_000,
        b"[" * 100_000,
        b'{"id": "x", "sources": 3}\n',
        b"\xff\xfe" + "path\n".encode("utf-16-le"),
    ):
        path.write_bytes(junk)
        sentence(path)


def test_a_list_is_a_plain_file(tmp_path: Path) -> None:
    assert "is a device, not a file" in sentence("/dev/zero")
    for ending in ("txt", "csv", "tsv", "jsonl"):
        os.mkfifo(tmp_path / f"a.{ending}")
        assert "is a pipe, not a file" in sentence(tmp_path / f"a.{ending}")


@pytest.mark.parametrize(
    "source", ["~nosuchuser/audio", "x" * 300, "x" * 300 + ".wav", "a\0b", "a\0b.csv"]
)
def test_impossible_names_are_sentences(source: str) -> None:
    assert "does not exist" in sentence(source)
    with pytest.raises(AudioError, match="does not exist"):
        find_files(source)


def test_a_sequence_of_impossible_names(tmp_path: Path) -> None:
    good = write(tmp_path / "a.wav")
    odd = ["a\0b.wav", "y" * 300 + ".wav", "", "~nosuchuser/a.wav"]
    manifest = read_source([good, *odd])
    assert names(manifest) == ["a.wav"]
    assert len(manifest.skipped) == 4


def test_a_csv_row_may_hold_any_character(tmp_path: Path) -> None:
    for name in "abc":
        write(tmp_path / f"{name}.wav")
    label = 'two\nlines, "quoted", \u2028 and \x85 and \x0b'
    quoted = label.replace('"', '""')
    (tmp_path / "m.csv").write_text(
        f'path,label,split\na.wav,"{quoted}",x\nb.wav,plain\u2028still,x\nc.wav,"{quoted}",y\n',
        encoding="utf-8",
        newline="",
    )
    manifest = read_source(tmp_path / "m.csv")
    assert names(manifest) == ["a.wav", "b.wav", "c.wav"]
    chosen = read_source(tmp_path / "m.csv", where={"label": label, "split": "y"})
    assert names(chosen) == ["c.wav"]
    assert chosen.summary()["where"] == {"label": label, "split": "y"}
    assert manifest.summary()["where"] == {}
    (tmp_path / "m.csv").write_text("path,start\na.wav,0\n,5\n")
    assert "line 3: there is no path" in sentence(tmp_path / "m.csv")
    (tmp_path / "m.csv").write_text(f"path,start\na.wav,{'9' * 5000}\n")
    assert "line 2: start is '999" in sentence(tmp_path / "m.csv")


def test_a_list_may_hold_odd_separators(tmp_path: Path) -> None:
    write(tmp_path / "a\u2028b.wav")
    (tmp_path / "list.txt").write_text("a\u2028b.wav\r\n", encoding="utf-8", newline="")
    assert names(read_source(tmp_path / "list.txt")) == ["a\u2028b.wav"]


def test_speakers_of_a_csv(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / f"{name}.wav")
    (tmp_path / "m.csv").write_text("path,speaker\na.wav, anna \nb.wav,\n")
    manifest = read_source(tmp_path / "m.csv")
    assert [item.speaker for item in manifest.utterances] == ["anna", ""]


def test_kaldi_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "data" / "a.wav")
    write(tmp_path / "data" / "b c.wav")
    write(tmp_path / "lists" / "d.wav")
    scp = tmp_path / "lists" / "wav.scp"
    scp.write_text(
        f"key1 {tmp_path}/data/a.wav\nkey2\t{tmp_path}/data/b c.wav\nkey3 d.wav\nd.wav\n"
    )
    assert names(read_source(scp)) == ["a.wav", "b c.wav", "d.wav", "d.wav"]
    monkeypatch.chdir(tmp_path)
    scp.write_text("key1 data/a.wav\n")  # relative to where the recipe is run
    assert names(read_source(scp)) == ["a.wav"]
    scp.write_text(f"key1 touch {tmp_path}/PWNED; cat a.wav |\n")
    assert "line 1 is a command" in sentence(scp)
    assert not (tmp_path / "PWNED").exists()
    scp.write_text("key1 data/raw.ark:1234\n")
    assert "line 1 points into a Kaldi archive" in sentence(scp)


# --- lhotse --------------------------------------------------------------------------------------


def two_channels(path: Path, rate: int = 48_000) -> Path:
    """300 Hz in the first and 2000 Hz in the second half of channel 0; 1000 Hz and 4000 Hz in channel 1."""
    first = np.concatenate([tone(300, 2, rate), tone(2000, 2, rate)])
    second = np.concatenate([tone(1000, 2, rate), tone(4000, 2, rate)])
    soundfile.write(path, np.stack([first, second], axis=1), rate, subtype="FLOAT")
    return path


def test_cuts_are_what_lhotse_says(tmp_path: Path) -> None:
    from lhotse import CutSet, MonoCut, MultiCut, Recording, RecordingSet
    from lhotse.supervision import SupervisionSegment

    recording = Recording.from_file(two_channels(tmp_path / "a.wav"))
    resampled = recording.resample(16_000)
    said = SupervisionSegment("s", "a", 0.0, 1.0, speaker="anna")
    other = SupervisionSegment("t", "a", 0.0, 1.0, speaker="berta")
    cuts = [
        MonoCut("0", 2.5, 1.0, 0, recording=resampled, supervisions=[said]),
        MonoCut("1", 2.5, 1.0, 1, recording=resampled, supervisions=[said, other]),
        MonoCut("2", 0.1234, 1.7891, 1, recording=recording),
        MultiCut("3", 1.5, 1.0, [0, 1], recording=recording),
        MultiCut("4", 1.5, 1.0, [1], recording=resampled),
    ]
    CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl")
    manifest = read_source(tmp_path / "cuts.jsonl")
    assert not manifest.skipped
    assert [item.speaker for item in manifest.utterances] == ["anna", "", "", "", ""]
    assert len({item.identity for item in manifest.utterances}) == 5
    for cut, utterance in zip(cuts, manifest.utterances, strict=True):
        wanted = cut.resample(16_000).load_audio().mean(axis=0)
        got = load_audio(utterance)
        assert abs(len(got) - len(wanted)) <= 1
        middle = slice(1000, len(wanted) - 1000)  # at the ends, lhotse's resampler differs
        assert np.abs(got[middle] - wanted[middle]).max() < 0.01
    RecordingSet.from_recordings([resampled]).to_file(tmp_path / "recordings.jsonl.gz")
    whole = read_source(tmp_path / "recordings.jsonl.gz").utterances[0]
    assert (whole.start, whole.end, whole.channels, whole.seconds) == (None, None, (), 4.0)


@pytest.mark.parametrize(
    "change",
    [
        lambda cut: cut.perturb_speed(1.1),
        lambda cut: cut.perturb_volume(2.0),
        lambda cut: cut.perturb_tempo(0.9),
        lambda cut: cut.resample(8000).perturb_speed(0.9),
        lambda cut: cut.pad(duration=9.0),
        lambda cut: cut.append(cut),
    ],
)
def test_what_lhotse_would_change_is_refused_by_name(tmp_path: Path, change: Any) -> None:
    from lhotse import CutSet, Recording

    cut = Recording.from_file(two_channels(tmp_path / "a.wav")).to_cut()
    CutSet.from_cuts([change(cut)]).to_file(tmp_path / "cuts.jsonl")
    said = sentence(tmp_path / "cuts.jsonl")
    assert "line 1 " in said
    assert any(word in said for word in ("'Speed'", "'Volume'", "'Tempo'", "MixedCut"))


def cut_of(path: Path, **changes: Any) -> dict[str, Any]:
    recording = {
        "id": "r",
        "sources": [{"type": "file", "channels": [0], "source": str(path)}],
        "sampling_rate": 16_000,
        "num_samples": 16_000,
        "duration": 1.0,
        "channel_ids": [0],
    }
    cut = {"id": "c", "start": 0.25, "duration": 0.5, "channel": 0, "type": "MonoCut"}
    recording |= {name: value for name, value in changes.items() if name in recording}
    cut |= {name: value for name, value in changes.items() if name in cut}
    return cut | {"recording": recording} | {k: v for k, v in changes.items() if k not in recording}


@pytest.mark.parametrize(
    "changes",
    [
        {"start": float("nan")},
        {"start": -1.0},
        {"start": "x"},
        {"start": True},
        {"start": 1e300},
        {"duration": 0},
        {"duration": float("inf")},
        {"channel": "left"},
        {"channel": []},
        {"channel": 7},
        {"sources": []},
        {"sources": [{"type": "file", "channels": [0], "source": 7}]},
        {"sources": [{"type": "file", "channels": 0, "source": "a.wav"}]},
        {"sources": [{"type": "command", "channels": [0], "source": "touch PWNED; cat a.wav"}]},
        {"sources": [{"type": "url", "channels": [0], "source": "pipe:touch PWNED"}]},
        {"sources": [{"type": "file", "channels": [0], "source": "pipe:touch PWNED"}]},
        {"transforms": [{"name": "Speed", "kwargs": {"factor": 2}}]},
        {"transforms": {"name": "Speed"}},
        {"transforms": [["Speed"]]},
        {"type": "Polygon"},
        {"recording": None},
    ],
)
def test_odd_cuts_are_sentences(
    tmp_path: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cut = cut_of(write(tmp_path / "a.wav"), **changes)
    if "transforms" in changes:
        cut["recording"]["transforms"] = cut.pop("transforms")
    (tmp_path / "cuts.jsonl").write_text(json.dumps(cut) + "\n")
    sentence(tmp_path / "cuts.jsonl")
    assert not (tmp_path / "PWNED").exists()


def test_nothing_of_a_cut_but_its_recording_is_opened(tmp_path: Path) -> None:
    array = {"storage_type": "numpy_files", "storage_path": "/dev/zero", "storage_key": "x"}
    custom = {"other": {"id": "x", "sampling_rate": 1, "sources": [{"type": "command"}]}}
    cut = cut_of(write(tmp_path / "a.wav"), features=array, custom=custom | {"array": array})
    with gzip.open(tmp_path / "cuts.jsonl.gz", "wt") as stream:
        stream.write(json.dumps(cut) + "\n")
    (utterance,) = read_source(tmp_path / "cuts.jsonl.gz").utterances
    assert (utterance.start, utterance.end) == (4000, 12_000)


def test_a_damaged_packed_manifest_is_a_sentence(tmp_path: Path) -> None:
    lines = "".join(json.dumps(cut_of(tmp_path / "a.wav")) + "\n" for _ in range(100))
    packed = gzip.compress(lines.encode())
    path = tmp_path / "cuts.jsonl.gz"
    for data in (packed[: len(packed) // 2], b"not gzip", packed[:-1], packed[:20] + b"\0" * 50):
        path.write_bytes(data)
        sentence(path)
