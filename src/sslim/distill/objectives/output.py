"""The answers of a fine-tuned teacher, which the student learns to give through a head that learns on.

For classes, of clips or of frames, the divergence of softened answers (Hinton et al. 2015, section 2); for
CTC the divergence of the answers of each frame, unsoftened, so that the blank, which most frames say, does
not drown in tails. Frames of the two say the same symbol at the same time because the student starts as a
copy.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional as F

from sslim.backbone.reading import LOGITS, Reading
from sslim.distill.objectives.objective import Sizes
from sslim.distill.view import View
from sslim.errors import ConfigError

TEMPERATURES = {"ctc": 1.0, "sequence-classification": 2.0, "frame-classification": 2.0}
"""Kind of head -> what logits are divided by."""


class Output(nn.Module):
    """Divergence of the student's answers from the teacher's.

    The head that is learned replaces the teacher's in the result.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        if sizes.head is None or sizes.head.kind not in TEMPERATURES:
            has = "has none" if sizes.head is None else f"has a head for {sizes.head.kind}"
            raise ConfigError(
                f"the objective output needs a teacher with a head for CTC or classes, and this one {has}",
                "give a fine-tuned teacher, or leave output out of --set objectives=...",
            )
        self.head = copy.deepcopy(sizes.head).train().requires_grad_(True)
        self.temperature = TEMPERATURES[sizes.head.kind]
        self.teacher_reads = (LOGITS,)
        self.student_reads = sizes.head.reads

    def forward(self, student: Reading, teacher: Reading, view: View) -> dict[str, torch.Tensor]:
        """The loss and `agreement`, the share of clips or frames with the same first choice."""
        mine, theirs = self.head(student).float(), teacher[LOGITS].float()
        agreement = (mine.detach().argmax(-1) == theirs.argmax(-1)).float().mean()
        return {"loss": divergence(mine, theirs, self.temperature), "agreement": agreement}


def divergence(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Mean over clips or frames of T^2 KL(softmax(teacher / T) || softmax(student / T)), in nats.

    Args:
        student: logits, (..., classes).
        teacher: the same.
        temperature: T; its square keeps gradients as large as without (Hinton et al. 2015, section 2).
    """
    mine, theirs = (
        (logits / temperature).log_softmax(-1).flatten(0, -2) for logits in (student, teacher)
    )
    return temperature**2 * F.kl_div(mine, theirs, log_target=True, reduction="batchmean")
