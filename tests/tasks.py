"""Tasks of tiny models, for tests of training."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from sslim.backbone.families import build
from sslim.backbone.heads import Head
from sslim.backbone.modeling_sslim import SslimModel
from sslim.backbone.units import plan_of, shape_of, table_of
from sslim.distill.cache import TargetCache
from sslim.distill.objectives import make_objectives, weights_of
from sslim.distill.objectives.objective import Sizes
from sslim.distill.student import PlainStudent, Student
from sslim.distill.task import Task
from sslim.distill.teacher import Teacher
from sslim.plan import PruningPlan
from sslim.prune.budget import Budget
from sslim.prune.gates import GatedModel
from sslim.prune.student import GatedStudent
from tests.models import tiny_teacher

KINDS = ("conv", "head", "ffn")


def teacher(family: str = "hubert", size: str = "base", **changes: Any) -> SslimModel:
    dense = tiny_teacher(family, size, **changes)
    return build(dense.config, dense.state_dict(), "", "test")


def budget_of(model: SslimModel, share: float, quantity: str = "parameters") -> Budget:
    shape = shape_of(model)
    dense = PruningPlan.dense(shape).count(shape, quantity)
    return one_limit(quantity, int(share * dense), model)


def one_limit(quantity: str, limit: int, model: SslimModel) -> Budget:
    return Budget.of({quantity: limit}, plan_of(model), table_of(model))


def task_of(
    model: SslimModel,
    student: Student,
    *,
    objectives: Sequence[str] = ("layers",),
    layers: tuple[int, ...] = (0, 1, 3),
    learning_rate: float = 1e-3,
    normalises: bool = False,
    cache: TargetCache | None = None,
    head: Head | None = None,
) -> Task:
    """A teacher and any student; `objectives` with weights, as in the settings."""
    depth = student.model.config.num_hidden_layers
    sizes = Sizes(model.config.hidden_size, depth, layers, head)
    weights = weights_of(objectives)
    return Task(
        Teacher(model, normalises=normalises, cache=cache, head=copy.deepcopy(head)),
        student,
        make_objectives(list(weights), sizes),
        weights=weights,
        learning_rate=learning_rate,
    )


def gated_task(
    model: SslimModel,
    kinds: tuple[str, ...] = KINDS,
    *,
    gated: type[GatedStudent] = GatedStudent,
    objectives: Sequence[str] = ("layers",),
    layers: tuple[int, ...] = (0, 1, 3),
    learning_rate: float = 1e-3,
    normalises: bool = False,
    head: Head | None = None,
    **changes: Any,
) -> Task:
    """A teacher and its copy under gates; `changes` are the gated student's settings."""
    settings: dict[str, Any] = {
        "budget": budget_of(model, 0.4),
        "gate_learning_rate": 0.02,
        "sparsity_warmup": 2,
        "seed": 3,
    } | changes
    student = gated(copy.deepcopy(model), kinds=kinds, normalises=normalises, **settings)
    return task_of(
        model,
        student,
        objectives=objectives,
        layers=layers,
        learning_rate=learning_rate,
        normalises=normalises,
        head=head,
    )


def plain_task(model: SslimModel, student: SslimModel, **settings: Any) -> Task:
    """A teacher and a student that is trained as it is."""
    normalises = settings.get("normalises", False)
    return task_of(model, PlainStudent(student, normalises=normalises), **settings)


class _States(nn.Module):
    """All states of a model, as a module that `functional_call` can run."""

    def __init__(self, model: SslimModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, *arguments: torch.Tensor) -> list[torch.Tensor]:
        return self.model.distillation_features(*arguments)


def gated_states(
    gated: GatedModel, values: torch.Tensor, *arguments: torch.Tensor
) -> list[torch.Tensor]:
    """`distillation_features` of a model under gate values."""
    changed = {f"model.{name}": tensor for name, tensor in gated.changed(values).items()}
    states: list[torch.Tensor] = functional_call(_States(gated.model), changed, arguments)
    return states
