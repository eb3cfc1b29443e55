"""Names that somebody else chose, made harmless for the place where they are shown.

A folder, a model, a label, a teacher's source come from files and file systems. None of them may end a line,
move a terminal's cursor, start a heading, a tag or a link, or end the quotes of a command that people copy.
"""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

from sslim.errors import visible

MOST = 200
"""Characters of a name that are shown."""
IDEOGRAPHIC_SPACE = "\u3000"


def one_line(text: object, most: int = MOST) -> str:
    """One line of printable characters: spaces for white space, escapes for control and invisible ones."""
    shown = visible(" ".join(str(text)[: 4 * most].split()))
    return shown if len(shown) <= most else f"{shown[: most - 4]} ..."


def code(text: object) -> str:
    """A span of code in markdown, also in a cell of a table: nothing in it can end it."""
    return f"`{one_line(text).replace('`', chr(39)).replace('|', '/')}`"


def prose(text: object) -> str:
    """Text in markdown that is no markdown and no HTML."""
    escaped = re.sub(r"([\\`*_\[\]#|~<>&]|:(?=//)|(?<=www)\.)", r"\\\1", one_line(text))
    # A backslash hides < and & from markdown, not from every program that shows it.
    return escaped.replace(r"\&", "&amp;").replace(r"\<", "&lt;").replace(r"\>", "&gt;")


def label(text: object) -> str:
    """Text in a picture, where plotly would read tags and links."""
    return one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def script_json(data: Any) -> str:
    """JSON inside a page's script: nothing in it can end the script or start a comment.

    Raises:
        ValueError: it holds NaN or infinity, which no browser reads.
    """
    text = json.dumps(data, ensure_ascii=False, allow_nan=False)
    return text.replace("<", r"\u003c").replace("\u2028", r"\u2028").replace("\u2029", r"\u2029")


def word(text: object, otherwise: str) -> str:
    """A word of a command that people copy, quoted for a shell.

    Args:
        text: a path or a model's source.
        otherwise: the placeholder for one that cannot be copied from a page (it holds what is not shown).
    """
    name = str(text)
    if not name or any(not (c.isprintable() or c == IDEOGRAPHIC_SPACE) for c in name):
        return otherwise
    # A path that begins with a hyphen would be taken for an option.
    return shlex.quote(f"./{name}" if name.startswith("-") else name)
