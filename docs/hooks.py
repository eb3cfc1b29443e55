"""What MkDocs builds from the code: the references of commands and settings, as pages that lie nowhere."""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import fields, is_dataclass
from typing import Any

from mkdocs.structure.files import File, Files

OUTSIDE = re.compile(r"\[[^\]]*\]\((?:\.\./)+((?:benchmarks|examples|tests|src)[^)]*)\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to files beside the docs name them: on the site there is nothing to follow."""
    return OUTSIDE.sub(r"`\1`", markdown)


def on_files(files: Files, config: Any) -> Files:
    """Adds the generated pages."""
    for path, text in (
        ("reference/commands.md", commands()),
        ("reference/settings.md", settings()),
    ):
        files.append(File.generated(config, path, content=text))
    return files


def commands() -> str:
    """Every verb with its arguments and options, from the command line itself."""
    import typer

    from sslim.cli import app

    group: Any = typer.main.get_command(app)
    lines = [
        "# Commands",
        "",
        "Generated from the command line: `sslim VERB --help` says the same.",
        "",
    ]
    for name, command in group.commands.items():
        lines += [f"## sslim {name}", "", (command.help or "").strip(), ""]
        lines += ["| | | default |", "|---|---|---|"]
        for parameter in command.params:
            if parameter.name == "help":
                continue
            option = parameter.param_type_name == "option"
            shown = ", ".join(parameter.opts) if option else parameter.metavar or parameter.name
            default = parameter.default
            known = option and isinstance(default, str | int | float) and default not in ("", False)
            text = (getattr(parameter, "help", "") or "").replace("|", "\\|")
            lines.append(f"| `{shown}` | {text} | {f'`{default}`' if known else ''} |")
        lines.append("")
    return "\n".join(lines)


def settings() -> str:
    """Every setting of a run, its default and meaning, from the dataclasses and their docstrings."""
    from sslim import config as module
    from sslim.recipes import resolve

    lines = [
        "# Settings",
        "",
        "Set with `--set key=value` or in a TOML file (`--config`). Defaults are those of the recipe",
        "`paper`; `fast` and `demo` change some. Generated from the code.",
        "",
        "| setting | default | |",
        "|---|---|---|",
    ]

    def walk(value: Any, prefix: str) -> None:
        texts = documented(type(value), module)
        for field in fields(value):
            inner = getattr(value, field.name)
            if is_dataclass(inner):
                walk(inner, f"{prefix}{field.name}.")
                continue
            text = texts.get(field.name, "").replace("\n", " ").replace("|", "\\|")
            lines.append(f"| `{prefix}{field.name}` | `{inner!r}` | {' '.join(text.split())} |")

    walk(resolve("paper", params="25%"), "")
    return "\n".join(lines) + "\n"


def documented(kind: type, module: Any) -> dict[str, str]:
    """The string under each field of a dataclass and its parents."""
    texts: dict[str, str] = {}
    tree = ast.parse(inspect.getsource(module))
    names = {parent.__name__ for parent in kind.__mro__}
    for node in tree.body:
        if not (isinstance(node, ast.ClassDef) and node.name in names):
            continue
        for before, after in zip(node.body, node.body[1:], strict=False):
            named = isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name)
            text = after.value if isinstance(after, ast.Expr) else None
            if named and isinstance(text, ast.Constant) and isinstance(text.value, str):
                texts[before.target.id] = text.value
    return texts
