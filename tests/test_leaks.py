"""Nothing may be in two parts, by whatever name, and no test clip may count twice."""

from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from sslim.audio import Utterance
from sslim.cli import run as command_line
from sslim.errors import ConfigError
from sslim.evaluate import splits
from sslim.evaluate.clip_table import read_clips
from sslim.evaluate.clips import Clip, LabelledClips
from sslim.evaluate.splits import check_parts, check_speakers
from tests import sounds

COLUMNS = ["path", "start", "end", "split"]


def table(folder: Path, rows: list[str], columns: list[str] = COLUMNS) -> Path:
    """A CSV over four recordings of a second."""
    for name in "abcd":
        if not (folder / f"{name}.wav").exists():
            draw = np.random.default_rng(ord(name))
            soundfile.write(folder / f"{name}.wav", 0.1 * draw.standard_normal(16_000), 16_000)
    path = folder / "clips.csv"
    path.write_text("\n".join([",".join(columns), *rows]) + "\n", encoding="utf-8")
    return path


WHOLE = ["b.wav,,,valid", "c.wav,,,test"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["a.wav,0,9000,train", "a.wav,8999,16000,test", *WHOLE], "overlap"),
        (["a.wav,,,train", "a.wav,4000,8000,test", *WHOLE], "overlap"),
        # The one that ends last is the first: what overlaps it is not the row before.
        (["a.wav,0,16000,train", "a.wav,0,100,train", "a.wav,9000,9500,test", *WHOLE], "overlap"),
        (["a.wav,,,train", "../{folder}/a.wav,,,test", *WHOLE], "is in train and in test"),
        (["a.wav,,,train", "link.wav,,,test", *WHOLE], "is in train and in test"),
        (["a.wav,,,train", "copy.wav,,,test", *WHOLE], "the same audio"),
        (["a.wav,,,train", "copy.wav,8000,12000,test", *WHOLE], "the same audio, or overlap"),
        (["a.wav,,,train", "c.wav,,,test", *WHOLE], "in the test part more than once"),
        (["a.wav,,,train", "d.wav,,,test", "d2.wav,,,test", *WHOLE], "more than once"),
        (["c.wav,0,100,test", "a.wav,,,train", "c.wav,,,test", *WHOLE], "more than once"),
    ],
)
def test_audio_in_two_parts_or_twice_in_the_test(
    rows: list[str], message: str, tmp_path: Path
) -> None:
    table(tmp_path, [])
    os.symlink("a.wav", tmp_path / "link.wav")
    shutil.copy(tmp_path / "a.wav", tmp_path / "copy.wav")
    shutil.copy(tmp_path / "d.wav", tmp_path / "d2.wav")
    rows = [row.format(folder=tmp_path.name).replace("0,100,", "0,1000,") for row in rows]
    with pytest.raises(ConfigError, match=message):
        check_parts(read_clips(table(tmp_path, rows)))


def test_what_may_be(tmp_path: Path) -> None:
    rows = ["a.wav,0,8000,train", "a.wav,8000,16000,test", "b.wav,,,valid", "c.wav,,,test"]
    rows += ["d.wav,,,train", "d.wav,,,train", "c.wav,,,"]
    assert check_parts(read_clips(table(tmp_path, rows))) == ()
    # Windows that overlap are honest clips, but no independent ones.
    rows += ["a.wav,10000,15000,test"]
    notes = check_parts(read_clips(table(tmp_path, rows)))
    assert notes == ("1 test clips overlap other test clips: intervals are too narrow",)


