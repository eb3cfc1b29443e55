"""How frames resemble each other: temporal Gram matrices (STaR, Jang et al. 2024, arXiv 2312.09040).

Two of that paper's matrices: layer-wise, the products of all frames of a layer with each other, and
intra-layer, those of all frames of a layer with all frames of the next. There, of the input and output of
each Transformer layer; here, of successive mapped layers. As in the authors' code the loss is the mean
squared difference to the teacher's matrices, all of one kind together, and the two kinds are added. Unlike
there, frames are scaled to length one, which makes products cosines: the loss does not follow the scale of a
teacher's states, and teacher and student need not be equally wide.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from sslim.backbone.reading import Reading, state_name
from sslim.distill.objectives.objective import Sizes
from sslim.distill.view import View


class Gram(nn.Module):
    """Similarities of frames, (frames, frames) per clip, of mapped layers and of each with the next."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.teacher_reads = self.student_reads = tuple(map(state_name, sizes.layers))

    def forward(self, student: Reading, teacher: Reading, view: View) -> dict[str, torch.Tensor]:
        """The loss and its parts, `layerwise` and, from two mapped layers on, `between`."""
        device = view.student_waveforms.device
        # In bfloat16 cosines would be rounded to hundredths, which is what they differ by.
        with torch.autocast(device.type, enabled=False):
            mine = [_unit(student[name]) for name in self.student_reads]
            theirs = [_unit(teacher[name]) for name in self.teacher_reads]
            parts = {"layerwise": _difference(mine, mine, theirs, theirs)}
            if len(mine) > 1:
                parts["between"] = _difference(mine[:-1], mine[1:], theirs[:-1], theirs[1:])
        loss = torch.stack(list(parts.values())).sum()
        return {"loss": loss, **{name: part.detach() for name, part in parts.items()}}


def _unit(state: torch.Tensor) -> torch.Tensor:
    return F.normalize(state.float(), dim=-1)


def _difference(
    mine: Sequence[torch.Tensor],
    mine_after: Sequence[torch.Tensor],
    theirs: Sequence[torch.Tensor],
    theirs_after: Sequence[torch.Tensor],
) -> torch.Tensor:
    """Mean squared difference of the products of frames, over clips, pairs of frames and layers."""
    means = [
        (a @ b.transpose(1, 2) - c @ d.transpose(1, 2)).square().mean()
        for a, b, c, d in zip(mine, mine_after, theirs, theirs_after, strict=True)
    ]
    return torch.stack(means).mean()
