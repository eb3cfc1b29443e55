"""Going on with embed: the same recordings, the same model, the same file; whatever happened between."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from sslim import records
from sslim.cli import run
from sslim.deploy import embed as embedding
from sslim.deploy.embed import embed
from sslim.deploy.export import export
from sslim.deploy.extractor import open_extractor, parse_layer
from sslim.deploy.signals import speech_like
from sslim.deploy.streaming import Chunking
from sslim.errors import AudioError, ConfigError, OutputError
from sslim.files import FolderLock
from sslim.identity import COMPUTATION, content_of
from sslim.records import to_json
from tests.test_export import folder_of, loaded_model

SHORT = Chunking(2.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(loaded_model("hubert"), tmp_path_factory.mktemp("models") / "model")


@pytest.fixture(scope="module")
def files(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("files")
    export(model, folder / "m.onnx")
    export(model, folder / "m8.onnx", format="onnx-int8", min_cosine=0.9)
    return folder / "m.onnx", folder / "m8.onnx"


def write(path: Path, seed: int, seconds: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, speech_like(seed, seconds), 16_000, subtype="FLOAT")
    return path


def features_of(path: Path) -> np.ndarray:
    with np.load(path, allow_pickle=False) as file:
        features: np.ndarray = file["features"]
    return features


def summary_of(out: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((out / "embed.json").read_text())
    return facts


def killed_after(pieces: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on a run dies after so many chunks."""
    original = embedding.features

    def dying(*arguments: Any, **options: Any) -> Iterator[np.ndarray]:
        for count, part in enumerate(original(*arguments, **options)):
            if count == pieces:
                monkeypatch.setattr(embedding, "features", original)
                raise KeyboardInterrupt
            yield part

    monkeypatch.setattr(embedding, "features", dying)


