"""`SECURITY.md` promises nothing that does not exist; what it promises of inputs, `test_hostile.py` holds."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import sslim
from sslim.cli import app, arguments
from tests.conftest import REPOSITORY
from tests.hostile.cases import CLASSES, all_cases

TEXT = (REPOSITORY / "SECURITY.md").read_text(encoding="utf-8")


def verbs() -> dict[str, str]:
    """Verb -> the source of its function, which names its own options."""
    found = {}
    for command in app.registered_commands:
        assert command.callback is not None
        name = command.name or command.callback.__name__
        found[name] = inspect.getsource(command.callback)
    return found


def test_it_says_how_to_report_and_what_is_supported() -> None:
    for heading in (
        "Reporting",
        "Supported versions",
        "What is trusted",
        "What is not defended against",
        "Limits",
    ):
        assert f"\n## {heading}\n" in TEXT
    assert "private vulnerability reporting" in TEXT


@pytest.mark.parametrize("verb", sorted(set(re.findall(r"`sslim ([a-z]+)", TEXT))))
def test_each_verb_that_it_names_exists(verb: str) -> None:
    assert verb in verbs()


@pytest.mark.parametrize("option", sorted(set(re.findall(r"--[a-z]{2,}", TEXT)) - {"--version"}))
def test_each_option_that_it_names_exists(option: str) -> None:
    name = option.removeprefix("--").replace("-", "_")
    assert any(
        f'"{option}"' in source or re.search(rf"^\s+{name}: Annotated", source, re.MULTILINE)
        for source in (*verbs().values(), inspect.getsource(arguments))
    )


def test_each_function_and_file_that_it_names_exists() -> None:
    for name in re.findall(r"`sslim\.([a-z]+)[`(]", TEXT):
        if name != "json":
            assert hasattr(sslim, name)
    for name in re.findall(r"`([\w/]+\.(?:py|md|txt))`", TEXT):
        known = {Path(name), Path("src/sslim/backbone") / name}
        assert any((REPOSITORY / path).exists() for path in known), name


def test_each_kind_of_input_in_its_table_has_cases() -> None:
    """The rows of the table, and the class of the corpus that holds each."""
    rows = re.findall(r"^\| \*\*(.+?)\*\*", TEXT, re.MULTILINE)
    held = {
        "Teachers": "models",
        "Checkpoint files": "checkpoints",
        "Recordings": "audio",
        "Lists, CSV, tsv and lhotse manifests": "sources",
        "Shards": "shards",
        "Exported files": "exported",
        "Evidence and run folders": "runs",
        "Settings": "settings",
    }
    assert rows == list(held)
    counts = dict.fromkeys(CLASSES, 0)
    for kind, _ in all_cases():
        counts[kind] += 1
    assert all(counts[kind] >= 50 for kind in held.values()), counts


def test_the_limits_are_those_of_the_code() -> None:
    from sslim.audio import archives, sound
    from sslim.backbone.settings import WHOLE_NUMBERS

    said = dict(re.findall(r"^\| ([a-z][\w ]+) \| (.+?) \|$", TEXT, re.MULTILINE))
    low, high = (rate // 1000 for rate in sound.RATES)
    assert said["sampling rate of a recording"] == f"{low} kHz to {high} kHz"
    assert said["amplitude of a recording"].startswith(f"{sound.LOUDEST:g} times full scale")
    assert said["one member of a shard"] == f"{archives.LARGEST_CLIP // 2**30} GiB"
    assert said["layers of a model"] == str(WHOLE_NUMBERS["num_hidden_layers"][1])
    assert said["width of a model"] == f"{WHOLE_NUMBERS['hidden_size'][1]:,}"
