"""SUPERB's heads over frames (Yang et al., Interspeech 2021, as s3prl configures them).

Shape legend: B clips, L layers, T frames, D width, H hidden, C classes, S speakers.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class WeightedSum(nn.Module):
    """Softmax-weighted sum over layers, every layer brought to zero mean and unit variance first.

    The statistics are the training part's, per layer and dimension. (B, L, T, D) -> (B, T, D)
    """

    mean: torch.Tensor
    spread: torch.Tensor

    def __init__(self, mean: torch.Tensor, spread: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean[:, None])
        self.register_buffer("spread", spread[:, None])
        self.weights = nn.Parameter(torch.zeros(len(mean)))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        standard = (states - self.mean) / self.spread
        summed: torch.Tensor = torch.einsum("l,bltd->btd", self.weights.softmax(0), standard)
        return summed


class FrameHead(nn.Module):
    """Phoneme recognition: linear to 256, linear to classes. -> (B, T, C)"""

    def __init__(self, below: WeightedSum, width: int, classes: int, hidden: int = 256) -> None:
        super().__init__()
        self.below = below
        self.project = nn.Linear(width, hidden)
        self.classify = nn.Linear(hidden, classes)

    def forward(self, states: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classify(self.project(self.below(states)))
        return logits


class BidirectionalLSTM(nn.Module):
    """LSTMs that read each clip forwards and backwards from its own last frame. (B, T, D) -> (B, T, 2 H)

    The same mathematics as a packed `nn.LSTM(bidirectional=True)`, which a CPU works off step by step; each
    direction by itself runs through a fused kernel, several times as fast (`benchmarks/evaluate_speed.py`).
    What stands behind a clip's end is read after it by both directions, and means nothing. Dropout follows
    every layer, as in s3prl.
    """

    def __init__(self, width: int, hidden: int, layers: int = 2, dropout: float = 0.2) -> None:
        super().__init__()
        widths = [width] + [2 * hidden] * (layers - 1)
        self.forwards = nn.ModuleList(nn.LSTM(wide, hidden, batch_first=True) for wide in widths)
        self.backwards = nn.ModuleList(nn.LSTM(wide, hidden, batch_first=True) for wide in widths)
        self.dropout = dropout

    def forward(self, x_BTD: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        times_T = torch.arange(x_BTD.shape[1], device=x_BTD.device)
        mirrored_BT = lengths[:, None] - 1 - times_T
        turned_BT1 = torch.where(mirrored_BT < 0, times_T, mirrored_BT)[..., None]

        def turn(y_BTD: torch.Tensor) -> torch.Tensor:
            return y_BTD.gather(1, turned_BT1.expand_as(y_BTD))

        for onwards, back in zip(self.forwards, self.backwards, strict=True):
            x_BTD = torch.cat([onwards(x_BTD)[0], turn(back(turn(x_BTD))[0])], dim=-1)
            x_BTD = F.dropout(x_BTD, self.dropout, self.training)
        return x_BTD


class RecurrentHead(nn.Module):
    """Speech recognition and slot filling: linear, two bidirectional LSTMs, linear. -> (B, T, C)"""

    def __init__(self, below: WeightedSum, width: int, classes: int, hidden: int = 1024) -> None:
        super().__init__()
        self.below = below
        self.project = nn.Linear(width, hidden)
        self.recurrent = BidirectionalLSTM(hidden, hidden)
        self.classify = nn.Linear(2 * hidden, classes)

    def forward(self, states: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classify(
            self.recurrent(self.project(self.below(states)), lengths)
        )
        return logits


class SpeakerHead(nn.Module):
    """x-vector (Snyder et al. 2018): linear, five dilated layers over time, mean and deviation, linear.

    (B, L, T, D) -> embeddings (B, H)
    """

    LAYERS = ((5, 1), (3, 2), (3, 3), (1, 1), (1, 1))
    """Kernel and dilation."""
    SHORTEST = 1 + sum((kernel - 1) * dilation for kernel, dilation in LAYERS)

    def __init__(self, below: WeightedSum, width: int, hidden: int = 512) -> None:
        super().__init__()
        self.below = below
        self.project = nn.Linear(width, hidden)
        sizes = [hidden] * 4 + [3 * hidden]
        self.layers = nn.ModuleList(
            nn.Conv1d(before, after, kernel, dilation=dilation)
            for before, after, (kernel, dilation) in zip(
                [hidden, *sizes[:-1]], sizes, self.LAYERS, strict=True
            )
        )
        self.embed = nn.Linear(2 * sizes[-1], hidden)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        x_BHT = self.project(self.below(states)).transpose(1, 2)
        if x_BHT.shape[2] < self.SHORTEST:
            repeats = -(-self.SHORTEST // x_BHT.shape[2])
            x_BHT = x_BHT.repeat(1, 1, repeats)
        for layer in self.layers:
            x_BHT = F.relu(layer(x_BHT))
        pooled = torch.cat([x_BHT.mean(dim=2), x_BHT.std(dim=2)], dim=1)
        embeddings: torch.Tensor = self.embed(pooled)
        return embeddings


class MarginSoftmax(nn.Module):
    """Additive-margin softmax (Wang et al. 2018): cross-entropy of scaled cosines less a margin."""

    def __init__(self, width: int, speakers: int, scale: float = 30.0, margin: float = 0.4) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.randn(speakers, width) * width**-0.5)
        self.scale = scale
        self.margin = margin

    def forward(self, embeddings: torch.Tensor, speakers: torch.Tensor) -> torch.Tensor:
        cosines = F.normalize(embeddings) @ F.normalize(self.centres).T
        taken = F.one_hot(speakers, cosines.shape[1]).to(cosines.dtype)
        return F.cross_entropy(self.scale * (cosines - self.margin * taken), speakers)


class DiarisationHead(nn.Module):
    """One LSTM and a linear map: the activity of each speaker in every frame. -> (B, T, S)"""

    def __init__(self, below: WeightedSum, width: int, speakers: int, hidden: int = 512) -> None:
        super().__init__()
        self.below = below
        self.recurrent = nn.LSTM(width, hidden, batch_first=True)
        self.classify = nn.Linear(hidden, speakers)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        read, _ = self.recurrent(self.below(states))
        logits: torch.Tensor = self.classify(read)
        return logits
