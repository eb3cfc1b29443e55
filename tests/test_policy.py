"""Rules of the house that no one should have to remember; each is stated in docs/design.md."""

from __future__ import annotations

import ast
import importlib
import re
import sys
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, SOURCE

PACKAGE = SOURCE / "sslim"
FILES = sorted(PACKAGE.rglob("*.py"))

# A room imports only from those before it, and from itself.
ROOMS = (
    "errors",
    "version",
    "files",
    "records",
    "identity",
    "target",
    "layout",
    "limits",
    "config",
    "recipes",
    "cost",
    "plan",
    "device",
    "progress",
    "measurements",
    "audio",
    "backbone",
    "runs",
    "prune",
    "distill",
    "train",
    "report",
    "steps",
    "story",
    "evaluate",
    "deploy",
    "demo",
    "cli",
)
PURE = (
    "errors",
    "version",
    "files",
    "records",
    "identity",
    "target",
    "layout",
    "limits",
    "config",
    "recipes",
    "cost",
    "plan",
    "measurements",
)
# What stands before the rooms: it knows them by name and imports them when they are asked for.
FRONT = {"__init__", "__main__", "auto_classes"}
MOST_LINES = 600


def room_of(file: Path) -> str:
    """The first part of a module's path inside the package."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def is_module(name: str) -> bool:
    """Whether a dotted name is a module or package of ours."""
    path = SOURCE.joinpath(*name.split("."))
    return path.with_name(f"{path.name}.py").is_file() or (path / "__init__.py").is_file()


def imports(file: Path) -> Iterator[str]:
    """Modules that a file imports, anywhere in it, relative imports resolved.

    `from package import name` is the module `package.name` where there is one, and else the package.
    """
    package = [*file.relative_to(SOURCE).parts[:-1]]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{module}.{alias.name}"
                yield inner if is_module(inner) else module


def circle() -> list[str]:
    """Modules of the package that import each other in a circle, the first again at the end; [] without one.

    What is imported for types only counts as well: who needs a type from below stands below it.
    """
    files = sorted(PACKAGE.rglob("*.py"))
    names = [".".join(file.relative_to(SOURCE).with_suffix("").parts) for file in files]
    graph = {
        name.removesuffix(".__init__"): set(imports(file))
        for name, file in zip(names, files, strict=True)
    }
    try:
        TopologicalSorter(
            {name: (found & graph.keys()) - {name} for name, found in graph.items()}
        ).prepare()
    except CycleError as error:
        modules: list[str] = error.args[1]
        return modules
    return []


def forbidden(file: Path) -> list[str]:
    """Rooms after its own that a file imports."""
    room = room_of(file)
    allowed = set(ROOMS[: ROOMS.index(room) + 1])
    wanted = {name.split(".")[1] for name in imports(file) if name.startswith("sslim.")}
    return sorted(wanted & set(ROOMS) - allowed)


def named(file: Path) -> str:
    return str(file.relative_to(SOURCE))


def test_every_module_stands_in_a_room() -> None:
    assert {room_of(file) for file in FILES} - FRONT <= set(ROOMS)
    assert len(FILES) > 10


@pytest.mark.parametrize("file", [f for f in FILES if room_of(f) not in FRONT], ids=named)
def test_rooms_import_one_way(file: Path) -> None:
    assert forbidden(file) == []


def planted(folder: Path, monkeypatch: pytest.MonkeyPatch, modules: dict[str, str]) -> None:
    """Lets the walk see a package that has these modules (path inside the package -> text)."""
    for name, text in modules.items():
        file = folder / "sslim" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.setattr("tests.test_policy.SOURCE", folder)
    monkeypatch.setattr("tests.test_policy.PACKAGE", folder / "sslim")


def test_the_walk_sees_every_kind_of_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted(tmp_path, monkeypatch, {"train/__init__": "", "train/loop": "", "prune/budget": ""})
    file = tmp_path / "sslim" / "prune" / "gates.py"
    for line in (
        "import sslim.train",
        "import sslim.train.loop as loop",
        "from sslim.train import loop",
        "from sslim import train",
        "from .. import train",
        "from ..train import loop",
        "def f():\n    from sslim.train.loop import run",
    ):
        file.write_text(line)
        assert forbidden(file) == ["train"], line
    file.write_text("from sslim.plan import PruningPlan\nfrom . import budget\nimport training")
    assert forbidden(file) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert not circle(), " <- ".join(circle())


CIRCLES = {
    "inside a function": {
        "prune/gates": "from sslim.prune import budget",
        "prune/budget": "def f():\n    from sslim.prune.gates import Gates",
    },
    "for types only": {
        "prune/gates": "import sslim.prune.budget",
        "prune/budget": "if TYPE_CHECKING:\n    from sslim.prune.gates import Gates",
    },
    "through the package": {
        "prune/__init__": "from sslim.prune.gates import Gates",
        "prune/gates": "from sslim.prune import NAME",
    },
    "relative": {"prune/gates": "from . import budget", "prune/budget": "from .gates import Gates"},
    "across rooms": {
        "prune/gates": "from sslim.train.loop import train",
        "train/loop": "from sslim.story import compress",
        "story": "from sslim.prune.gates import Gates",
    },
    "by the front": {
        "__init__": "from sslim.story import compress",
        "story": "from sslim import __version__",
    },
}


@pytest.mark.parametrize("case", CIRCLES)
def test_the_walk_sees_a_circle(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = {"__init__": "", "prune/__init__": "", "train/__init__": ""}
    planted(tmp_path, monkeypatch, packages | CIRCLES[case])
    found = circle()
    assert found[0] == found[-1]
    assert len(found) == len(CIRCLES[case]) + 1
    for name in CIRCLES[case]:
        assert f"sslim/{name}".removesuffix("/__init__").replace("/", ".") in found


def test_modules_below_a_package_that_gives_out_their_names_are_no_circle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = {
        "__init__": "from sslim.prune import Gates",
        "prune/__init__": "from sslim.prune.gates import Gates",
        "prune/gates": "from sslim.prune import budget\nfrom . import budget\nimport torch",
        "prune/budget": "",
    }
    planted(tmp_path, monkeypatch, modules)
    assert circle() == []


@pytest.mark.parametrize("room", PURE)
def test_pure_rooms_need_python_alone(room: str) -> None:
    others = {name.split(".")[0] for name in imports(PACKAGE / f"{room}.py")} - {"sslim"}
    assert others <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("file", FILES, ids=named)
def test_a_module_says_what_it_is_and_stays_small(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), "no docstring"
    # The model travels as one file with every saved folder, so it cannot be split.
    most = 1000 if file.name == "modeling_sslim.py" else MOST_LINES
    assert text.count("\n") <= most
    assert not re.search(r"util|misc|helper|common", str(file.relative_to(SOURCE)))


def test_the_saved_model_file_is_self_contained() -> None:
    names = {name.split(".")[0] for name in imports(PACKAGE / "backbone" / "modeling_sslim.py")}
    assert names <= {"torch", "transformers", *sys.stdlib_module_names}


@pytest.mark.parametrize("file", FILES, ids=named)
def test_nothing_is_unpickled_unsafely(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    # Naming the error that torch raises is no unpickling.
    harmless = {
        node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and [a.name for a in node.names] == ["UnpicklingError"]
    }
    assert not {"pickle", "dill", "cloudpickle", "joblib"} & {
        name.split(".")[0] for name in imports(file) if name not in harmless
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert options.get("weights_only") == "True", f"line {node.lineno}"


SOURCES = {"Files", "Shards", "Mixture", "Manifest"}


def tells_sources_apart(text: str) -> list[str]:
    """Kinds of audio sources that code asks for by class."""
    found: list[str] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "type"):
            names = {item.id for item in ast.walk(node) if isinstance(item, ast.Name)}
            names |= {item.attr for item in ast.walk(node) if isinstance(item, ast.Attribute)}
            found += names & SOURCES
    return found


def test_no_room_but_audio_tells_sources_apart() -> None:
    for file in FILES:
        if room_of(file) != "audio":
            assert not tells_sources_apart(file.read_text(encoding="utf-8")), file
    for line in ("isinstance(a, Shards)", "isinstance(a, (int, audio.Files | None))"):
        assert tells_sources_apart(line)
    assert not tells_sources_apart("isinstance(a, int) and Files(a)")


def test_torchaudio_is_no_dependency() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    wanted = [*project["dependencies"], *(name for extra in extras for name in extra)]
    assert not [name for name in wanted if name.startswith("torchaudio")]
    assert "torchaudio" not in (REPOSITORY / "constraints.txt").read_text(encoding="utf-8")
    assert not [file for file in FILES if "torchaudio" in {n.split(".")[0] for n in imports(file)}]
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("torchaudio")


def test_every_dependency_is_pinned_inside_its_range() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {
        canonicalize_name(name): version
        for name, _, version in (line.partition("==") for line in lines if "==" in line)
    }
    installed = ("demo", "evaluate", "plot", "dev")  # what `make` sets up
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(name for extra in installed for name in extras[extra])]
    checked = 0
    for requirement in map(Requirement, wanted):
        if requirement.name != "sslim":
            version = pins[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), f"{requirement} against {version}"
            checked += 1
    assert checked > 15
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    assert f"torch=={pins['torch']}" in makefile
