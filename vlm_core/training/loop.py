"""The one training loop, as a generator: who consumes its reports tracks, prunes, shows or breaks off."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vlm_core.errors import UserError
from vlm_core.evaluation.summary import Summary, summarise
from vlm_core.models.categoriser import VisionLanguageCategoriser
from vlm_core.training.batches import Batch, Batches, Rows
from vlm_core.training.checkpoint import Checkpoint


@dataclass(frozen=True)
class Plan:
    """How to learn; units and bounds are those of the settings of the same names."""

    epochs: int
    batch_size: int
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
class EpochReport:
    """One pass over the training rows and one over the validation rows."""

    epoch: int  # from 1
    epochs: int
    training: Summary
    validation: Summary
    learning_rate: float  # at the epoch's end
    seconds: float
    best: bool
    stop: bool
    early_stopping: str


def train(
    model: VisionLanguageCategoriser, cut: int, batches: Batches, validation: Rows, plan: Plan, checkpoint: Checkpoint
) -> Iterator[StepReport | EpochReport]:
    """Reports of every step and epoch; afterwards the checkpoint holds the best epoch's weights.

    Goes on from the checkpoint's last epoch where there is one, to the same end as an uninterrupted run. An epoch is
    kept when its report has been consumed. Raises UserError when the loss is no longer a number.
    """
    weights = model.learn_from(cut)
    optimiser, schedule = _optimiser(weights, plan, batches.steps)
    position = checkpoint.restore(weights, optimiser, schedule)
    while not position.finished(plan.epochs, plan.patience):
        started, epoch = time.perf_counter(), position.epoch + 1
        torch.manual_seed(plan.seed * 1_000_003 + epoch)  # dropout alone draws from it
        model.set_training(True, cut)
        tally = _Tally()
        for step, batch in enumerate(batches.training(epoch), start=1):
            loss, log_probabilities = _losses(model, batch, batches.start)
            if not math.isfinite(float(loss.detach())):
                raise UserError(
                    f"The loss is {float(loss.detach())} at epoch {epoch}, step {step}: "
                    f"lower learning_rate (now {plan.learning_rate}) or clip_norm and start again."
                )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(weights.values(), plan.clip_norm)
            optimiser.step()
            schedule.step()
            tally.add(batch, loss.detach(), log_probabilities)
            yield StepReport(epoch, step, batches.steps, float(loss.detach()), len(batch.labels))
        measured = measure(model, cut, batches, validation)
        position = position.after(measured.macro_f1)
        yield EpochReport(
            epoch,
            plan.epochs,
            training=tally.summary(model.categories),
            validation=measured,
            learning_rate=float(schedule.get_last_lr()[0]),
            seconds=time.perf_counter() - started,
            best=position.best_epoch == epoch,
            stop=position.finished(plan.epochs, plan.patience),
            early_stopping=position.verdict(plan.patience),
        )
        checkpoint.keep(position, weights, optimiser, schedule)


def measure(model: VisionLanguageCategoriser, cut: int, batches: Batches, rows: Rows) -> Summary:
    """The figures of the model as it is, on the rows' plain views."""
    model.set_training(False, cut)
    tally = _Tally()
    with torch.inference_mode():
        for batch in batches.plain(rows):
            tally.add(batch, *_losses(model, batch, batches.start))
    return tally.summary(model.categories)


def _losses(model: VisionLanguageCategoriser, batch: Batch, start: int) -> tuple[Tensor, Tensor]:
    """Loss () and log-probabilities (B, C) of a batch whose state stands before the stage number `start`."""
    state = model.run(batch.state, start)
    return model.answer.loss(state, batch.labels.to(model.device))


def _optimiser(
    weights: Mapping[str, nn.Parameter], plan: Plan, steps: int
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


class _Tally:
    """Losses, labels and answers of one pass."""

    def __init__(self) -> None:
        self._loss = 0.0
        self._labels: list[Tensor] = []
        self._predicted: list[Tensor] = []

    def add(self, batch: Batch, loss: Tensor, log_probabilities: Tensor) -> None:
        self._loss += float(loss) * len(batch.labels)
        self._labels.append(batch.labels)
        self._predicted.append(log_probabilities.argmax(dim=1).cpu())

    def summary(self, categories: tuple[str, ...]) -> Summary:
        labels, predicted = torch.cat(self._labels).numpy(), torch.cat(self._predicted).numpy()
        return summarise(labels, predicted, categories, self._loss / len(labels))
