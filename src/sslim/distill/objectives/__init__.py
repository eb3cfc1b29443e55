"""What a student can be taught: one file each, behind a table of names.

A new objective is a class as `objective.Objective` describes and its line in the table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from sslim.distill.objectives.last_layer import LastLayer
from sslim.distill.objectives.layers import Layers
from sslim.distill.objectives.objective import Sizes
from sslim.errors import ConfigError

OBJECTIVES: dict[str, Callable[[Sizes], nn.Module]] = {"layers": Layers, "last_layer": LastLayer}
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
    """The named objectives, in order."""
    return nn.ModuleDict({name: OBJECTIVES[name](sizes) for name in names})
