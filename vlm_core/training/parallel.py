"""Data-parallel training: processes that each compute their part of every batch, and hold the same weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from vlm_core.errors import UserError
from vlm_core.training.checkpoint import Checkpoint, TrainingState

T = TypeVar("T")
_SEEDS_APART: Final = 1_000_000_007  # of the dropout of two processes


@dataclass(frozen=True)
class Group:
    """Processes that train one model together, as this one is part of them; PyTorch's process group connects them.

    All of them call `averaging`, `mean`, `gather` and `of_first` together.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def here(cls) -> Group:
        """Return the group that this process is in."""
        return cls(distributed.get_rank(), distributed.get_world_size())

    def part(self, rows: int) -> slice:
        """Return which of so many rows of a batch this process computes: neighbours, and as many as the others or one.

        The parts make up the batch. Where it has fewer rows than there are processes, some parts are empty.
        """
        return slice(self.rank * rows // self.size, (self.rank + 1) * rows // self.size)

    def seed_dropout(self) -> None:
        """Let each process draw its own dropout, from the seed that all have set."""
        if self.rank:
            torch.manual_seed((torch.initial_seed() + self.rank * _SEEDS_APART) % 2**63)

    def averaging(self, module: nn.Module) -> nn.Module:
        """Return the module such that after a backward pass each process has the mean of all processes' gradients.

        A weight that no process uses keeps no gradient, as it does in one process.
        """
        if self.size == 1:
            return module
        return DistributedDataParallel(module, forward_sync_buffers=False, find_unused_parameters=True)

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of the processes' values."""
        if self.size == 1:
            return value
        total = value.detach().clone()
        distributed.all_reduce(total)
        return total / self.size

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes."""
        values: list[Any] = [value] * self.size
        if self.size > 1:
            distributed.all_gather_object(values, value)
        return values

    def of_first(self, make: Callable[[], T]) -> T:
        """Return what the first process makes, which alone calls `make`."""
        made: list[Any] = [None if self.rank else make()]
        if self.size > 1:
            distributed.broadcast_object_list(made)
        return made[0]  # type: ignore[no-any-return]


ALONE: Final = Group()


class GroupCheckpoint(Checkpoint):
    """A checkpoint that the first process of a group writes. All resume from it, which takes a disk that they share."""

    def __init__(self, folder: Path, on_save: Callable[[], None], group: Group) -> None:
        super().__init__(folder, on_save)
        self._group = group

    def restore(
        self, weights: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer, scheduler: Any
    ) -> TrainingState:
        """Load the saved state. Raises UserError also where this process finds another one than the first does."""
        state = super().restore(weights, optimiser, scheduler)
        first = self._group.of_first(lambda: state)
        if state != first:
            raise UserError(
                f"The node of worker {self._group.rank} has the checkpoint of epoch {state.epoch} in {self.folder}, "
                f"and that of the first one epoch {first.epoch}: put this folder on a disk that all nodes share, or "
                "give shared_checkpoints=."
            )
        return state

    def save(
        self,
        state: TrainingState,
        weights: Mapping[str, nn.Parameter],
        optimiser: torch.optim.Optimizer,
        scheduler: Any,
    ) -> None:
        """Write the epoch, in the first process alone."""
        if not self._group.rank:
            super().save(state, weights, optimiser, scheduler)

    def load_best(self, weights: Mapping[str, nn.Parameter]) -> TrainingState:
        """Load the best epoch's weights in the first process, and hand them to the others."""
        state = self._group.of_first(lambda: super(GroupCheckpoint, self).load_best(weights))
        if self._group.size > 1:
            for weight in weights.values():
                distributed.broadcast(weight.detach(), 0)
        return state
