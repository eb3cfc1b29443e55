"""States that survive a kill at any moment: safetensors and JSON, written aside, renamed last.

A state's folder holds `state.safetensors` (weights and the optimiser's moments; every random number follows
from the seed and the update, so none is kept) and `state.json` (the update, the run that it belongs to, the
checksum of the tensors, and whatever the caller adds). Nothing is pickled. What cannot be read back whole is
never gone on from: the state before it is.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sslim.errors import OutputError, first_line
from sslim.files import fsync_file, partial_name, swap_folder
from sslim.identity import content_of
from sslim.runs.facts import CheckpointFacts

PREFIX = "update-"
TENSORS, FACTS = "state.safetensors", "state.json"


@dataclass(frozen=True)
class State:
    """One state as it was read, whole."""

    folder: Path
    tensors: dict[str, torch.Tensor]
    facts: CheckpointFacts

    @property
    def update(self) -> int:
        """Updates that were made before it."""
        return self.facts.update


def write(target: Path, tensors: Mapping[str, torch.Tensor], facts: CheckpointFacts) -> None:
    """Writes a state whole or not at all; what was at `target` before goes last."""
    aside = partial_name(target)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, aside / TENSORS)
        fsync_file(aside / TENSORS)
        replace(facts, sha256=content_of(aside / TENSORS)).write(aside / FACTS)
        swap_folder(aside, target)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def read(folder: Path) -> State:
    """The state in `folder`.

    Raises:
        OutputError: it is not whole.
    """
    try:
        facts = CheckpointFacts.read(folder / FACTS)
        if content_of(folder / TENSORS) != facts.sha256:
            raise ValueError(f"{TENSORS} is not what was written")
        return State(folder, load_file(folder / TENSORS), facts)
    except OutputError as error:
        raise OutputError(f"the state {folder} is damaged ({error.problem})", error.hint) from error
    except (OSError, ValueError, SafetensorError) as error:
        raise OutputError(
            f"the state {folder} is damaged ({first_line(error)})", "restore or remove it"
        ) from error


def save(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    facts: CheckpointFacts,
    keep: int,
) -> Path:
    """Writes `folder/update-N`, N from `facts`, and removes all states but the last `keep` up to this one."""
    target = folder / f"{PREFIX}{facts.update:08d}"
    write(target, tensors, facts)
    # A state of a later update is damaged, or this run would have gone on from it.
    last = [path for path in found(folder) if path.name <= target.name][-max(1, keep) :]
    for path in folder.iterdir():
        if path not in last:
            shutil.rmtree(path, ignore_errors=True)
    return target


def found(folder: Path) -> list[Path]:
    """States, oldest first; not looked into yet."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if re.fullmatch(PREFIX + r"\d{8,}", path.name))


def newest(folder: Path, run: str, say: Callable[[str], None]) -> State | None:
    """The newest state of a run that can be read whole; None where there is none at all.

    Args:
        folder: the states of one stage.
        run: the run's id; states of another are none of ours.
        say: told of each state that is passed over, in a sentence.

    Raises:
        OutputError: there are states of this run, and none is whole.
    """
    damaged: list[OutputError] = []
    for path in reversed(found(folder)):
        try:
            state = read(path)
        except OutputError as error:
            damaged.append(error)
            say(f"warning: {error.problem}; looking at the one before it")
            continue
        if state.facts.run == run:
            return state
        say(f"warning: the state {path} belongs to another run and is not used")
    if damaged:
        raise OutputError(
            f"no state in {folder} can be read, {damaged[0].problem}",
            "remove that folder and run again with --resume, which begins this stage anew, or begin the "
            "whole run anew with --force instead of --resume",
        )
    return None


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Moments of every parameter, under `optimiser.INDEX.NAME`."""
    tensors = {}
    for index, state in optimiser.state_dict()["state"].items():
        for name, value in state.items():
            tensors[f"optimiser.{index}.{name}"] = torch.as_tensor(value)
    return tensors


def restore_optimiser(
    optimiser: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Puts back what `optimiser_tensors` took; the groups' settings stay as they are now."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimiser."):
            _, index, part = name.split(".", 2)
            state.setdefault(int(index), {})[part] = value
    optimiser.load_state_dict(
        {"state": state, "param_groups": optimiser.state_dict()["param_groups"]}
    )
