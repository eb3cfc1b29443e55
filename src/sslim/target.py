"""A budget as a person writes it: `25%`, `24M`, `0.3G`, `23600000`, or a sparsity of 0.75.

Pure Python; what the budget means for the gates is in `sslim.prune`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

from sslim.errors import BudgetError, ConfigError

_SUFFIXES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9}
_FORMS = "Write a share such as 25%, or a count such as 24M, 0.3G or 23600000"
_LARGEST = 10**18
"""No model has as many parameters or multiply-accumulates."""


@dataclass(frozen=True)
class BudgetSpec:
    """A budget as it was written: a share of the dense model, or a count."""

    amount: Decimal
    """Percent of the dense model if `is_share`, otherwise a count."""

    is_share: bool
    """Whether the amount is a percentage."""

    @classmethod
    def parse(cls, text: str) -> BudgetSpec:
        """Read `25%`, `24M`, `0.3G`, `23600000`.

        Digits are ASCII: full-width ones and superscripts are refused rather than guessed at.

        Raises:
            ConfigError: the text is none of these, or not between 0 and 100 % (both excluded).
        """
        shown = text if len(text) <= 40 else f"{text[:30]}..."
        match = re.fullmatch(r"([0-9][0-9_]*\.?[0-9]*|\.[0-9]+)\s*([%KMGBkmgb]?)", text.strip())
        if match is None:
            raise ConfigError(f"the budget '{shown}' is not understood", _FORMS)
        number = Decimal(match[1])
        suffix = match[2].upper()
        if suffix == "%":
            if not 0 < number < 100:
                raise ConfigError(
                    f"a budget of '{shown}' is not between 0% and 100%",
                    "Write the share that may remain, such as 25%",
                )
            return cls(number, is_share=True)
        count = number * _SUFFIXES[suffix]
        if count < 1:
            raise ConfigError(f"the budget '{shown}' leaves nothing", _FORMS)
        if count > _LARGEST:
            raise ConfigError(f"the budget '{shown}' is more than any model has", _FORMS)
        if not suffix and count != int(count):
            raise ConfigError(f"the budget '{shown}' is not a whole count", _FORMS)
        return cls(count, is_share=False)

    def target(self, dense: int) -> int:
        """The largest count that meets the budget, given the count of the dense model.

        Raises:
            BudgetError: the budget is not below the dense model, or below one.
        """
        # Rounded down: the result must never lie above what was asked.
        target = int(dense * self.amount / 100) if self.is_share else int(self.amount)
        if target >= dense:
            raise BudgetError(
                f"the budget of {target:,} is not below the {dense:,} that the teacher has",
                "Ask for less than the teacher has, such as 25%",
            )
        if target < 1:
            raise BudgetError(f"the budget leaves nothing of the teacher's {dense:,}", _FORMS)
        return target


def parse_budget(text: str, dense: int) -> int:
    """The count that a budget such as `25%`, `24M` or `23600000` allows.

    Args:
        text: the budget as written.
        dense: what the dense model has of the budgeted quantity.

    Raises:
        ConfigError: the text is not a budget, or not between 0 and 100 %.
        BudgetError: the budget is not below the dense model.
    """
    return BudgetSpec.parse(text).target(dense)


def budget_from_sparsity(sparsity: float) -> str:
    """The budget that leaves what a sparsity removes: 0.75 gives `25%`.

    Raises:
        ConfigError: the sparsity is not between 0 and 1 (both excluded).
    """
    if not 0 < sparsity < 1:  # also refuses NaN
        raise ConfigError(
            f"a sparsity of {sparsity} is not between 0 and 1",
            "Write the share to remove, such as 0.75",
        )
    # Decimal of the shortest text, so that 0.9 leaves 10% and not 9.999999999999998%.
    return f"{((1 - Decimal(repr(sparsity))) * 100).normalize():f}%"
