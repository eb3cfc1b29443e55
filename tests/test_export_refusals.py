"""What an export refuses, admits and leaves alone: NaN, foreign files, failed comparisons, test rows."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import soundfile
import torch

from sslim import records
from sslim.backbone.exported import ExportedModel
from sslim.cli import run
from sslim.deploy import export as exporting
from sslim.deploy import foreign
from sslim.deploy.calibration import input_ranges
from sslim.deploy.export import _judge, export
from sslim.deploy.foreign import save_dphubert
from sslim.deploy.signals import LONG_SECONDS, find_signals, speech_like
from sslim.deploy.verify import Check, LayerCheck, answers, check_export, shortest_of
from sslim.errors import AudioError, ConfigError, ExportError, OutputError, TeacherError
from sslim.identity import COMPUTATION, content_of
from tests.test_export import DPHUBERT_KINDS, clips, exported, folder_of, loaded_model

NAN = float("nan")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(loaded_model("hubert"), tmp_path_factory.mktemp("models") / "model")


def spoilt(place: str, value: float) -> Any:
    """A model with one weight that is no number."""
    loaded = loaded_model("hubert", pruned=3, kinds=DPHUBERT_KINDS)
    with torch.no_grad():
        dict(loaded.model.named_parameters())[place].view(-1)[0] = value
    return loaded


def check_of(cosine: float, difference: float, output: float, batching: float) -> Check:
    good = LayerCheck(0, 1.0, 0.0)
    return Check((good, LayerCheck(1, cosine, difference), good), output, batching, 1, 1.0, 1.0)


# Comparisons


@pytest.mark.parametrize("format", ["onnx", "onnx-int8"])
@pytest.mark.parametrize("place", range(4))
def test_no_comparison_is_passed_by_nan(format: str, place: int) -> None:
    good = [1.0, 0.0, 0.0, 0.0]
    assert _judge(check_of(*good), format, 0.999)[0]
    bad = list(good)
    bad[place] = NAN
    judged = _judge(check_of(*bad), format, 0.999)[0]
    reads = {"onnx": (1, 2, 3), "onnx-int8": (0, 3)}[format]
    assert judged is (place not in reads)


@pytest.mark.parametrize("value", [NAN, float("inf")])
@pytest.mark.parametrize("place", ["encoder.layers.2.final_layer_norm.weight"])
def test_outputs_that_are_not_finite_are_refused_by_name(
    place: str, value: float, tmp_path: Path
) -> None:
    loaded = spoilt(place, value)
    file = exported(loaded, tmp_path / "m.onnx")
    with pytest.raises(ExportError, match=r"test gives NaN or infinity in hidden state 3 \("):
        check_export(loaded, file, file, clips(), speech_like(1, 2.0))
    # The corrupted twin: the model is sound, the file is not.
    sound = loaded_model("hubert", pruned=3)
    with pytest.raises(ExportError, match="the exported file gives NaN or infinity in hidden st"):
        check_export(sound, file, file, clips(), speech_like(1, 2.0))


def test_calibration_refuses_what_is_not_finite() -> None:
    loaded = spoilt("encoder.layers.0.final_layer_norm.weight", NAN)
    with pytest.raises(ExportError, match=r"encoder\.layers\.1\.\S+ reads nan to nan"):
        input_ranges(loaded, clips())


def test_a_dphubert_file_of_nan_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first state differs by nothing and the last by NaN: Python's max() says nothing."""
    place = "encoder.layers.2.final_layer_norm.weight"
    with pytest.raises(ExportError, match="test gives NaN or infinity"):
        save_dphubert(spoilt(place, NAN), tmp_path / "m.pth")
    # The corrupted twin: the model is sound, what is read back is not.
    original = foreign.build

    def spoiling(*arguments: Any) -> Any:
        again: Any = original(*arguments)
        with torch.no_grad():
            dict(again.named_parameters())[place].view(-1)[0] = NAN
        return again

    monkeypatch.setattr(foreign, "build", spoiling)
    with pytest.raises(ExportError, match="reads back with a difference of nan"):
        save_dphubert(loaded_model("hubert", pruned=3, kinds=DPHUBERT_KINDS), tmp_path / "m.pth")


