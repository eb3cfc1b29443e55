"""What a student can be taught: one file each, behind a table of names.

A new objective is a class as `objective.Objective` describes and its line in the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn

from sslim.backbone.reading import deepest_layer
from sslim.distill.objectives.clusters import Clusters
from sslim.distill.objectives.gram import Gram
from sslim.distill.objectives.last_layer import LastLayer
from sslim.distill.objectives.layers import Layers
from sslim.distill.objectives.masked import Masked, Unmasked
from sslim.distill.objectives.objective import Objective, Sizes
from sslim.distill.objectives.output import Output
from sslim.errors import ConfigError

OBJECTIVES: dict[str, Callable[[Sizes], nn.Module]] = {
    "layers": Layers,
    "gram": Gram,
    "clusters": Clusters,
    "masked": Masked,
    "unmasked": Unmasked,
    "output": Output,
    "last_layer": LastLayer,
}
"""Name -> what makes the objective for teachers and students of given sizes."""


def weights_of(settings: Sequence[str]) -> dict[str, float]:
    """Name -> weight from settings such as `("layers:1", "gram:0.1")`; a name alone has the weight 1.

    Raises:
        ConfigError: there is no such objective, it is named twice, or its weight is no positive number.
    """
    weights: dict[str, float] = {}
    for setting in settings:
        name, _, given = setting.partition(":")
        try:
            weight = float(given) if given else 1.0
        except ValueError:
            weight = 0.0
        if name not in OBJECTIVES or name in weights or not 0.0 < weight < 1e6:
            raise ConfigError(
                f"objectives={','.join(settings)}: {setting!r} is no objective with a positive weight, or is "
                "named twice",
                f"give some of {', '.join(OBJECTIVES)}, with weights if you like: layers:1",
            )
        weights[name] = weight
    return weights


def make_objectives(names: Sequence[str], sizes: Sizes) -> nn.ModuleDict:
    """The named objectives, in order.

    Raises:
        ConfigError: one cannot be had with such a teacher or such layers.
    """
    return nn.ModuleDict({name: OBJECTIVES[name](sizes) for name in names})


def untrained_layers(objectives: nn.ModuleDict, sizes: Sizes) -> str:
    """A sentence where the student has layers above all that the objectives read, else nothing.

    Nothing trains such layers: their gates hear from the budget alone.
    """
    readers: Iterable[Objective] = objectives.values()  # type: ignore[assignment]
    names = [name for one in readers for name in one.student_reads]
    deepest, depth = deepest_layer(names, sizes.student_depth), sizes.student_depth
    if deepest >= depth:
        return ""
    return (
        f"warning: nothing above layer {deepest} of {depth} is trained: no objective reads a layer there, so "
        f"the weights there stay the teacher's and the budget alone decides what is removed of them; "
        f"--set layers=...,{depth} names the last layer too"
    )


def learned_head(objectives: nn.ModuleDict) -> dict[str, torch.Tensor] | None:
    """Weights of the teacher's head as it has learned on with the student; None where it has not."""
    heads = [one.head for one in objectives.values() if isinstance(one, Output)]
    return heads[0].weights() if heads else None
