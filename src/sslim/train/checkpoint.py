"""Checkpoints that survive a kill at any moment: safetensors and JSON, written aside, renamed last.

A checkpoint folder holds `state.safetensors` (weights, optimiser moments, random state) and
`state.json` (update, stage and whatever the caller adds). Nothing is pickled.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from sslim.files import fsync_file, fsync_folder, write_json

PREFIX = "update-"


def save(
    folder: Path,
    update: int,
    tensors: Mapping[str, torch.Tensor],
    facts: Mapping[str, Any],
    keep: int,
) -> Path:
    """Writes `folder/update-N` atomically and removes all but the last `keep` checkpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{PREFIX}{update:08d}"
    aside = folder / f".partial-{update:08d}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, aside / "state.safetensors")
        fsync_file(aside / "state.safetensors")
        write_json(aside / "state.json", {"update": update, **facts})
        if target.exists():
            shutil.rmtree(target)
        aside.rename(target)
        fsync_folder(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    for old in found(folder)[: -max(1, keep)]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def found(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.glob(f"{PREFIX}*") if (path / "state.json").is_file())


def load(checkpoint: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and facts of one checkpoint."""
    facts = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    return load_file(checkpoint / "state.safetensors"), facts


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
