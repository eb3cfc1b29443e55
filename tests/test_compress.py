"""The main job, end to end on tiny models: budgets, resuming, heads, and everything that can be wrong."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCTC

import sslim
from sslim.cli import run as command_line
from sslim.deploy.export import export
from sslim.errors import (
    AudioError,
    BudgetError,
    ConfigError,
    OutputError,
    TeacherError,
    TrainingError,
)
from sslim.report.inspect import inspect_model
from sslim.story import compress
from sslim.train.progress import StageBar
from tests.models import CASES, tiny_teacher

SETTINGS = [
    "seconds_per_update=2",
    "seconds_per_batch=1",
    "audio.min_seconds=0.2",
    "audio.max_seconds=1",
    "stage1.updates=6",
    "stage2.updates=4",
    "workers=0",
    "log_every=1",
    "checkpoint_every=2",
    "precision=float32",
]


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audio")
    generator = np.random.default_rng(0)
    for index in range(10):
        noise = 0.1 * generator.standard_normal(6000 + 400 * index)
        soundfile.write(folder / f"{index}.wav", noise, 16_000)
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    tiny_teacher("hubert").save_pretrained(folder)
    return folder


def run(teacher: Path, audio: Path, out: Path, *more: str, **settings: Any) -> Any:
    return compress(
        teacher,
        audio,
        out,
        settings=[*SETTINGS, *more],
        progress=False,
        **{"params": "50%"} | settings,
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(("family", "size"), CASES)
def test_every_family_end_to_end(family: str, size: str, audio: Path, tmp_path: Path) -> None:
    dense = tiny_teacher(family, size)
    dense.save_pretrained(tmp_path / "teacher")
    result = run(tmp_path / "teacher", audio, tmp_path / "out")
    count = dense.num_parameters()
    model = AutoModel.from_pretrained(tmp_path / "out")
    assert result.dense_parameters == count
    assert result.parameters == model.num_parameters()
    assert 0.99 * count // 2 <= result.parameters <= count // 2
    assert result.file_bytes == (tmp_path / "out" / "model.safetensors").stat().st_size
    assert set(result.layers) == {0, 1, 2, 3}
    assert f"{result.parameters:,} parameters" in result.summary_line()
    facts = json.loads((tmp_path / "out" / "sslim.json").read_text())
    assert facts["config"]["stage1"]["updates"] == 6
    assert facts["audio"]["utterances"] == 8, "what was trained on; two of ten are held out"
    held_out = facts["result"]["held_out"]
    assert held_out["utterances"] == 2
    assert held_out["layers"] == facts["result"]["layers"]
    rows = held_out["layers"].values()
    assert held_out["loss"] == pytest.approx(
        sum(row["l1"] - row["cosine"] for row in rows) / len(rows), abs=1e-5
    )
    assert result.summary_line().endswith("on 2 held-out utterances")
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{result.parameters:,}" in card
    assert f"{result.file_bytes:,}" in card
    published = card + json.dumps(facts) + (tmp_path / "out" / "config.json").read_text()
    assert str(tmp_path) not in published, "a published folder must not tell paths"
    lines = (tmp_path / "out" / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["update"] for line in lines] == [1, 2, 3, 4, 5, 6, 1, 2, 3, 4]
    assert not (tmp_path / "out" / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("asked", "share"),
    [
        ({"params": "25%"}, 0.25),
        ({"params": None, "sparsity": 0.4}, 0.6),
        ({"params": "12K"}, None),
    ],
)
def test_budgets(
    teacher: Path, audio: Path, tmp_path: Path, asked: Any, share: float | None
) -> None:
    result = run(teacher, audio, tmp_path / "out", **asked)
    limit = 12_000 if share is None else int(share * result.dense_parameters)
    assert 0.99 * limit <= result.parameters <= limit


def test_a_budget_on_macs(teacher: Path, audio: Path, tmp_path: Path) -> None:
    result = run(
        teacher, audio, tmp_path / "out", "budget_quantity=macs", "budget=40%", params=None
    )
    assert 0.39 * result.dense_macs_per_second <= result.macs_per_second
    assert result.macs_per_second <= 0.4001 * result.dense_macs_per_second


def test_the_card_names_a_base_model_only_where_the_hub_knows_one() -> None:
    from sslim.report.card import _base_model

    assert _base_model("facebook/hubert-base-ls960") == "base_model: facebook/hubert-base-ls960\n"
    for local in (
        "teacher",
        "./teacher",
        "/data/teacher",
        "a/b/teacher",
        "~/teacher",
        "../teacher",
    ):
        assert _base_model(local) == ""


def test_whole_blocks_can_go(teacher: Path, audio: Path, tmp_path: Path) -> None:
    units = "units=conv,head,ffn,attention_block,ffn_block"
    result = run(teacher, audio, tmp_path / "out", units)
    assert result.parameters <= result.dense_parameters // 2


def test_taps_can_go(teacher: Path, audio: Path, tmp_path: Path) -> None:
    """Asked for, they train, are decided, saved, shown and exported like any unit."""
    result = run(teacher, audio, tmp_path / "out", "units=conv,head,ffn,tap", params="20%")
    assert 0.99 * 0.2 * result.dense_parameters <= result.parameters
    assert result.parameters <= 0.2 * result.dense_parameters
    kept = json.loads((tmp_path / "out" / "config.json").read_text())["plan"]["axes"]["tap.0"]
    assert 1 <= len(kept) < 8
    model = AutoModel.from_pretrained(tmp_path / "out")
    assert result.parameters == model.num_parameters()
    log = (tmp_path / "out" / "run" / "metrics.jsonl").read_text().splitlines()
    assert "open.tap" in json.loads(log[0])
    assert inspect_model(tmp_path / "out").to_dict()["axes"]["tap.0"]["kept_units"] == kept
    for format in ("onnx", "onnx-int8"):
        assert export(tmp_path / "out", tmp_path / "m.onnx", format=format, force=True).check


def test_a_head_is_kept_on_top(audio: Path, tmp_path: Path) -> None:
    dense = tiny_teacher("wav2vec2", auto=AutoModelForCTC, vocab_size=9)
    dense.save_pretrained(tmp_path / "teacher")
    run(tmp_path / "teacher", audio, tmp_path / "out")
    model = AutoModelForCTC.from_pretrained(tmp_path / "out")
    assert torch.equal(model.lm_head.weight, dense.lm_head.weight)
    bare = AutoModel.from_pretrained(tmp_path / "out")
    waveforms = torch.randn(1, 4000)
    with torch.no_grad():
        assert model(waveforms).logits.shape[-1] == 9
        expected = model.backbone(waveforms).last_hidden_state
        assert torch.equal(bare(waveforms).last_hidden_state, expected)


def test_the_same_seed_gives_the_same_weights(teacher: Path, audio: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(teacher, audio, tmp_path / name, f"seed={seed}")
    first, second, other = (weights(tmp_path / name) for name in "abc")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(name not in other or not torch.equal(first[name], other[name]) for name in first), (
        "the seed changed nothing"
    )


@pytest.mark.parametrize(
    ("stop", "cache"), [(1, 0.0), (3, 0.0), (5, 0.0), (6, 0.0), (7, 0.0), (9, 0.0), (5, 0.01)]
)
def test_an_interrupted_run_goes_on_bit_for_bit(
    teacher: Path,
    audio: Path,
    tmp_path: Path,
    stop: int,
    cache: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = f"target_cache_gib={cache}"
    run(teacher, audio, tmp_path / "whole", kept)
    steps = 0

    def interrupt(*_: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == stop:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(StageBar, "__call__", interrupt)
        run(teacher, audio, tmp_path / "cut", kept)
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    run(teacher, audio, tmp_path / "cut", kept, resume=True)
    logs = [(tmp_path / name / "run" / "metrics.jsonl").read_text() for name in ("whole", "cut")]
    assert logs[0] == logs[1]
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_a_killed_decoder_is_a_sentence_and_loses_nothing(
    teacher: Path, audio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a kernel short of memory does to a run's workers."""

    def kill(*_: Any) -> None:
        for child in psutil.Process().children():
            child.kill()
            child.wait(10)

    long = ("workers=1", "stage1.updates=12")  # more than the worker has decoded ahead
    with monkeypatch.context() as patch, pytest.raises(TrainingError, match=r"killed.*--resume"):
        patch.setattr(StageBar, "__call__", kill)
        run(teacher, audio, tmp_path / "out", *long)
    run(teacher, audio, tmp_path / "out", *long, resume=True)
    run(teacher, audio, tmp_path / "whole", *long)
    resumed, whole = weights(tmp_path / "out"), weights(tmp_path / "whole")
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_a_resumed_run_refuses_other_settings(
    teacher: Path, audio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(StageBar, "__call__", interrupt)
        run(teacher, audio, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"seed \(0 before, 4 now\)"):
        run(teacher, audio, tmp_path / "out", "seed=4", resume=True)
    tiny_teacher("hubert", seed=9).save_pretrained(tmp_path / "other")
    with pytest.raises(ConfigError, match="another teacher"):
        run(tmp_path / "other", audio, tmp_path / "out", resume=True)
    run(teacher, audio, tmp_path / "out", "log_every=3", resume=True)
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_resuming_a_finished_run_changes_nothing(
    teacher: Path, audio: Path, tmp_path: Path
) -> None:
    first = run(teacher, audio, tmp_path / "out")
    before = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    assert run(teacher, audio, tmp_path / "out", resume=True) == first
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == before


def test_an_existing_folder_is_not_overwritten(teacher: Path, audio: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="already holds something"):
        run(teacher, audio, out)
    with pytest.raises(OutputError, match="not from sslim"):
        run(teacher, audio, out, force=True)
    with pytest.raises(OutputError, match="no run to resume"):
        run(teacher, audio, out, resume=True)
    assert (out / "thesis.txt").read_text() == "mine"
    (out / "thesis.txt").unlink()
    run(teacher, audio, out)
    before = (out / "model.safetensors").read_bytes()
    with pytest.raises(AudioError):
        run(teacher, tmp_path / "gone", out, force=True)
    assert (out / "model.safetensors").read_bytes() == before, "a failed try must lose nothing"
    run(teacher, audio, out, force=True)


def test_force_removes_what_sslim_wrote_and_nothing_else(
    teacher: Path, audio: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    # A folder that only looks like a run's holds somebody's work.
    (out / "run").mkdir(parents=True)
    for text in ("", "{}", "[]", '{"config": 3, "teacher": {}}'):
        (out / "run" / "run.json").write_text(text)
        (out / "thesis.tex").write_text("mine")
        with pytest.raises(OutputError, match="not from sslim"):
            run(teacher, audio, out, force=True)
        assert (out / "thesis.tex").read_text() == "mine"
    shutil.rmtree(out)
    run(teacher, audio, out)
    mine = ("thesis.tex", "rollout.toml", "small.onnx", "evidence/scores.json", "run/notes.txt")
    for name in mine:
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("mine")
    (out / "vocab.json").write_text("of a teacher with a head")
    (out / "run" / "state.json").unlink()
    (out / "run" / "state.json").symlink_to(out / "thesis.tex")
    old = (out / "model.safetensors").read_bytes()
    identity = json.loads((out / "run" / "run.json").read_text())["id"]
    compress(
        teacher, audio, out, settings=[*SETTINGS, "seed=5"], params="50%", force=True, progress=True
    )
    assert all((out / name).read_text() == "mine" for name in mine)
    assert "left in" in (said := capsys.readouterr().err)
    assert "evidence, rollout.toml, small.onnx, thesis.tex" in said
    assert not (out / "vocab.json").exists()
    assert (out / "model.safetensors").read_bytes() != old
    record = json.loads((out / "run" / "run.json").read_text())
    assert record["id"] != identity
    assert json.loads((out / "sslim.json").read_text())["run"] == record["id"]


def test_what_is_in_the_way_is_refused(teacher: Path, audio: Path, tmp_path: Path) -> None:
    run(teacher, audio, tmp_path / "out")
    (tmp_path / "out" / "README.md").unlink()
    (tmp_path / "out" / "README.md").mkdir()
    (tmp_path / "out" / "README.md" / "thesis.tex").write_text("mine")
    with pytest.raises(OutputError, match=r"README.md is a folder.*Move it away"):
        run(teacher, audio, tmp_path / "out", force=True)
    assert (tmp_path / "out" / "README.md" / "thesis.tex").read_text() == "mine"
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize("kind", ["python list", "list", "csv", "link"])
def test_no_single_utterance_may_lie_in_the_output(
    teacher: Path, audio: Path, tmp_path: Path, kind: str
) -> None:
    run(teacher, audio, tmp_path / "out")
    shutil.copytree(audio, tmp_path / "out" / "speech")
    files = [*sorted(audio.glob("*.wav")), tmp_path / "out" / "speech" / "3.wav"]
    source: Any = files
    if kind == "link":
        (tmp_path / "x.wav").symlink_to(files[-1])
        source = [*files[:-1], tmp_path / "x.wav"]
    elif kind != "python list":
        source = tmp_path / ("files.csv" if kind == "csv" else "files.txt")
        lines = ["path"] if kind == "csv" else []
        source.write_text("\n".join([*lines, *map(str, files)]) + "\n")
    with pytest.raises(OutputError, match=r"wav lies in the output folder"):
        run(teacher, source, tmp_path / "out", force=True)
    assert (tmp_path / "out" / "speech" / "3.wav").is_file()
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_finished_run_is_not_the_result_of_other_inputs(
    teacher: Path, audio: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, own = tmp_path / "out", tmp_path / "teacher"
    shutil.copytree(teacher, own)
    sound = tmp_path / "audio"
    shutil.copytree(audio, sound)
    first = run(own, sound, out)
    with pytest.raises(ConfigError, match=r"budget \(50% before, 40% now\).*--params 50%"):
        run(own, sound, out, params="40%", resume=True)
    with pytest.raises(ConfigError, match=r"seed \(0 before, 3 now\)"):
        run(own, sound, out, "seed=3", resume=True)
    with pytest.raises(TeacherError, match="does not exist"):
        run(tmp_path / "nothing", sound, out, resume=True)
    tiny_teacher("hubert", seed=9).save_pretrained(tmp_path / "other")
    with pytest.raises(ConfigError, match="another teacher"):
        run(tmp_path / "other", sound, out, resume=True)
    with pytest.raises(AudioError):
        run(own, tmp_path / "nothing", out, resume=True)
    with pytest.raises(ConfigError, match=r"10 utterances.*9 utterances"):
        run(own, sorted(sound.glob("*.wav"))[1:], out, resume=True)
    # Whatever is named as it was, and is gone, is not needed any more.
    shutil.rmtree(own)
    shutil.rmtree(sound)
    again = compress(own, sound, out, settings=SETTINGS, params="50%", resume=True)
    assert again == first
    said = capsys.readouterr().err
    assert f"the teacher {own} cannot be looked at any more" in said
    assert "the audio cannot be looked at any more" in said


def test_a_damaged_result_is_not_called_finished(
    teacher: Path, audio: Path, tmp_path: Path
) -> None:
    run(teacher, audio, tmp_path / "out")
    path = tmp_path / "out" / "sslim.json"
    facts = json.loads(path.read_text())
    weights_now = (tmp_path / "out" / "model.safetensors").read_bytes()
    digest = hashlib.sha256(weights_now).hexdigest()
    path.write_text(json.dumps({**facts, "files": {"model.safetensors": digest}}))
    run(teacher, audio, tmp_path / "out", resume=True)
    (tmp_path / "out" / "model.safetensors").write_bytes(weights_now[:-4] + b"1234")
    with pytest.raises(OutputError, match=r"model.safetensors: is not what was written.*--force"):
        run(teacher, audio, tmp_path / "out", resume=True)
    for text, message in (('{"result": []}', "is not what the run in"), ("{", "cannot be read")):
        path.write_text(text)
        with pytest.raises(OutputError, match=message):
            run(teacher, audio, tmp_path / "out", resume=True)


def test_a_kill_after_the_result_was_written_leaves_nothing_for_good(
    teacher: Path, audio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr("sslim.runs.folder.clear_after", killed)
        run(teacher, audio, tmp_path / "out")
    kept = tmp_path / "out" / "run"
    assert (kept / "projections.safetensors").is_file(), "written before the run counts as finished"
    assert (kept / "products" / "recover").is_dir()
    run(teacher, audio, tmp_path / "out", resume=True)
    assert not any((kept / name).exists() for name in ("products", "checkpoints", "targets"))


def test_other_rows_or_another_precision_are_refused_by_name(
    teacher: Path, audio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ["path,split"]
    rows += [f"{file},{'test' if file.stem < '3' else 'train'}" for file in audio.glob("*.wav")]
    (tmp_path / "clips.csv").write_text("\n".join(rows) + "\n")

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    out, where = tmp_path / "out", {"split": "train"}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) as stopped:
        patch.setattr(StageBar, "__call__", interrupt)
        run(teacher, tmp_path / "clips.csv", out, where=where)
    assert stopped.value.__notes__ == ["Run the same command with --resume"]
    with pytest.raises(
        ConfigError, match=r"--where split=train, not with none.*--where split=train"
    ):
        run(teacher, tmp_path / "clips.csv", out, resume=True)
    with pytest.raises(ConfigError, match=r"in float32.*bfloat16.*--set precision=float32"):
        run(teacher, tmp_path / "clips.csv", out, "precision=bfloat16", where=where, resume=True)
    # A setting that this version has and the one that began the run had not.
    path = out / "run" / "run.json"
    record = json.loads(path.read_text())
    older = json.loads(path.read_text())
    del older["config"]["audio"]["held_out"]
    path.write_text(json.dumps(older))
    with pytest.raises(ConfigError, match=r"audio.held_out \(unknown before, 0.05 now\)"):
        run(teacher, tmp_path / "clips.csv", out, where=where, resume=True)
    path.write_text(json.dumps({**record, "computation": 1}))
    with pytest.raises(ConfigError, match="which computes other numbers"):
        run(teacher, tmp_path / "clips.csv", out, where=where, resume=True)
    path.write_text(json.dumps(record))
    run(teacher, tmp_path / "clips.csv", out, where=where, resume=True)


def test_trackers_get_the_figures_of_a_run(teacher: Path, audio: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(ConfigError, match="no tracker"):
        run(teacher, audio, tmp_path / "out", "trackers=tensorbord")
    assert not (tmp_path / "out").exists()
    run(teacher, audio, tmp_path / "out", "trackers=tensorboard")
    events = EventAccumulator(str(next((tmp_path / "out").rglob("events.out.tfevents.*")).parent))
    events.Reload()
    assert [point.step for point in events.Scalars("stage1/loss")] == [1, 2, 3, 4, 5, 6]
    assert [point.step for point in events.Scalars("stage2/loss")] == [7, 8, 9, 10]


def test_the_batch_size_of_a_run_before_is_not_inherited(
    teacher: Path, audio: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(teacher, audio, out, "seconds_per_batch=0")
    state = json.loads((out / "run" / "state.json").read_text())
    assert state["seconds_per_batch"] > 0.5
    (out / "run" / "state.json").write_text(json.dumps({**state, "seconds_per_batch": 0.25}))
    run(teacher, audio, out, "seconds_per_batch=0", force=True)
    now = json.loads((out / "run" / "state.json").read_text())
    assert now["seconds_per_batch"] == state["seconds_per_batch"]


def test_without_held_out_audio_it_is_said(teacher: Path, audio: Path, tmp_path: Path) -> None:
    result = run(teacher, audio, tmp_path / "out", "audio.held_out=0")
    facts = json.loads((tmp_path / "out" / "sslim.json").read_text())
    assert facts["audio"]["utterances"] == 10
    assert facts["result"]["held_out"] is None
    assert result.summary_line().endswith("on audio that was trained on")


def test_the_output_may_be_a_link_or_here(
    teacher: Path, audio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    run(teacher, audio, tmp_path / "link")
    assert (tmp_path / "real" / "model.safetensors").is_file()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    run(teacher, audio, Path("."))
    assert (tmp_path / "here" / "model.safetensors").is_file()


def test_the_result_never_replaces_what_it_is_made_from(audio: Path, tmp_path: Path) -> None:
    tiny_teacher("hubert").save_pretrained(tmp_path / "model")
    shutil.copytree(audio, tmp_path / "model" / "audio")
    tiny_teacher("hubert").save_pretrained(tmp_path / "other")
    with pytest.raises(OutputError, match=r"teacher .* lies in the output folder"):
        run(tmp_path / "model", audio, tmp_path / "model", force=True)
    with pytest.raises(OutputError, match=r"audio .* lies in the output folder"):
        run(tmp_path / "other", tmp_path / "model" / "audio", tmp_path / "model", force=True)
    assert (tmp_path / "model" / "audio" / "3.wav").is_file()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"params": "1%"}, BudgetError, "smallest possible is"),
        ({"params": "100%"}, ConfigError, "100%"),
        ({"audio": "gone"}, AudioError, "does not exist"),
        ({"teacher": "gone"}, TeacherError, "does not exist"),
        ({"settings": ["stage1.update=3"]}, ConfigError, r"stage1\.updates"),
        ({"settings": ["layers=0,7"]}, ConfigError, r"\[7\]"),
        ({"settings": ["audio.min_seconds=30", "audio.max_seconds=40"]}, AudioError, "longest has"),
        ({"recipe": "papre"}, ConfigError, "paper"),
        ({"device": "cuda:77"}, ConfigError, "cuda:77"),
    ],
)
def test_bad_input_is_found_before_training_and_leaves_nothing(
    teacher: Path, audio: Path, tmp_path: Path, changes: Any, error: type, message: str
) -> None:
    arguments = {"audio": audio, "params": "50%", "settings": []} | changes
    source = arguments.pop("audio")
    model = arguments.pop("teacher", teacher)
    more = arguments.pop("settings")
    with pytest.raises(error, match=message) as caught:
        compress(
            model,
            source,
            tmp_path / "out",
            settings=[*SETTINGS, *more],
            progress=False,
            **arguments,
        )
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_bad_loss_stops_before_the_step_and_keeps_the_last_state(
    teacher: Path, audio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sslim.audio.batch import Batch
    from sslim.distill.task import Task

    real = Task.forward

    def poisoned(task: Task, batch: Batch) -> Any:
        parts = real(task, batch)
        return parts | {"loss": parts["loss"] * float("nan")} if task.update == 3 else parts

    with monkeypatch.context() as patch, pytest.raises(TrainingError) as caught:
        patch.setattr(Task, "forward", poisoned)
        run(teacher, audio, tmp_path / "out")
    message = str(caught.value)
    assert "stage1, update 4" in message
    assert "nan" in message
    assert ".wav" in message
    # The state before that update is whole: the run goes on from it as if nothing had happened.
    run(teacher, audio, tmp_path / "out", resume=True)
    run(teacher, audio, tmp_path / "whole")
    left, right = weights(tmp_path / "out"), weights(tmp_path / "whole")
    assert all(torch.equal(left[name], right[name]) for name in right)


def test_a_full_disk_is_a_sentence_and_loses_nothing(
    teacher: Path,
    audio: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from sslim.runs import checkpoint

    real, calls = checkpoint.save_file, 0

    def full(*arguments: Any, **settings: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError(28, "No space left on device")
        real(*arguments, **settings)

    command = ["compress", str(teacher), str(audio), str(tmp_path / "out"), "--params", "50%"]
    command += [part for setting in SETTINGS for part in ("--set", setting)]
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        assert command_line(command) == 2
    assert "error: " in (printed := capsys.readouterr().err)
    assert "disk is full" in printed
    assert "Traceback" not in printed
    assert command_line([*command, "--resume"]) == 0
    run(teacher, audio, tmp_path / "whole")
    left, right = weights(tmp_path / "out"), weights(tmp_path / "whole")
    assert all(torch.equal(left[name], right[name]) for name in right)


def test_a_warning_names_the_gates_that_had_not_settled(
    teacher: Path, audio: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = compress(teacher, audio, tmp_path / "out", settings=SETTINGS, params="50%")
    assert result.undecided > 0
    assert f"warning: {result.undecided:,} of {result.units:,} gates" in capsys.readouterr().err


def test_the_python_api(teacher: Path, audio: Path, tmp_path: Path) -> None:
    sslim.compress(
        teacher, audio, tmp_path / "out", params="50%", settings=SETTINGS, progress=False
    )
    model = sslim.load(tmp_path / "out")
    states = model(torch.randn(1, 4000), output_hidden_states=True).hidden_states
    assert len(states) == 4


def test_where_the_audio_lies_and_what_is_held_out_is_recorded(
    teacher: Path, audio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that export finds the run's audio from any folder, and others can measure on the same clips."""
    monkeypatch.chdir(audio.parent)
    run(teacher, audio.name, tmp_path / "out")
    heard = json.loads((tmp_path / "out" / "run" / "run.json").read_text())["audio"]
    assert heard["source"] == audio.name
    assert heard["path"] == str(audio)
    listed = json.loads((tmp_path / "out" / "run" / "held_out.json").read_text())
    facts = json.loads((tmp_path / "out" / "sslim.json").read_text())
    assert facts["audio"]["path"] == ""
    held = facts["result"]["held_out"]
    assert listed["chosen"] == held["chosen"]
    assert len(listed["utterances"]) == held["utterances"] > 0
    seconds = sum(soundfile.info(item["path"]).duration for item in listed["utterances"])
    assert seconds == pytest.approx(held["seconds"], abs=0.01)


def test_odd_audio_is_skipped_not_fatal(teacher: Path, audio: Path, tmp_path: Path) -> None:
    folder = tmp_path / "audio"
    shutil.copytree(audio, folder)
    (folder / "broken.wav").write_text("no audio")
    soundfile.write(folder / "silent.flac", np.zeros(16_000), 16_000)
    soundfile.write(
        folder / "other.ogg", 0.1 * np.random.default_rng(1).standard_normal((30_000, 2)), 44_100
    )
    run(teacher, folder, tmp_path / "out")
    skipped = json.loads((tmp_path / "out" / "run" / "skipped.json").read_text())["skipped"]
    assert {Path(item["path"]).name for item in skipped} == {"broken.wav", "silent.flac"}
    facts = json.loads((tmp_path / "out" / "sslim.json").read_text())
    heard = facts["audio"]["utterances"] + facts["result"]["held_out"]["utterances"]
    assert heard == 11
