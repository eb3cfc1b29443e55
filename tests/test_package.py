"""The package as a user imports it: its public functions, and what transformers knows of it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import sslim

FreshPython = Callable[..., "subprocess.CompletedProcess[str]"]


def test_public_names_are_stated_and_there() -> None:
    assert sslim.__all__ == [
        "compress",
        "export",
        "load",
        "SslimError",
        "ConfigError",
        "AudioError",
        "TeacherError",
        "ConversionError",
        "BudgetError",
        "ExportError",
        "OutputError",
        "TrainingError",
        "__version__",
    ]
    for name in sslim.__all__:
        assert getattr(sslim, name) is not None
        assert name in dir(sslim)
    with pytest.raises(AttributeError, match="no attribute 'compres'"):
        _ = sslim.compres  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["compress", "export", "load"])
def test_no_module_hides_behind_a_public_function(name: str, fresh_python: FreshPython) -> None:
    """`import sslim.compress as c` used to bind the function in silence."""
    check = (
        "import sslim, inspect, importlib.util"
        f"\nassert inspect.isfunction(sslim.{name})"
        f"\nassert importlib.util.find_spec('sslim.{name}') is None"
        f"\ntry:\n    import sslim.{name} as c\nexcept ModuleNotFoundError: pass"
        "\nelse: raise AssertionError(c)"
        f"\nassert inspect.isfunction(sslim.{name})"
    )
    result = fresh_python("-c", check)
    assert result.returncode == 0, result.stderr


def test_importing_the_package_imports_nothing_heavy(fresh_python: FreshPython) -> None:
    result = fresh_python(
        "-c",
        "import sslim, sys; print({'torch', 'transformers', 'numpy'} & sys.modules.keys())",
    )
    assert result.stdout == "set()\n", result.stderr


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of our model type."""
    from sslim.backbone.modeling_sslim import SslimHubertConfig, SslimHubertModel

    config = SslimHubertConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        conv_dim=(8, 8),
        conv_kernel=(10, 3),
        conv_stride=(5, 2),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    folder = tmp_path_factory.mktemp("saved")
    SslimHubertModel(config).save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "sslim-hubert"
    return folder


@pytest.mark.parametrize(
    "imports",
    [
        "import sslim, transformers",
        "import transformers, sslim",
        "import sslim; from transformers.models.hubert.modeling_hubert import HubertModel",
        "import sslim.backbone.modeling_sslim",
    ],
)
def test_auto_classes_know_our_models_in_either_order(
    imports: str, saved_model: Path, fresh_python: FreshPython
) -> None:
    program = (
        f"{imports}\n"
        "from transformers import AutoModel\n"
        f"print(type(AutoModel.from_pretrained({str(saved_model)!r})).__name__)\n"
        "import sys; assert 'sslim.auto_classes' in sys.modules\n"
        "assert not [f for f in sys.meta_path if type(f).__module__ == 'sslim.auto_classes']\n"
        "import inspect, transformers; inspect.getsource(transformers)  # the loader is intact\n"
    )
    result = fresh_python("-c", program)
    assert result.stdout == "SslimHubertModel\n", result.stderr


def test_without_the_package_transformers_asks_for_the_flag(
    saved_model: Path, fresh_python: FreshPython
) -> None:
    program = f"from transformers import AutoModel; AutoModel.from_pretrained({str(saved_model)!r})"
    result = fresh_python("-c", program)
    assert result.returncode != 0
    assert "trust_remote_code" in result.stderr
