"""`sslim verify`: a saved folder against its record, without loading anything."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sslim import cli
from sslim.backbone import verify as room
from sslim.backbone.saving import save_folder
from sslim.backbone.verify import recorded_files, verify
from sslim.errors import TeacherError
from sslim.identity import sha256_of
from tests.models import tiny_teacher
from tests.test_saved_folder import compressed

FreshPython = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("verify")
    tiny_teacher("hubert").save_pretrained(home / "teacher")
    _, small = compressed(home / "teacher")
    save_folder(home / "small", small, normalise=False, card="# card")
    return home / "small"


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "small"))


def test_an_untouched_folder_is_as_written(folder: Path, capsys: Any) -> None:
    assert cli.run(["verify", str(folder)]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    lines = said.out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == list(recorded_files(folder))
    assert all(line.endswith("as written") for line in lines[:-1])
    assert "4 files are as they were written; the model code is that of sslim" in lines[-1]
    (folder / "README.md").write_text("people edit the card")
    (folder / "evidence").mkdir()
    assert cli.run(["verify", str(folder)]) == 0


def rewritten(folder: Path, name: str, text: str) -> None:
    """A file changed together with its record."""
    (folder / name).write_text(text)
    record = json.loads((folder / "sslim.json").read_text())
    record["files"][name] = sha256_of(folder / name)
    (folder / "sslim.json").write_text(json.dumps(record))


def appended(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"#")


def config_with(folder: Path, **changes: Any) -> str:
    return json.dumps(json.loads((folder / "config.json").read_text()) | changes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda f: appended(f / "model.safetensors"),
            "model.safetensors is not what",
        ),
        (lambda f: (f / "config.json").write_text("{}"), "config.json is not what"),
        (lambda f: (f / "preprocessor_config.json").unlink(), "recorded and not there"),
        (lambda f: appended(f / "modeling_sslim.py"), "modeling_sslim.py is not what"),
        (lambda f: (f / "evil.py").write_text(""), "evil.py was added"),
        (lambda f: (f / "pytorch_model.bin").write_text(""), "pytorch_model.bin was added"),
        (lambda f: (f / "adapter_config.json").write_text("{}"), "adapter_config.json was added"),
        # whoever can change a file can change the record
        (lambda f: rewritten(f, "modeling_sslim.py", "evil"), "not the model code of any sslim"),
        (
            lambda f: rewritten(f, "config.json", config_with(f, auto_map={"AutoModel": "evil.M"})),
            "names code of others in auto_map: evil.M",
        ),
        (
            lambda f: rewritten(f, "config.json", config_with(f, custom_pipelines={"a": {}})),
            "names code of others in custom_pipelines",
        ),
    ],
)
def test_the_first_difference_is_named(
    change: Callable[[Path], Any], words: str, folder: Path, capsys: Any
) -> None:
    change(folder)
    assert cli.run(["verify", str(folder)]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert words in said.err
    assert len(said.out.splitlines()) >= 4


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (None, "cannot be verified: it has no sslim.json"),
        ('{"converted_from": {}}', "cannot be verified: its sslim.json names no files"),
        ('{"files": {"../../etc/hostname": "0"}}', "no file of the folder"),
        ('{"files": {"a": 5}}', "no file of the folder"),
        ('{"files": []}', "cannot be verified"),
        ("[]", "holds no object"),
        ("{", "cannot be read"),
    ],
)
def test_a_folder_without_a_record_is_unverifiable(
    record: str | None, words: str, folder: Path
) -> None:
    (folder / "sslim.json").unlink()
    if record is not None:
        (folder / "sslim.json").write_text(record)
    with pytest.raises(TeacherError, match=words):
        verify(folder)
    with pytest.raises(TeacherError, match="not there"):
        verify(folder / "nowhere")
    with pytest.raises(TeacherError, match="name too long"):
        verify(folder / ("x" * 300))


def test_code_of_an_earlier_release_is_known(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rewritten(folder, "modeling_sslim.py", "as it was once")
    assert verify(folder).problems
    known = {sha256_of(folder / "modeling_sslim.py"): "0.0.9"}
    monkeypatch.setattr(room, "KNOWN_CODE", known)
    assert not verify(folder).problems
    assert "sslim 0.0.9" in verify(folder).sentence()


def test_verifying_imports_nothing_that_could_load(folder: Path, fresh_python: FreshPython) -> None:
    program = (
        f"import sys; from sslim import cli; code = cli.run(['verify', {str(folder)!r}])\n"
        "print(code, {'torch', 'transformers', 'safetensors'} & sys.modules.keys())"
    )
    done = fresh_python("-c", program)
    assert done.stdout.splitlines()[-1] == "0 set()", done.stderr
