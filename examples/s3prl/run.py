"""Any sslim folder as an s3prl upstream, and s3prl's own downstream runner on top.

python examples/s3prl/run.py FOLDER -m train -n NAME -d DOWNSTREAM [options of s3prl.run_downstream]
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import soundfile
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoFeatureExtractor, AutoModel

NAME = "sslim_folder"
HOP = 320
Sound = tuple[torch.Tensor, int]
"""(channels, samples) and the rate."""


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
    """Names that s3prl uses and today's torchaudio and huggingface_hub no longer have."""
    hub = importlib.import_module("huggingface_hub")
    for name in ("HfFolder", "Repository"):
        if not hasattr(hub, name):
            setattr(hub, name, type(name, (), {}))
    audio = importlib.import_module("torchaudio")
    if not hasattr(audio, "set_audio_backend"):
        audio.set_audio_backend = lambda backend: None
    if not hasattr(audio, "sox_effects"):
        effects = types.ModuleType("torchaudio.sox_effects")
        effects.apply_effects_tensor = apply_effects
        effects.apply_effects_file = lambda path, chain, **_: apply_effects(*load(path), chain)
        sys.modules["torchaudio.sox_effects"] = audio.sox_effects = effects
    # From 2.9 on, torchaudio decodes through torchcodec, which needs FFmpeg's libraries.
    if not hasattr(audio, "list_audio_backends") and importlib.util.find_spec("torchcodec") is None:
        audio.load = load


def load(path: Any, frame_offset: int = 0, num_frames: int = -1, **_: Any) -> Sound:
    """A file as (channels, samples) float32 and its rate."""
    samples, rate = soundfile.read(
        str(path), frames=num_frames, start=frame_offset, dtype="float32", always_2d=True
    )
    return torch.from_numpy(samples.T.copy()), rate


def apply_effects(
    waveform: torch.Tensor, rate: int, chain: Sequence[Sequence[str]], **_: Any
) -> Sound:
    """The three effects of sox that s3prl's data sets of clips ask for.

    Raises:
        RuntimeError: another effect is asked for.
    """
    for name, *values in chain:
        if name == "channels" and values == ["1"]:
            waveform = waveform.mean(dim=0, keepdim=True)
        elif name == "rate":
            functional = importlib.import_module("torchaudio.functional")
            waveform, rate = functional.resample(waveform, rate, int(values[0])), int(values[0])
        elif name == "gain":
            waveform = waveform * 10 ** (float(values[0]) / 20)
        else:
            raise RuntimeError(
                f"sox's effect {' '.join([name, *values])!r} is gone from torchaudio and has no "
                "stand-in; this task needs the classic environment, see examples/s3prl/README.md"
            )
    return waveform, rate


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
