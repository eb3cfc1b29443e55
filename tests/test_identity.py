"""Identities change with contents and settings, and with nothing else; files are written whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sslim import identity
from sslim.errors import ConfigError, OutputError
from sslim.files import FolderLock, partial_name, read_json, write_json, written_whole
from sslim.identity import content_of, digest


def test_content_is_what_a_file_holds_wherever_it_lies(tmp_path: Path) -> None:
    one, other = tmp_path / "a.wav", tmp_path / "b" / "c.wav"
    other.parent.mkdir()
    one.write_bytes(b"sound")
    other.write_bytes(b"sound")
    assert content_of(one) == content_of(other) == content_of(str(one))
    other.write_bytes(b"noise")
    assert content_of(one) != content_of(other)


def test_content_is_read_again_when_a_file_changes_under_its_old_length_and_time(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(b"sound")
    before, times = content_of(path), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    path.write_bytes(b"noise")
    os.utime(path, ns=times)
    assert content_of(path) != before


def test_long_files_are_told_apart_by_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "SAMPLED_ABOVE", 1000)
    path = tmp_path / "a.wav"
    data = bytearray(40 * 2**20)
    path.write_bytes(data)
    before = content_of(path, whole=False)
    for place in (0, len(data) - 1, (len(data) - 2**20) * 7 // 15):
        changed = bytearray(data)
        changed[place] = 1
        path.write_bytes(changed)
        assert content_of(path, whole=False) != before
    path.write_bytes(data)
    assert content_of(path, whole=False) == before
    assert content_of(path) != before  # another way of reading is another identity


def test_digest_keeps_parts_apart() -> None:
    assert digest("ab", "c") != digest("a", "bc") != digest(["a", "bc"])
    assert digest({"x": 1, "y": 2}) == digest({"y": 2, "x": 1})
    assert digest("a\udcff") != digest("a")  # a file name that is no UTF-8


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "[" * 100_000, "\0", '{"a": ' + "1" * 10_000 + "}"]
)
def test_foreign_json_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as refused:
        read_json(path, "a description", ConfigError)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_json_that_is_missing_or_a_folder_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(OutputError, match="cannot be read as"):
            read_json(path, "a description")
    write_json(tmp_path / "a.json", {"a": 1, "name": "x\udcff"})
    assert read_json(tmp_path / "a.json", "a description")["a"] == 1


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(ZeroDivisionError), written_whole(path) as aside:
        aside.write_text("half")
        raise ZeroDivisionError
    assert read_json(path, "it") == {"a": 1}
    assert not partial_name(path).exists()


def test_one_program_at_a_time(tmp_path: Path) -> None:
    first, second = (FolderLock(tmp_path / ".lock", "writing") for _ in range(2))
    with first, pytest.raises(OutputError, match=f"process \\({os.getpid()}\\) is writing"):
        second.__enter__()
    with second:  # free again
        pass
