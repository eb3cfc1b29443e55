"""Plain distillation, DistilHuBERT style (Chang et al. 2022): the student to compare against.

The student is the teacher's first layers; heads on its last layer predict several layers of the teacher, and
are thrown away afterwards. Nothing is pruned during training.
"""

from __future__ import annotations

import bisect
import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from sslim.backbone.modeling_sslim import SslimModel
from sslim.backbone.units import plan_of, shape_of
from sslim.backbone.waveforms import normalise
from sslim.distill.losses import distillation_loss
from sslim.distill.task import DistillationTask
from sslim.errors import BudgetError
from sslim.plan import LayerPlan, PruningPlan
from sslim.prune.surgery import cut

SMALLEST_FFN = 0.25
"""A layer keeps at least this share of its FFN; below, one layer less is the better student."""


def first_layers(teacher: SslimModel, limit: int) -> SslimModel:
    """The teacher's first layers, as many as fit `limit` parameters, with the FFN width that fills it.

    Raises:
        BudgetError: not even one layer fits.
    """
    for depth in range(teacher.config.num_hidden_layers, 0, -1):
        model = _cut_off(teacher, depth)
        shape, whole = shape_of(model), plan_of(model)
        widest = max(len(layer.ffn or ()) for layer in whole.layers)
        # Sizes grow with the units, so the first that is too large lies behind all that fit.
        units = bisect.bisect_right(
            range(widest + 1), limit, key=lambda units: _narrowed(whole, units).parameters(shape)
        )
        if units - 1 >= SMALLEST_FFN * widest:
            return cut(model, _narrowed(whole, units - 1)).eval()
    raise BudgetError(
        f"not even one layer of the teacher fits {limit:,} parameters", "ask for a larger student"
    )


def _cut_off(teacher: SslimModel, depth: int) -> SslimModel:
    """The teacher's first `depth` layers, whatever has been pruned from them already."""
    kept = plan_of(teacher)
    config = copy.deepcopy(teacher.config)
    config.num_hidden_layers = depth
    config.plan = PruningPlan.of(kept.conv, kept.layers[:depth]).to_dict()
    model = type(teacher)(config)
    state = teacher.state_dict()
    model.load_state_dict({name: state[name] for name in model.state_dict()}, strict=True)
    return model


def _narrowed(plan: PruningPlan, units: int) -> PruningPlan:
    """The plan with at most `units` FFN units in each layer, the first of those that are left."""
    return PruningPlan.of(
        plan.conv,
        tuple(
            LayerPlan(layer.heads, layer.ffn if layer.ffn is None else layer.ffn[:units])
            for layer in plan.layers
        ),
    )


class PredictionTask(DistillationTask):
    """Heads on the student's last layer predict the teacher's mapped layers (0 excepted)."""

    def __init__(
        self, teacher: SslimModel, student: SslimModel, *, layers: Sequence[int], **settings: Any
    ) -> None:
        super().__init__(teacher, student, layers=[k for k in layers if k > 0], **settings)
        width = teacher.config.hidden_size
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
            for _ in self.layers
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        weights = [*self.student.parameters(), *self.heads.parameters()]
        return [{"params": weights, "lr": self.learning_rate, "name": "weights"}]

    def forward(self, waveforms: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.normalise_waveform:
            waveforms = normalise(waveforms)
        targets = self.targets(waveforms)
        last = self.student.distillation_features(waveforms)[-1]
        return distillation_loss([head(last) for head in self.heads], targets)
