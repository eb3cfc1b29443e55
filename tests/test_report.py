"""What people look at: `inspect`, the card, the pictures."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest
from rich.console import Console

from sslim.backbone.saving import save_folder
from sslim.cli import run as command_line
from sslim.demo import teacher_path
from sslim.report.inspect import inspect_model
from tests.conftest import REPOSITORY
from tests.models import tiny_teacher
from tests.test_saved_folder import compressed


@pytest.fixture
def small(tmp_path: Path) -> Path:
    tiny_teacher("wavlm").save_pretrained(tmp_path / "teacher")
    _, model = compressed(tmp_path / "teacher")
    save_folder(tmp_path / "small", model, normalise=False)
    return tmp_path / "small"


def test_inspect_says_what_is_kept(small: Path) -> None:
    facts = inspect_model(small).to_dict()
    plan = json.loads((small / "config.json").read_text())["plan"]
    assert [row["channels"] for row in facts["convolutions"]] == [
        len(kept) for kept in plan["conv"]
    ]
    assert [row["kept_heads"] for row in facts["layers"]] == [
        row["heads"] for row in plan["layers"]
    ]
    assert 0 < facts["parameters"] < facts["dense_parameters"]
    assert facts["parameters"] == sum(part["parameters"] for part in facts["parts"].values())
    console = Console(width=80, record=True)
    inspect_model(small).render(console)
    text = console.export_text()
    for row in facts["convolutions"]:
        assert f"{row['channels']} / {row['dense']}" in text
    taps = facts["axes"]["tap.0"]
    assert taps["kept_units"] == plan["axes"]["tap.0"]
    assert re.search(rf"positional taps 0 +│ {taps['kept']} / 8 ", text)
    assert all(len(line) <= 80 for line in text.splitlines())


def test_inspect_on_the_command_line(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--json", str(tmp_path / "x.json"), "--png", str(tmp_path / "x.png")]
    assert command_line(["inspect", str(small), *files]) == 0
    assert "heads kept" in capsys.readouterr().out
    written = json.loads((tmp_path / "x.json").read_text())
    assert (written.pop("kind"), written.pop("version")) == ("inspection", 1)
    shown = inspect_model(small).to_dict()
    assert {name: written[name] for name in shown} == shown
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert command_line(["inspect", str(small), "--png", str(tmp_path / "no" / "x.png")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_dense_model_is_all_kept() -> None:
    facts = inspect_model(teacher_path()).to_dict()
    assert facts["parameters"] == facts["dense_parameters"] == 3_106_176
    assert all(row["heads"] == row["dense_heads"] for row in facts["layers"])


def test_the_method_is_drawn(tmp_path: Path) -> None:
    runpy.run_path(str(REPOSITORY / "docs" / "pictures.py"))["draw_method"](tmp_path / "x.svg")
    assert "<svg" in (tmp_path / "x.svg").read_text()
