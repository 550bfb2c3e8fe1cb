"""Batches for the loop: augmented pixels, or stored states of a frozen prefix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlm_core.models.stages import State
from vlm_core.pixels.augmentation_params import draw_params
from vlm_core.pixels.picture_store import PictureStore
from vlm_core.pixels.views import augmented_view, mirrored_view, plain_view
from vlm_core.training.feature_cache import StoredStates

Rows = NDArray[np.int64]
Augmentation = Literal["study", "mirror"]
PREFIX_BATCH = 8
PLAIN_BATCH = 256


@dataclass(frozen=True)
class Batch:
    """A step's input: the state (B, ...) at the cut, pixels where nothing is frozen."""

    state: State
    labels: Tensor  # (B,) int64
    rows: Rows  # (B,) catalogue rows


class Batches(Protocol):
    """Where the loop's batches come from."""

    @property
    def start(self) -> int:
        """The stage that a batch's state stands before."""

    @property
    def steps(self) -> int:
        """Batches an epoch."""

    def training(self, epoch: int) -> Iterator[Batch]:
        """One pass over the training rows in the epoch's order."""

    def plain(self, rows: Rows) -> Iterator[Batch]:
        """The rows in their order, without augmentation."""

    def view(self, view: int, rows: Rows) -> Iterator[Batch]:
        """The rows in their order, plain (0) or as the view of that number."""

    def view_batches(self, rows: int) -> int:
        """How many batches `view` gives of so many rows."""

    def sized(self, batch_size: int) -> Batches:
        """The same with another number of products a step."""

    @property
    def source(self) -> PixelBatches:
        """The pixels behind."""


@dataclass(frozen=True)
class PixelBatches:
    """Views drawn from the picture store as they are needed."""

    pictures: PictureStore
    labels: Rows  # (n_products,) category of each catalogue row
    rows: Rows  # (n,) training rows; a row stands as often as it was oversampled
    image_size: int
    batch_size: int
    seed: int
    augmentation: Augmentation = "study"
    start: int = 0

    @property
    def steps(self) -> int:
        """Batches an epoch."""
        return -(-len(self.rows) // self.batch_size)

    def order(self, epoch: int) -> Iterator[tuple[Rows, Rows]]:
        """Each batch's rows (B,) in the epoch, and which copy of its product each of them is."""
        copies: Rows = pd.Series(self.rows).groupby(self.rows).cumcount().to_numpy().astype(np.int64)
        for chosen in chunks(np.random.default_rng([self.seed, epoch]).permutation(len(self.rows)), self.batch_size):
            yield self.rows[chosen], copies[chosen]

    def training(self, epoch: int) -> Iterator[Batch]:
        """Augmented views; the same seed and epoch give the same order and pixels."""
        for rows, copies in self.order(epoch):
            yield self._batch(rows, self._augmented(epoch, rows, copies))

    def plain(self, rows: Rows) -> Iterator[Batch]:
        """Plain views."""
        for chosen in chunks(rows, 32):
            yield self._batch(chosen, plain_view(self.pictures.take(chosen), self.image_size))

    def view(self, view: int, rows: Rows) -> Iterator[Batch]:
        """The rows in their order, plain (0) or as a first copy is seen in the epoch `view`; few at a time.

        Few, because the activations of large batches leave the processor's caches.
        """
        for chosen in chunks(rows, PREFIX_BATCH):
            if view:
                pixels = self._augmented(view, chosen, np.zeros(len(chosen), dtype=np.int64))
            else:
                pixels = plain_view(self.pictures.take(chosen), self.image_size)
            yield self._batch(chosen, pixels)

    def view_batches(self, rows: int) -> int:
        """How many batches `view` gives of so many rows."""
        return -(-rows // PREFIX_BATCH)

    def sized(self, batch_size: int) -> PixelBatches:
        """The same with another number of products a step."""
        return replace(self, batch_size=batch_size)

    @property
    def source(self) -> PixelBatches:
        """Itself."""
        return self

    def _augmented(self, epoch: int, rows: Rows, copies: Rows) -> Tensor:
        view = mirrored_view if self.augmentation == "mirror" else augmented_view
        return view(self.pictures.take(rows), self.image_size, draw_params(self.seed, epoch, rows, copies))

    def _batch(self, rows: Rows, pixels: Tensor) -> Batch:
        return Batch((pixels,), torch.from_numpy(self.labels[rows]), rows)


@dataclass(frozen=True)
class StoredBatches:
    """States at the stage `start`, which were computed once a picture and view, in the order that pixels come in.

    Views are walked through over the epochs; copies of one product are a view apart. With no view training takes the
    plain one.
    """

    source: PixelBatches
    start: int
    plain_states: StoredStates
    view_states: Sequence[StoredStates]

    @property
    def steps(self) -> int:
        """Batches an epoch."""
        return self.source.steps

    def training(self, epoch: int) -> Iterator[Batch]:
        """Stored states in the epoch's order."""
        for rows, copies in self.source.order(epoch):
            yield self._batch(rows, self._views(epoch, rows, copies))

    def plain(self, rows: Rows) -> Iterator[Batch]:
        """Stored states of the rows' plain views; the rows must be among those stored."""
        for chosen in chunks(rows, PLAIN_BATCH):
            yield self._batch(chosen, self.plain_states.take(chosen))

    def view(self, view: int, rows: Rows) -> Iterator[Batch]:
        """Stored states of a view of the rows, as `PixelBatches.view` numbers them."""
        states = self.view_states[view - 1] if view else self.plain_states
        for chosen in chunks(rows, PLAIN_BATCH):
            yield self._batch(chosen, states.take(chosen))

    def view_batches(self, rows: int) -> int:
        """How many batches `view` gives of so many rows."""
        return -(-rows // PLAIN_BATCH)

    def sized(self, batch_size: int) -> StoredBatches:
        """The same with another number of products a step."""
        return replace(self, source=self.source.sized(batch_size))

    def _views(self, epoch: int, rows: Rows, copies: Rows) -> State:
        if not self.view_states:
            return self.plain_states.take(rows)
        numbers = (epoch - 1 + copies) % len(self.view_states)
        taken = [(numbers == number, self.view_states[number].take(rows[numbers == number])) for number in set(numbers)]
        state = tuple(torch.empty(len(rows), *part.shape[1:]) for part in taken[0][1])
        for places, parts in taken:
            for whole, part in zip(state, parts, strict=True):
                whole[torch.from_numpy(places)] = part
        return state

    def _batch(self, rows: Rows, state: State) -> Batch:
        return Batch(state, torch.from_numpy(self.source.labels[rows]), rows)


def chunks(rows: Rows, size: int) -> Iterator[Rows]:
    """The rows in their order, `size` at a time."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
