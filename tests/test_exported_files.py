"""Exported files that somebody else wrote, or that were damaged: one line each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from sslim.backbone.exported import ExportedModel
from sslim.errors import AudioError, TeacherError
from tests.test_export import exported, loaded_model


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "m.onnx"
    exported(loaded_model("hubert"), path)
    return path


def with_metadata(change: Callable[[dict[str, str]], Any]) -> Callable[[Any], None]:
    def edit(proto: Any) -> None:
        found = {entry.key: entry.value for entry in proto.metadata_props}
        change(found)
        del proto.metadata_props[:]
        onnx.helper.set_model_props(proto, found)

    return edit


def with_facts(**changes: Any) -> Callable[[Any], None]:
    return with_metadata(
        lambda found: found.update(sslim=json.dumps(json.loads(found["sslim"]) | changes))
    )


def rename(kind: str, old: str, new: str) -> Callable[[Any], None]:
    def edit(proto: Any) -> None:
        for value in getattr(proto.graph, kind):
            if value.name == old:
                value.name = new
        for node in proto.graph.node:
            for names in (node.input, node.output):
                names[:] = [new if name == old else name for name in names]

    return edit


def outside(proto: Any) -> None:
    weight = next(w for w in proto.graph.initializer if len(w.raw_data) > 100)
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    entry = weight.external_data.add()
    entry.key, entry.value = "location", "../../../../../../etc/hostname"


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (with_metadata(lambda found: found.clear()), "not written by sslim export"),
        (with_metadata(lambda found: found.pop("hop")), "hop is ''"),
        (with_metadata(lambda found: found.update(hop="-320")), "hop is '-320'"),
        (with_metadata(lambda found: found.update(hop="0")), "hop is '0'"),
        (with_metadata(lambda found: found.update(hop="9" * 5000)), "hop is '999"),
        (with_metadata(lambda found: found.update(receptive_field="x")), "receptive_field is 'x'"),
        (with_metadata(lambda found: found.update(sampling_rate="8000")), "sampling_rate"),
        (with_metadata(lambda found: found.update(sslim="{")), "facts of its model are damaged"),
        (with_metadata(lambda found: found.update(sslim="[]")), "facts of its model are damaged"),
        (with_metadata(lambda found: found.update(sslim="5")), "facts of its model are damaged"),
        (with_metadata(lambda f: f.update(sslim="[" * 10**5)), "facts of its model are damaged"),
        (with_facts(layers="4"), "counts of its model"),
        (with_facts(width=-1), "counts of its model"),
        (with_facts(fingerprint=None), "names of its model"),
        (rename("input", "waveform", "sound"), "inputs or outputs"),
        (rename("output", "frame_lengths", "lots"), "inputs or outputs"),
        (outside, "cannot be opened by onnxruntime"),
    ],
)
def test_an_odd_file_is_one_line(
    edit: Callable[[Any], None], words: str, file: Path, tmp_path: Path
) -> None:
    proto = onnx.load(file)
    edit(proto)
    (tmp_path / "odd.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(TeacherError, match=words) as caught:
        ExportedModel(tmp_path / "odd.onnx")
    assert "\n" not in str(caught.value)


def test_what_is_no_file_is_one_line(file: Path, tmp_path: Path) -> None:
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(TeacherError, match="is not a file"):
        ExportedModel(tmp_path / "folder.onnx")
    with (tmp_path / "huge.onnx").open("wb") as stream:
        stream.truncate(2**33)  # sparse
    with pytest.raises(TeacherError, match="larger than an ONNX file"):
        ExportedModel(tmp_path / "huge.onnx")
    for content in (b"", b"junk" * 100, file.read_bytes()[:5000]):
        (tmp_path / "cut.onnx").write_bytes(content)
        with pytest.raises(TeacherError, match="cannot be opened") as caught:
            ExportedModel(tmp_path / "cut.onnx")
        assert "\n" not in str(caught.value)


def test_the_files_identity_is_its_content(file: Path, tmp_path: Path) -> None:
    """The same model in other numbers gives other features."""
    loaded = loaded_model("hubert")
    first, again = ExportedModel(file), exported(loaded, tmp_path / "again.onnx")
    int8 = exported(loaded, tmp_path / "int8.onnx", int8=True)
    assert first.facts["fingerprint"] == int8.facts["fingerprint"]
    assert first.fingerprint == again.fingerprint != int8.fingerprint


def test_nothing_to_run_is_a_sentence(file: Path) -> None:
    with pytest.raises(AudioError, match="no waveform"):
        ExportedModel(file)([])
    found = ExportedModel(file)([np.zeros(4000, np.float32)])
    assert found["hidden_states"].shape[1] == 1
