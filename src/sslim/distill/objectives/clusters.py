"""Cluster units of the teacher's layers, predicted from the student's (HuBERT, Hsu et al. 2021).

HuBERT predicts k-means units of one layer of the model before it, at masked frames.
Here all mapped layers are predicted, and all frames are heard. The clusters are made once, before the first
update, of frames of the training audio, and are saved with what is trained.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional as F

from sslim.backbone.reading import Reading, state_name
from sslim.distill.objectives.objective import Sizes
from sslim.distill.view import View

CLUSTERS = 100
"""As for HuBERT's first iteration (Hsu et al. 2021, section IV-B)."""
FRAMES_PER_CLIP = 100
"""Frames of a clip, at most, that clusters are made of: two seconds' worth, spread over the clip."""
ROUNDS = 20
"""Of k-means; on speech the means hardly move any more after that."""

TEMPERATURE = 0.1
"""What HuBERT divides similarities by. At 1 even the states of the teacher would be pushed apart."""


class Clusters(nn.Module):
    """Cross entropy of a linear classifier of frames on each mapped layer, in units of the teacher.

    A classifier starts as the one that answers by the nearest mean, because the student starts as a copy of
    its teacher: logits are minus the squared distances, in units of `TEMPERATURE` times their average.
    """

    means: torch.Tensor

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.seed = sizes.seed
        self.teacher_reads = self.student_reads = tuple(map(state_name, sizes.layers))
        shape = (len(sizes.layers), CLUSTERS, sizes.width)
        self.register_buffer("means", torch.zeros(shape))
        # No numbers before `prepare` has been called, so that nothing can be trained without.
        self.weight = nn.Parameter(torch.full(shape, torch.nan))
        self.bias = nn.Parameter(torch.full(shape[:2], torch.nan))

    @torch.no_grad()
    def prepare(self, readings: Iterable[Reading]) -> None:
        """Makes the clusters of each layer of frames spread over the clips, on the host."""
        frames: list[list[torch.Tensor]] = [[] for _ in self.teacher_reads]
        for reading in readings:
            for name, kept in zip(self.teacher_reads, frames, strict=True):
                state = reading[name][0]
                count = min(FRAMES_PER_CLIP, len(state))
                kept.append(state[torch.arange(count) * len(state) // count].float().cpu())
        for layer, kept in enumerate(frames):
            generator = torch.Generator().manual_seed(self.seed)
            means, spread = k_means(torch.cat(kept), CLUSTERS, generator)
            self.means[layer] = means
            scale = TEMPERATURE * spread
            self.weight[layer] = 2.0 * means / scale
            self.bias[layer] = -means.square().sum(1) / scale

    def forward(self, student: Reading, teacher: Reading, view: View) -> dict[str, torch.Tensor]:
        """The loss and `accuracy`, the share of frames that the classifiers put into the teacher's unit."""
        losses, right = [], []
        # Distances are small differences of large numbers, which bfloat16 would lose.
        with torch.autocast(self.means.device.type, enabled=False):
            for layer, name in enumerate(self.student_reads):
                units = squared_distances(teacher[name].float(), self.means[layer]).argmin(-1)
                logits = F.linear(student[name].float(), self.weight[layer], self.bias[layer])
                losses.append(F.cross_entropy(logits.flatten(0, 1), units.flatten()))
                right.append((logits.detach().argmax(-1) == units).float().mean())
        return {"loss": torch.stack(losses).mean(), "accuracy": torch.stack(right).mean()}


def squared_distances(frames: torch.Tensor, means: torch.Tensor) -> torch.Tensor:
    """Of frames (..., width) to means (clusters, width), (..., clusters), less the frame's squared length."""
    return means.square().sum(1) - 2.0 * frames @ means.T


def k_means(
    frames: torch.Tensor, clusters: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Means (clusters, width) of frames (frames, width), and the average squared distance to the nearest.

    Lloyd's algorithm from a start by k-means++ (Arthur and Vassilvitskii 2007). A cluster that loses all of
    its frames keeps its mean; where there are fewer frames than clusters, some means are there twice.
    """
    first = int(torch.randint(len(frames), (1,), generator=generator))
    chosen = [frames[first]]
    nearest = (frames - chosen[0]).square().sum(1)
    while len(chosen) < clusters:
        place = int(torch.multinomial(nearest.clamp(min=1e-12), 1, generator=generator))
        chosen.append(frames[place])
        nearest = torch.minimum(nearest, (frames - chosen[-1]).square().sum(1))
    means = torch.stack(chosen)
    for _ in range(ROUNDS):
        units = squared_distances(frames, means).argmin(1)
        counts = torch.bincount(units, minlength=clusters)[:, None]
        sums = torch.zeros_like(means).index_add_(0, units, frames)
        means = torch.where(counts > 0, sums / counts.clamp(min=1), means)
    spread = squared_distances(frames, means).amin(1) + frames.square().sum(1)
    return means, spread.mean().clamp(min=1e-6)