def test_what_is_accepted_is_counted(tmp_path: Path) -> None:
    table(tmp_path, [])
    for name in ("a2", "a3"):
        shutil.copy(tmp_path / "a.wav", tmp_path / f"{name}.wav")
    rows = ["a.wav,,,train", "a2.wav,,,test", "a3.wav,,,test", *WHOLE]
    data = read_clips(table(tmp_path, rows))
    notes = check_parts(data, allow_leaks=True)
    assert "2 clips share audio with a clip of another part" in notes[0]
    assert "1 test clips are there under another name" in notes[1]
    rows = ["a.wav,,,train", "a.wav,,,test", *WHOLE]
    with pytest.raises(ConfigError, match="A clip may be in one part only"):
        check_parts(read_clips(table(tmp_path, rows)), allow_leaks=True)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 30),
            st.integers(1, 12),
            st.sampled_from(["train", "valid", "test"]),
        ),
        max_size=12,
    )
)
def test_every_overlap_is_found(stretches: list[tuple[int, int, str]]) -> None:
    """Against all pairs, for stretches of one file."""
    clips = []
    for number, (start, length, part) in enumerate(stretches):
        heard = Utterance("x.wav", start, start + length, 100, length / 100, f"{number}")
        clips.append(Clip(heard, {}, part))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splits, "file_content", lambda path: path)
        found = list(splits._overlaps(clips))

    def edges(clip: Clip) -> tuple[int, int]:
        assert clip.utterance.start is not None
        assert clip.utterance.end is not None
        return clip.utterance.start, clip.utterance.end

    for first, second, same in found:
        (begun, until), (start, end) = edges(first), edges(second)
        assert begun < end
        assert start < until
        assert same == ((begun, until) == (start, end))
    # Every part that a clip shares audio with is named, by it or by a clip of that part.
    wanted = set()
    for one in clips:
        for other in clips:
            (begun, until), (start, end) = edges(one), edges(other)
            if one is not other and begun < end and start < until:
                wanted.add(frozenset((one.part, other.part)))
    assert {frozenset((first.part, second.part)) for first, second, _ in found} == wanted
    twice = {
        (edges(one), frozenset((one.part, other.part)))
        for one in clips
        for other in clips
        if one is not other and edges(one) == edges(other)
    }
    assert {
        (edges(first), frozenset((first.part, second.part)))
        for first, second, same in found
        if same
    } == twice


@pytest.mark.parametrize("other", ["S0", " s0 ", "s0", "\uff530"])
def test_a_speaker_spelt_another_way(other: str, tmp_path: Path) -> None:
    rows = ["a.wav,,,train,s0", f"b.wav,,,test,{other}", "c.wav,,,valid,s1"]
    with pytest.raises(ConfigError, match=r"speaker 's0'.*is in train and in test"):
        check_speakers(read_clips(table(tmp_path, rows, [*COLUMNS, "speaker"])))


@pytest.mark.parametrize(
    ("word", "meant"), [("tets", "test"), ("Trian", "train"), ("vaild", "valid"), ("tests", "test")]
)
def test_a_misspelt_part_is_not_left_out(word: str, meant: str, tmp_path: Path) -> None:
    rows = ["a.wav,,,train", f"b.wav,,,{word}", "c.wav,,,valid", "d.wav,,,test"]
    with pytest.raises(
        ConfigError, match=rf"1 row\(s\).*{word.lower()}.*[Dd]id you mean '{meant}'"
    ):
        read_clips(table(tmp_path, rows))


def test_rows_in_no_part_are_counted(tmp_path: Path) -> None:
    rows = ["a.wav,,,train", "b.wav,0,5000,unused", "b.wav,,,", "c.wav,,,valid", "d.wav,,,test"]
    notes = read_clips(table(tmp_path, rows)).notes
    assert notes == (
        "2 of 5 rows take no part, by the column 'split': 1 with 'unused', 1 with nothing",
    )


# --- a split that is made ------------------------------------------------------------------------


def without_split(folder: Path, clips: int = 60, speaker: bool = True) -> Path:
    source = sounds.labelled(folder, clips=clips, seconds=0.05)
    with source.open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    dropped = {"split"} | (set() if speaker else {"speaker"})
    kept = [{name: value for name, value in row.items() if name not in dropped} for row in rows]
    return sounds.write_rows(source, kept)


def parts_of(data: LabelledClips) -> list[str]:
    return [clip.part for clip in data.clips]


