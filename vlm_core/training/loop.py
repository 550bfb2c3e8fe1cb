"""The training loop of every task, as a generator of reports: its consumer logs, prunes, shows or stops."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from vlm_core.errors import Diverged
from vlm_core.progress import track
from vlm_core.training.checkpoint import Checkpoint


class EpochMetrics(Protocol):
    """The metrics of one pass over a split."""

    @property
    def macro_f1(self) -> float:
        """Return the score that chooses the best epoch."""


M = TypeVar("M", bound=EpochMetrics)
M_co = TypeVar("M_co", bound=EpochMetrics, covariant=True)


class TrainingTask(Protocol[M_co]):
    """What the loop trains: parameters, the losses of an epoch, and its metrics."""

    @property
    def steps(self) -> int:
        """Return the number of steps per epoch."""

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Freeze all other weights and return the trainable parameters by name."""

    def batch_losses(self, epoch: int) -> Iterator[tuple[Tensor, int]]:
        """Yield the loss () and the number of images of each step; the weights change between two steps."""

    def training_metrics(self) -> M_co:
        """Return the metrics of the last epoch that `batch_losses` walked through."""

    def validation_metrics(self) -> M_co:
        """Return the metrics of the current weights on the validation split."""


@dataclass(frozen=True)
class TrainingArguments:
    """Arguments of a training; units and bounds are those of the settings of the same names."""

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
    """One epoch: a pass over the training rows and one over the validation rows."""

    epoch: int  # from 1
    epochs: int
    training: M
    validation: M
    learning_rate: float  # at the epoch's end
    seconds: float
    best: bool
    stop: bool
    early_stopping: str


def train(
    task: TrainingTask[M], arguments: TrainingArguments, checkpoint: Checkpoint
) -> Iterator[StepReport | EpochReport[M]]:
    """Train and yield a report of every step and epoch; the checkpoint then holds the last and the best epoch.

    Resumes from the checkpoint's last epoch if there is one, with the same result as an uninterrupted run. An epoch is
    saved once its report is consumed. Raise Diverged if the loss is not finite.
    """
    weights = task.trainable_parameters()
    optimiser, scheduler = _optimiser(weights, arguments, task.steps)
    state = checkpoint.restore(weights, optimiser, scheduler)
    while not state.finished(arguments.epochs, arguments.patience):
        started, epoch = time.perf_counter(), state.epoch + 1
        torch.manual_seed(arguments.seed * 1_000_003 + epoch)  # for dropout, patch sampling and negatives
        for step, (loss, products) in enumerate(task.batch_losses(epoch), start=1):
            value = float(loss.detach())
            if not math.isfinite(value):
                raise Diverged(
                    f"The loss is {value} at epoch {epoch}, step {step}: "
                    f"lower learning_rate (now {arguments.learning_rate}) or clip_norm and start again."
                )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(weights.values(), arguments.clip_norm)
            optimiser.step()
            scheduler.step()
            yield StepReport(epoch, step, task.steps, value, products)
        training, validation = task.training_metrics(), task.validation_metrics()
        state = state.next_epoch(validation.macro_f1)
        yield EpochReport(
            epoch,
            arguments.epochs,
            training=training,
            validation=validation,
            learning_rate=float(scheduler.get_last_lr()[0]),
            seconds=time.perf_counter() - started,
            best=state.best_epoch == epoch,
            stop=state.finished(arguments.epochs, arguments.patience),
            early_stopping=state.early_stopping_message(arguments.patience),
        )
        checkpoint.save(state, weights, optimiser, scheduler)


def show_steps(
    reports: Iterator[StepReport | EpochReport[M]], steps: int, epochs: int, done: int
) -> Iterator[StepReport | EpochReport[M]]:
    """Yield the reports while a bar counts the steps of all epochs that are left after `done` ones."""
    bar = track(itertools.count(), "training steps", steps * (epochs - done))
    for report in reports:
        if isinstance(report, StepReport):
            next(bar)
        yield report
    bar.close()  # type: ignore[attr-defined]


def warmup_cosine(step: int, warmup_steps: int, total_steps: int) -> float:
    """Return the learning rate at `step` (from 0) as a share of its peak.

    Linear warm-up (Goyal et al. 2017, arXiv 1706.02677, section 2.2), then a cosine to zero at `total_steps`
    (Loshchilov & Hutter 2017, arXiv 1608.03983, without restarts).
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, total_steps - warmup_steps)))


def _optimiser(
    weights: Mapping[str, nn.Parameter], arguments: TrainingArguments, steps: int
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
    """Return AdamW with weight decay on matrices only, and its learning-rate schedule."""
    matrices = [weight for weight in weights.values() if weight.ndim > 1]
    vectors = [weight for weight in weights.values() if weight.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": arguments.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=arguments.learning_rate, fused=True
    )
    total_steps = arguments.epochs * steps
    warmup_steps = max(1, round(arguments.warmup * total_steps))
    schedule = partial(warmup_cosine, warmup_steps=warmup_steps, total_steps=total_steps)
    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, schedule)
