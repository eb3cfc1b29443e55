"""The documentation builds strictly, and every command in it runs: on the embedded teacher, in small."""

from __future__ import annotations

import csv
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sslim.cli import run
from sslim.demo import teacher_path
from sslim.deploy.signals import speech_like
from tests.conftest import REPOSITORY

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
TEACHER = "facebook/hubert-base-ls960"
"""The name that the docs use; here a folder of that name holds the embedded teacher."""
NAMES = {"TEACHER": TEACHER, "STUDENT": "small/", "AUDIO": "my_audio/", "OUT": "other/"}
SMALL = (
    "--recipe demo --set stage1.updates=4 --set stage2.updates=2 --set seconds_per_update=4 "
    "--set audio.min_seconds=0.5 --force"
)
SHORTER = {
    "compress": SMALL,
    "evaluate": "--seeds 1 --learning-rates 0.01",
    "export": "--force",
    "bench": "--repeats 1 --seconds 0.5 --threads 1",
}
"""What is added to a verb so that it takes seconds; of an option that is given twice the last one counts."""
NOT_HERE = {"--suite": 2}
"""Exit codes of what cannot be done without corpora that are not freely available."""


def commands() -> list[str]:
    """Every `sslim` line in a code block, continuation lines joined, comments off."""
    found = []
    for page in PAGES:
        for block in re.findall(r"^```\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
            for line in block.replace("\\\n", " ").splitlines():
                # The demo has a test of its own (test_demo.py), the longest of all.
                if line.startswith("sslim ") and line.strip() != "sslim demo":
                    found.append(" ".join(line.split(" #")[0].split()))
    return list(dict.fromkeys(found))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where every name that the docs use lies."""
    place = tmp_path_factory.mktemp("docs")
    shutil.copytree(teacher_path(), place / TEACHER)
    for folder in ("my_audio", "recordings", "noises", "responses", "corpora"):
        (place / folder).mkdir()
    rows = []
    for number in range(
        120
    ):  # half of them for testing: groups of 20 are the least that are compared
        file = f"my_audio/{number}.wav"
        soundfile.write(place / file, speech_like(number, 0.6), 16_000)
        part = ("train", "test", "valid", "test")[number // 2 % 4]
        sex, age = "fm"[number // 8 % 2], ("young", "old")[number // 16 % 2]
        rows.append([file, "ab"[number % 2], f"{part}{number % 3}", part, sex, age])
    with (place / "clips.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "label", "speaker", "split", "gender", "age"])
        writer.writerows(rows)
    soundfile.write(place / "recordings" / "long.wav", speech_like(99, 4.0), 16_000)
    random = np.random.default_rng(0)
    soundfile.write(place / "noises" / "n.wav", 0.1 * random.standard_normal(32_000), 16_000)
    echo = np.exp(-np.arange(3200) / 400) * random.standard_normal(3200)
    soundfile.write(place / "responses" / "r.wav", echo / np.abs(echo).max(), 16_000)
    here = Path.cwd()
    os.chdir(place)
    try:
        assert (
            run(["compress", TEACHER, "my_audio", "small", "--params", "25%", *SMALL.split()]) == 0
        )
    finally:
        os.chdir(here)
    for name in ("quick", "demo-output/student"):
        shutil.copytree(place / "small", place / name)
    for format, name in (("onnx", "small.onnx"), ("onnx-int8", "small-int8.onnx")):
        arguments = ["export", str(place / "small"), str(place / name), "--format", format]
        assert run([*arguments, "--force"]) == 0
    return place


def test_the_docs_have_commands() -> None:
    assert len(commands()) >= 25
    verbs = {line.split()[1] for line in commands()}
    assert verbs >= {"compress", "evaluate", "export", "bench", "embed"}
    assert verbs >= {"report", "checklist", "inspect"}


@pytest.mark.parametrize("line", commands())
def test_every_command_of_the_docs_runs(
    line: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = [NAMES.get(word, word) for word in shlex.split(line)[1:]]
    if "features/" in words:
        shutil.rmtree("features", ignore_errors=True)
    if "--init" in words:
        (place / "quick" / "rollout.toml").unlink(missing_ok=True)
    words += SHORTER.get(words[0], "").split()
    if words[0] == "export" and "--min-cosine" not in words:
        words += ["--min-cosine", "0.99"]  # of six updates' weights
    wanted = next((code for mark, code in NOT_HERE.items() if mark in words), 0)
    assert run(words) == wanted


def test_the_site_builds_strictly(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mkdocs",
            "build",
            "--strict",
            "--quiet",
            "-d",
            str(tmp_path / "site"),
        ],
        cwd=REPOSITORY,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    commands_page = (tmp_path / "site" / "reference" / "commands.html").read_text()
    for verb in ("compress", "export", "checklist"):
        assert f"sslim {verb}" in commands_page
    settings_page = (tmp_path / "site" / "reference" / "settings.html").read_text()
    assert "stage1.gate_learning_rate" in settings_page
    python_page = (tmp_path / "site" / "reference" / "python.html").read_text()
    assert "write_report" in python_page
    home = (tmp_path / "site" / "index.html").read_text()
    assert not re.search(r"""(src|href)=["']https?://(?!squidfunk|www\.mkdocs)""", home)
