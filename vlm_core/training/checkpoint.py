"""Where a training stands, kept on disk after every epoch so that it can be gone on with, and its best weights."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlm_core.errors import UserError


@dataclass(frozen=True)
class Position:
    """What is done, and how good it was. Epochs count from 1; 0 is before the first."""

    epoch: int = 0
    macro_f1: float = -1.0  # of the last epoch, validation
    best_epoch: int = 0
    best_macro_f1: float = -1.0
    previous_best: float = -1.0

    def after(self, macro_f1: float) -> Position:
        """The position one epoch later; a tie keeps the earlier epoch as the best."""
        later = replace(self, epoch=self.epoch + 1, macro_f1=macro_f1, previous_best=self.best_macro_f1)
        if macro_f1 <= self.best_macro_f1:
            return later
        return replace(later, best_epoch=later.epoch, best_macro_f1=macro_f1)

    def finished(self, epochs: int, patience: int) -> bool:
        """Whether all epochs are done, or `patience` of them brought nothing better."""
        return self.epoch >= epochs or self.epoch - self.best_epoch >= patience

    def verdict(self, patience: int) -> str:
        """The early-stopping check in words, for the log."""
        if self.best_epoch == self.epoch:
            before = f" (before: {self.previous_best:.4f})" if self.previous_best >= 0 else ""
            return f"Validation macro-F1 improved to {self.macro_f1:.4f}{before}: best weights kept."
        waited = self.epoch - self.best_epoch
        return f"Validation macro-F1 {self.macro_f1:.4f} is not above {self.best_macro_f1:.4f}: {waited} of {patience}."


class Checkpoint:
    """A folder that holds the last finished epoch and the best one; nothing in it is a pickle.

    `position.json` is replaced last and names the files that belong to it, so that a process killed at any moment
    leaves either the old position whole or the new one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def restore(self, weights: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer, schedule: Any) -> Position:
        """The kept position, with its weights and optimiser state loaded; the start where nothing is kept.

        Raises UserError when what is kept belongs to other weights.
        """
        position = self.position()
        if position.epoch == 0:
            return position
        state = self._load(f"last-{position.epoch}.safetensors", weights, extra=("exp_avg.", "exp_avg_sq."))
        _assign(weights, state)
        steps = json.loads((self.folder / "position.json").read_text())["steps"]
        order = {id(weight): name for name, weight in weights.items()}
        for group in optimiser.param_groups:
            for weight in group["params"]:
                name = order[id(weight)]
                optimiser.state[weight] = {
                    "step": torch.tensor(float(steps)),
                    "exp_avg": state["exp_avg." + name].to(weight.device),
                    "exp_avg_sq": state["exp_avg_sq." + name].to(weight.device),
                }
        schedule.last_epoch = steps
        for group, base, factor in zip(optimiser.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
            group["lr"] = base * factor(steps)
        return position

    def position(self) -> Position:
        """Where the kept training stands."""
        path = self.folder / "position.json"
        if not path.exists():
            return Position()
        content = json.loads(path.read_text())
        content.pop("steps")
        return Position(**content)

    def keep(
        self, position: Position, weights: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer, schedule: Any
    ) -> None:
        """Write the epoch's weights and optimiser state, and drop the files of the epoch before."""
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, Tensor] = {name: weight.detach() for name, weight in weights.items()}
        if position.best_epoch == position.epoch:
            self._save(tensors, f"best-{position.epoch}.safetensors")
        moments = {
            f"{kind}.{name}": optimiser.state[weight].get(kind, torch.zeros_like(weight))
            for name, weight in weights.items()
            for kind in ("exp_avg", "exp_avg_sq")
        }
        self._save(tensors | moments, f"last-{position.epoch}.safetensors")
        temporary = self.folder / "position.json.tmp"
        temporary.write_text(json.dumps({**asdict(position), "steps": schedule.last_epoch}))
        os.replace(temporary, self.folder / "position.json")
        current = {f"best-{position.best_epoch}.safetensors", f"last-{position.epoch}.safetensors"}
        for path in self.folder.glob("*.safetensors*"):
            if path.name not in current:
                path.unlink()

    def load_best(self, weights: Mapping[str, nn.Parameter]) -> Position:
        """The kept position, with the best epoch's weights loaded."""
        position = self.position()
        _assign(weights, self._load(f"best-{position.best_epoch}.safetensors", weights))
        return position

    def _save(self, tensors: Mapping[str, Tensor], name: str) -> None:
        from safetensors.torch import save_file

        temporary = self.folder / (name + ".tmp")
        try:
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, temporary)
        except Exception as error:
            temporary.unlink(missing_ok=True)
            raise UserError(
                f"The checkpoint could not be written to {self.folder}: {error}. Free disk space there."
            ) from None
        os.replace(temporary, self.folder / name)

    def _load(self, name: str, weights: Mapping[str, Any], extra: tuple[str, ...] = ()) -> dict[str, Tensor]:
        from safetensors.torch import load_file

        state: dict[str, Tensor] = load_file(self.folder / name)
        wanted = set(weights) | {prefix + key for prefix in extra for key in weights}
        if set(state) != wanted:
            raise UserError(
                f"The checkpoint in {self.folder} belongs to another model or mode: remove it to start again."
            )
        return state


def _assign(weights: Mapping[str, nn.Parameter], state: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(state[name])
