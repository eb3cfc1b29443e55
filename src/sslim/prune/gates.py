"""Hard-concrete gates (Louizos et al. 2018, "Learning sparse neural networks through L0
regularization"): one variable per unit, living beside the model and folded into its weights.

A gated unit's *consumer* weights are multiplied by the gate. Folding costs a weight-sized product
instead of an activation-sized one, and it is pruning: slicing folded weights changes nothing.
A LayerNorm that reads gated channels takes its statistics over the kept channels only, as the smaller
model will.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from sslim.backbone.modeling_sslim import SslimModel
from sslim.backbone.units import plan_of, table_of
from sslim.cost import Widths
from sslim.layout import Axis
from sslim.prune.surgery import positions_in

BETA = 2.0 / 3.0
LOWER, UPPER = -0.1, 1.1
NOISE_EDGE = 1e-6
SOFT_FACTOR = 0.8
"""The reference's estimate of a gate's value in evaluation: sigmoid(0.8 * log_alpha / beta)."""
OPEN_SHIFT = -BETA * math.log(-LOWER / UPPER)


def stretch(log_alpha: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Gate values in [0, 1] for uniform noise in (eps, 1 - eps) (Louizos et al. 2018, equation 10)."""
    logits = (torch.log(noise) - torch.log1p(-noise) + log_alpha) / BETA
    return (torch.sigmoid(logits) * (UPPER - LOWER) + LOWER).clamp(0.0, 1.0)


def open_probability(log_alpha: torch.Tensor) -> torch.Tensor:
    """Probability that a gate is not zero (Louizos et al. 2018, equation 12)."""
    return torch.sigmoid(log_alpha + OPEN_SHIFT)


def soft_value(log_alpha: torch.Tensor) -> torch.Tensor:
    """The value a kept gate has in evaluation."""
    return torch.sigmoid(SOFT_FACTOR * log_alpha / BETA)


