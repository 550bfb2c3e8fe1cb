"""Fine-tuning as the loop's task: a categoriser that learns a category from each batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from vlm_core.evaluation.summary import Summary, summarise
from vlm_core.models.categoriser import VisionLanguageCategoriser
from vlm_core.training.batches import Batch, Batches, Rows


class _Tally:
    """Losses, labels and answers of one pass over so many rows.

    Room for all is taken at once: what a step leaves among its large tensors would hinder the memory that these
    have taken from being used again, and a pass would take more the longer it is.
    """

    def __init__(self, rows: int) -> None:
        self._loss, self._seen = 0.0, 0
        self._answers = np.empty((2, rows), dtype=np.int64)  # labels, predictions
        self._answered = 0

    def add(self, batch: Batch, loss: Tensor, log_probabilities: Tensor | None) -> None:
        self._loss += float(loss) * len(batch.labels)
        self._seen += len(batch.labels)
        if log_probabilities is None:
            return
        end = self._answered + len(batch.labels)
        self._answers[0, self._answered : end] = batch.labels
        self._answers[1, self._answered : end] = log_probabilities.argmax(dim=1).cpu()
        self._answered = end

    def summary(self, categories: tuple[str, ...]) -> Summary:
        labels, predicted = self._answers[:, : self._answered]
        return summarise(labels, predicted, categories, self._loss / self._seen)


@dataclass
class FineTuning:
    """Everything from the stage `cut` on learns the labels of `batches`; `validation` rows tell how well."""

    model: VisionLanguageCategoriser
    cut: int
    batches: Batches
    validation: Rows
    _tally: _Tally = field(default_factory=lambda: _Tally(0), init=False)

    @property
    def steps(self) -> int:
        """Steps an epoch."""
        return self.batches.steps

    def weights(self) -> dict[str, nn.Parameter]:
        """The weights from the cut on, and the answer's."""
        return self.model.learn_from(self.cut)

    def losses(self, epoch: int) -> Iterator[tuple[Tensor, int]]:
        """The answer's loss on each training batch."""
        self.model.set_training(True, self.cut)
        rows = len(self.batches.source.rows)
        self._tally = _Tally(rows)
        apart = max(1, rows // len(self.validation))
        for step, batch in enumerate(self.batches.training(epoch)):
            loss, log_probabilities = self._loss(batch, asked=step % apart == 0)
            self._tally.add(batch, loss.detach(), log_probabilities)
            yield loss, len(batch.labels)

    def trained(self) -> Summary:
        """The figures of the last epoch's batches, each as the weights were when it came.

        Answers that cost passes of their own are those of batches throughout the epoch, with about as many products
        as validation has.
        """
        return self._tally.summary(self.model.categories)

    def validated(self) -> Summary:
        """The figures of the weights as they are, on the validation rows' plain views."""
        self.model.set_training(False, self.cut)
        tally = _Tally(len(self.validation))
        with torch.inference_mode():
            for batch in self.batches.plain(self.validation):
                tally.add(batch, *self._loss(batch, asked=True))
        return tally.summary(self.model.categories)

    def _loss(self, batch: Batch, asked: bool) -> tuple[Tensor, Tensor | None]:
        """Loss () and log-probabilities (B, C) of a batch whose state stands before the stage `batches.start`.

        Where the loss does not give log-probabilities, they cost another pass, and are None unless asked for.
        """
        state = self.model.run(batch.state, self.batches.start)
        loss, log_probabilities = self.model.answer.loss(state, batch.labels.to(self.model.device))
        if log_probabilities is None and asked:
            log_probabilities = self.model.answer.log_probabilities(tuple(part.detach() for part in state))
        return loss, log_probabilities
