"""One update: gradients over all its batches and all processes, then one step of the optimiser.

Each batch counts by its share of the update's audio, so how an update is cut into batches, and over how
many processes, does not change what is learned. Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch

from sslim.audio.batch import Batch
from sslim.errors import TrainingError
from sslim.layout import SAMPLING_RATE
from sslim.train.processes import Processes

Exchanged = tuple[torch.nn.Parameter, torch.nn.Parameter, Callable[[torch.Tensor], torch.Tensor]]
"""A parameter, the smaller one that took its place, and what cuts anything of the old one's shape alike."""


class TrainableTask(Protocol):
    """What training needs of a task (a torch module)."""

    def __call__(self, batch: Batch) -> dict[str, torch.Tensor]: ...
    def parameter_groups(self) -> list[dict[str, Any]]: ...
    def begin_update(self, update: int) -> None: ...
    def constraint(self) -> dict[str, torch.Tensor]: ...
    def report(self) -> dict[str, float]: ...
    def after_update(self, update: int) -> Sequence[Exchanged]: ...
    def structure(self) -> dict[str, Any]: ...
    def restructure(self, structure: Mapping[str, Any]) -> None: ...
    def state_dict(self) -> dict[str, torch.Tensor]: ...
    def load_state_dict(self, state: dict[str, torch.Tensor]) -> Any: ...


