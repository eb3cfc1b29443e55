"""The documentation builds strictly, and every command in it does what its text promises: on the embedded
teacher, in small. A command whose effect no check asserts fails, and an option that no check knows."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import typer.main
from transformers import AutoModel

import sslim
from sslim.backbone.exported import ExportedModel
from sslim.backbone.loading import load_model
from sslim.backbone.units import plan_of, shape_of
from sslim.cli import app, run
from sslim.config import SETTINGS
from sslim.demo import teacher_path
from sslim.deploy.signals import speech_like
from sslim.plan import PruningPlan
from sslim.recipes import resolve
from tests.conftest import REPOSITORY

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
TEACHER = "facebook/hubert-base-ls960"
"""The name that the docs use; here a folder of that name holds the embedded teacher."""
NAMES = {
    "TEACHER": TEACHER,
    "STUDENT": "small/",
    "AUDIO": "my_audio/",
    "OUT": "other/",
    "FOLDER": ".",
    "FILE": "small.pth",
}
SHORTER = {
    "compress": "--set stage1.updates=4 --set stage2.updates=2 --set seconds_per_update=4 "
    "--set audio.min_seconds=0.5 --force",
    "evaluate": "--seeds 1 --learning-rates 0.01",
    "export": "--force --min-cosine 0.99",  # of six updates' weights
    "bench": "--repeats 1 --seconds 0.2,0.5",
}
"""What is added to a verb so that it takes seconds; of an option that is given twice the last one counts."""
SECONDS = 0.6
"""Of each clip in `my_audio`; the recording lasts four."""
PROSE = (
    "sslim runs FOLDER",
    "sslim convert FILE OUT",
    "sslim compress TEACHER AUDIO OUT --params 25% --set trackers=tensorboard",
)
"""What is promised between backticks in a sentence, or of a setting, and checked all the same."""


def commands() -> list[str]:
    """Every `sslim` line in a code block, continuation lines joined, comments off; and those in prose."""
    found = []
    for page in PAGES:
        for block in re.findall(r"^```\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
            for line in block.replace("\\\n", " ").splitlines():
                # The demo has a test of its own (test_demo.py), the longest of all.
                if line.startswith("sslim ") and line.strip() != "sslim demo":
                    found.append(" ".join(line.split(" #")[0].split()))
    return list(dict.fromkeys([*found, *PROSE]))


# --- what a command's text promises ------------------------------------------------------------------


@dataclass(frozen=True)
class Done:
    """A documented command after it ran."""

    words: list[str]
    """As documented, names replaced by what they stand for here, without what made it short."""
    made_short: list[str]
    """What was added so that it takes seconds; there a value counts instead of the documented one."""
    stdout: str
    stderr: str
    code: int
    before: dict[str, float]
    """Time of change of every file that was there before."""

    def option(self, name: str) -> str:
        """The value of an option."""
        words = self.made_short if name in self.made_short else self.words
        return words[words.index(name) + 1]

    @property
    def arguments(self) -> list[str]:
        """What is no option, after the verb."""
        words = list(self.words[1:])
        for name in [word for word in words if word.startswith("--")]:
            at = words.index(name)
            del words[at : at + (1 if name in FLAGS else 2)]
        return words

    def written(self, path: str | Path) -> Path:
        """A file or folder that the command must have made, or made anew."""
        assert Path(path).exists(), f"{path} is not there"
        assert Path(path).stat().st_mtime > self.before.get(os.path.normpath(path), 0.0), path
        return Path(path)


FLAGS = {"--init"}
Check = Callable[[Done], None]
PROMISES: list[tuple[str, Check]] = []
"""A pattern of commands, and what must be so after one that it matches."""


def promises(pattern: str) -> Callable[[Check], Check]:
    def remember(check: Check) -> Check:
        PROMISES.append((pattern, check))
        return check

    return remember


def dense(quantity: str) -> int:
    model = load_model(teacher_path()).model
    return PruningPlan.dense(shape_of(model)).count(shape_of(model), quantity)


def meets(done: Done, quantity: str) -> bool:
    """Whether the student has at most the share that was asked for, and at most 1% less."""
    share = float(done.option("--params").rstrip("%")) / 100
    model = load_model(done.arguments[2]).model
    count = plan_of(model).count(shape_of(model), quantity)
    limit = int(share * dense(quantity))
    return 0.99 * limit <= count <= limit


@promises(r"^compress ")
def compress_writes_a_folder_that_loads(done: Done) -> None:
    out = done.arguments[2]
    for name in ("config.json", "model.safetensors", "README.md", "sslim.json", "report.html"):
        done.written(Path(out) / name)
    ours = sslim.load(out)
    theirs = AutoModel.from_pretrained(out, trust_remote_code=False)
    waveform = torch.from_numpy(speech_like(3, 1.0))[None].float()
    with torch.no_grad():
        mine, other = ours(waveform).last_hidden_state, theirs(waveform).last_hidden_state
    assert torch.equal(mine, other)
    assert torch.isfinite(mine).all()
    lines = (Path(out) / "run" / "metrics.jsonl").read_text().splitlines()
    assert {json.loads(line)["stage"] for line in lines} == {"stage1", "stage2"}
    counted = sum(weight.numel() for weight in load_model(out).model.parameters())
    assert f"{counted:,} parameters" in done.stdout


@promises(r"^compress (?!.*budget_quantity=macs).*--params")
def a_share_of_the_parameters_is_met_in_parameters(done: Done) -> None:
    counted = sum(w.numel() for w in load_model(done.arguments[2]).model.parameters())
    limit = float(done.option("--params").rstrip("%")) / 100 * dense("parameters")
    assert limit - 0.01 * dense("parameters") <= counted <= limit
    assert meets(done, "parameters")
    assert not meets(done, "macs"), "this budget would not tell one from the other"


@promises(r"^compress .*--params .*--set budget_quantity=macs")
def a_share_of_the_operations_is_met_in_operations(done: Done) -> None:
    assert meets(done, "macs")
    assert not meets(done, "parameters"), "this budget would not tell one from the other"
    facts = json.loads(Path(done.arguments[2], "sslim.json").read_text())
    assert facts["config"]["budget_quantity"] == "macs"


@promises(r"^compress .*--mix recordings/=0.2")
def each_source_is_heard_by_its_share(done: Done) -> None:
    for stage in ("stage1", "stage2"):
        figures = re.search(rf"{stage}: heard ([\d.]+) s, ([\d.]+) s of the sources", done.stderr)
        assert figures
        main, mixed = map(float, figures.groups())
        assert abs(mixed / (main + mixed) - 0.2) < 0.07
    record = json.loads(Path(done.arguments[2], "run", "run.json").read_text())
    assert record["audio"]["mix"] == {"recordings/": 0.2}


@promises(r"^compress .*--recipe fast")
def the_recipe_is_the_one_named(done: Done) -> None:
    facts = json.loads(Path(done.arguments[2], "sslim.json").read_text())
    assert facts["recipe"] == "fast"
    assert facts["config"]["stage1"]["learning_rate"] == resolve("fast").stage1.learning_rate
    assert resolve("fast").stage1.learning_rate != resolve("paper").stage1.learning_rate


@promises(r"^compress .*--set stage1\.updates=3000")
def a_setting_is_taken(done: Done) -> None:
    """Shortened here; that the words as they stand mean 3,000 updates needs no training."""
    settings = [word for word in done.words if re.match(r"[\w.]+=", word)]
    assert resolve(done.option("--recipe"), settings=settings).stage1.updates == 3000
    facts = json.loads(Path(done.arguments[2], "sslim.json").read_text())
    assert facts["config"]["stage1"]["updates"] == 4


@promises(r"^compress .*--set trackers=tensorboard")
def a_tracker_gets_the_figures(done: Done) -> None:
    events = list(Path(done.arguments[2], "run").rglob("events.out.tfevents.*"))
    assert events
    assert b"stage2/loss" in b"".join(path.read_bytes() for path in events)


@promises(r"^inspect ")
def inspect_shows_what_is_kept(done: Done) -> None:
    model = load_model(done.arguments[0]).model
    shape, plan = shape_of(model), plan_of(model)
    for number, layer in enumerate(plan.layers, start=1):
        row = (
            rf"│ {number} +│ {len(layer.heads or ())} / {shape.heads} .*│ {len(layer.ffn or ())} / "
        )
        assert re.search(row, done.stdout), f"layer {number}"
    shares = [plan.count(shape, quantity) / dense(quantity) for quantity in ("parameters", "macs")]
    total = next(line for line in done.stdout.splitlines() if "│ total" in line)
    assert re.findall(r"[\d.]+%", total) == [f"{share:.1%}" for share in shares]


@promises(r"^report (.*--out)?(.*--lang)?")
def a_report_is_one_page_that_names_its_models(done: Done) -> None:
    runs = done.arguments
    out = done.option("--out") if "--out" in done.words else Path(runs[0]) / "report.html"
    page = done.written(out).read_text(encoding="utf-8")
    assert page.lstrip().lower().startswith("<!doctype html")
    for name in runs:
        assert Path(name).name in page
    text = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    fetched = r"""<(script|img|link|iframe)[^>]+(src|href)=["']?https?://"""
    assert not re.search(fetched, re.sub(r"(<script[^>]*>).*?</script>", r"\1", page, flags=re.S))
    wanted = done.option("--lang") if "--lang" in done.words else "en"
    assert f'<html lang="{wanted}"' in page
    assert (len(re.findall(r"[぀-ヿ]", text)) > 100) == (wanted == "ja")


@promises(r"^checklist (?!.*--init)(.*--lang)?")
def a_checklist_ticks_and_leaves_open(done: Done) -> None:
    marks = [line[0] for line in done.stdout.splitlines() if line[0] in "✓○"]
    assert len(marks) >= 8
    assert "○" in marks, "nobody has signed anything"
    assert bool(re.search(r"[぀-ヿ]", done.stdout)) == ("ja" in done.words)


@promises(r"^checklist .*--init")
def a_template_is_made_for_what_people_decide(done: Done) -> None:
    made = done.written(Path(done.arguments[0]) / "rollout.toml")
    assert tomllib.loads(made.read_text(encoding="utf-8"))
    assert "rollout.toml" in done.stdout


def of_model_and_file(done: Done) -> tuple[np.ndarray, np.ndarray]:
    model, waveform = load_model(done.arguments[0]), speech_like(5, 1.0).astype(np.float32)
    with torch.no_grad():
        states = model.model.eval()(torch.from_numpy(waveform)[None]).last_hidden_state[0].numpy()
    exported = ExportedModel(done.arguments[1])
    return states, exported([waveform])["last_hidden_state"][0]


@promises(r"^export (?!.*--format (dphubert|onnx-int8))")
def a_float32_file_agrees_to_four_digits(done: Done) -> None:
    done.written(done.arguments[1])
    states, found = of_model_and_file(done)
    assert np.abs(states - found).max() < 1e-4
    assert json.loads(done.written(f"{done.arguments[1]}.json").read_text())["passed"] is True


@promises(r"^export .*--format onnx-int8 --audio")
def an_int8_file_is_smaller_and_close(done: Done) -> None:
    states, found = of_model_and_file(done)
    cosine = (states * found).sum(-1)
    cosine /= np.linalg.norm(states, axis=-1) * np.linalg.norm(found, axis=-1)
    assert cosine.mean() > 0.99
    assert np.abs(states - found).max() > 1e-4, "it is not the float32 file"
    folder = Path(done.arguments[0]) / "model.safetensors"
    assert done.written(done.arguments[1]).stat().st_size < 0.5 * folder.stat().st_size
    facts = json.loads(done.written(f"{done.arguments[1]}.json").read_text())
    assert facts["format"] == "onnx-int8"
    assert "my_audio" in facts["audio"]


@promises(r"^export .*--format dphubert")
def the_reference_s_own_file(done: Done) -> None:
    found = torch.load(done.written(done.arguments[1]), weights_only=True)
    assert {"state_dict", "config"} <= set(found)


@promises(r"^convert ")
def a_converted_file_loads_and_is_the_same_model(done: Done) -> None:
    waveform = torch.from_numpy(speech_like(5, 1.0))[None].float()
    with torch.no_grad():
        first, second = (
            load_model(folder).model.eval().distillation_features(waveform)[-1]
            for folder in ("small", done.arguments[1])
        )
    assert torch.allclose(first, second, atol=1e-4)


@promises(r"^bench (?=.*--seconds)(.*--threads)?(.*--price-per-hour)?(.*--json)?")
def a_benchmark_has_a_row_for_each(done: Done) -> None:
    shown = " ".join(done.stdout.split())
    counts = done.option("--threads").split(",") if "--threads" in done.words else ["1"]
    for seconds in done.option("--seconds").split(","):
        for threads in counts:
            plural = "s" if int(threads) > 1 else ""
            assert f"{seconds} s of audio, {threads} thread{plural}" in shown
    assert "ratio" in shown
    assert ("1,000 h cost" in shown) == ("--price-per-hour" in done.words)
    models = [os.path.normpath(model) for model in done.arguments]
    if "--json" not in done.words:
        for model in models:
            assert Path(model).name[:12] in shown
        return
    rows = json.loads(done.written(done.option("--json")).read_text())["results"]
    assert {os.path.normpath(row["model"]) for row in rows} >= {Path(m).name for m in models}
    assert {f"{row['seconds']:g}" for row in rows} == set(done.option("--seconds").split(","))
    assert all(row["median"] > 0 for row in rows)


@promises(r"^embed .*--format parquet")
def features_are_tables_of_frames(done: Done) -> None:
    from pyarrow import parquet

    out = Path(done.arguments[2])
    table = parquet.read_table(done.written(out / "long.parquet"))
    assert table.num_rows == 199, "four seconds"
    assert json.loads(done.written(out / "embed.json").read_text())["files"]


@promises(r"^embed (?!.*--format)")
def features_are_arrays_of_frames(done: Done) -> None:
    with np.load(done.written(Path(done.arguments[2]) / "long.npz")) as found:
        assert found["features"].shape == (199, 192)
    assert json.loads(done.written(Path(done.arguments[2]) / "embed.json").read_text())["files"]


@promises(r"^evaluate .*--task \w+ .*--data(.*--json)?")
def a_table_has_a_row_for_each_model(done: Done) -> None:
    shown = " ".join(done.stdout.split())
    assert shown.startswith(f"{done.option('--task')}: accuracy")
    assert "95% interval" in shown
    assert re.search(r"chance \d+\.\d\d", shown)
    names = [Path(name).name for name in done.arguments]
    for name in names:
        assert name[:8] in shown
    if "--json" in done.words:
        rows = json.loads(done.written(done.option("--json")).read_text())["results"]
        assert [Path(row["model"]).name for row in rows] == names
        assert all(0 <= row["score"] <= 1 and len(row["interval"]) == 2 for row in rows)


@promises(r"^evaluate (?=.*--noise)(?=.*--snr)(?=.*--rooms).*--conditions")
def conditions_are_scored_by_name(done: Done) -> None:
    for ratio in done.option("--snr").split(","):
        assert re.search(rf"noises.*\b{ratio} dB +\d", done.stdout), ratio
    assert re.search(r"reverberation.* \d", done.stdout)
    for name in ("telephone", "clipping", "speed"):
        assert name in done.option("--conditions")
        assert re.search(rf"{name}.* \d", done.stdout)


@promises(r"^evaluate .*--group")
def groups_are_compared(done: Done) -> None:
    for column, values in (("gender", "fm"), ("age", ("young", "old"))):
        assert column in done.option("--group")
        for value in values:
            assert re.search(rf"^ *{value} \((\d+)\) +\d+\.\d \(", done.stdout, re.M), value
    assert re.search(r"gap", done.stdout), "a sentence on the largest gap"


@promises(r"^evaluate .*--suite superb --root .*--json")
def a_suite_without_corpora_says_where_to_get_them(done: Done) -> None:
    """The corpora are not freely available; what is missing is named, and the end is an error."""
    assert done.code == 2
    for task in ("ks", "asr", "qbe"):
        assert re.search(rf"missing: {task}: .* is not under .*corpora", done.stderr), task
    assert not Path(done.option("--json")).exists()


@promises(r"^runs ")
def runs_lists_where_runs_stand(done: Done) -> None:
    assert re.search(r"^small +finished +stage2 +2/2", done.stdout, re.M)
    assert re.search(r"^quick +finished", done.stdout, re.M)


# --- the commands ---------------------------------------------------------------------------------------


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
        soundfile.write(place / file, speech_like(number, SECONDS), 16_000)
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
        arguments = ["compress", TEACHER, "my_audio", "small", "--params", "25%"]
        assert run([*arguments, *SHORTER["compress"].split()]) == 0
    finally:
        os.chdir(here)
    for name in ("quick", "demo-output/student"):
        shutil.copytree(place / "small", place / name)
    for format, name in (("onnx", "small.onnx"), ("onnx-int8", "small-int8.onnx")):
        arguments = ["export", str(place / "small"), str(place / name), "--format", format]
        assert run([*arguments, "--force"]) == 0
    shutil.rmtree(place / "small" / "evidence", ignore_errors=True)
    assert run(["export", str(place / "small"), str(place / "small.pth"), "--format=dphubert"]) == 0
    return place


def test_the_docs_have_commands() -> None:
    assert len(commands()) >= 28
    verbs = {line.split()[1] for line in commands()}
    assert verbs >= {"compress", "evaluate", "export", "bench", "embed", "runs", "convert"}
    assert verbs >= {"report", "checklist", "inspect"}
    prose = " ".join(page.read_text(encoding="utf-8") for page in PAGES)
    for promised in (
        "`sslim runs FOLDER`",
        "`sslim convert FILE OUT`",
        "`--set trackers=tensorboard`",
    ):
        assert promised in prose


def checks_of(words: list[str]) -> list[Check]:
    """The checks of a command.

    Raises:
        AssertionError: there is none, or an option in it is one that no matching pattern names.
    """
    line = " ".join(words)
    matching = [(pattern, check) for pattern, check in PROMISES if re.search(pattern, line)]
    assert matching, f"nothing is asserted of what `sslim {line}` does: add a check above"
    for word in words:
        if word.startswith("--") and word != "--set":
            known = any(word in pattern for pattern, _ in matching)
            assert known, f"no check of `sslim {line}` knows {word}"
    for setting in re.findall(r"--set (\S+)", line):
        known = any(re.sub(r"\\", "", pattern).find(setting) >= 0 for pattern, _ in matching)
        assert known, f"no check of `sslim {line}` knows {setting}"
    return [check for _, check in matching]


def test_a_command_without_a_check_is_noticed() -> None:
    for line in (
        "fly to mars",
        "compress a b c --resume",
        "compress a b c --set seed=1",
        "inspect a --png b",
    ):
        with pytest.raises(AssertionError, match=r"asserted|no check"):
            checks_of(line.split())


@pytest.mark.parametrize("line", commands())
def test_every_command_of_the_docs_does_what_it_says(
    line: str,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    words = [NAMES.get(word, word) for word in shlex.split(line)[1:]]
    checks = checks_of(words)
    for name in ("features", "superb.json"):
        shutil.rmtree(name, ignore_errors=True)
        Path(name).unlink(missing_ok=True)
    if words[0] in ("compress", "convert"):
        shutil.rmtree("other", ignore_errors=True)
    if "--init" in words:
        (place / "quick" / "rollout.toml").unlink(missing_ok=True)
    before = {os.path.normpath(path): path.stat().st_mtime for path in Path().rglob("*")}
    capfd.readouterr()
    shorter = SHORTER.get(words[0], "").split()
    code = run([*words, *shorter])
    shown = capfd.readouterr()
    done = Done(words, shorter, shown.out, shown.err, code, before)
    assert code == (2 if "--suite" in words else 0), shown.err
    for check in checks:
        check(done)


# --- names in the prose -----------------------------------------------------------------------------------

VERBS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
OPTIONS = {
    verb: {opt for param in command.params for opt in param.opts} for verb, command in VERBS.items()
}
OTHERS = {"--version", "--help"}
"""Of `sslim` itself."""


def inline(page: Path) -> list[str]:
    """What stands between backticks outside code blocks, on one line each."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_that_the_docs_name_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"--set[ \n]+([a-z_0-9]+(?:\.[a-z_0-9]+)*)=", text))
    named |= {
        code.partition("=")[0]
        for code in inline(page)
        if re.fullmatch(r"(stage[12]|audio)\.[a-z_]+(=\S*)?", code)
    }
    assert named <= set(SETTINGS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_and_verbs_that_the_docs_name_exist(page: Path) -> None:
    every = OTHERS.union(*OPTIONS.values())
    for code in inline(page):
        words = code.split()
        if words[0] == "sslim" and len(words) > 1 and not words[1].startswith("-"):
            assert words[1] in VERBS, code
            assert {w.split("=")[0] for w in words if w.startswith("--")} <= OPTIONS[words[1]], code
        elif words[0].startswith("--") and words[0].split("=")[0] not in FOREIGN:
            assert words[0].split("=")[0] in every, code
    for block in re.findall(r"^```\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            started = re.search(r"-m sslim (\w+)(.*)", line)
            if started:
                named = set(re.findall(r"(?<= )--[a-z-]+", started[2]))
                assert named <= OPTIONS[started[1]], line


FOREIGN = {"--signal", "--ablation", "--require-hashes", "--reference"}
"""Options of other programs and of the benchmarks, named without them."""


def test_a_name_that_does_not_exist_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    for text in ("`--set stage1.upates=3`", "`stage1.upates`"):
        page.write_text(text)
        with pytest.raises(AssertionError):
            test_settings_that_the_docs_name_exist(page)
    for text in (
        "`--parms 25%`",
        "`sslim fly`",
        "`sslim compress --snr 3`",
        "```\ntorchrun -m sslim compress --snr 3\n```",
    ):
        page.write_text(text)
        with pytest.raises(AssertionError):
            test_options_and_verbs_that_the_docs_name_exist(page)


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