def test_a_split_made_by_file_is_not_taken_for_one_by_speaker(tmp_path: Path) -> None:
    source = without_split(tmp_path, speaker=False)
    first = read_clips(source)
    assert "split by file" in first.notes[0]
    without_split(tmp_path)  # now with speakers
    second = read_clips(source)
    assert "was made by file, and is made anew" in second.notes[0]
    assert "split by speaker" in second.notes[1]
    check_speakers(second)
    assert "anew" not in " ".join(read_clips(source).notes)


def test_a_kept_split_that_parts_a_speaker_is_made_anew(tmp_path: Path) -> None:
    source = without_split(tmp_path)
    read_clips(source)
    kept = tmp_path / "clips.split.csv"
    text = kept.read_text().splitlines()
    other = {"train": "test", "test": "train", "valid": "test"}
    name, part, by = text[1].split(",")
    text[1] = ",".join([name, other[part], by])
    kept.write_text("\n".join(text))
    data = read_clips(source)
    assert "parts a speaker, and is made anew" in data.notes[0]
    check_speakers(data)


def test_a_split_stays_when_clips_come_to_it(tmp_path: Path) -> None:
    source = without_split(tmp_path, clips=60)
    before = read_clips(source, where={"gender": "f"})
    everything = read_clips(source)
    parts = {clip.identity: clip.part for clip in everything.clips}
    assert all(parts[clip.identity] == clip.part for clip in before.clips)
    check_speakers(everything)
    assert parts_of(read_clips(source, where={"gender": "f"})) == parts_of(before)


def test_a_split_moves_with_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = without_split(tmp_path / "here")
    before = parts_of(read_clips(source, seed=3))
    (tmp_path / "here").rename(tmp_path / "there")
    monkeypatch.chdir(tmp_path / "there")
    assert parts_of(read_clips("clips.csv")) == before


def test_a_name_is_no_formula(tmp_path: Path) -> None:
    source = without_split(tmp_path, clips=20)
    name = "=1+1+cmd|' ' !A0.wav"
    (tmp_path / "000.wav").rename(tmp_path / name)
    source.write_text(source.read_text().replace("000.wav", name))
    read_clips(source)
    with (tmp_path / "clips.split.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert f"./{name}" in {row["clip"] for row in rows}
    assert all(row["clip"].startswith("./") for row in rows)


def test_a_folder_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write anywhere, so the refusal is made."""
    source = without_split(tmp_path / "corpus")
    cache = tmp_path / "cache"

    def refuse(path: Path) -> None:
        if path.parent == source.parent:
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path)  # type: ignore[return-value]

    whole = splits.written_whole
    monkeypatch.setattr(splits, "written_whole", refuse)
    first = read_clips(source, cache_folder=cache)
    assert f"is kept in {cache}" in first.notes[0]
    assert not (tmp_path / "corpus" / "clips.split.csv").exists()
    again = read_clips(source, cache_folder=cache, seed=8)
    assert parts_of(again) == parts_of(first), "it was kept"
    assert "cannot be kept anywhere" in read_clips(source).notes[0]


@pytest.mark.parametrize(
    "text", ["clip,split,by\n./000.wav,tets,file\n", "\0\0\0", "clip,split,by\nx"]
)
def test_a_kept_split_that_is_damaged_is_a_sentence(text: str, tmp_path: Path) -> None:
    source = without_split(tmp_path)
    (tmp_path / "clips.split.csv").write_text(text)
    with pytest.raises(ConfigError, match=r"clips\.split\.csv cannot be read as a split"):
        read_clips(source)


# --- tables that are odd -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label,label\na.wav,x,y\n", "has the column 'label' twice"),
        ("path,label\na.wav,x\0y\n", "line 2: holds a byte of zero"),
        ("path,label\na.wav," + 200_000 * "x" + "\n", "cannot be read: field larger"),
        ('path,label\n"a.wav', "not as many fields"),
    ],
)
def test_odd_tables_are_sentences(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = table(tmp_path, [])
    source.write_text(text, encoding="utf-8")
    words = ["evaluate", "fbank", "--task", "ks", "--data", str(source), "--cache"]
    assert command_line([*words, str(tmp_path / "cache")]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1
