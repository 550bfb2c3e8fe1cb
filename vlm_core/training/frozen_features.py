"""What the frozen layers make of one view of a run's rows: the same numbers wherever and whenever they are computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from vlm_core.models.stages import State
from vlm_core.pixels.arrays import Rows
from vlm_core.training.batches import Batches, Features, assemble, chunks
from vlm_core.training.feature_cache import Precision, to_precision


@dataclass(frozen=True)
class FrozenFeatures:
    """The features of one view of a run's rows, computed anew whenever they are taken.

    A matmul of a few rows may round in another way than one of many, but it rounds each row of equally many alike. So
    every batch has the source's size, and is filled up if it is short; only the `rest`, the last rows of the run that
    fill no batch, is always computed as one smaller batch.
    """

    source: Batches
    view: int  # plain (0) or augmented (from 1)
    rows: Rows  # (n,) sorted and unique
    run: Callable[[State], State]  # from the source's state to the features
    precision: Precision

    @property
    def whole(self) -> Rows:
        """Return the rows that fill batches."""
        return self.rows[: len(self.rows) - len(self.rows) % self.source.view_batch]

    @property
    def rest(self) -> Rows:
        """Return the last rows, which fill no batch."""
        return self.rows[len(self.whole) :]

    def compute(self, rows: Rows) -> Iterator[tuple[Rows, State]]:
        """Yield the features of some of the rows, batch by batch; of the rest all rows, if any of them is asked for."""
        in_rest = np.isin(rows, self.rest)
        for chunk in chunks(rows[~in_rest], self.source.view_batch):
            (batch,) = self.source.view(self.view, np.resize(chunk, self.source.view_batch))  # repeats the rows
            yield chunk, tuple(part[: len(chunk)] for part in self.run(batch.state))
        if in_rest.any():
            (batch,) = self.source.view(self.view, self.rest)
            yield self.rest, self.run(batch.state)

    def take(self, rows: Rows) -> State:
        """Return the features of the rows (B,), in their order, in float32, rounded as the cache rounds them."""
        computed = list(self.compute(np.unique(rows)))
        found = np.concatenate([some for some, _ in computed])
        order = np.argsort(found)
        places = order[np.searchsorted(found, rows, sorter=order)]  # (B,) of each row in the features
        parts = (torch.cat(batches) for batches in zip(*(state for _, state in computed), strict=True))
        return tuple(torch.from_numpy(to_precision(part, self.precision)[places].astype(np.float32)) for part in parts)


@dataclass(frozen=True)
class JoinedFeatures:
    """Features of which the `rest` of the rows are read from one place, and all others from another."""

    whole_features: Features
    rest_features: Features
    rest: Rows

    def take(self, rows: Rows) -> State:
        """Return the features of the rows (B,), in their order, in float32."""
        in_rest = np.isin(rows, self.rest)
        return assemble(rows, [(~in_rest, self.whole_features), (in_rest, self.rest_features)])
