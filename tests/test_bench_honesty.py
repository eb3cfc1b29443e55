"""What a benchmark says of the machine, of the models and of itself; and what does not stop it."""

from __future__ import annotations

import json
import os
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sslim.cli import run
from sslim.cli.bench import remarks
from sslim.cost import macs
from sslim.deploy import bench as benching
from sslim.deploy import processor as looking
from sslim.deploy import rates as core_rates
from sslim.deploy.bench import Contestant, Worker, contestants, measure
from sslim.deploy.export import export
from sslim.deploy.parts import PARTS, Node, Part, _operations, by_part, combined, profile
from sslim.deploy.processor import Load, load_now, named, processor
from sslim.deploy.signals import speech_like
from sslim.errors import ConfigError, SslimError
from sslim.identity import COMPUTATION, content_of
from sslim.layout import layout_of
from sslim.measurements import Benchmark, Machine, Rates
from tests.models import tiny_teacher
from tests.test_bench import row as timing
from tests.test_export import folder_of, loaded_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(loaded_model("hubert", pruned=3), tmp_path_factory.mktemp("models") / "model")


@pytest.fixture(scope="module")
def file(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(model, tmp_path_factory.mktemp("files") / "m.onnx", card=False).path


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No second of looking at the load, before and after."""
    monkeypatch.setattr(benching, "load_now", lambda: 0.25)


# Processes


def speaking(tmp_path: Path, words: str) -> Contestant:
    """A contestant that first says `words` (a Python statement), then answers every line."""
    script = tmp_path / "speaking.py"
    script.write_text(
        f"import json, sys\n{words}\n"
        "for line in sys.stdin:\n"
        "    print(json.dumps({'time': 0.01, 'peak_bytes': 1, 'front_end': None, 'parts': None}), "
        "flush=True)\n"
    )
    return Contestant("m", "torch", "", 1, command=(sys.executable, str(script)))


@pytest.mark.usefixtures("quick")
def test_a_talkative_process_is_not_stopped(tmp_path: Path) -> None:
    """Far more on its standard error than a pipe holds."""
    entry = speaking(tmp_path, "sys.stderr.write('warning\\n' * 100_000); sys.stderr.flush()")
    found = measure([entry], seconds=[0.1], repeats=2)
    assert found.results[0].median == 0.01


def test_a_talkative_process_that_dies_says_its_last_words(tmp_path: Path) -> None:
    words = "sys.stderr.write('warning\\n' * 100_000); sys.stderr.flush(); raise ValueError('no x')"
    with pytest.raises(SslimError, match="cannot be measured in torch: no x"):
        Worker(speaking(tmp_path, words), 1)
    with pytest.raises(SslimError, match="cannot be measured"):
        Worker(speaking(tmp_path, "print('hello')"), 1)


def test_what_a_library_prints_is_no_answer(file: Path) -> None:
    """Python tells its imports on standard error, a site file says something on standard output."""
    code = (
        "import sys; sys.argv = ['worker', 'onnx', {path!r}, '1']\n"
        "import sslim.deploy.worker as worker\n"
        "original = worker.open_onnx\n"
        "def chatty(*arguments):\n"
        "    import os; os.write(1, b'hello from a library\\n'); print('and from Python')\n"
        "    return original(*arguments)\n"
        "worker.open_onnx = chatty\n"
        "worker.main()\n"
    )
    command = (sys.executable, "-c", code.format(path=str(file)))
    with closing(Worker(Contestant("m", "onnx", str(file), 1, command=command), 1)) as worker:
        assert worker.run(0.1)["time"] > 0


def test_workers_are_closed_when_one_cannot_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benching, "load_now", lambda: 0.0)
    made: list[Worker] = []
    original = Worker.__init__

    def remembering(self: Worker, *arguments: Any) -> None:
        made.append(self)
        original(self, *arguments)

    monkeypatch.setattr(Worker, "__init__", remembering)
    (tmp_path / "b").mkdir()
    entries = [speaking(tmp_path, ""), speaking(tmp_path / "b", "sys.exit(3)")]
    with pytest.raises(SslimError, match="code 3"):
        measure(entries, seconds=[0.1])
    assert len(made) == 2
    assert all(worker.process.poll() is not None for worker in made)


# Contestants


def test_an_int8_file_is_not_compared_as_float32(model: Path, file: Path, tmp_path: Path) -> None:
    small = export(model, tmp_path / "s.onnx", format="onnx-int8", min_cosine=0.5, card=False)
    entries = contestants([str(file), str(small.path)], ["torch"], tmp_path)
    assert [entry.runtime for entry in entries] == ["onnx", "onnx-int8"]


def test_identities_and_names(model: Path, file: Path, tmp_path: Path) -> None:
    twin = tmp_path / "other" / "model"
    folder_of(loaded_model("hubert", pruned=4), twin)
    card = (model / "README.md").read_text()
    entries = contestants(
        [str(model), str(twin), str(file), str(model)], ["torch", "onnx", "torch"], tmp_path
    )
    assert [(entry.model, entry.runtime) for entry in entries] == [
        *((str(model), runtime) for runtime in ("torch", "onnx")),
        *((str(twin), runtime) for runtime in ("torch", "onnx")),
        ("m.onnx", "onnx"),
    ]
    torch_model, exported, other, _, given = entries
    assert torch_model.fingerprint == torch_model.model_fingerprint != other.fingerprint
    assert exported.fingerprint == content_of(exported.path)
    assert given.fingerprint == content_of(file)
    assert exported.model_fingerprint == given.model_fingerprint == torch_model.fingerprint
    assert given.passed is True
    assert given.worst_cosine == pytest.approx(1.0)
    # Files that live as long as the measurement are not noted in the model's card.
    assert (model / "README.md").read_text() == card


@pytest.mark.usefixtures("quick")
def test_a_dense_model_runs_in_transformers_and_a_pruned_one_does_not(
    model: Path, tmp_path: Path
) -> None:
    tiny_teacher("hubert").save_pretrained(tmp_path / "dense")
    names = [str(tmp_path / "dense"), str(model)]
    entries = contestants(names, ["transformers", "torch"], tmp_path)
    assert [(entry.model, entry.runtime) for entry in entries] == [
        *(("dense", "transformers"), ("dense", "torch"), ("model", "torch")),
    ]
    found = measure(entries[:1], seconds=[0.2], repeats=2)
    assert found.results[0].parts["whole"].gflop > 0


@pytest.mark.usefixtures("quick")
def test_a_failing_export_is_marked(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from sslim.deploy import export as exporting

    monkeypatch.setattr(exporting, "_judge", lambda *_: (False, "it is far off"))
    out = tmp_path / "b.json"
    arguments = ["bench", str(model), "--runtime", "onnx", "--seconds", "0.1", "--repeats", "2"]
    assert run([*arguments, "--json", str(out)]) == 0
    row = json.loads(out.read_text())["results"][0]
    assert row["passed"] is False
    said = capsys.readouterr()
    assert "FAILED" in said.out
    assert "it is far off" in said.err
    kept = export(model, tmp_path / "kept.onnx", force=True, card=False)
    assert contestants([str(kept.path)], ["onnx"], tmp_path)[0].passed is False


# The machine

AMD = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 17
model name\t: AMD EPYC 9R14
stepping\t: 1
flags\t\t: fpu sse2 avx2 avx512f avx512_bf16 avx512_vnni
processor\t: 1
vendor_id\t: Other
model\t\t: 99
"""
ARM = """processor\t: 0
Features\t: fp asimd asimddp sve i8mm bf16
CPU implementer\t: 0x41
CPU architecture: 8
CPU part\t: 0xd40
CPU revision\t: 1
"""


def test_a_processor_is_named_by_its_numbers() -> None:
    assert processor(AMD) == Machine(
        processor="AMD EPYC 9R14",
        vendor="AMD",
        family=25,
        model=17,
        stepping=1,
        vector_units=("avx2", "avx512", "avx512_vnni", "avx512_bf16"),
    )
    arm = processor(ARM)
    assert (arm.vendor, arm.family, arm.model, arm.stepping) == ("ARM", 8, 0xD40, 1)
    assert arm.vector_units == ("neon", "dotprod", "i8mm", "bf16", "sve")
    unknown = processor("what: is\n\x00this")
    assert unknown.family is None
    assert unknown.processor
    assert processor("cpu family: many\n").family is None
    assert "family 25, model 17" in named(processor(AMD))
    assert named(processor("")) != ""
    assert processor().processor


def test_others_work_is_seen_and_ours_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seconds in which all cores together worked three, one of them ours."""
    for busy, own, wanted in ((3.0, 1.0, 1.0), (3.0, 3.2, 0.0), (0.0, 0.0, 0.0)):
        monkeypatch.setattr(looking, "_busy_seconds", iter([10.0, 10.0 + busy]).__next__)
        ours = iter([5.0, 5.0 + own])
        monkeypatch.setattr(Load, "_own_seconds", lambda self, ours=ours: next(ours))
        monkeypatch.setattr(looking.time, "perf_counter", iter([7.0, 9.0]).__next__)
        assert Load().others() == wanted
    monkeypatch.undo()
    assert Load([2**22 + 1])._own_seconds() > 0  # a process that is gone counts nothing
    assert load_now() >= 0


def test_rates_are_medians_of_the_fastest_library() -> None:
    second = core_rates.OPERATIONS / 1e9
    rounds = [
        {"float32": {"onnxruntime MatMul": second / 100, "torch linear": second / 50}},
        {"float32": {"onnxruntime MatMul": second / 80, "torch linear": second / 300}},
        {"float32": {"onnxruntime MatMul": second / 90}, "int8": {"torch._int_mm": second / 400}},
    ]
    found = core_rates.rates(rounds)
    assert found.all["float32"]["onnxruntime MatMul"] == pytest.approx(90, abs=0.1)
    assert found.libraries == {"float32": "onnxruntime MatMul", "int8": "torch._int_mm"}
    assert found.int8 == 400
    assert found.bfloat16 is None
    assert core_rates.rates([]).float32 is None


def test_products_are_timed_and_what_a_library_refuses_is_left_out() -> None:
    ready = core_rates.products(1)
    assert set(ready) == {"float32", "bfloat16", "int8"}

    def refuses() -> None:
        raise RuntimeError("not on this processor")

    ready["int8"]["torch._int_mm"] = refuses
    first = core_rates.timed(ready)
    assert "torch._int_mm" not in first["int8"]
    assert set(first["float32"]) == set(core_rates.LIBRARIES["float32"])
    reached = core_rates.rates([first]).float32
    assert reached is not None
    assert reached > 0.1


# Parts


def test_a_parts_share_of_the_rate() -> None:
    rates = Rates(float32=100.0, int8=400.0)
    assert Part(1.0, 50e9, 0).of_rate(rates) == pytest.approx(0.5)
    assert Part(1.0, 0, 100e9).of_rate(rates) == pytest.approx(0.25)
    assert Part(1.0, 50e9, 100e9).of_rate(rates) == pytest.approx(0.75)
    assert Part(1.0, 0, 0).of_rate(rates) is None
    assert Part(1.0, 0, 1e9).of_rate(Rates(float32=100.0)) is None
    assert Part(0.0, 1e9, 0).of_rate(rates) is None
    nodes = [
        Node("front_end", "Loop", False, 3.0, 1, 0, 0),
        Node("front_end", "MatMul", True, 2.0, 4, 5.0, 0),
        Node("ffn", "MatMulIntegerToFloat", False, 1.0, 1, 0, 7.0),
    ]
    parts = by_part(nodes)
    assert parts["front_end"] == Part(3.0, 5.0, 0.0)
    assert combined(parts) == Part(4.0, 5.0, 7.0)


@pytest.mark.parametrize(
    ("kind", "inputs", "output", "wanted"),
    [
        ("MatMul", [[2, 5, 3], [3, 7]], [2, 5, 7], 2 * 2 * 5 * 3 * 7),
        ("MatMul", [[2, 5, 3]], [2, 5, 7], 2 * 2 * 5 * 3 * 7),
        ("FusedMatMul", [[1, 99, 4], [1, 99, 6]], [1, 4, 6], 2 * 99 * 4 * 6),
        ("FusedMatMul", [[1, 4, 99], [1, 6, 99]], [1, 4, 6], 2 * 99 * 4 * 6),
        ("MatMulInteger", [[3, 5, 4], [4, 2]], [3, 5, 2], 2 * 3 * 5 * 4 * 2),
        ("Conv", [[1, 8, 99], [16, 2, 3]], [1, 16, 97], 2 * 16 * 97 * 2 * 3),
        ("Gelu", [[1, 8]], [1, 8], 0),
    ],
)
def test_operations_follow_from_shapes(
    kind: str, inputs: list[list[int]], output: list[int], wanted: int
) -> None:
    arguments = {
        "op_name": kind,
        "input_type_shape": [{"float": shape} for shape in inputs],
        "output_type_shape": [{"float": output}],
    }
    assert _operations(arguments) == wanted


@pytest.mark.parametrize("family", ["hubert", "wavlm"])
def test_a_profile_counts_what_the_plan_counts(family: str, tmp_path: Path) -> None:
    """Every part has its products; a fast FIR algorithm and whole chunks are all that differ."""
    from sslim.backbone.units import plan_of, shape_of

    loaded = loaded_model(family)
    folder_of(loaded, tmp_path / "model")
    path = export(tmp_path / "model", tmp_path / "m.onnx", card=False).path
    seconds = 5.12
    parts = by_part(profile(path, speech_like(1, seconds)))
    assert set(parts) == set(PARTS)
    shape, plan = shape_of(loaded.model), plan_of(loaded.model)
    wanted = macs(layout_of(shape), seconds).by_part(plan.widths)
    for name, products in wanted.items():
        got = parts[name].float_operations / 2
        assert 0.7 * products < got < 1.5 * products, name
        assert parts[name].seconds > 0, name
        assert parts[name].integer_operations == 0
    assert parts["attention"].float_operations == pytest.approx(2 * wanted["attention"], rel=0.1)
    assert parts["ffn"].float_operations == 2 * wanted["ffn"]


def test_an_int8_profile_has_integer_products(model: Path, tmp_path: Path) -> None:
    made = export(model, tmp_path / "m.onnx", format="onnx-int8", min_cosine=0.5, card=False)
    parts = by_part(profile(made.path, speech_like(1, 2.0)))
    assert parts["front_end"].integer_operations > 0
    assert parts["ffn"].integer_operations > 0 == parts["ffn"].float_operations
    assert parts["projection"].integer_operations == 0


# The command


@pytest.mark.usefixtures("quick")
def test_the_description_of_a_measurement(
    model: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "bench.json"
    arguments = ["bench", str(model), str(file), "--runtime", "torch,bfloat16", "--seconds", "0.2"]
    assert run([*arguments, "--repeats", "2", "--json", str(out)]) == 0
    facts = json.loads(out.read_text())
    assert facts["computation"] == COMPUTATION
    machine = facts["machine"]
    for name in ("processor", "vendor", "family", "model", "stepping", "vector_units", "cores"):
        assert name in machine
    for name in ("float32", "bfloat16", "int8"):
        assert machine["rates"][name] > 0
        assert machine["rates"]["libraries"][name] in core_rates.LIBRARIES[name]
    assert machine["load_before"] == machine["load_after"] == 0.25
    assert machine["load_during"] >= 0
    torch_row, bfloat16, onnx = facts["results"]
    for result in facts["results"]:
        assert len(result["fingerprint"]) == len(result["model_fingerprint"]) == 64
        assert result["parts"]["whole"]["of_rate"] > 0
        assert result["parts"]["whole"]["seconds"] == result["median"]
    assert torch_row["model_fingerprint"] == onnx["model_fingerprint"] != onnx["fingerprint"]
    assert set(onnx["parts"]) == {*PARTS, "whole"}
    # The same operations in the same time are less of a faster rate.
    work = bfloat16["parts"]["whole"]
    assert work["of_rate"] == pytest.approx(
        work["gflop"] / work["seconds"] / machine["rates"]["bfloat16"], rel=1e-3
    )
    said = capsys.readouterr().out
    assert "Large products here, 1 thread(s): float32" in said
    assert "Cores kept busy by other work: 0.25 before" in said


def test_busy_machines_are_said() -> None:
    calm = Machine(load_before=0.1, load_during=0.1, load_after=0.1)
    quiet = Benchmark(results=(timing(1.0),), machine=calm)
    assert not quiet.busy
    for disturbed in (
        replace(calm, load_before=0.6),
        replace(calm, load_during=0.6),
        replace(calm, load_after=0.6),
    ):
        busy = replace(quiet, machine=disturbed)
        assert any("not quiet" in line for line in remarks(busy, 3))
    assert not any("not quiet" in line for line in remarks(quiet, 3))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("--seconds", value) for value in ("nan", "inf", "0", "-1", "1e9", "", "1,,2", "0.001")),
        *(("--threads", value) for value in ("0", "1000000", "1.5", "²", "1" * 5000, "-1")),
        *(("--repeats", value) for value in ("0", "1000000000")),
        *(("--price-per-hour", value) for value in ("nan", "-1", "inf")),
        *(("--runtime", value) for value in ("", "torch,", "tensorrt")),
    ],
)
def test_odd_options_are_sentences(
    option: str, value: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", str(model), f"{option}={value}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert len(error) < 400


def test_bounds_hold_in_python_too(tmp_path: Path) -> None:
    for odd in ({"seconds": [float("nan")]}, {"threads": [0]}, {"repeats": 0}):
        with pytest.raises(ConfigError, match="cannot be measured"):
            measure([], **odd)  # type: ignore[arg-type]


def test_a_json_that_cannot_be_written_is_known_first(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def measuring(*_: Any, **__: Any) -> None:
        raise AssertionError("it measures")

    monkeypatch.setattr(benching, "contestants", measuring)
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")
    for place in (
        tmp_path,
        tmp_path / "file" / "b.json",
        tmp_path / "pipe",
        tmp_path / ("x" * 300),
    ):
        assert run(["bench", str(model), "--json", str(place)]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    # And a measurement that fails leaves no empty file behind.
    missing = ["bench", str(tmp_path / "nowhere.onnx"), "--json", str(tmp_path / "b.json")]
    monkeypatch.undo()
    assert run(missing) == 2
    assert not (tmp_path / "b.json").exists()
