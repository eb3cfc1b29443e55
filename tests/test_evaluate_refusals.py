"""A figure is looked at with suspicion before it is printed; what can be known first is said first."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from sslim import identity
from sslim.backbone.frozen import Frozen
from sslim.cli import run as command_line
from sslim.errors import AudioError, ConfigError, TrainingError
from sslim.evaluate import run as run_module
from sslim.evaluate import suite
from sslim.evaluate.clip_table import read_clips
from sslim.evaluate.conditions import named_conditions, noise_conditions
from sslim.evaluate.diarisation import read_rttm
from sslim.evaluate.features import FeatureStore
from sslim.evaluate.fitting import Schedule, fit
from sslim.evaluate.outcome import Outcome
from sslim.evaluate.probe import fit_heads
from sslim.evaluate.run import evaluate
from sslim.evaluate.scorer import Settings
from sslim.evaluate.upstream import open_upstream
from sslim.records import to_json
from tests import sounds

QUICK = Settings(seeds=(0,), schedule=Schedule(epochs=1, batch=8, hidden=8), say=lambda line: None)


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a model fails: what is refused is refused before."""

    def refuse(*arguments: Any, **options: Any) -> Frozen:
        raise AssertionError("a model was opened")

    monkeypatch.setattr(run_module, "open_upstream", refuse)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sounds.labelled(tmp_path_factory.mktemp("words"), clips=200, seconds=0.1)


def rewritten(source: Path, target: Path, change: Callable[[dict[str, str]], None]) -> Path:
    """A table beside the same audio, every row changed."""
    rows = [dict(clip.row) for clip in read_clips(source).clips]
    for row in rows:
        change(row)
        row["path"] = str(source.parent / row["path"])
    return sounds.write_rows(target, rows)


# --- trials --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["target,utt1,utt2"], "not of both kinds (0 of them)"),
        (["target,utt1,utt2", "1,u4-0,u4-1", "1,u4-2,u4-3"], "not of both kinds (2 of them)"),
        (["target,utt1,utt2", "0,u4-0,u9-1"], "not of both kinds"),
        (["target,utt1,utt2", "2,u4-0,u4-1"], "line 2: the target is '2'"),
        (["target,utt1,utt2", ",u4-0,u4-1"], "line 2: the target is ''"),
        (["utt1,utt2", "u4-0,u4-1"], "no column 'target'"),
        (
            ["target,utt1,utt2", "1,u4-0,u4-1", "1,u4-1,u4-0"],
            "line 3: 'u4-1' and 'u4-0' are compared",
        ),
        (["target,utt1,utt2", "1,u4-0,u4-0"], "'u4-0' and 'u4-0' are one clip"),
        (["target,utt1,utt2", "1,u4-0"], "there is no clip ''"),
        (["target,utt1,utt2", "1,u0-0,u0-1"], "there is no clip 'u0-0' in this part"),
        (["target,utt1,utt2", "1," + 200_000 * "x"], "field larger than"),
    ],
)
def test_trials(lines: list[str], message: str, tmp_path: Path) -> None:
    data = sounds.voices(tmp_path / "voices", each=4)
    trials = tmp_path / "trials.csv"
    trials.write_text("\n".join(lines) + "\n")
    settings = replace(QUICK, options={"trials": str(trials)})
    with pytest.raises(ConfigError) as caught:
        evaluate(["fbank"], "asv", data, settings=settings)
    assert message in str(caught.value)


def test_trials_of_both_kinds_are_taken(tmp_path: Path) -> None:
    data = sounds.voices(tmp_path / "voices", each=4)
    trials = tmp_path / "trials.csv"
    trials.write_text("target,utt1,utt2\n1,u4-0,u4-1\n0,u4-0,u9-1\n0,u9-0,u4-1\n1,u9-0,u9-1\n")
    settings = replace(QUICK, options={"trials": str(trials)}, learning_rates=(1e-3,))
    found = evaluate(["fbank"], "asv", data, settings=settings).results[0]
    assert found.items == 4
    assert 0.0 <= found.score <= 1.0