def test_a_recording_replaced_in_the_middle_starts_anew(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audio = tmp_path / "in"
    write(audio / "x.wav", 1, 9.0)
    killed_after(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        embed(model, audio, tmp_path / "out", chunking=SHORT, batch=1)
    write(audio / "x.wav", 2, 9.0)
    embed(model, audio, tmp_path / "out", chunking=SHORT, batch=1, resume=True)
    embed(model, audio, tmp_path / "fresh", chunking=SHORT, batch=1)
    got = features_of(tmp_path / "out" / "x.npz")
    assert np.array_equal(got, features_of(tmp_path / "fresh" / "x.npz"))


def test_a_finished_recording_that_was_replaced_is_computed_again(
    model: Path, tmp_path: Path
) -> None:
    audio, out, said = tmp_path / "in", tmp_path / "out", []
    write(audio / "x.wav", 1, 3.0)
    write(audio / "y.wav", 3, 3.0)
    embed(model, audio, out, chunking=SHORT)
    untouched = (out / "y.npz").stat().st_mtime_ns
    write(audio / "x.wav", 2, 3.0)
    done = embed(model, audio, out, chunking=SHORT, resume=True, say=said.append)
    assert [file.file for file in done.files] == ["x.npz"]
    assert (out / "y.npz").stat().st_mtime_ns == untouched
    embed(model, audio, tmp_path / "fresh", chunking=SHORT)
    assert np.array_equal(features_of(out / "x.npz"), features_of(tmp_path / "fresh" / "x.npz"))
    assert any("another recording than before" in line for line in said)
    names = {file["file"]: file for file in summary_of(out)["files"]}
    assert names["x.npz"]["content"] == content_of(audio / "x.wav")


def test_other_recordings_do_not_replace_what_is_there(model: Path, tmp_path: Path) -> None:
    write(tmp_path / "a" / "x.wav", 1, 1.0)
    write(tmp_path / "b" / "x.wav", 2, 1.0)
    embed(model, tmp_path / "a", tmp_path / "out")
    with pytest.raises(OutputError, match=r"holds features of .*a/x\.wav, not of"):
        embed(model, tmp_path / "b", tmp_path / "out", resume=True)
    # The same recordings at another place are the same recordings.
    shutil.move(tmp_path / "a", tmp_path / "c")
    assert embed(model, tmp_path / "c", tmp_path / "out", resume=True).files == []


def test_float32_int8_and_torch_are_never_mixed(
    model: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    write(tmp_path / "in" / "x.wav", 1, 1.0)
    contestants = [str(model), *map(str, files)]
    for number, first in enumerate(contestants):
        out = tmp_path / str(number)
        embed(first, tmp_path / "in", out)
        for other in contestants:
            if other == first:
                assert embed(other, tmp_path / "in", out, resume=True).files == []
            else:
                with pytest.raises(ConfigError, match="fingerprint is"):
                    embed(other, tmp_path / "in", out, resume=True)
    models = [open_extractor(contestant).model for contestant in contestants]
    assert len({one.fingerprint for one in models}) == 3
    assert len({one.model_fingerprint for one in models}) == 1
    facts = summary_of(tmp_path / "1")
    assert facts["fingerprint"] == content_of(files[0])
    assert facts["model_fingerprint"] == models[0].fingerprint
    assert facts["computation"] == COMPUTATION


def test_a_run_of_older_code_is_not_gone_on_with(model: Path, tmp_path: Path) -> None:
    write(tmp_path / "in" / "x.wav", 1, 1.0)
    embed(model, tmp_path / "in", tmp_path / "out")
    facts = summary_of(tmp_path / "out")
    for old in (facts | {"computation": COMPUTATION - 1}, {**facts, "files": [{"file": "x.npz"}]}):
        (tmp_path / "out" / "embed.json").write_text(json.dumps(old))
        with pytest.raises((ConfigError, OutputError)):
            embed(model, tmp_path / "in", tmp_path / "out", resume=True)


@pytest.mark.parametrize(
    "text", ["[]", "null", "{", '{"files": 3}', '{"files": [3]}', "[" * 99_999]
)
def test_a_damaged_summary_is_a_sentence(text: str, model: Path, tmp_path: Path) -> None:
    write(tmp_path / "in" / "x.wav", 1, 0.5)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "embed.json").write_text(text)
    with pytest.raises((ConfigError, OutputError)):
        embed(model, tmp_path / "in", tmp_path / "out", resume=True)
    assert (tmp_path / "out" / "embed.json").read_text() == text


def test_the_summary_names_files_uniquely_and_completely(model: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("a/x.wav", "b/x.wav", "b/x.flac", "x.wav")):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, speech_like(number, 1.0), 16_000)
    out = tmp_path / "out"
    embed(model, tmp_path / "in", out)
    records = summary_of(out)["files"]
    assert sorted(record["file"] for record in records) == [
        *("a/x.npz", "b/x.flac.npz", "b/x.wav.npz", "x.npz"),
    ]
    for record in records:
        assert len(features_of(out / record["file"])) == record["frames"]
        assert Path(record["audio"]).is_absolute()
        assert content_of(record["audio"]) == record["content"]
    assert {str(path.relative_to(out)) for path in out.rglob("*.npz")} == {
        record["file"] for record in records
    }


def test_what_chunking_changes_survives_a_resume(model: Path, tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.wav", 1, 9.0)
    embed(model, tmp_path / "in", tmp_path / "out", chunking=SHORT)
    measured = summary_of(tmp_path / "out")["chunking_error"]
    assert measured["cosine"] > 0.9
    write(tmp_path / "in" / "b.wav", 2, 1.0)
    again = embed(model, tmp_path / "in", tmp_path / "out", chunking=SHORT, resume=True)
    assert to_json(again.error) == measured
    assert summary_of(tmp_path / "out")["chunking_error"] == measured
    embed(model, tmp_path / "in", tmp_path / "out", chunking=SHORT, resume=True)
    assert summary_of(tmp_path / "out")["chunking_error"] == measured


def test_features_that_are_not_finite_are_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "in" / "a.wav", 1, 9.0)
    original = embedding.features

    def spoilt(*arguments: Any, **options: Any) -> Iterator[np.ndarray]:
        for number, part in enumerate(original(*arguments, **options)):
            part = part.copy()
            if number == 2:
                part[3, 4] = np.nan
            yield part

    monkeypatch.setattr(embedding, "features", spoilt)
    done = embed(model, tmp_path / "in", tmp_path / "out", chunking=SHORT)
    assert "not finite (NaN or infinity) after 4.0 s" in done.failed[0]
    assert done.files == []
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        embedding.LOCK,
        "embed.json",
    ]


def test_a_recording_that_changes_while_it_is_read(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "in" / "a.wav", 1, 2.0)
    original = embedding._one

    def replacing(*arguments: Any) -> Any:
        result = original(*arguments)
        write(path, 2, 2.0)
        return result

    monkeypatch.setattr(embedding, "_one", replacing)
    done = embed(model, tmp_path / "in", tmp_path / "out")
    assert "changed while it was read" in done.failed[0]
    assert not (tmp_path / "out" / "a.npz").exists()