def _sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host on the device; from pinned memory, so that the copy waits for nothing."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class KeptLayerNorm(nn.LayerNorm):
    """A LayerNorm with statistics over the kept channels only, as the smaller model's will be.

    Closed channels come out with some value or other; their gates multiply it by zero. The statistics are
    float32 at least, under autocast as well: torch's own LayerNorm, which the smaller model uses, sees to
    that, and a gated model that did not would be another model than the one that is cut from it.
    """

    kept: torch.Tensor

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__(norm.normalized_shape, eps=norm.eps)
        self.weight, self.bias = norm.weight, norm.bias
        self.register_buffer("kept", torch.ones_like(norm.weight.detach()), persistent=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        with torch.autocast(x.device.type, enabled=False):  # it would make the products bfloat16
            share = (self.kept / self.kept.sum().clamp(min=1.0)).to(x.dtype)
            centred = x - (x @ share)[..., None]
            variance = (centred.square() @ share)[..., None]
            normed = centred * torch.rsqrt(variance + self.eps) * self.weight + self.bias
        return normed if _lifts_norms(input.device.type) else normed.to(input.dtype)


def _lifts_norms(device_type: str) -> bool:
    """Whether torch's own LayerNorm would return float32: under autocast, except on a CPU."""
    return device_type != "cpu" and torch.is_autocast_enabled(device_type)


class Gates(nn.Module):
    """All gates of a model: one vector `log_alpha`, cut into one stretch per axis that has gates."""

    def __init__(self, model: SslimModel, kinds: Iterable[str], *, seed: int = 0) -> None:
        super().__init__()
        self.layout = table_of(model)
        self.plan = plan_of(model)
        """What the gated model keeps before any gate closes."""
        wanted, widths = set(kinds), self.plan.widths
        self.axes: list[Axis] = [
            axis for axis in self.layout.axes if axis.kind in wanted and widths[axis.name]
        ]
        """The axes that have gates: those of the given kinds that still have units, front to back."""
        self.sizes = [widths[axis.name] for axis in self.axes]
        """Gates on each of them."""
        self.total = sum(self.sizes)
        """Units when the gates were made; noise is drawn for all of them, whatever is left."""
        generator = torch.Generator().manual_seed(seed)
        starts = []
        for axis, size in zip(self.axes, self.sizes, strict=True):
            mean = math.log(axis.open_at_start / (1.0 - axis.open_at_start))
            starts.append(mean + 0.01 * torch.randn(size, generator=generator))
        self.log_alpha = nn.Parameter(torch.cat(starts) if starts else torch.zeros(0))
        self.origin = torch.arange(self.total)
        """Place of each unit left among all those for which noise is drawn; no buffer, because it stays on
        the host, where the noise is made."""
        names = {name for name, _ in model.named_parameters()}
        self._folds = [
            [
                (weight, weight.along(axis.name))
                for weight in self.layout.folded(axis.name)
                if weight.name in names
            ]
            for axis in self.axes
        ]

    def split(self, vector: torch.Tensor) -> dict[str, torch.Tensor]:
        """A vector over all units, as axis -> its part."""
        parts = vector.split(self.sizes)
        return {axis.name: part for axis, part in zip(self.axes, parts, strict=True)}

    def sample(self, noise: torch.Tensor) -> torch.Tensor:
        """Stochastic gate values (all units,) for uniform noise (all units,)."""
        return stretch(self.log_alpha, noise)

    def noise(self, seed: int, update: int) -> torch.Tensor:
        """Uniform noise that depends on (seed, update) alone, so that every process draws the same."""
        generator = torch.Generator().manual_seed((seed * 1_000_003 + update) % 2**63)
        uniform = torch.rand(self.total, generator=generator)[self.origin]
        uniform = uniform * (1.0 - 2.0 * NOISE_EDGE) + NOISE_EDGE
        return _sent(uniform, self.log_alpha.device)

    def shrunk(self, smaller: SslimModel) -> tuple[Gates, torch.Tensor]:
        """Gates of a model cut from this one's, with the same values and the same noise per unit.

        Returns:
            The gates, and the positions of their units among this one's, (units left,).
        """
        plan = plan_of(smaller)
        positions = positions_in(self.plan, plan)
        left = Gates(smaller, {axis.kind for axis in self.axes})
        offset, starts = 0, {}
        for axis, size in zip(self.axes, self.sizes, strict=True):
            starts[axis.name] = offset
            offset += size
        parts = [
            torch.tensor(positions[axis.name], dtype=torch.long) + starts[axis.name]
            for axis in left.axes
        ]
        index = torch.cat(parts)
        left.origin = self.origin[index]
        index = index.to(self.log_alpha.device)
        left.log_alpha = nn.Parameter(self.log_alpha.detach()[index].clone())
        left.total = self.total
        return left, index

    def expected_widths(self) -> Widths:
        """Expected number of open units of every axis, differentiable in `log_alpha`."""
        opened = self.split(open_probability(self.log_alpha))
        return self.plan.widths | {name: part.sum() for name, part in opened.items()}

    def fold(
        self, weights: Mapping[str, torch.Tensor], values: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Weights that gates scale, times gate values (all units,); only the weights that change."""
        folded: dict[str, torch.Tensor] = {}
        for folds, gate in zip(self._folds, values.split(self.sizes), strict=True):
            for weight, dim in folds:
                tensor = folded.get(weight.name, weights[weight.name])
                if dim is None:
                    folded[weight.name] = tensor * gate
                    continue
                span = weight.dims[dim].span
                scale = gate.repeat_interleave(span) if span > 1 else gate
                view = [1] * tensor.dim()
                view[dim] = -1
                folded[weight.name] = tensor * scale.view(view)
        return folded

    def kept_masks(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        """For each LayerNorm that reads gated channels: buffer name -> 1 where the gate is open."""
        masks: dict[str, torch.Tensor] = {}
        for axis, gate in zip(self.axes, values.split(self.sizes), strict=True):
            for norm in self.layout.norms(axis.name):
                masks[f"{norm}.kept"] = (gate.detach() > 0).to(gate.dtype)
        return masks


class GatedModel:
    """A model and the gates that multiply its weights on the way in.

    The model's LayerNorms over gated channels are exchanged for `KeptLayerNorm`; weight names stay. No torch
    module itself: model and gates are owned, trained and saved by whoever holds the two.
    """

    def __init__(self, model: SslimModel, gates: Gates) -> None:
        self.model = model
        self.gates = gates
        for axis in gates.axes:
            for name in gates.layout.norms(axis.name):
                parent, _, leaf = name.rpartition(".")
                norm = model.get_submodule(name)
                if isinstance(norm, nn.LayerNorm) and not isinstance(norm, KeptLayerNorm):
                    setattr(model.get_submodule(parent), leaf, KeptLayerNorm(norm))

    def changed(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Name -> tensor of all that differs under gate values (all units,): weights, and kept statistics.

        To be given to `torch.func.functional_call`.
        """
        weights = dict(self.model.named_parameters())
        return {**self.gates.fold(weights, values), **self.gates.kept_masks(values)}

    def folded_state(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        """The model's whole state with gates folded in, ready for surgery."""
        state = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        state.update(self.gates.fold(state, values.detach()))
        return state
