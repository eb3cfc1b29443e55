"""Named runs, each a function that returns a whole `RunConfig`; its docstring says why each number.

    paper   the published recipe, for a GPU and a large corpus
    fast    a quarter of the audio per update and a tenth of the updates
    demo    minutes on two cores, for the embedded teacher

A run's settings are resolved once, here: recipe, file, settings, then the budget's own options. These say
how much may remain; of what is `budget_quantity`, wherever that was set.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from sslim.config import (
    AudioConfig,
    JointConfig,
    RecoveryConfig,
    RunConfig,
    apply_settings,
    load_config,
)
from sslim.errors import ConfigError
from sslim.target import BudgetSpec, budget_from_sparsity


def paper() -> RunConfig:
    """The recipe of DPHuBERT (Peng et al., Interspeech 2023, arXiv 2305.17651, section 3.1).

    - 640 s of audio per update, utterances of 2 to 15.6 s: short ones hold little context, and long
      ones fill the memory with one clip.
    - Stage 1: 50k updates at 2e-4, the first 15k of them rising (0.3). Gates and multipliers learn
      at 0.02, a hundred times the weights' rate: a gate must cross several units of log-odds
      where a weight moves by hundredths. The target sparsity rises over 5k updates (0.1): pruning
      that starts at once removes units before the losses have told which ones matter.
    - Stage 2: 25k updates at half the rate (1e-4), 5k of them rising (0.2): the model is already
      near its teacher, it only has to heal.
    - Gradient norm clipped at 10: a guard against the rare bad batch, not a regulariser.
    - Budget 25% of the parameters, convolution channels, heads and feed-forward units removable.
    """
    return RunConfig(
        seconds_per_update=640.0,
        clip_norm=10.0,
        budget="25%",
        units=("conv", "head", "ffn"),
        audio=AudioConfig(min_seconds=2.0, max_seconds=15.6),
        stage1=JointConfig(
            updates=50_000,
            learning_rate=2e-4,
            warmup_fraction=0.3,
            gate_learning_rate=0.02,
            sparsity_warmup_fraction=0.1,
        ),
        stage2=RecoveryConfig(updates=25_000, learning_rate=1e-4, warmup_fraction=0.2),
    )


def fast() -> RunConfig:
    """The paper's recipe for one GPU, or a patient CPU: 2.5% of its audio.

    - 160 s per update: a quarter of the paper's, in reach of one device.
    - A tenth of the updates (5k and 2.5k), the same shares of them to warm up. To travel further
      per step the rates double: 4e-4 for the weights, 0.04 for the gates, 2e-4 in stage 2.
    - Everything else as in `paper`, so that a result tells what the full recipe would gain.
    """
    base = paper()
    return replace(
        base,
        seconds_per_update=160.0,
        stage1=replace(base.stage1, updates=5_000, learning_rate=4e-4, gate_learning_rate=0.04),
        stage2=replace(base.stage2, updates=2_500, learning_rate=2e-4),
    )


def demo() -> RunConfig:
    """Minutes on two cores: the embedded teacher on spoken words.

    - 20 s per update: some twenty words, enough for the loss to mean something and small enough for
      hundreds of updates.
    - Words last 0.4 s and longer; clips above 4 s are none of ours.
    - 220 updates at 5e-4 with the gates at 0.1, five times the paper's rate: a gate has 220 steps
      where it had 50,000. Then 140 updates at the same 5e-4: too few to be worth a gentler rate.
    - A state every 100 updates, so that an interrupted demo can be resumed as well.
    """
    base = paper()
    return replace(
        base,
        seconds_per_update=20.0,
        checkpoint_every=100,
        audio=AudioConfig(min_seconds=0.4, max_seconds=4.0),
        stage1=replace(base.stage1, updates=220, learning_rate=5e-4, gate_learning_rate=0.1),
        stage2=replace(base.stage2, updates=140, learning_rate=5e-4),
    )


RECIPES: Mapping[str, Callable[[], RunConfig]] = MappingProxyType(
    {"paper": paper, "fast": fast, "demo": demo}
)
"""Name to function, in the order a reader wants."""


def get_recipe(name: str) -> RunConfig:
    """The configuration of a named recipe.

    Raises:
        ConfigError: there is no such recipe; the nearest match is named.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        suffix = f" (did you mean {near[0]}?)" if near else ""
        raise ConfigError(f"there is no recipe '{name}'{suffix}", f"Choose {', '.join(RECIPES)}")
    return RECIPES[name]()


def resolve(
    recipe: str = "paper",
    *,
    config: str | Path | None = None,
    settings: Sequence[str] = (),
    params: str | None = None,
    sparsity: float | None = None,
    device: str | None = None,
) -> RunConfig:
    """The configuration of a run, each argument editing what those before it say.

    Args:
        recipe: a name in `RECIPES`.
        config: a TOML file.
        settings: such as `stage1.updates=2000`.
        params: how much may remain of what `budget_quantity` counts, such as `25%` or `24M`.
        sparsity: the share of it to remove, instead of `params`.
        device: as `RunConfig.device`; None and `auto` leave what file and settings say.

    Raises:
        ConfigError: something is unknown or out of range, or both budgets are given.
    """
    if params is not None and sparsity is not None:
        raise ConfigError(
            f"both --params {params} and --sparsity {sparsity} were given", "Give one of them"
        )
    result = get_recipe(recipe)
    if config is not None:
        result = load_config(config, result)
    result = apply_settings(result, settings)
    budget = budget_from_sparsity(sparsity) if sparsity is not None else params
    if budget is not None:
        BudgetSpec.parse(budget)  # so that the message is about the budget, not about a field
        result = replace(result, budget=budget)
    if device not in (None, "auto"):  # "auto" asks for nothing that a file may have named
        result = replace(result, device=str(device))
    result.validate()
    return result


@dataclass(frozen=True)
class Known:
    """What settings leave open and is known once teacher, audio and machine have been looked at."""

    layers: tuple[int, ...]
    """Mapped layers, in the depth of the teacher."""
    precision: str
    """What `auto` means on the device."""
    check_every: int
    """Updates between two looks at the device's figures."""


def complete(config: RunConfig, known: Known) -> RunConfig:
    """The settings that are trained with, and that `sslim.json` records.

    Only `seconds_per_batch` may still be open: what fits the memory is measured when training begins.
    """
    return replace(
        config,
        layers=known.layers,
        precision=known.precision if config.precision == "auto" else config.precision,
        check_every=config.check_every or known.check_every,
    )
