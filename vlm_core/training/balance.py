"""Losses that make up for rare categories: weighted by class, or with logits adjusted by the categories' shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vlm_core.pixels.arrays import Labels, Rows


@dataclass(frozen=True)
class BalancedLoss:
    """The mean loss of a batch, each product weighted by its category, after a shift of each category's logit."""

    weights: Tensor  # (C,) of which the mean over the training rows is one
    shifts: Tensor  # (C,) added to the logits

    def __call__(self, log_probabilities: Tensor, labels: Tensor) -> Tensor:
        """Return the loss () of log-probabilities (B, C), which are logits up to a number per product; labels (B,)."""
        shifted = functional.log_softmax(log_probabilities + self.shifts.to(labels.device), dim=-1)
        losses = functional.nll_loss(shifted, labels, reduction="none")
        return (losses * self.weights.to(labels.device)[labels]).mean()


@dataclass(frozen=True)
class LevelTargets:
    """What a model of several label levels learns."""

    labels: Labels  # (n_products, L) category of each catalogue row at each level, -1 where there is none
    losses: tuple[BalancedLoss | None, ...]  # (L,) None for the plain cross-entropy

    @classmethod
    def of(cls, balance: str, labels: Labels, train: Rows, counts: Sequence[int]) -> LevelTargets:
        """Return the targets of levels with that many categories (L,); `balance` is applied to each level by itself."""
        losses = [balanced_loss(balance, labels[train, level], count) for level, count in enumerate(counts)]
        return cls(labels, tuple(losses))


def balanced_loss(balance: str, labels: Labels, count: int) -> BalancedLoss | None:
    """Return the loss of the setting `balance` for training rows of these categories (n,); None for the head's own.

    Rows without a category (-1) do not count.

    `weights` makes each of the `count` categories weigh the same. `logit-adjusted` (Menon et al. 2021, arXiv
    2007.07314, equation 10 with tau = 1) adds the logarithm of a category's share of the training rows to its logit, in
    training alone: what is learnt are logits of which the largest minimises the balanced error.
    """
    if balance not in ("weights", "logit-adjusted"):
        return None
    labels = labels[labels >= 0]
    counts = np.maximum(np.bincount(labels, minlength=count), 1)
    shares = torch.from_numpy(counts / counts.sum()).float()
    if balance == "weights":
        return BalancedLoss(1 / (count * shares), torch.zeros(count))
    return BalancedLoss(torch.ones(count), shares.log())
