"""The benchmark's machinery: turns, ratios, costs, and contestants that fall over."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sslim.backbone.saving import save_folder
from sslim.cli import run
from sslim.deploy.bench import Contestant, Worker, contestants, is_noisy, measure
from sslim.errors import ConfigError, SslimError
from sslim.measurements import Benchmark, Machine, Timing
from tests.test_export import loaded_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "model"
    loaded = loaded_model("hubert", pruned=3)
    save_folder(out, loaded.whole, normalise=False, card="# A model\n")
    return out


def row(median: float) -> Timing:
    return Timing(
        model="m",
        runtime="onnx",
        threads=1,
        seconds=10.0,
        median=median,
        quartiles=(median, median),
        real_time_factor=median / 10,
        ratio=1.0,
        peak_bytes=1,
        file_bytes=1,
        first_answer=0.1,
        noisy=False,
    )


def test_noise_and_cost() -> None:
    assert not is_noisy((0.99, 1.01), 1.0)
    assert is_noisy((0.9, 1.2), 1.0)
    quiet, busy = row(1.0), replace(row(1.0), noisy=True)
    assert Benchmark(results=(quiet, busy), machine=Machine()).noisy
    # A thousand hours at a tenth of real time are a hundred hours of machine.
    assert quiet.cost(0.5) == pytest.approx(50.0)
    facts = Benchmark(results=(quiet,), machine=Machine()).at_price(0.5).to_dict()
    assert (facts["kind"], facts["price_per_hour"]) == ("bench", 0.5)
    assert facts["results"][0]["cost_per_1000_hours"] == pytest.approx(50.0)


def test_the_command_measures_in_turn(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bench.json"
    arguments = ["bench", str(model), "--runtime", "torch,onnx", "--seconds", "0.5,1"]
    arguments += ["--repeats", "3", "--price-per-hour", "1", "--json", str(file)]
    assert run(arguments) == 0
    rows = json.loads(file.read_text())["results"]
    assert [(row["runtime"], row["seconds"]) for row in rows] == [
        ("torch", 0.5),
        ("onnx", 0.5),
        ("torch", 1.0),
        ("onnx", 1.0),
    ]
    for entry in rows:
        assert entry["median"] > 0
        assert entry["peak_bytes"] > 2**20
        assert entry["first_answer"] > entry["median"]
        assert 0 < entry["front_end_share"] < 1
        assert entry["file_bytes"] > 1000
    assert rows[0]["ratio"] == 1.0
    assert rows[1]["worst_cosine"] > 0.9999
    # Without torch in its process, an exported file needs a fraction of the memory.
    assert rows[1]["peak_bytes"] < rows[0]["peak_bytes"]
    assert "cost" in capsys.readouterr().out


def test_bad_input_is_a_sentence(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", str(model), "--seconds", "0"]) == 2
    assert run(["bench", str(model), "--threads", "one"]) == 2
    assert "--threads is 'one'" in capsys.readouterr().err
    assert run(["bench", str(tmp_path / "nowhere.onnx")]) == 2
    with pytest.raises(ConfigError, match="'tensorrt' is unknown"):
        contestants([str(model)], ["tensorrt"], tmp_path)


def test_a_contestant_that_falls_over_says_why(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    entry = Contestant("broken", "onnx", str(tmp_path / "broken.onnx"), 8)
    with pytest.raises(SslimError, match=r"broken cannot be measured in onnx: .*cannot be opened"):
        Worker(entry, 1)
    with pytest.raises(SslimError):
        measure([entry], seconds=[1])
