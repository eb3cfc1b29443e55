"""What a model costs, as sums over its table: parameters, multiply-accumulates, or whatever was measured.

A cost works on integers (a plan's exact count) and on torch scalars (a differentiable expectation) alike,
because only `+` and `*` are used, and `at_most_one` where something is there or not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from sslim.layout import SAMPLING_RATE, Layout, Product, Weight

MACS_SECONDS = 10.0
"""Length of the utterance that MACs are counted on (attention is quadratic, so a length is needed)."""

Widths = Mapping[str, Any]
"""Axis name -> units: integers for a plan, torch scalars for an expectation."""


class Cost(Protocol):
    """A quantity that a budget can be put on."""

    @property
    def name(self) -> str:
        """What it is called in settings, such as "parameters"."""

    def total(self, widths: Widths) -> Any:
        """The quantity for these widths; differentiable where they are."""


def at_most_one(width: Any) -> Any:
    """1 where there are units and 0 where there are none; in between for an expectation below 1."""
    return min(1, width) if isinstance(width, int) else width.clamp(max=1.0)


@dataclass(frozen=True)
class Term:
    """coefficient * product of widths * presence: one monomial of a count."""

    part: str
    coefficient: int
    axes: tuple[str, ...]
    present: tuple[tuple[str, ...], ...]
    """Alternatives of axes, one of which must have units throughout; (): always there."""

    def value(self, widths: Widths) -> Any:
        """The term for these widths."""
        result: Any = self.coefficient
        for axis in self.axes:
            result = result * widths[axis]
        if self.present:
            ways = [math.prod(at_most_one(widths[axis]) for axis in way) for way in self.present]
            result = result * (ways[0] if len(ways) == 1 else at_most_one(sum(ways)))
        return result


@dataclass(frozen=True)
class Count:
    """A cost that is counted: a polynomial in the widths of the axes, exact for integers."""

    name: str
    terms: tuple[Term, ...]

    def by_part(self, widths: Widths) -> dict[str, Any]:
        """Part of the model -> its share of the quantity."""
        parts: dict[str, Any] = {}
        for term in self.terms:
            parts[term.part] = parts.get(term.part, 0) + term.value(widths)
        return parts

    def total(self, widths: Widths) -> Any:
        """The quantity: an integer for integer widths, differentiable where the widths are."""
        return sum(term.value(widths) for term in self.terms)


@lru_cache(maxsize=64)
def parameters(layout: Layout) -> Count:
    """Parameters of the backbone: equals `sum(p.numel() for p in model.parameters())`."""
    return _count("parameters", ((weight, 1) for weight in layout.weights))


@lru_cache(maxsize=64)
def macs(layout: Layout, seconds: float = MACS_SECONDS) -> Count:
    """Multiply-accumulates of one utterance of `seconds` (products only, no norms)."""
    frames = layout.shape.frames(round(seconds * SAMPLING_RATE))
    counted: list[tuple[Weight | Product, int]] = [
        (weight, frames[weight.frames]) for weight in layout.weights if weight.frames is not None
    ]
    counted += [(product, frames[-1] ** 2) for product in layout.products]
    return _count("macs", counted)


COSTS: Mapping[str, Callable[[Layout], Count]] = {"parameters": parameters, "macs": macs}
"""What can be counted, by the name that settings use."""


def _count(name: str, counted: Iterable[tuple[Weight | Product, int]]) -> Count:
    """Equal monomials are added up, so that an expectation costs a few dozen products."""
    coefficients: dict[tuple[str, tuple[str, ...], tuple[tuple[str, ...], ...]], int] = {}
    for item, times in counted:
        key = item.part, item.axes, item.present
        coefficients[key] = coefficients.get(key, 0) + item.entries * times
    return Count(
        name,
        tuple(
            Term(part, coefficient, axes, present)
            for (part, axes, present), coefficient in coefficients.items()
        ),
    )
