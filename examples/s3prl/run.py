"""Any sslim folder as an s3prl upstream, and s3prl's own downstream runner on top.

python examples/s3prl/run.py FOLDER -m train -n NAME -d DOWNSTREAM [options of s3prl.run_downstream]
"""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoFeatureExtractor, AutoModel

NAME = "sslim_folder"
HOP = 320


class UpstreamExpert(nn.Module):
    """s3prl's contract: a list of waveforms in, all hidden states out, padded at the end.

    Args:
        folder: what `AutoModel.from_pretrained` reads.
    """

    def __init__(self, folder: str, **_: Any) -> None:
        super().__init__()
        self.model = AutoModel.from_pretrained(folder, trust_remote_code=True)
        extractor = AutoFeatureExtractor.from_pretrained(folder)
        self.normalise = bool(getattr(extractor, "do_normalize", False))

    def get_downsample_rates(self, key: str) -> int:
        return HOP

    def forward(self, wavs: list[torch.Tensor]) -> dict[str, list[torch.Tensor]]:
        by_clip = [self._states(wav) for wav in wavs]
        layers = [
            pad_sequence([states[layer] for states in by_clip], batch_first=True)
            for layer in range(len(by_clip[0]))
        ]
        return {"hidden_states": layers}

    def _states(self, wav: torch.Tensor) -> list[torch.Tensor]:
        wav = wav.float()
        if self.normalise:
            wav = (wav - wav.mean()) / torch.sqrt(wav.var(unbiased=False) + 1e-7)
        states = self.model(wav[None], output_hidden_states=True).hidden_states
        return [state[0] for state in states]


def stand_ins() -> None:
    """Names that s3prl imports and today's torchaudio and huggingface_hub no longer have."""
    hub = importlib.import_module("huggingface_hub")
    for name in ("HfFolder", "Repository"):
        if not hasattr(hub, name):
            setattr(hub, name, type(name, (), {}))
    audio = importlib.import_module("torchaudio")
    if not hasattr(audio, "set_audio_backend"):
        audio.set_audio_backend = lambda backend: None
    if not hasattr(audio, "sox_effects"):
        effects = types.ModuleType("torchaudio.sox_effects")
        effects.apply_effects_tensor = _absent
        effects.apply_effects_file = _absent
        sys.modules["torchaudio.sox_effects"] = audio.sox_effects = effects


def _absent(*_: Any, **__: Any) -> None:
    raise RuntimeError("sox effects are gone from torchaudio; choose a task without augmentation")


def register(folder: str) -> None:
    """Makes the folder known to s3prl as an upstream called `NAME`."""
    hub = importlib.import_module("s3prl.hub")
    setattr(hub, NAME, lambda *_, **settings: UpstreamExpert(folder))


def main() -> None:
    if len(sys.argv) < 2 or not Path(sys.argv[1]).is_dir():
        sys.exit("error: the first argument is a model folder. See examples/s3prl/README.md.")
    folder = sys.argv[1]
    try:
        stand_ins()
        register(folder)
    except ImportError as error:
        sys.exit(f"error: s3prl cannot be imported: {error}. See examples/s3prl/README.md.")
    sys.argv = [sys.argv[0], *sys.argv[2:], "-u", NAME]
    importlib.import_module("s3prl.run_downstream").main()


if __name__ == "__main__":
    main()
