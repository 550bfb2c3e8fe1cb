"""Label levels, such as department, category and article type: which categories stand together.

The levels are named from coarse to fine. Which categories of neighbouring levels stand together is learnt from training
products alone: a pair that none of them has is inconsistent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Hierarchy:
    """The categories of L levels, and the pairs of categories of neighbouring levels that training products have."""

    labels: tuple[str, ...]  # (L,) columns
    categories: tuple[tuple[str, ...], ...]  # (L,) of each level
    pairs: tuple[tuple[tuple[int, int], ...], ...]  # (L - 1,) index in a level, and in the next one

    @classmethod
    def learn(
        cls, labels: Sequence[str], categories: Sequence[Sequence[str]], products: NDArray[np.int64]
    ) -> Hierarchy:
        """Return the hierarchy of training products (n, L), given as indices of categories, -1 where there is none."""
        pairs = []
        for level in range(len(labels) - 1):
            both = products[:, level : level + 2]
            pairs.append(tuple((int(a), int(b)) for a, b in np.unique(both[(both >= 0).all(axis=1)], axis=0)))
        return cls(tuple(labels), tuple(map(tuple, categories)), tuple(pairs))

    def together(self, level: int) -> NDArray[np.bool_]:
        """Return which categories of a level (P,) and of the next one (C,) may stand together (P, C).

        A category that no training product has with one of the other level may stand with any of it.
        """
        table = np.zeros((len(self.categories[level]), len(self.categories[level + 1])), dtype=bool)
        if self.pairs[level]:
            table[tuple(np.array(self.pairs[level]).T)] = True
        return table | ~table.any(axis=1, keepdims=True) | ~table.any(axis=0, keepdims=True)

    def is_consistent(self, paths: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether all neighbours in each path (n, L) may stand together."""
        steps = [self.together(level)[paths[:, level], paths[:, level + 1]] for level in range(len(self.labels) - 1)]
        return np.all(steps, axis=0) if steps else np.ones(len(paths), dtype=bool)

    def ancestors(self) -> NDArray[np.bool_]:
        """Return for each category of all levels (N,) itself, and those above it (N, N), where it has one parent."""
        starts = np.cumsum([0, *map(len, self.categories)])
        above = np.eye(starts[-1], dtype=bool)
        for level in range(len(self.labels) - 1):
            table = self.together(level)
            for child in np.flatnonzero(table.sum(axis=0) == 1):
                above[starts[level + 1] + child] |= above[starts[level] + table[:, child].argmax()]
        return above

    def hierarchical_f1(self, true: NDArray[np.int64], predicted: NDArray[np.int64]) -> float:
        """Return F1 over the sets of true and predicted categories of paths (n, L), each with all above it.

        Kiritchenko et al. 2006 (https://doi.org/10.1007/11766247_34), over all products together. A category that has
        several parents in training adds none of them.
        """
        sets, predicted_sets = (self._sets(paths) for paths in (true, predicted))
        both = (sets & predicted_sets).sum()
        return float(2 * both / (sets.sum() + predicted_sets.sum()))

    def _sets(self, paths: NDArray[np.int64]) -> NDArray[np.bool_]:
        starts = np.cumsum([0, *map(len, self.categories)])[:-1]
        above = self.ancestors()
        sets = np.zeros((len(paths), len(above)), dtype=bool)
        for start, column in zip(starts, paths.T, strict=True):
            sets |= above[start + column]
        return sets