# --- RTTM ----------------------------------------------------------------------------------------


def rttm(start: str, duration: str, name: str = "d") -> str:
    return f"SPEAKER {name} 1 {start} {duration} <NA> <NA> p <NA>\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (rttm("nan", "1"), "line 1: nan and 1 are no times"),
        (rttm("0", "1") + rttm("-1", "2"), "line 2: -1 and 2 are no times"),
        (rttm("0", "-2"), "are no times"),
        (rttm("0", "inf"), "are no times"),
        (rttm("0", "nan"), "are no times"),
        ("SPEAKER d 1 0 1\n", "line 1 has 5 fields"),
        (rttm("zero", "1"), "could not convert"),
    ],
)
def test_rttm(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "d.rttm").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_rttm(tmp_path / "d.rttm")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_recording_ends_where_it_ends(tmp_path: Path) -> None:
    data = sounds.dialogues(tmp_path, clips=12)
    text = (tmp_path / "03.rttm").read_text()
    (tmp_path / "03.rttm").write_text(text + rttm("2.0", "0.8", "d3"))
    with pytest.raises(ConfigError, match=r"3 speakers"):  # rounded times are taken
        evaluate(["fbank"], "sd", data, settings=QUICK)
    (tmp_path / "03.rttm").write_text(text + rttm("2.0", "5", "d3"))
    with pytest.raises(ConfigError, match=r"speaks of 7\.00 s, .*03\.wav has 2\.40 s"):
        evaluate(["fbank"], "sd", data, settings=QUICK)


# --- heads that did not learn --------------------------------------------------------------------


class Head(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(1.0))


@pytest.mark.parametrize(
    ("loss", "score"), [(math.nan, 0.5), (math.inf, 0.5), (1.0, math.nan), (1.0, math.inf)]
)
def test_a_head_that_never_learned_is_not_scored(loss: float, score: float) -> None:
    with pytest.raises(TrainingError, match=r"seed 0 never had a finite loss.*1, 2.*lower ones"):
        fit(
            Head,
            lambda head, _: loss * head.weight,
            lambda head: score,
            [1],
            learning_rates=(1.0, 2.0),
            seeds=(0, 1),
            schedule=Schedule(epochs=2),
        )


def test_a_rate_that_diverges_is_passed_over() -> None:
    def loss(head: Head, indices: list[int]) -> torch.Tensor:
        return head.weight**2 if abs(head.weight.item()) < 50 else head.weight * math.nan

    found = fit(
        Head,
        loss,
        lambda head: abs(head.weight.item()) if abs(head.weight.item()) < 50 else math.nan,
        [1],
        learning_rates=(100.0, 0.1),
        seeds=(0, 1),
        schedule=Schedule(epochs=3),
    )
    assert found.learning_rate == 0.1


def test_probes_do_not_score_untrained_heads() -> None:
    draw = np.random.default_rng(0)
    labels = np.arange(40)[:, None] % 2
    part = (draw.standard_normal((40, 2, 4)).astype(np.float32), labels)
    with pytest.raises(TrainingError, match="never had a finite loss"):
        fit_heads(part, part, [2], learning_rates=(1e30,))
    assert fit_heads(part, part, [2], learning_rates=(1e30, 1e-2)).learning_rate == 1e-2
    with np.errstate(all="ignore"), pytest.raises(TrainingError):
        huge = (part[0] * np.float32(1e38), labels)
        fit_heads(huge, huge, [2])


# --- scores that say nothing ---------------------------------------------------------------------


def test_one_class_in_the_test_part(words: Path, tmp_path: Path, no_model: None) -> None:
    def one(row: dict[str, str]) -> None:
        row["label"] = "word0" if row["split"] == "test" else row["label"]

    with pytest.raises(ConfigError, match=r"test part of .* has one answer, 'word0'"):
        evaluate(["fbank"], "ks", rewritten(words, tmp_path / "one.csv", one), settings=QUICK)


