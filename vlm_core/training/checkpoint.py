"""Training checkpoints: the state after every epoch, from which a training resumes, and the best epoch's weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from vlm_core.errors import UserError
from vlm_core.files.atomic import building, write_atomically


@dataclass(frozen=True)
class TrainingState:
    """How far a training is, and its scores. Epochs count from 1; 0 is before the first."""

    epoch: int = 0
    macro_f1: float = -1.0  # of the last epoch, on validation
    best_epoch: int = 0
    best_macro_f1: float = -1.0
    previous_best: float = -1.0

    def next_epoch(self, macro_f1: float) -> TrainingState:
        """Return the state one epoch later; on a tie the earlier epoch stays the best."""
        later = replace(self, epoch=self.epoch + 1, macro_f1=macro_f1, previous_best=self.best_macro_f1)
        if macro_f1 <= self.best_macro_f1:
            return later
        return replace(later, best_epoch=later.epoch, best_macro_f1=macro_f1)

    def finished(self, epochs: int, patience: int) -> bool:
        """Return whether all epochs are done, or the last `patience` ones brought no improvement."""
        return self.epoch >= epochs or self.epoch - self.best_epoch >= patience

    def early_stopping_message(self, patience: int) -> str:
        """Return the result of the early-stopping check, for the training log."""
        if self.best_epoch == self.epoch:
            before = f" (before: {self.previous_best:.4f})" if self.previous_best >= 0 else ""
            return f"Validation macro-F1 improved to {self.macro_f1:.4f}{before}: best weights saved."
        waited = self.epoch - self.best_epoch
        return f"Validation macro-F1 {self.macro_f1:.4f} is not above {self.best_macro_f1:.4f}: {waited} of {patience}."


POSITION: Final = "position.json"
_STATE = TypeAdapter(TrainingState)


def state_of(content: bytes) -> TrainingState:
    """Return the training state that the content of `position.json` tells."""
    return _STATE.validate_json(content)


class Checkpoint:
    """A folder that holds the last finished epoch and the best one, without any pickle.

    `position.json` is replaced last and names the files that belong to it. A process killed at any moment therefore
    leaves either the old state or the new one, complete.
    """

    def __init__(self, folder: Path, on_save: Callable[[], None] = lambda: None) -> None:
        self.folder = folder
        self.on_save = on_save  # called when an epoch is saved whole

    def restore(
        self, weights: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer, scheduler: Any
    ) -> TrainingState:
        """Load the saved weights and optimiser state and return their training state; the initial one if none is saved.

        Raise UserError if the checkpoint belongs to other weights.
        """
        state = self.state()
        if state.epoch == 0:
            return state
        tensors = self._load(f"last-{state.epoch}.safetensors", weights, extra=("exp_avg.", "exp_avg_sq."))
        _assign(weights, tensors)
        steps = json.loads((self.folder / POSITION).read_text())["steps"]
        names = {id(weight): name for name, weight in weights.items()}
        for group in optimiser.param_groups:
            for weight in group["params"]:
                name = names[id(weight)]
                optimiser.state[weight] = {
                    "step": torch.tensor(float(steps), device=weight.device),  # where the fused kernel reads it
                    "exp_avg": tensors["exp_avg." + name].to(weight.device),
                    "exp_avg_sq": tensors["exp_avg_sq." + name].to(weight.device),
                }
        scheduler.last_epoch = steps
        for group, base, factor in zip(optimiser.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
            group["lr"] = base * factor(steps)
        return state

    def state(self) -> TrainingState:
        """Return the saved training state; the initial one if none is saved."""
        path = self.folder / POSITION
        return state_of(path.read_bytes()) if path.exists() else TrainingState()

    def save(
        self,
        state: TrainingState,
        weights: Mapping[str, nn.Parameter],
        optimiser: torch.optim.Optimizer,
        scheduler: Any,
    ) -> None:
        """Write the epoch's weights and optimiser state, and delete the files of the epoch before."""
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, Tensor] = {name: weight.detach() for name, weight in weights.items()}
        if state.best_epoch == state.epoch:
            self._save(tensors, f"best-{state.epoch}.safetensors")
        moments = {
            f"{kind}.{name}": optimiser.state[weight].get(kind, torch.zeros_like(weight))
            for name, weight in weights.items()
            for kind in ("exp_avg", "exp_avg_sq")
        }
        self._save(tensors | moments, f"last-{state.epoch}.safetensors")
        content = json.dumps({**asdict(state), "steps": scheduler.last_epoch})
        write_atomically(self.folder / POSITION, lambda file: file.write(content.encode()))
        current = {f"best-{state.best_epoch}.safetensors", f"last-{state.epoch}.safetensors"}
        for path in self.folder.glob("*.safetensors*"):
            if path.name not in current:
                path.unlink()
        self.on_save()

    def load_best(self, weights: Mapping[str, nn.Parameter]) -> TrainingState:
        """Load the best epoch's weights and return the saved training state."""
        state = self.state()
        _assign(weights, self._load(f"best-{state.best_epoch}.safetensors", weights))
        return state

    def _save(self, tensors: Mapping[str, Tensor], name: str) -> None:
        from safetensors.torch import save_file

        contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
        try:
            with building(self.folder / name) as partial:
                save_file(contiguous, partial)
        except Exception as error:
            raise UserError(
                f"The checkpoint could not be written to {self.folder}: {error}. Free disk space there."
            ) from None

    def _load(self, name: str, weights: Mapping[str, Any], extra: tuple[str, ...] = ()) -> dict[str, Tensor]:
        from safetensors.torch import load_file

        tensors: dict[str, Tensor] = load_file(self.folder / name)
        expected = set(weights) | {prefix + key for prefix in extra for key in weights}
        if set(tensors) != expected:
            raise UserError(
                f"The checkpoint in {self.folder} belongs to another model or mode: remove it to start again."
            )
        return tensors


def _assign(weights: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(tensors[name])