def test_a_batch_of_different_lengths_and_something_long_are_compared(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    original = ExportedModel.__call__

    def counting(self: ExportedModel, waveforms: Any) -> Any:
        seen.append([len(waveform) for waveform in waveforms])
        return original(self, waveforms)

    monkeypatch.setattr(ExportedModel, "__call__", counting)
    made = export(model, tmp_path / "m.onnx")
    assert made.check is not None
    assert made.check.longest == LONG_SECONDS
    assert max(max(lengths) for lengths in seen) > 10 * 16_000
    batches = [lengths for lengths in seen if len(lengths) > 1]
    assert batches
    assert all(len(set(lengths)) == len(lengths) for lengths in batches)


# Audio


def recordings(folder: Path, seconds: list[float]) -> Path:
    folder.mkdir()
    for number, length in enumerate(seconds):
        soundfile.write(folder / f"{number}.wav", speech_like(number, length), 16_000)
    return folder


def test_calibration_and_check_never_share_audio(tmp_path: Path) -> None:
    for count in (1, 2, 3, 40):
        signals = find_signals(None, recordings(tmp_path / str(count), [2.0] * count), {})
        held = [waveform.tobytes() for waveform in (*signals.calibration, *signals.check)]
        assert len(set(held)) == len(held) >= 2
    one = find_signals(None, tmp_path / "1", {})
    assert len(one.calibration[0]) + len(one.check[0]) == 32_000
    assert "the one utterance of 1" in one.described
    assert one.remarks
    two = find_signals(None, tmp_path / "2", {})
    assert two.described == "1 utterance of 2 (1 others to calibrate)"
    for seconds in (0.5, 1.9):
        short = recordings(tmp_path / f"short{seconds}", [seconds])
        with pytest.raises(AudioError, match="one utterance of"):
            find_signals(None, short, {})
        # Nothing is calibrated in float32.
        assert len(find_signals(None, short, {}, calibrates=False).check) == 1


def test_the_runs_own_audio_is_its_own_rows(model: Path, tmp_path: Path) -> None:
    """By absolute path, and never rows that were kept for testing."""
    audio = recordings(tmp_path / "audio", [1.0, 1.0, 1.0, 1.0])
    rows = [f"{audio / f'{n}.wav'},{'train' if n < 2 else 'test'}" for n in range(4)]
    source = tmp_path / "clips.csv"
    source.write_text("\n".join(["path,split", *rows]))
    folder = tmp_path / "model"
    (folder / "run").mkdir(parents=True)

    def signals(**heard: Any) -> Any:
        facts = {"config": {}, "teacher": {"source": "t"}, "versions": {}}
        known = {"described": "clips", "fingerprint": "a"}
        text = json.dumps(facts | {"audio": known | heard})
        (folder / "run" / "run.json").write_text(text)
        return find_signals(folder, None, {"split": "test"}, calibrates=False)

    found = signals(source=str(source), where={"split": "train"})
    assert [w.tobytes() for w in found.check] == [
        soundfile.read(audio / f"{n}.wav", dtype="float32")[0].tobytes() for n in range(2)
    ]
    for heard, word in (
        ({"source": str(source)}, "which rows"),
        ({"source": os.path.relpath(source), "where": {}}, "no absolute path"),
        ({"source": str(tmp_path / "gone.csv"), "where": {}}, "is gone"),
        ({"source": str(source), "where": [1]}, "does not say where"),
        ({"source": str(source), "where": {"split": "tets"}}, "not used"),
        ({}, "does not say where"),
    ):
        found = signals(**heard)
        assert found.made_here, heard
        assert word in found.remarks[0], heard
    (folder / "run" / "run.json").write_text("[" * 100_000)
    assert find_signals(folder, None, {}).made_here


def test_a_pipe_is_no_audio(model: Path, tmp_path: Path, fresh_python: Any) -> None:
    os.mkfifo(tmp_path / "x.wav")
    (tmp_path / "list.txt").write_text("x.wav\n")
    for source in ("x.wav", "list.txt"):
        done = fresh_python("-m", "sslim", "export", str(model), "m.onnx", "--audio", source)
        assert done.returncode == 2, done.stderr
        assert done.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["list.txt", "x.wav"]


# Files


def test_only_an_export_is_replaced(model: Path, tmp_path: Path) -> None:
    """Neither `--force` nor the description beside the file touches what is not ours."""
    thesis = tmp_path / "thesis.onnx"
    thesis.write_text("years of work")
    with pytest.raises(OutputError, match="no file that sslim export wrote"):
        export(model, thesis, force=True)
    assert thesis.read_text() == "years of work"
    settings = tmp_path / "config.json"
    settings.write_text("{}")
    with pytest.raises(OutputError, match="no description of an export"):
        export(model, tmp_path / "config")
    assert settings.read_text() == "{}"
    made = export(model, tmp_path / "m.onnx")
    export(model, tmp_path / "m.onnx", force=True)
    export(model, tmp_path / "m.pth", format="dphubert")
    export(model, tmp_path / "m.pth", format="dphubert", force=True)
    made.path.write_bytes(b"something else")
    with pytest.raises(OutputError, match="or was changed since"):
        export(model, made.path, force=True)
    # An export that lost its description still says what it is.
    export(model, tmp_path / "n.onnx")
    (tmp_path / "n.onnx.json").unlink()
    export(model, tmp_path / "n.onnx", force=True)
    with pytest.raises(OutputError, match="no file that sslim export wrote"):
        export(model, "/dev/null", force=True)


def test_a_failing_file_says_so_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = folder_of(loaded_model("hubert"), tmp_path / "model")
    out = tmp_path / "m.onnx"
    arguments = ["export", str(model), str(out), "--format", "onnx-int8", "--min-cosine", "1"]
    assert run(arguments) == 2
    assert not out.exists()
    capsys.readouterr()
    assert run([*arguments, "--force"]) == 0
    assert "FAILED" in capsys.readouterr().out
    facts = json.loads((tmp_path / "m.onnx.json").read_text())
    assert facts["passed"] is False
    assert any("FAILED" in note for note in facts["notes"])
    check = json.loads(ExportedModel(out).metadata["check"])
    assert check["passed"] is False
    assert check["worst_cosine"] == facts["worst_cosine"] < 1
    assert "FAILED" in (model / "README.md").read_text()
    onnx.checker.check_model(onnx.load(out))
    good = export(model, tmp_path / "good.onnx")
    assert json.loads(ExportedModel(good.path).metadata["check"])["passed"] is True


def test_the_description_carries_identities(model: Path, tmp_path: Path) -> None:
    made = [
        export(model, tmp_path / "a.onnx"),
        export(model, tmp_path / "b.onnx", format="onnx-int8", min_cosine=0.9),
        export(model, tmp_path / "c.pth", format="dphubert"),
    ]
    facts = [json.loads(m.path.with_name(m.path.name + ".json").read_text()) for m in made]
    for one, file in zip(facts, made, strict=True):
        assert one["fingerprint"] == content_of(file.path)
        assert one["computation"] == COMPUTATION
    assert len({one["fingerprint"] for one in facts}) == 3
    assert len({one["model_fingerprint"] for one in facts}) == 1
    assert facts[0]["model_fingerprint"] == ExportedModel(made[0].path).facts["fingerprint"]


@pytest.mark.parametrize("where", ["_append", "fsync_file", "write_json"])
@pytest.mark.parametrize("format", ["onnx", "dphubert"])
def test_a_full_disk_leaves_nothing(
    where: str, format: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (where, format) == ("_append", "dphubert"):
        pytest.skip("nothing is appended to it")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(records if where == "write_json" else exporting, where, full)
    with pytest.raises(OutputError, match="No space left on device"):
        export(model, tmp_path / "m.bin", format=format)
    assert list(tmp_path.iterdir()) == []


def test_a_limit_on_files_is_a_sentence(model: Path, tmp_path: Path, fresh_python: Any) -> None:
    """A real one, in a process of its own."""
    for format in ("onnx", "onnx-int8", "dphubert"):
        code = (
            "import resource, sys; from sslim.cli import run; "
            "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)); "
            f"sys.exit(run(['export', {str(model)!r}, 'm.bin', '--format', {format!r}]))"
        )
        done = fresh_python("-c", code)
        assert done.returncode == 2, done.stderr
        assert "cannot write m.bin: File too large" in done.stderr
        assert done.stderr.count("\n") == 1
        assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    model = folder_of(loaded_model("hubert"), tmp_path / "model")
    model.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        made = export(model, tmp_path / "m.onnx")
        with pytest.raises(OutputError, match="cannot write"):
            export(model, model / "m.onnx")
    finally:
        model.chmod(stat.S_IRWXU)
    assert any("does not mention" in note for note in made.notes)


def test_a_card_that_cannot_be_written_costs_a_note_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = folder_of(loaded_model("hubert"), tmp_path / "model")
    original = exporting.write_text

    def refusing(path: Path, text: str) -> None:
        if path.name == "README.md":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        original(path, text)

    monkeypatch.setattr(exporting, "write_text", refusing)
    made = export(model, tmp_path / "m.onnx")
    assert any("Read-only file system" in note for note in made.notes)
    assert made.path.is_file()


def test_outputs_are_checked_before_anything_is_computed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def computing(*_: Any, **__: Any) -> None:
        raise AssertionError("it computes")

    monkeypatch.setattr(exporting, "load_model", computing)
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file" / "m.onnx", tmp_path / ("x" * 250), tmp_path / ("x" * 300)):
        with pytest.raises(OutputError):
            export(model, out)
    for value in (NAN, 1.5, -2.0):
        with pytest.raises(ConfigError, match="min_cosine"):
            export(model, tmp_path / "m.onnx", min_cosine=value)


def test_an_odd_vocabulary_is_a_sentence(tmp_path: Path) -> None:
    model = folder_of(loaded_model("wav2vec2", head="ctc"), tmp_path / "model")
    for text in ("[]", "null", '{"a": null}', '{"a": "b"}', "{"):
        (model / "vocab.json").write_text(text)
        with pytest.raises(TeacherError, match="vocab"):
            export(model, tmp_path / "m.onnx")
    (model / "vocab.json").write_text('{"b": 1, "a": 0}')
    export(model, tmp_path / "m.onnx")
    assert json.loads(ExportedModel(tmp_path / "m.onnx").metadata["labels"]) == ["a", "b"]


@pytest.mark.parametrize("format", ["onnx", "onnx-int8"])
def test_a_head_over_several_frames_and_audio_of_one(format: str, tmp_path: Path) -> None:
    """An x-vector needs some frames: shorter audio is left out of the check, and is NaN in a batch."""
    loaded = loaded_model("wav2vec2", head="x-vector")
    model = folder_of(loaded, tmp_path / "model")
    short = tmp_path / "short"
    short.mkdir()
    for number in range(4):
        soundfile.write(short / f"{number}.wav", 0.1 * np.sin(np.arange(400)), 16_000)
    made = export(model, tmp_path / "m.onnx", format=format, audio=short, force=True)
    assert made.check is not None
    assert made.check.utterances == 0
    assert made.check.longest == LONG_SECONDS
    shortest = shortest_of(loaded)
    with pytest.raises(RuntimeError):
        answers(loaded, clips((shortest - 1000,))[0])
    file = ExportedModel(tmp_path / "m.onnx")
    batch = file(clips((9000, shortest - 320, shortest)))
    for name in ("logits", "embeddings"):
        assert np.isfinite(batch[name][[0, 2]]).all()
        assert np.isnan(batch[name][1]).all()


def test_rows_of_nothing_are_not_chosen(model: Path, tmp_path: Path) -> None:
    """A condition that is passed over would be believed."""
    with pytest.raises(ConfigError, match="--where"):
        export(model, tmp_path / "m.onnx", where={"split": "train"})
    assert not list(tmp_path.iterdir())
