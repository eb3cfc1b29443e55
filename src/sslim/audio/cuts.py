"""lhotse's cuts and recordings, as far as they say where audio is, read from their JSON.

lhotse itself is not asked to read them: its recordings may be shell commands and addresses, which it runs and
fetches, and here nothing but a plain file or the bytes beside a cut is ever audio. A cut means what it means
to lhotse: seconds of the recording, whatever rate it is resampled to, and the channels that it names. Other
changes to the sound are refused by name, never left out in silence.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sslim.errors import AudioError

HARMLESS = ("Resample",)
"""Transforms of lhotse's that change nothing here: everything is resampled to 16 kHz in any case."""

TOLERANCE_SECONDS = 0.025
"""A cut may end this much after its recording, as lhotse allows."""


@dataclass(frozen=True)
class Cut:
    """A stretch of one recording."""

    name: str
    start: float
    """In seconds."""
    duration: float
    """In seconds."""
    channels: tuple[int, ...] | None
    """Channels of the recording, by lhotse's numbers; None: all."""
    recording: Mapping[str, Any]
    speaker: str

    def samples(self, rate: int, available: int) -> tuple[int, int] | None:
        """First sample and the one after the last in audio of `rate` Hz; None: all that is available."""
        start = math.floor(self.start * rate + 0.5)
        end = start + math.floor(self.duration * rate + 0.5)
        if available < end <= available + TOLERANCE_SECONDS * rate:
            end = available
        return None if start == 0 and abs(end - available) <= 1 else (start, end)


def parse_line(line: str, at: str) -> Cut:
    """A line of a manifest of cuts or recordings.

    Raises:
        AudioError: it is no cut of one recording that can be read as it is; `at` says where.
    """
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _wrong(at, "is not a lhotse manifest: it is no JSON") from error
    if not isinstance(data, dict):
        raise _wrong(at, "is no cut or recording of lhotse's")
    if "sources" in data:
        duration = _number(data, "duration", at)
        return Cut(str(data.get("id", "")), 0.0, duration, None, _recording(data, at), "")
    kind = data.get("type")
    if kind not in ("MonoCut", "MultiCut", "Cut"):
        if isinstance(kind, str) and kind.endswith("Cut"):
            raise _wrong(at, f"is a {kind}, and cuts of one recording are read")
        raise _wrong(at, "is no cut or recording of lhotse's")
    name = str(data.get("id", ""))
    recording = data.get("recording")
    if not isinstance(recording, dict):
        raise _wrong(at, f"has no audio file: cut {name} has no recording")
    start = _number(data, "start", at)
    duration = _number(data, "duration", at)
    if start < 0 or duration <= 0:
        raise _wrong(at, f"has a cut {name} that starts at {start:g} s and lasts {duration:g} s")
    channel = data.get("channel")
    channels = tuple(channel) if isinstance(channel, list) else (channel,)
    if channel is None:
        channels = ()
    elif not channels or not all(type(item) is int for item in channels):
        raise _wrong(at, f"has a cut {name} of channel {str(channel)[:40]!r}")
    return Cut(name, start, duration, channels or None, _recording(recording, at), _speaker(data))


def file_of(cut: Cut, at: str) -> tuple[Path, tuple[int, ...]]:
    """The file of a cut, and which of its channels are averaged (empty: all).

    Raises:
        AudioError: its audio is no plain file, or several.
    """
    sources = cut.recording["sources"]
    if cut.channels is not None:
        sources = [source for source in sources if set(cut.channels) <= set(source["channels"])]
    if len(sources) != 1:
        raise _wrong(at, f"has a cut {cut.name} whose channels are in several files, or in none")
    (source,) = sources
    if source["type"] != "file":
        kind = str(source["type"])[:40]
        raise _wrong(
            at,
            f"has no audio file: the source of cut {cut.name} is of type {kind!r}, and "
            "commands and addresses are never followed",
        )
    return Path(source["source"]), columns(cut.channels, source["channels"])


def columns(wanted: tuple[int, ...] | None, held: list[int]) -> tuple[int, ...]:
    """Places of the channels `wanted` among those that audio holds; empty: all of them."""
    if wanted is None or len(held) == 1 or sorted(wanted) == sorted(held):
        return ()
    return tuple(held.index(channel) for channel in wanted if channel in held)


def _recording(data: Mapping[str, Any], at: str) -> Mapping[str, Any]:
    sources = data.get("sources")
    if not isinstance(sources, list) or not sources:
        raise _wrong(at, "has a recording without audio")
    for source in sources:
        if (
            not isinstance(source, dict)
            or not isinstance(source.get("source"), str)
            or not isinstance(source.get("channels"), list)
            or not source["channels"]
            or not all(type(item) is int for item in source["channels"])
        ):
            raise _wrong(at, "has a recording whose source is not as lhotse writes it")
    check_transforms(data, at)
    return data


def check_transforms(recording: Mapping[str, Any], at: str) -> None:
    """Refuses a recording that lhotse would change before it is heard.

    Raises:
        AudioError: it has a transform that is not harmless.
    """
    transforms = recording.get("transforms") or []
    if not isinstance(transforms, list):
        raise _wrong(at, "has transforms that are not as lhotse writes them")
    for transform in transforms:
        name = transform.get("name") if isinstance(transform, dict) else transform
        if name not in HARMLESS:
            raise AudioError(
                f"{at} has the transform {str(name)[:40]!r}, which is not applied here",
                "save the changed audio with lhotse (save_audios), and give cuts of that",
            )


def _speaker(data: Mapping[str, Any]) -> str:
    """The only speaker of a cut; nothing where there is none, or are several."""
    supervisions = data.get("supervisions") or []
    if not isinstance(supervisions, list):
        return ""
    speakers = {
        item["speaker"]
        for item in supervisions
        if isinstance(item, dict) and isinstance(item.get("speaker"), str)
    }
    return speakers.pop() if len(speakers) == 1 else ""


def _number(data: Mapping[str, Any], key: str, at: str) -> float:
    value = data.get(key)
    if type(value) not in (int, float) or not math.isfinite(value) or abs(value) > 1e9:  # type: ignore[arg-type]
        raise _wrong(at, f"has the {key} {str(value)[:40]!r}")
    return float(value)  # type: ignore[arg-type]


def _wrong(at: str, what: str) -> AudioError:
    return AudioError(
        f"{at} {what}", "give a lhotse manifest of recordings or cuts, with audio on disk"
    )
