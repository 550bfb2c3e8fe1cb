"""Fine-tuning as a task for the training loop: a categoriser that learns the category of each image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from vlm_core.evaluation.summary import Summary, summarise
from vlm_core.models.categoriser import VisionLanguageCategoriser
from vlm_core.models.levels import LevelsHead
from vlm_core.pixels.arrays import Rows
from vlm_core.training.balance import BalancedLoss, LevelTargets
from vlm_core.training.batches import Batch, Batches


class _RunningMetrics:
    """Collects losses, labels and predictions of one pass over a known number of rows.

    The arrays are allocated at once: small tensors left behind by each step would fragment the memory between its
    large tensors, and a longer pass would take more memory.
    """

    def __init__(self, rows: int) -> None:
        self._loss_sum, self._images = 0.0, 0
        self._labels_and_predictions = np.empty((2, rows), dtype=np.int64)
        self._predicted = 0

    def add(self, batch: Batch, loss: Tensor, log_probabilities: Tensor | None) -> None:
        self._loss_sum += float(loss) * len(batch.labels)
        self._images += len(batch.labels)
        if log_probabilities is None:
            return
        end = self._predicted + len(batch.labels)
        self._labels_and_predictions[0, self._predicted : end] = batch.labels
        self._labels_and_predictions[1, self._predicted : end] = log_probabilities.argmax(dim=1).cpu()
        self._predicted = end

    def summary(self, categories: tuple[str, ...]) -> Summary:
        labels, predictions = self._labels_and_predictions[:, : self._predicted]
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

    @property
    def steps(self) -> int:
        """Return the number of steps per epoch."""
        return self.batches.steps

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Freeze the stages before the cut and return all other parameters by name."""
        return self.model.freeze_before(self.cut)

    def batch_losses(self, epoch: int) -> Iterator[tuple[Tensor, int]]:
        """Yield the loss () and the number of images of each training batch."""
        self.model.set_training(True, self.cut)
        rows = len(self.batches.pixels.rows)
        self._running = _RunningMetrics(rows)
        interval = max(1, rows // len(self.validation))
        for step, batch in enumerate(self.batches.training(epoch)):
            loss, log_probabilities = self._loss(batch, predict=step % interval == 0, training=True)
            self._running.add(batch, loss.detach(), log_probabilities)
            yield loss, len(batch.labels)

    def training_metrics(self) -> Summary:
        """Return the metrics of the last epoch's batches, each with the weights of its step.

        Where predictions take an extra forward pass, they are made for batches spread over the epoch, of about as many
        images as the validation split has.
        """
        return self._running.summary(self.model.categories)

    def validation_metrics(self) -> Summary:
        """Return the metrics of the current weights on the plain views of the validation rows."""
        self.model.set_training(False, self.cut)
        running = _RunningMetrics(len(self.validation))
        with torch.inference_mode():
            for batch in self.batches.plain(self.validation):
                running.add(batch, *self._loss(batch, predict=True))
        return running.summary(self.model.categories)

    def _loss(self, batch: Batch, predict: bool, training: bool = False) -> tuple[Tensor, Tensor | None]:
        """Return the loss () and log-probabilities (B, C) of a batch whose state is the input of `batches.start`.

        Rare categories are made up for in `training` alone.

        If the loss does not give log-probabilities, they take another forward pass, made only if `predict`.
        """
        with self.model.training_arithmetic():
            state = self.model.run(batch.state, self.batches.start)
            head, labels = self.model.head, batch.labels.to(self.model.device)
            if isinstance(head, LevelsHead):
                assert self.levels
                labels = torch.from_numpy(self.levels.labels[batch.rows]).to(self.model.device)
                return head.loss(state, labels, self.levels.losses if training else ())
            if training and self.balanced is not None:
                scores = head.log_probabilities(state)
                return self.balanced(scores, labels), scores.detach()
            loss, log_probabilities = head.loss(state, labels)
            if log_probabilities is None and predict:
                log_probabilities = self.model.head.log_probabilities(tuple(part.detach() for part in state))
        return loss, log_probabilities
