"""Batches for the loop: augmented pixels, or stored states of a frozen prefix."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlm_core.models.contract import State
from vlm_core.pixels.draws import draw
from vlm_core.pixels.store import PictureStore
from vlm_core.pixels.views import augmented_view, mirrored_view, plain_view
from vlm_core.progress import Progress

Rows = NDArray[np.int64]
Augmentation = Literal["study", "mirror"]


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

    def training(self, epoch: int) -> Iterator[Batch]:
        """Augmented views; the same seed and epoch give the same order and pixels."""
        view = mirrored_view if self.augmentation == "mirror" else augmented_view
        copies: Rows = pd.Series(self.rows).groupby(self.rows).cumcount().to_numpy().astype(np.int64)
        for chosen in _chunks(_order(self.seed, epoch, len(self.rows)), self.batch_size):
            rows = self.rows[chosen]
            draws = draw(self.seed, epoch, rows, copies[chosen])
            yield self._batch(rows, view(self.pictures.take(rows), self.image_size, draws))

    def plain(self, rows: Rows) -> Iterator[Batch]:
        """Plain views."""
        for chosen in _chunks(rows, 32):
            yield self._batch(chosen, plain_view(self.pictures.take(chosen), self.image_size))

    def _batch(self, rows: Rows, pixels: Tensor) -> Batch:
        return Batch((pixels,), torch.from_numpy(self.labels[rows]), rows)


class StoredBatches:
    """States at the cut of the plain view, computed once a product and kept in a temporary file on disk."""

    def __init__(
        self, pixels: PixelBatches, rows: Rows, start: int, prefix: Callable[[State], State], progress: Progress
    ) -> None:
        self.pixels = pixels
        self.start = start
        self.steps = pixels.steps
        self._place = np.full(len(pixels.labels), -1)
        self._place[rows] = np.arange(len(rows))
        self._folder = tempfile.TemporaryDirectory(prefix="states-")
        self._stored: list[np.memmap] = []
        with torch.inference_mode():
            done = 0
            for batch in progress(pixels.plain(rows), "frozen features", -(-len(rows) // 32)):
                state = prefix(batch.state)
                self._stored = self._stored or [
                    self._file(number, len(rows), part) for number, part in enumerate(state)
                ]
                for file, part in zip(self._stored, state, strict=True):
                    file[done : done + len(part)] = part.cpu().numpy()
                done += len(batch.rows)

    def _file(self, number: int, count: int, part: Tensor) -> np.memmap:
        path = Path(self._folder.name) / f"{number}.npy"
        return np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(count, *part.shape[1:]))

    def training(self, epoch: int) -> Iterator[Batch]:
        """Stored states in the epoch's order."""
        rows = self.pixels.rows
        for chosen in _chunks(_order(self.pixels.seed, epoch, len(rows)), self.pixels.batch_size):
            yield self._batch(rows[chosen])

    def plain(self, rows: Rows) -> Iterator[Batch]:
        """Stored states of the rows, which must be among those stored."""
        for chosen in _chunks(rows, 256):
            yield self._batch(chosen)

    def _batch(self, rows: Rows) -> Batch:
        state = tuple(torch.from_numpy(file[self._place[rows]]) for file in self._stored)
        return Batch(state, torch.from_numpy(self.pixels.labels[rows]), rows)


def _order(seed: int, epoch: int, count: int) -> Rows:
    return np.random.default_rng([seed, epoch]).permutation(count)


def _chunks(rows: Rows, size: int) -> Iterator[Rows]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
