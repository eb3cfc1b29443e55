"""Audio: files -> manifest -> updates of equally long waveforms. Nothing is ever all in memory."""

from __future__ import annotations

from sslim.audio.discovery import check_contents, read_source
from sslim.audio.loading import load_audio
from sslim.audio.manifest import Manifest, Skipped, Utterance
from sslim.audio.sampling import UpdateSampler

__all__ = [
    "Manifest",
    "Skipped",
    "UpdateSampler",
    "Utterance",
    "check_contents",
    "load_audio",
    "read_source",
]