def test_two_runs_do_not_write_into_one_folder(model: Path, tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.wav", 1, 1.0)
    (tmp_path / "out").mkdir()
    with (
        FolderLock(tmp_path / "out" / embedding.LOCK, "embedding into"),
        pytest.raises(OutputError, match="is embedding into"),
    ):
        embed(model, tmp_path / "in", tmp_path / "out")
    assert len(embed(model, tmp_path / "in", tmp_path / "out").files) == 1


@pytest.mark.parametrize("format", ["npz", "safetensors", "parquet"])
def test_a_limit_on_files_is_a_sentence_and_resume_works(
    format: str, model: Path, tmp_path: Path, fresh_python: Any
) -> None:
    write(tmp_path / "in" / "a.wav", 1, 3.0)
    write(tmp_path / "in" / "b.wav", 2, 30.0)
    code = (
        "import resource, sys; from sslim.cli import run; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
        f"sys.exit(run(['embed', {str(model)!r}, 'in', 'out', '--format', {format!r}]))"
    )
    done = fresh_python("-c", code)
    assert done.returncode == 2, done.stderr
    assert "File too large" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: cannot write")
    out = tmp_path / "out"
    assert [record["file"] for record in summary_of(out)["files"]] == [f"a.{format}"]
    assert not (out / f"b.{format}").exists()
    embed(model, tmp_path / "in", out, format=format, resume=True)
    assert (out / f"b.{format}").exists()


def test_a_full_disk_for_the_summary(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "in" / "a.wav", 1, 1.0)

    def full(path: Path, data: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(records, "write_json", full)
    with pytest.raises(OutputError, match=r"cannot write .*embed\.json: No space left"):
        embed(model, tmp_path / "in", tmp_path / "out")


def test_names_are_no_markup(model: Path, tmp_path: Path, fresh_python: Any) -> None:
    folder = tmp_path / "in"
    write(folder / "a[/red]b.wav", 1, 1.0)
    write(folder / "[bold]c.wav", 1, 1.0)
    (folder / "[").mkdir()
    (folder / "[/x]broken.wav").write_bytes(b"RIFF")
    done = fresh_python("-m", "sslim", "embed", str(model), "in", "out")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "[/x]broken.wav" in done.stderr
    assert {record["file"] for record in summary_of(tmp_path / "out")["files"]} == {
        *("a[/red]b.npz", "[bold]c.npz"),
    }
    again = fresh_python("-m", "sslim", "embed", str(model), "in", "out", "--resume")
    assert "[bold]c.npz is there already" in again.stderr


def test_names_that_are_no_text(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    latin = os.fsdecode(b"caf\xe9")
    write(tmp_path / "x.wav", 2, 1.0)
    (tmp_path / "in").mkdir()
    os.rename(tmp_path / "x.wav", tmp_path / "in" / f"{latin}.wav")
    blocks = [speech_like(2, 1.0)]
    monkeypatch.setattr(embedding, "read_blocks", lambda path: iter(blocks))
    out = tmp_path / f"out-{latin}"
    assert run(["embed", str(model), str(tmp_path / "in"), str(out)]) == 0
    assert "out-caf\\udce9: 1 recordings" in capsys.readouterr().out
    assert [record["file"] for record in summary_of(out)["files"]] == [f"{latin}.npz"]
    assert run(["embed", str(model), str(tmp_path / "in"), str(out), "--resume"]) == 0
    assert "caf\\udce9.npz is there already" in capsys.readouterr().err
    assert len(features_of(out / f"{latin}.npz")) == 49


def test_a_pipe_never_hangs(model: Path, tmp_path: Path, fresh_python: Any) -> None:
    (tmp_path / "in").mkdir()
    os.mkfifo(tmp_path / "in" / "x.wav")
    os.mkfifo(tmp_path / "list")
    (tmp_path / "files.txt").write_text("in/x.wav\n/dev/zero\n")
    for number, source in enumerate(
        ("in", "in/x.wav", "list", "files.txt", "~nosuchuser/x", "x" * 300)
    ):
        done = fresh_python("-m", "sslim", "embed", str(model), source, f"out{number}")
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("--chunk", value) for value in ("nan", "inf", "-1", "1e9", "0.001")),
        *(("--left", value) for value in ("nan", "inf", "-0.1")),
        ("--right", "1e300"),
        *(("--layer", value) for value in ("²", "-1", "1" * 5000, "", "٣")),
        *(("--batch", value) for value in ("0", "-3", "1000000000")),
    ],
)
def test_odd_options_are_sentences(
    option: str, value: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "in" / "a.wav", 1, 1.0)
    out = tmp_path / "out"
    assert run(["embed", str(model), str(tmp_path / "in"), str(out), f"{option}={value}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert len(error) < 300
    assert not out.exists()


def test_layers_are_decimal_digits() -> None:
    assert parse_layer("3", 4) == 3
    for odd in ("²", "٣", "1_0", " 1", "+1", "4"):
        with pytest.raises(ConfigError):
            parse_layer(odd, 12 if odd != "4" else 4)


def test_not_enough_memory_is_a_sentence(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "in" / "a.wav", 1, 1.0)

    def hungry(*_: Any, **__: Any) -> Iterator[np.ndarray]:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")
        yield

    monkeypatch.setattr(embedding, "features", hungry)
    with pytest.raises(ConfigError, match="not enough memory"):
        embed(model, tmp_path / "in", tmp_path / "out")


def test_audio_that_is_not_there(model: Path, tmp_path: Path) -> None:
    with pytest.raises(AudioError):
        embed(model, tmp_path / "nowhere", tmp_path / "out")
    write(tmp_path / "in" / "a.wav", 1, 1.0)
    (tmp_path / "file").write_text("")
    for out in (tmp_path / ("x" * 300), tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(OutputError):
            embed(model, tmp_path / "in", out)
    assert not (tmp_path / "out").exists()
