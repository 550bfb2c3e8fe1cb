"""Fine-tuning as a task for the training loop: a categoriser that learns the category of each image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from vlm_core.evaluation.summary import Summary, summarise
from vlm_core.models.categoriser import VisionLanguageCategoriser
from vlm_core.models.heads import SentenceHead
from vlm_core.models.level_heads import LevelsHead
from vlm_core.pixels.arrays import Rows
from vlm_core.training.balance import BalancedLoss, LevelTargets
from vlm_core.training.batches import Batch, Batches
from vlm_core.training.parallel import ALONE, Group


class _RunningMetrics:
    """Collects losses, labels and predictions of one pass over a known number of rows.

    The arrays are allocated at once: small tensors left behind by each step would fragment the memory between its
    large tensors, and a longer pass would take more memory.
    """

    def __init__(self, rows: int) -> None:
        self._loss_sum, self._images = 0.0, 0
        self._labels_and_predictions = np.empty((2, rows), dtype=np.int64)
        self._predicted = 0

    def add(self, batch: Batch, loss: Tensor, log_probabilities: Tensor | None, images: int) -> None:
        self._loss_sum += float(loss) * images
        self._images += images
        if log_probabilities is None:
            return
        end = self._predicted + len(batch.labels)
        self._labels_and_predictions[0, self._predicted : end] = batch.labels
        self._labels_and_predictions[1, self._predicted : end] = log_probabilities.argmax(dim=1).cpu()
        self._predicted = end

    def summary(self, categories: tuple[str, ...], group: Group = ALONE) -> Summary:
        """Return the metrics of the predictions of all processes."""
        parts = group.gather(self._labels_and_predictions[:, : self._predicted])
        labels, predictions = np.concatenate(parts, axis=1)
        return summarise(labels, predictions, categories, self._loss_sum / self._images)


@dataclass
class FineTuning:
    """Trains all stages from `cut` on and the head on `batches`, and validates on the rows `validation`."""

    model: VisionLanguageCategoriser
    cut: int
    batches: Batches
    validation: Rows
    balanced: BalancedLoss | None = None  # what is trained on instead of the head's own loss
    levels: LevelTargets | None = None  # of a model of several label levels, in place of both
    _running: _RunningMetrics = field(default_factory=lambda: _RunningMetrics(0), init=False)
    _part_loss: nn.Module | None = field(default=None, init=False)  # of several processes

    @property
    def group(self) -> Group:
        """Return the processes that share the batches of training."""
        return self.batches.pixels.group

    @property
    def steps(self) -> int:
        """Return the number of steps per epoch."""
        return self.batches.steps

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Freeze the stages before the cut and return all other parameters by name."""
        weights = self.model.freeze_before(self.cut)
        if self.group.size > 1:
            self._part_loss = self.group.averaging(_PartLoss(self.model, self._loss))
        return weights

    def batch_losses(self, epoch: int) -> Iterator[tuple[Tensor, int]]:
        """Yield the loss () and the number of images of each training batch, whoever computes its parts."""
        self.model.set_training(True, self.cut)
        self.group.seed_dropout()
        rows = len(self.batches.pixels.rows)
        self._running = _RunningMetrics(rows)
        interval = max(1, rows // len(self.validation))
        wholes = (rows for rows, _ in self.batches.pixels.order(epoch))
        for step, (batch, whole) in enumerate(zip(self.batches.training(epoch), wholes, strict=True)):
            loss, log_probabilities = self._training_loss(batch, whole, predict=step % interval == 0)
            mine = len(whole[self.group.part(len(whole))]) > 0
            self._running.add(batch, loss.detach(), log_probabilities if mine else None, len(whole))
            yield loss, len(whole)

    def training_metrics(self) -> Summary:
        """Return the metrics of the last epoch's batches, each with the weights of its step.

        Where predictions take an extra forward pass, they are made for batches spread over the epoch, of about as many
        images as the validation split has.
        """
        return self._running.summary(self.model.categories, self.group)

    def validation_metrics(self) -> Summary:
        """Return the metrics of the current weights on the plain views of the validation rows."""
        return self.group.of_first(self._validate)

    def _validate(self) -> Summary:
        self.model.set_training(False, self.cut)
        running = _RunningMetrics(len(self.validation))
        with torch.inference_mode():
            for batch in self.batches.plain(self.validation):
                running.add(batch, *self._loss(batch, predict=True), len(batch.labels))
        return running.summary(self.model.categories)

    def _training_loss(self, batch: Batch, whole: Rows, predict: bool) -> tuple[Tensor, Tensor | None]:
        """Return the loss () of the batch of the rows `whole` (B,), and the log-probabilities of this process's part.

        Its gradients are those of this process's part; the mean over all processes is that of the whole batch.
        """
        if self._part_loss is None:
            return self._loss(batch, predict, training=True)
        loss, log_probabilities = self._part_loss(batch, predict, True, self._shares(whole))
        return loss + (self.group.mean(loss) - loss.detach()), log_probabilities

    def _shares(self, whole: Rows) -> list[float]:
        """Return what the mean loss of this process's part counts in that of the batch `whole` (B,), at each level.

        What all processes have adds up to their number, because their gradients are averaged.
        """
        mine = whole[self.group.part(len(whole))]
        parts = zip(self._terms(mine), self._terms(whole), strict=True)
        return [self.group.size * part / max(1, batch) for part, batch in parts]

    def _terms(self, rows: Rows) -> list[int]:
        """Return how many terms the mean loss of the rows has, at each level: products, or tokens of sentences."""
        head = self.model.head
        if isinstance(head, LevelsHead):
            assert self.levels
            return [int(known) for known in (self.levels.labels[rows] >= 0).sum(axis=0)]
        if isinstance(head, SentenceHead):
            return [sum(len(head.sentences[label]) for label in self.batches.pixels.labels[rows])]
        return [len(rows)]

    def _loss(
        self, batch: Batch, predict: bool, training: bool = False, shares: Sequence[float] = ()
    ) -> tuple[Tensor, Tensor | None]:
        """Return the loss () and log-probabilities (B, C) of a batch whose state is the input of `batches.start`.

        Rare categories are made up for in `training` alone. With `shares`, the loss of each level is multiplied by one.

        If the loss does not give log-probabilities, they take another forward pass, made only if `predict`.
        """
        with self.model.training_arithmetic():
            state = self.model.run(batch.state, self.batches.start)
            head, labels = self.model.head, batch.labels.to(self.model.device)
            if isinstance(head, LevelsHead):
                assert self.levels
                labels = torch.from_numpy(self.levels.labels[batch.rows]).to(self.model.device)
                losses = self.levels.losses if training else ()
                return head.loss(state, labels, [*map(_Scaled, losses, shares)] if shares else losses)
            log_probabilities: Tensor | None
            if training and self.balanced is not None:
                scores = head.log_probabilities(state)
                loss, log_probabilities = self.balanced(scores, labels), scores.detach()
            else:
                loss, log_probabilities = head.loss(state, labels)
            if log_probabilities is None and predict:
                log_probabilities = self.model.head.log_probabilities(tuple(part.detach() for part in state))
        return loss * shares[0] if shares else loss, log_probabilities


@dataclass(frozen=True)
class _Scaled:
    """A level's loss, multiplied by a share; without a loss of its own the cross-entropy."""

    loss: BalancedLoss | None
    share: float

    def __call__(self, log_probabilities: Tensor, labels: Tensor) -> Tensor:
        return (self.loss or functional.nll_loss)(log_probabilities, labels) * self.share


class _PartLoss(nn.Module):
    """A function of a model's weights as a module, so that PyTorch can average their gradients."""

    def __init__(self, model: VisionLanguageCategoriser, loss: Callable[..., tuple[Tensor, Tensor | None]]) -> None:
        super().__init__()
        self.hf, self.head, self._loss = model.hf, model.head, loss

    def forward(self, *given: Any) -> tuple[Tensor, Tensor | None]:
        return self._loss(*given)