@pytest.mark.parametrize(
    "outcome", [Outcome(3, lambda indices: math.nan), Outcome(0, lambda indices: 0.0)]
)
def test_no_number_is_no_score(
    outcome: Outcome, words: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = run_module.get_task("ks")

    def fitted(*arguments: Any) -> Any:
        scorer = task.fit(*arguments)
        return replace(scorer, outcomes=lambda clips, condition: {"accuracy": outcome})

    monkeypatch.setattr(run_module, "get_task", lambda name: replace(task, fit=fitted))
    with pytest.raises(ConfigError, match="accuracy of fbank, clean, is no number"):
        evaluate(["fbank"], "ks", words, settings=QUICK)


def test_what_a_reader_must_know_is_said(words: Path, tmp_path: Path) -> None:
    """A first model at chance; answers that differ in case; log-mel features as the floor of every row."""
    upstream = open_upstream("fbank")
    deaf = replace(
        upstream, name="deaf", hidden_states=lambda audio: 0.0 * upstream.hidden_states(audio)
    )
    found = evaluate([deaf, "fbank"], "ks", words, settings=QUICK)
    assert any("deaf cannot be told from chance" in note for note in found.notes)
    assert found.results[0].floor == found.results[1].score > found.results[0].score
    honest = evaluate(["fbank"], "ks", words, settings=QUICK)
    assert not honest.notes
    for row in (*found.results, *honest.results):
        assert row.items == 40
        assert 0 < row.chance < 0.5
        assert row.floor is not None
    assert honest.results[0].floor == honest.results[0].score

    def loud(row: dict[str, str]) -> None:
        row["label"] = row["label"].upper() if row["gender"] == "f" else row["label"]

    data = rewritten(words, tmp_path / "loud.csv", loud)
    notes = evaluate(["fbank"], "ks", data, settings=QUICK).notes
    assert any("'WORD0' and 'word0': they are taken as different" in note for note in notes)


def test_more_errors_than_words_are_said_to_be(tmp_path: Path) -> None:
    found = evaluate(["fbank"], "ks", sounds.labelled(tmp_path, clips=60), settings=QUICK)
    row = replace(
        found.results[0], metric="word error rate", higher_is_better=False, score=1.25, chance=1.0
    )
    notes = run_module._suspicions([replace(row, interval=(1.1, 1.4))])
    assert "cannot be told from chance (100.0%)" in notes[0]
    assert "word error rate 125%, more errors than there is to be right about" in notes[1]
    assert run_module._suspicions([replace(row, score=0.5, interval=(0.4, 0.6))]) == []


def test_a_result_says_what_it_is_of(words: Path, tmp_path: Path) -> None:
    speed = named_conditions(["speed"])[:1]
    facts = evaluate(["fbank"], "ks", words, settings=QUICK, conditions=speed).to_dict()
    row = facts["results"][0]
    assert row["fingerprint"] == row["model_fingerprint"] == open_upstream("fbank").fingerprint
    assert row["conditions"]["speed 0.9"]["identity"] == speed[0].identity
    assert facts["computation"] == identity.COMPUTATION
    assert facts["versions"]["torch"]
    moved = tmp_path / "moved"
    shutil.copytree(words.parent, moved)
    again = evaluate(["fbank"], "ks", moved / words.name, settings=QUICK).to_dict()
    assert again["data"]["test_audio"] == facts["data"]["test_audio"]
    other = next(clip for clip in read_clips(words).clips if clip.part == "test")
    soundfile.write(moved / other.row["path"], 0.1 * np.ones(1600), 16_000)
    changed = evaluate(["fbank"], "ks", moved / words.name, settings=QUICK).to_dict()
    assert changed["data"]["test_audio"] != facts["data"]["test_audio"]


def test_json_holds_no_nan() -> None:
    found = to_json({"a": [math.nan, 1.0, (math.inf, "x")], "b": {"c": -math.inf}})
    assert found == {"a": [None, 1.0, [None, "x"]], "b": {"c": None}}


# --- before any model ----------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["asv", "qbe"])
def test_scores_over_trials_and_queries_have_no_folds(
    task: str, words: Path, no_model: None
) -> None:
    with pytest.raises(ConfigError, match="cannot be joined over folds"):
        evaluate(["fbank"], task, words, folds="gender", settings=QUICK)


@pytest.mark.parametrize(
    ("task", "column", "message"),
    [
        ("ks", "speaker", "has 0 group"),
        ("ks", "location", "has 1 group"),
        ("ks", "sex", "no column 'sex'"),
        ("asv", "gender", "belong to pairs of clips"),
    ],
)
def test_groups_are_looked_at_first(
    task: str, column: str, message: str, words: Path, no_model: None
) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate(["fbank"], task, words, groups=[column], settings=QUICK)


def test_two_conditions_of_one_name_are_not_one(
    words: Path, tmp_path: Path, no_model: None
) -> None:
    found = []
    for seed, folder in enumerate(("a", "b")):
        (tmp_path / folder / "noise").mkdir(parents=True)
        noise = np.random.default_rng(seed).standard_normal(8000)
        soundfile.write(tmp_path / folder / "noise" / "n.wav", 0.1 * noise, 16_000)
        found += noise_conditions(tmp_path / folder / "noise", [5.0])
    with pytest.raises(ConfigError, match="two conditions 'noise noise, 5 dB'"):
        evaluate(["fbank"], "ks", words, conditions=found, settings=QUICK)


def test_folders_of_noise(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="does not exist"):
        noise_conditions(tmp_path / "nowhere", [5.0])
    with pytest.raises(AudioError, match="no audio found"):
        noise_conditions(tmp_path, [5.0])
    (tmp_path / "readme.txt").write_text("noise")
    with pytest.raises(AudioError, match="no audio found"):
        noise_conditions(tmp_path, [5.0])
    noise = np.random.default_rng(0).standard_normal(8000)
    soundfile.write(tmp_path / "n.wav", 0.1 * noise, 16_000)
    one = noise_conditions(tmp_path, [5.0, 5.0])
    assert len(one) == 1
    (tmp_path / "again.wav").write_bytes((tmp_path / "n.wav").read_bytes())
    assert noise_conditions(tmp_path, [5.0])[0].identity == one[0].identity, "it says the same"
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    with pytest.raises(AudioError, match=r"1 file\(s\) of .*broken\.wav"):
        noise_conditions(tmp_path, [5.0])
    (tmp_path / "broken.wav").unlink()
    soundfile.write(tmp_path / "silent.wav", np.zeros(8000), 16_000)
    with pytest.raises(AudioError, match=r"silent\.wav: is silent"):
        noise_conditions(tmp_path, [5.0])


def test_a_pause_in_a_noise_leaves_no_clip_clean(tmp_path: Path) -> None:
    noise = np.zeros(160_000)
    noise[80_000:80_400] = 0.1
    soundfile.write(tmp_path / "n.wav", noise, 16_000)
    condition = noise_conditions(tmp_path, [0.0])[0]
    assert condition.alter is not None
    speech = np.full(1000, 0.1, dtype=np.float32)
    for clip in range(50):
        assert not np.array_equal(condition.alter(speech, str(clip)), speech)


# --- the command ---------------------------------------------------------------------------------

TASK = ["--task", "ks", "--data", "clips.csv"]
SUITE = ["--suite", "superb", "--root", "."]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *[
            ([*TASK, "--learning-rates", rate], "--learning-rates must be above 0 and at most 10")
            for rate in ("-1", "nan", "inf", "0", "1e-3,-1", "1e-3,nan,1e-2", "1e300")
        ],
        *[
            ([*TASK, "--noise", ".", "--snr", ratio], "--snr must be at least -100 and at most 100")
            for ratio in ("1e300", "nan", "-inf", "5,1e300,5")
        ],
        *[([*TASK, "--cache-gib", size], "--cache-gib must be") for size in ("nan", "-1", "inf")],
        *[
            (["--task", "sd", "--data", "clips.csv", "--collar", size], "--collar must be")
            for size in ("nan", "-1", "1e9")
        ],
        ([*TASK, "--learning-rates", ","], "--learning-rates needs numbers"),
        ([*TASK, "--json", ""], "--json . cannot be written: it is a folder"),
        (["--task", "ks", "--data", "zero.csv"], "zero.csv cannot be read: it is not a file"),
        ([*TASK, "--seeds", "0"], "--seeds must be at least 1"),
        ([*TASK, "--seeds", "1000000000"], "--seeds must be at least 1 and at most 100000"),
        ([*TASK, "--epochs", "-3"], "--epochs must be"),
        ([*TASK, "--hidden", "-8"], "--hidden must be"),
        ([*TASK, "--snr", "5"], "--snr is given without --noise"),
        ([*TASK, "--trials", "t.csv"], "--task ks takes no --trials"),
        ([*TASK, "--collar", "0.25"], "--task ks takes no --collar"),
        ([*TASK, "--root", "."], "--task ks takes no --root"),
        ([*TASK, "--folds", "gender", "--split-column", "label"], "--folds and --split-column"),
        (["--task", "fidelity", "--data", ".", "--noise", "."], "--task fidelity takes no --noise"),
        (["--task", "fidelity", "--data", ".", "--group", "x"], "--task fidelity takes no --group"),
        ([*SUITE, "--noise", "."], "--suite takes no --noise"),
        ([*SUITE, "--rooms", "."], "--suite takes no --rooms"),
        ([*SUITE, "--conditions", "speed"], "--suite takes no --conditions"),
        ([*SUITE, "--group", "gender"], "--suite takes no --group"),
        ([*SUITE, "--folds", "gender"], "--suite takes no --folds"),
        ([*SUITE, "--where", "a=b"], "--suite takes no --where"),
        ([*SUITE, "--data", "clips.csv"], "--suite takes no --data"),
        ([*SUITE, "--allow-leaks"], "--suite takes no --allow-leaks"),
        ([*SUITE, "--random-labels"], "--suite takes no --random-labels"),
        ([*SUITE, "--split-column", "part"], "--suite takes no --split-column"),
        ([*TASK, "--json", "folder"], "--json folder cannot be written: it is a folder"),
        ([*TASK, "--json", "clips.csv/x.json"], "--json clips.csv/x.json cannot be written"),
        ([*TASK, "--json", "n" * 300], "cannot be written: File name too long"),
        ([*TASK, "--cache", "clips.csv"], "features cannot be kept in clips.csv"),
        ([*TASK, "--cache", "clips.csv/x"], "features cannot be kept in clips.csv/x"),
    ],
)
def test_options_are_looked_at_first(
    options: list[str],
    message: str,
    words: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    no_model: None,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "clips.csv").write_text("path,label\n")
    (tmp_path / "zero.csv").symlink_to("/dev/zero")
    assert command_line(["evaluate", "fbank", *options]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1


def test_brackets_are_shown_and_the_file_comes_first(
    words: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Markup in a group's value ended an evaluation of hours, before its file was written."""
    monkeypatch.setenv("COLUMNS", "200")

    def bracket(row: dict[str, str]) -> None:
        row["[/red]sex"] = "[/b]x" if row["gender"] == "f" else "[bold]"

    data = rewritten(words, tmp_path / "table.csv", bracket)
    noise = tmp_path / "[i]hum"
    noise.mkdir()
    soundfile.write(noise / "n.wav", 0.1 * np.random.default_rng(0).standard_normal(8000), 16_000)
    json_file = tmp_path / "out.json"
    arguments = ["evaluate", "fbank", "--task", "ks", "--data", str(data), "--seeds", "1"]
    arguments += ["--group", "[/red]sex", "--noise", str(noise), "--snr", "5"]
    arguments += ["--cache", str(tmp_path / "cache"), "--json", str(json_file)]
    assert command_line(arguments) == 0
    shown = capsys.readouterr().out
    for part in ("[/b]x", "[bold]", "[/red]sex", "[i]hum noise, 5 dB"):
        assert part in shown
    json_file.unlink()

    def broken(evaluation: Any) -> None:
        raise RuntimeError("no terminal")

    monkeypatch.setattr(sys.modules["sslim.cli.evaluate"], "show", broken)
    with pytest.raises(RuntimeError, match="no terminal"):
        command_line(arguments)
    assert json.loads(json_file.read_text())["results"][0]["model"] == "fbank"


# --- the suite -----------------------------------------------------------------------------------


@pytest.fixture
def corpora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs a suite of one task; how many times it was really run."""
    data = sounds.labelled(tmp_path / "root" / "audio", clips=60, seconds=0.05)
    corpus = suite.Corpus("ks", "made", "nowhere", lambda root: _rows(data))
    runs = 0
    real, made = suite.evaluate, []

    def counted(models: Any, *arguments: Any, **options: Any) -> Any:
        """The first evaluation again, under the fingerprint of the model: nothing else decides here."""
        nonlocal runs
        runs += 1
        if not made:
            made.append(real(models, *arguments, **options))
        row = replace(made[0].results[0], fingerprint=models[0].fingerprint)
        return replace(made[0], results=(row,))

    monkeypatch.setattr(suite, "evaluate", counted)

    def run(model: Frozen, settings: Settings = QUICK) -> int:
        nonlocal runs
        runs = 0
        monkeypatch.setattr(suite, "open_upstream", lambda source, **options: model)
        facts = suite.run_suite(
            "superb",
            ["model"],
            tmp_path / "root",
            settings,
            None,
            "cpu",
            "float32",
            print,
            [corpus],
        )
        assert facts.computation == identity.COMPUTATION
        assert facts.test_audio.keys() == {"ks"}
        assert facts.results[0].fingerprint == model.fingerprint
        return runs

    return run


def _rows(data: Path) -> list[dict[str, str]]:
    return [
        dict(clip.row) | {"path": str(data.parent / clip.row["path"])}
        for clip in read_clips(data).clips
    ]


def test_a_suite_goes_on_only_where_nothing_changed(
    corpora: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_upstream("fbank")
    assert corpora(model) == 1
    assert corpora(model) == 0
    assert corpora(replace(model, fingerprint="trained again")) == 1
    assert corpora(model) == 1
    for change in (
        {"seeds": (1,)},
        {"learning_rates": (1e-4,)},
        {"options": {"collar": "0.25"}},
        {"schedule": Schedule(epochs=2)},
    ):
        assert corpora(model, replace(QUICK, **change)) == 1, change
    assert corpora(model) == 1
    trials = tmp_path / "trials.csv"
    trials.write_text("1")
    settings = replace(QUICK, options={"trials": str(trials)})
    assert corpora(model, settings) == 1
    trials.write_text("2")
    assert corpora(model, settings) == 1
    assert corpora(model) == 1
    audio = sorted((tmp_path / "root" / "audio").glob("*.wav"))[0]
    audio.write_bytes(audio.read_bytes())
    assert corpora(model) == 1
    done = tmp_path / "root" / suite.STATE / "ks.json"
    for damaged in ("", "[]", done.read_text()[:100]):
        done.write_text(damaged)
        assert corpora(model) == 1
        assert corpora(model) == 0
    monkeypatch.setattr(suite, "versions", lambda: {"sslim": "9.9"})
    assert corpora(model) == 1
    monkeypatch.setattr(identity, "COMPUTATION", identity.COMPUTATION + 1)
    assert corpora(model) == 1
    assert corpora(model) == 0


def test_an_evaluation_from_the_cache_is_the_same(words: Path, tmp_path: Path) -> None:
    settings = replace(QUICK, store=FeatureStore(tmp_path / "cache"))
    conditions = named_conditions(["telephone", "clipping"])

    def rows(settings: Settings) -> list[dict[str, Any]]:
        found = evaluate(
            ["fbank"], "ks", words, settings=settings, conditions=conditions, groups=["gender"]
        ).to_dict()
        for row in found["results"]:
            del row["seconds"]
        return [*found["results"], *found["groups"]]

    first = rows(settings)
    assert rows(replace(QUICK, store=FeatureStore(tmp_path / "cache"))) == first
    assert rows(QUICK) == first
