"""What a report says, in English and Japanese: `words.toml`, which a test holds complete."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from sslim.errors import ConfigError

LANGUAGES = ("en", "ja")


@dataclass(frozen=True)
class Words:
    """One language."""

    language: str

    def __post_init__(self) -> None:
        if self.language not in LANGUAGES:
            raise ConfigError(
                f"there is no language {self.language!r}", f"use {' or '.join(LANGUAGES)}"
            )

    def say(self, key: str, **figures: object) -> str:
        """The text of `key` with figures in their places."""
        return texts()[key][self.language].format(**figures)

    def kind(self, kind: str) -> str:
        """A kind of units (`layout.KINDS`) in words; its name where there are none."""
        return self.say(kind) if kind in texts() else kind


@cache
def texts() -> dict[str, dict[str, str]]:
    """Key -> language -> text."""
    source = files("sslim.report").joinpath("words.toml").read_text(encoding="utf-8")
    return tomllib.loads(source)
