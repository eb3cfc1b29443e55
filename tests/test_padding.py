"""An utterance in a padded batch gives what it gives alone, in every family; and the switch back."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sslim.backbone.families import build
from tests.models import CASES, tiny_teacher
from tests.test_saved_folder import HEAD_CLASSES, HEAD_SETTINGS, supported

LENGTHS = (9000, 4321, 400)


X_VECTOR_LENGTHS = (9000, 7700)
"""Its time-delay network spends 14 frames."""


def padded(lengths: tuple[int, ...] = LENGTHS) -> tuple[torch.Tensor, torch.Tensor]:
    """Waveforms of three lengths, padded with zeros, and the mask that says so."""
    torch.manual_seed(1)
    waveforms = torch.randn(len(lengths), max(lengths))
    mask = torch.zeros_like(waveforms, dtype=torch.long)
    for row, valid, length in zip(waveforms, mask, lengths, strict=True):
        row[length:] = 0.0
        valid[:length] = 1
    return waveforms, mask


def worst(model: Any, head: str) -> float:
    """The largest difference between an utterance in the batch and alone."""
    lengths = X_VECTOR_LENGTHS if head == "x-vector" else LENGTHS
    waveforms, mask = padded(lengths)
    together = model(waveforms, attention_mask=mask, output_hidden_states=True)
    found = []
    for row, length in enumerate(lengths):
        alone = model(waveforms[row : row + 1, :length], output_hidden_states=True)
        frames = alone.hidden_states[0].shape[1]
        for ours, theirs in zip(together.hidden_states, alone.hidden_states, strict=True):
            found.append(float((ours[row : row + 1, :frames] - theirs).abs().max()))
        if head:
            logits = together.logits[row : row + 1]
            if logits.dim() == 3:
                logits = logits[:, :frames]
            found.append(float((logits - alone.logits).abs().max()))
    return max(found)


@pytest.mark.parametrize(("family", "size"), CASES)
@torch.no_grad()
def test_a_batch_gives_what_each_utterance_gives_alone(family: str, size: str) -> None:
    dense = tiny_teacher(family, size)
    model = build(dense.config, dense.state_dict(), "", "test")
    assert worst(model, "") < 1e-4


@pytest.mark.parametrize("head", HEAD_CLASSES)
@pytest.mark.parametrize("family", ["hubert", "data2vec-audio"])
@torch.no_grad()
def test_heads_too(family: str, head: str) -> None:
    if not supported(family, head):
        pytest.skip("transformers has no such model")
    dense = tiny_teacher(family, auto=HEAD_CLASSES[head], **HEAD_SETTINGS)
    assert worst(build(dense.config, dense.state_dict(), head, "test"), head) < 1e-4


# WavLM in transformers hands torch masks of two kinds.
@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
@pytest.mark.parametrize("family", ["hubert", "wavlm", "wav2vec2"])
@torch.no_grad()
def test_the_switch_brings_the_statistics_of_the_dense_family_back(family: str) -> None:
    dense = tiny_teacher(family)
    dense.config.exact_padding = False
    model = build(dense.config, dense.state_dict(), "", "test")
    assert model.config.exact_padding is False
    waveforms, mask = padded(LENGTHS[:2])
    ours = model(waveforms, attention_mask=mask).last_hidden_state
    theirs = dense(waveforms, attention_mask=mask).last_hidden_state
    assert float((ours - theirs).abs().max()) < 1e-5
    assert worst(model, "") > 1e-2


@torch.no_grad()
def test_batch_norm_in_the_positional_convolution() -> None:
    """Its bias must not enter where padding is."""
    dense = tiny_teacher("hubert", conv_pos_batch_norm=True)
    model = build(dense.config, dense.state_dict(), "", "test")
    assert worst(model, "") < 1e-4


@pytest.mark.parametrize(
    ("waveforms", "words"),
    [
        (torch.full((1, 800), torch.nan), "NaN or infinity"),
        (torch.zeros(1, 800, dtype=torch.int16), r"torch\.int16; divide"),
        (torch.zeros(1, 399), "too short"),
        (torch.zeros(800), r"\(batch, samples\)"),
    ],
)
@torch.no_grad()
def test_bad_audio_is_a_sentence_in_torch_too(waveforms: torch.Tensor, words: str) -> None:
    dense = tiny_teacher("hubert")
    model = build(dense.config, dense.state_dict(), "", "test")
    with pytest.raises(ValueError, match=words):
        model(waveforms)
