"""What people look at: `inspect`, the card, the pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from sslim.backbone.saving import save_folder
from sslim.cli import run as command_line
from sslim.demo import teacher_path
from sslim.errors import OutputError
from sslim.report.inspect import inspect_model
from sslim.report.pictures import draw_curves, draw_method
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


def test_pictures(tmp_path: Path) -> None:
    draw_method(tmp_path / "method.svg")
    assert "<svg" in (tmp_path / "method.svg").read_text()
    lines = [
        {
            "stage": "stage1",
            "update": update,
            "loss": -0.1 * update,
            "sparsity": 0.1 * update,
            "target": 0.5,
            "shrinks": float(update > 2),
            "open.conv": 0.9,
            "open.ffn": 0.5,
        }
        for update in range(1, 5)
    ] + [{"stage": "stage2", "update": 1, "loss": -0.5}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    draw_curves(tmp_path, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(OutputError, match=r"no metrics\.jsonl"):
        draw_curves(tmp_path / "gone", tmp_path / "x.png")
