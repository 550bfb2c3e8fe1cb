"""The one training loop, as a generator: who consumes its reports tracks, prunes, shows or breaks off."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from vlm_core.errors import Diverged
from vlm_core.progress import track
from vlm_core.training.checkpoint import Checkpoint


class Measured(Protocol):
    """The figures of one pass."""

    @property
    def macro_f1(self) -> float:
        """What epochs are compared by."""


M = TypeVar("M", bound=Measured)
M_co = TypeVar("M_co", bound=Measured, covariant=True)


class Task(Protocol[M_co]):
    """What is learnt: the weights, the losses to descend, and the figures of a pass."""

    @property
    def steps(self) -> int:
        """Steps an epoch."""

    def weights(self) -> dict[str, nn.Parameter]:
        """The weights that learn, by name; all others are frozen by the call."""

    def losses(self, epoch: int) -> Iterator[tuple[Tensor, int]]:
        """The loss () and the number of products of each step; the weights move between two of them."""

    def trained(self) -> M_co:
        """The figures of the epoch that `losses` last walked through."""

    def validated(self) -> M_co:
        """The figures of the weights as they are, on products that are not learnt from."""


@dataclass(frozen=True)
class TrainingArguments:
    """How to learn; units and bounds are those of the settings of the same names."""

    epochs: int
    learning_rate: float
    weight_decay: float
    warmup: float
    clip_norm: float
    patience: int
    seed: int


@dataclass(frozen=True)
class StepReport:
    """One optimiser step."""

    epoch: int
    step: int
    steps: int
    loss: float
    products: int


@dataclass(frozen=True)
class EpochReport(Generic[M]):
    """One pass over the training rows and one over the validation rows."""

    epoch: int  # from 1
    epochs: int
    training: M
    validation: M
    learning_rate: float  # at the epoch's end
    seconds: float
    best: bool
    stop: bool
    early_stopping: str


def train(task: Task[M], plan: TrainingArguments, checkpoint: Checkpoint) -> Iterator[StepReport | EpochReport[M]]:
    """Reports of every step and epoch; afterwards the checkpoint holds the last and the best epoch's weights.

    Goes on from the checkpoint's last epoch where there is one, to the same end as an uninterrupted run. An epoch is
    kept when its report has been consumed. Raises Diverged when the loss is no longer a number.
    """
    weights = task.weights()
    optimiser, schedule = _optimiser(weights, plan, task.steps)
    position = checkpoint.restore(weights, optimiser, schedule)
    while not position.finished(plan.epochs, plan.patience):
        started, epoch = time.perf_counter(), position.epoch + 1
        torch.manual_seed(plan.seed * 1_000_003 + epoch)  # what is drawn on the way: dropout, patches, negatives
        for step, (loss, products) in enumerate(task.losses(epoch), start=1):
            value = float(loss.detach())
            if not math.isfinite(value):
                raise Diverged(
                    f"The loss is {value} at epoch {epoch}, step {step}: "
                    f"lower learning_rate (now {plan.learning_rate}) or clip_norm and start again."
                )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(weights.values(), plan.clip_norm)
            optimiser.step()
            schedule.step()
            yield StepReport(epoch, step, task.steps, value, products)
        trained, validated = task.trained(), task.validated()
        position = position.after(validated.macro_f1)
        yield EpochReport(
            epoch,
            plan.epochs,
            training=trained,
            validation=validated,
            learning_rate=float(schedule.get_last_lr()[0]),
            seconds=time.perf_counter() - started,
            best=position.best_epoch == epoch,
            stop=position.finished(plan.epochs, plan.patience),
            early_stopping=position.verdict(plan.patience),
        )
        checkpoint.keep(position, weights, optimiser, schedule)


def show_steps(
    reports: Iterator[StepReport | EpochReport[M]], steps: int, epochs: int, done: int
) -> Iterator[StepReport | EpochReport[M]]:
    """The reports, with a bar that counts the steps of the whole training, of which `done` epochs are over."""
    bar = track(itertools.count(), "training steps", steps * (epochs - done))
    for report in reports:
        if isinstance(report, StepReport):
            next(bar)
        yield report
    bar.close()  # type: ignore[attr-defined]


def _optimiser(
    weights: Mapping[str, nn.Parameter], plan: TrainingArguments, steps: int
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW that decays matrices alone, and linear warm-up followed by a cosine to zero."""
    matrices = [weight for weight in weights.values() if weight.ndim > 1]
    vectors = [weight for weight in weights.values() if weight.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": plan.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW([group for group in groups if group["params"]], lr=plan.learning_rate, fused=True)
    total = plan.epochs * steps
    rising = max(1, round(plan.warmup * total))

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))

    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