class Step:
    """Runs the updates of a task and owns its optimiser.

    Args:
        task: owns models and losses.
        processes: this one among its peers.
        precision: of the products, by autocast.
        clip_norm: gradients are scaled down to this norm where they exceed it.
        seed: of dropout, together with the update and the process.
        on_warning: called with a sentence when an update had to be cut smaller to fit the memory.
    """

    def __init__(
        self,
        task: TrainableTask,
        processes: Processes,
        *,
        precision: torch.dtype,
        clip_norm: float,
        seed: int = 0,
        on_warning: Callable[[str], None] | None = None,
    ) -> None:
        groups = task.parameter_groups()
        self.task = task
        self.processes = processes
        self.precision = precision
        self.clip_norm = clip_norm
        self.seed = seed
        self.on_warning = on_warning or (lambda sentence: None)
        self.peaks = [group["lr"] for group in groups]
        self.optimiser = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
        self.largest: int | None = None
        """Samples per batch that fit the memory, after a lack of it; None: no limit is known."""
        self.failed = torch.full((), -1, device=processes.device)
        """The first update whose loss or gradient was not finite; -1: none. From it on nothing moves."""

    def __call__(
        self, update: int, share: float, batches: Sequence[Batch]
    ) -> dict[str, torch.Tensor]:
        """Makes one update and returns its figures, still on the device.

        Args:
            update: its index.
            share: of the peak learning rates.
            batches: this process's.

        Raises:
            TrainingError: not even one clip at a time fits the memory.
        """
        for group, peak in zip(self.optimiser.param_groups, self.peaks, strict=True):
            group["lr"] = peak * share
        self.task.begin_update(update)
        figures = self._add_up(self._fitting(update, batches), batches)
        constraint = self.task.constraint()
        if constraint:
            constraint["loss"].backward()
            figures |= {name: value for name, value in constraint.items() if name != "loss"}
            figures["constraint"] = constraint["loss"].detach()
        norm = torch.nn.utils.clip_grad_norm_(self._parameters(), self.clip_norm)
        finite = torch.isfinite(norm + figures["loss"])
        newly = (self.failed < 0) & ~finite
        self.failed = torch.where(newly, torch.full_like(self.failed, update), self.failed)
        # The fused optimiser leaves weights and moments alone where this flag is 1, without asking the host.
        vars(self.optimiser)["found_inf"] = (self.failed >= 0).float()
        self.optimiser.step()
        return {**figures, "gradient_norm": norm}

    def follow(self, exchanged: Sequence[Exchanged]) -> None:
        """Trains on with parameters that a shrink put in the place of others, cutting their moments alike."""
        if not exchanged:
            return
        moments = {
            new: {
                name: moment if name == "step" else cut(moment)
                for name, moment in self.optimiser.state.pop(old, {}).items()
            }
            for old, new, cut in exchanged
        }
        for group, fresh in zip(
            self.optimiser.param_groups, self.task.parameter_groups(), strict=True
        ):
            group["params"] = fresh["params"]
        trained = set(self._parameters())
        for gone in set(self.optimiser.state) - trained:
            del self.optimiser.state[gone]
        self.optimiser.state.update({new: moment for new, moment in moments.items() if moment})

    def _parameters(self) -> list[torch.Tensor]:
        return [weight for group in self.optimiser.param_groups for weight in group["params"]]

    def _fitting(self, update: int, batches: Sequence[Batch]) -> dict[str, torch.Tensor]:
        """`_gradients`, in smaller pieces where the memory asks for it; the sum is the same."""
        while True:
            pieces = [piece for batch in batches for piece in self._cut(batch)]
            try:
                return self._gradients(update, pieces)
            except RuntimeError as error:  # torch.OutOfMemoryError is one
                if not _is_out_of_memory(error):
                    raise
                reason = str(error).splitlines()[0]
            # Outside the handler: the error's frames held the tensors that have to go.
            self._make_room(update, pieces, reason)

    def _cut(self, batch: Batch) -> Sequence[Batch]:
        if self.largest is None or batch.samples <= self.largest:
            return [batch]
        return batch.split(max(1, self.largest // batch.waveforms.shape[1]))

    def _make_room(self, update: int, pieces: Sequence[Batch], reason: str) -> None:
        largest = max(pieces, key=lambda piece: piece.samples)
        seconds = largest.samples / SAMPLING_RATE
        if len(largest.waveforms) == 1:
            shorter = seconds / 2
            raise TrainingError(
                f"update {update + 1}: one clip of {seconds:.1f} s does not fit the memory ({reason})",
                "Go on with --resume on a device with more memory (--device), or with --resume and "
                f"audio.max_seconds lower: --set audio.max_seconds={shorter:.3g}",
            )
        self.largest = largest.samples // 2
        self.optimiser.zero_grad(set_to_none=True)
        if self.processes.device.type == "cuda":
            torch.cuda.empty_cache()
        self.on_warning(
            f"warning: out of memory with {seconds:.0f} s of audio at once; going on with "
            f"{seconds / 2:.0f} s (a new run starts there with --set seconds_per_batch={seconds / 2:.0f})"
        )

    def _gradients(self, update: int, pieces: Sequence[Batch]) -> dict[str, torch.Tensor]:
        """Gradients of the weighted mean loss of this process's pieces, and the mean figures."""
        device = self.processes.device
        # Dropout depends on the update and the process alone, however the update was reached.
        seed = (self.seed * 1_000_003 + update) * 1_009 + self.processes.rank
        torch.manual_seed(seed % 2**63)
        self.optimiser.zero_grad(set_to_none=True)
        total = sum(piece.samples for piece in pieces)
        figures: dict[str, torch.Tensor] = {}
        # A process without audio runs on silence at weight 0, to stay in step with the others.
        for piece in pieces or [Batch.silence()]:
            weight = piece.samples / total if total else 0.0
            with torch.autocast(
                device.type, self.precision, enabled=self.precision != torch.float32
            ):
                parts = self.task(piece.to(device, non_blocking=True))
            (parts["loss"] * weight).backward()
            for name, value in parts.items():
                if value.dim() == 0:
                    figures[name] = figures.get(name, 0.0) + value.detach() * weight
        return figures

    def _add_up(
        self, figures: dict[str, torch.Tensor], batches: Sequence[Batch]
    ) -> dict[str, torch.Tensor]:
        """Means over all processes, each counting by the audio that it heard, and the audio of all."""
        heard = sum(batch.samples for batch in batches) / SAMPLING_RATE
        # `torch.tensor` would copy from the host and wait for that.
        total = torch.full((), heard, device=self.processes.device)
        if self.processes.count == 1:
            return {**figures, "seconds_heard": total}
        tensors = []
        for weight in self._parameters():
            if weight.grad is None:
                # Every process sends the same vector; the multipliers get their gradient afterwards.
                weight.grad = torch.zeros_like(weight)
            tensors.append(weight.grad)
        tensors += figures.values()
        for tensor in tensors:
            tensor.mul_(heard)
        self.processes.add_up([*tensors, total])
        for tensor in tensors:
            tensor.div_(total)
        return {**figures, "seconds_heard": total}


def _is_out_of_memory(error: RuntimeError) -> bool:
    # A CPU's allocator raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
