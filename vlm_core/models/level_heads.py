"""One head a label level over the same features, and what makes their predictions consistent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlm_core.evaluation.hierarchy import Hierarchy
from vlm_core.models.stages import Readout, State

Loss = Callable[[Tensor, Tensor], Tensor]  # from log-probabilities (B, C) and labels (B,) to their mean ()
_LEAST: Final = 1e-200  # in place of a probability of zero, in double precision


@dataclass(frozen=True)
class LevelScores:
    """What the heads say of a batch, and what the rule makes of it."""

    log_probabilities: Tensor  # (B, C) of the last level, by the rule
    own: Tensor  # (B, L) the most probable category of each level by itself
    chosen: Tensor  # (B, L) by the rule
    confidence: Tensor  # (B, L) of what was chosen


class LevelsHead(nn.Module):
    """A linear layer a level; the last level's categories are those that the model is known by.

    The layers are independent softmaxes. The rule takes a category of each level: the probability of such a path is the
    product of its categories' own, and zero where neighbours never stand together in training, divided by the sum over
    all paths. So every level has a say in every other, as in a chain of conditionals that looks both ways.
    """

    def __init__(self, width: int, hierarchy: Hierarchy, readout: Readout) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(width, len(names)) for names in hierarchy.categories)
        self.readout: Readout = readout
        self._together = [
            torch.from_numpy(hierarchy.together(level)).double() for level in range(len(hierarchy.labels) - 1)
        ]

    def own(self, state: State) -> tuple[Tensor, ...]:
        """Return the log-softmax (B, C) of each level by itself."""
        return tuple(functional.log_softmax(linear(state[0]), dim=-1) for linear in self.linears)

    def log_probabilities(self, state: State) -> Tensor:
        """Return the log-probabilities (B, C) of the last level by the rule; their exponentials sum to one."""
        return _logs(self._by_rule(self.own(state))[1][-1])

    def scores(self, state: State) -> LevelScores:
        """Return the categories of all levels: the most probable one of the last level, and its likeliest parents."""
        own = self.own(state)
        upwards, marginals = self._by_rule(own)
        chosen = [marginals[-1].argmax(dim=1)]
        for above, together in zip(reversed(upwards[:-1]), reversed(self._tables(own[0])), strict=True):
            chosen.insert(0, (above * together[:, chosen[0]].T).argmax(dim=1))
        confidence = [share.gather(1, index[:, None])[:, 0] for share, index in zip(marginals, chosen, strict=True)]
        return LevelScores(
            log_probabilities=_logs(marginals[-1]),
            own=torch.stack([each.argmax(dim=1) for each in own], dim=1),
            chosen=torch.stack(chosen, dim=1),
            confidence=torch.stack(confidence, dim=1).float(),
        )

    def loss(self, state: State, labels: Tensor, losses: Sequence[Loss | None] = ()) -> tuple[Tensor, Tensor]:
        """Return the sum () of the levels' losses for labels (B, L), and the log-probabilities (B, C).

        A level's loss is the cross-entropy of its own softmax, unless `losses` (L,) has another one, and a mean over
        the products whose category of that level is known.
        """
        own = self.own(state)
        total = own[0].new_zeros(())
        for scores, targets, loss in zip(own, labels.T, losses or [None] * len(own), strict=True):
            known = targets >= 0
            if known.any():
                total = total + (loss or functional.nll_loss)(scores[known], targets[known])
        with torch.no_grad():
            return total, _logs(self._by_rule([scores.detach() for scores in own])[1][-1])

    def trainable_modules(self) -> tuple[nn.Module, ...]:
        """Return the layers."""
        return tuple(self.linears)

    def _tables(self, like: Tensor) -> list[Tensor]:
        return [table.to(like.device) for table in self._together]

    def _by_rule(self, own: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return each level's probabilities (B, C) given the levels up to it, and those given all levels.

        The forward-backward algorithm over the levels, each step divided by its sum, so that no product vanishes.
        """
        tables = self._tables(own[0])
        probabilities = [scores.double().exp().clamp_min(_LEAST) for scores in own]
        upwards = [probabilities[0]]
        for level, together in zip(probabilities[1:], tables, strict=True):
            upwards.append(_shares(level * (upwards[-1] @ together)))
        marginals = [upwards[-1]]
        below = torch.ones_like(upwards[-1])
        for above, level, together in zip(
            reversed(upwards[:-1]), reversed(probabilities[1:]), reversed(tables), strict=True
        ):
            below = _shares((level * below) @ together.T)
            marginals.insert(0, _shares(above * below))
        return upwards, marginals


def _shares(weights: Tensor) -> Tensor:
    return weights / weights.sum(dim=1, keepdim=True)


def _logs(shares: Tensor) -> Tensor:
    return shares.clamp_min(_LEAST).log().float()
