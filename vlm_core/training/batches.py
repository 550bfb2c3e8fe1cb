"""Batches for the training loop: augmented pixels, or features of the frozen prefix."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, Protocol

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlm_core.models.stages import State
from vlm_core.pixels.arrays import Labels, Pictures, Rows
from vlm_core.pixels.augmentation_params import sample_params
from vlm_core.pixels.picture_store import PictureStore
from vlm_core.pixels.views import DEFAULT, Preprocessing, augmented_view, mirrored_view, plain_view
from vlm_core.training.parallel import ALONE, Group

Augmentation = Literal["standard", "mirror"]
# Plain views of products whose text, or whose picture, is left out; views from 1 on are augmented.
WITHOUT_TEXT: Final = -1
WITHOUT_PICTURE: Final = -2
_MODALITIES: Final = 2  # random stream, distinct from those of augmentations and captions
PLAIN_PIXEL_BATCH = 32
PREFIX_BATCH = 8  # small, because the activations of large batches do not fit the processor's caches
PLAIN_BATCH = 256


@dataclass(frozen=True)
class Batch:
    """The input of a step: the state (B, ...) at the cut, which is pixels if nothing is frozen."""

    state: State
    labels: Tensor  # (B,) int64
    rows: Rows  # (B,) catalogue rows


class Features(Protocol):
    """Features of one view, read from the cache or computed."""

    def take(self, rows: Rows) -> State:
        """Return the features of the rows (B,), in their order, in float32."""


class Texts(Protocol):
    """The texts of a catalogue's products, for a model that reads them."""

    @property
    def alone(self) -> bool:
        """Return whether the model reads no pictures."""

    def take(self, rows: Rows) -> tuple[Tensor, NDArray[np.bool_]]:
        """Return token ids (B, T) of the texts of the rows (B,), and whether there is a text (B,)."""


class Batches(Protocol):
    """The source of the training loop's batches."""

    @property
    def start(self) -> int:
        """Return the index of the stage whose input the batches hold."""

    @property
    def steps(self) -> int:
        """Return the number of batches per epoch."""

    def training(self, epoch: int) -> Iterator[Batch]:
        """Yield one pass over the training rows in the epoch's order; of a group, its process's part of each batch."""

    def plain(self, rows: Rows) -> Iterator[Batch]:
        """Yield the rows in their order, without augmentation."""

    def view(self, view: int, rows: Rows) -> Iterator[Batch]:
        """Yield the rows in their order, plain (0) or augmented as the view of that number (from 1).

        `WITHOUT_TEXT` and `WITHOUT_PICTURE` are plain views of pictures with texts.
        """

    @property
    def view_batch(self) -> int:
        """Return the number of rows in a batch of `view`."""

    def with_batch_size(self, batch_size: int) -> Batches:
        """Return the same batches with another number of images per step."""

    @property
    def pixels(self) -> PixelBatches:
        """Return the pixels that these batches are computed from."""


@dataclass(frozen=True)
class PixelBatches:
    """Views of images, computed from the picture store on demand."""

    pictures: PictureStore
    labels: Labels  # (n_products,) category of each catalogue row
    rows: Rows  # (n,) training rows; an oversampled row occurs several times
    image_size: int
    batch_size: int
    seed: int
    augmentation: Augmentation = "standard"
    preprocessing: Preprocessing = DEFAULT
    texts: Texts | None = None
    dropout: float = 0.0  # share of augmented views without text, and of those without picture
    start: int = 0
    group: Group = ALONE  # of processes that share the batches of training

    @property
    def steps(self) -> int:
        """Return the number of batches per epoch."""
        return -(-len(self.rows) // self.batch_size)

    def order(self, epoch: int) -> Iterator[tuple[Rows, Rows]]:
        """Yield each batch's rows (B,) in the epoch's order, and the number of each row's copy (B,) from 0."""
        copies: Rows = pd.Series(self.rows).groupby(self.rows).cumcount().to_numpy().astype(np.int64)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.rows))
        for indices in chunks(order, self.batch_size):
            yield self.rows[indices], copies[indices]

    def parts(self, epoch: int) -> Iterator[tuple[Rows, Rows]]:
        """Yield rows and copies of this process's part of each batch; of an empty part the batch's first row."""
        for rows, copies in self.order(epoch):
            part = self.group.part(len(rows))
            mine = part if part.start < part.stop else slice(1)
            yield rows[mine], copies[mine]

    def training(self, epoch: int) -> Iterator[Batch]:
        """Yield augmented views; order and pixels depend on seed and epoch only."""
        for rows, copies in self.parts(epoch):
            yield self._augmented(epoch, rows, copies)

    def plain(self, rows: Rows) -> Iterator[Batch]:
        """Yield plain views."""
        for chunk in chunks(rows, PLAIN_PIXEL_BATCH):
            yield self._plain(chunk)

    def view(self, view: int, rows: Rows) -> Iterator[Batch]:
        """Yield the rows in their order, plain (0) or as the first copy is augmented in epoch `view`."""
        for chunk in chunks(rows, PREFIX_BATCH):
            first = np.zeros(len(chunk), dtype=np.int64)
            yield self._augmented(view, chunk, first) if view > 0 else self._plain(chunk, view)

    @property
    def view_batch(self) -> int:
        """Return the number of rows in a batch of `view`."""
        return PREFIX_BATCH

    def with_batch_size(self, batch_size: int) -> PixelBatches:
        """Return the same batches with another number of images per step."""
        return replace(self, batch_size=batch_size)

    @property
    def pixels(self) -> PixelBatches:
        """Return the batches themselves."""
        return self

    def modality_mask(self, epoch: int, rows: Rows, copies: Rows) -> NDArray[np.bool_]:
        """Return whether picture and text (B, 2) stay in an epoch; one of them always does."""
        if self.texts is None or not self.dropout:
            return np.ones((len(rows), 2), dtype=bool)
        return sample_modality_mask(self.seed, epoch, rows, copies, self.dropout)

    def _plain(self, rows: Rows, view: int = 0) -> Batch:
        mask = np.tile([view != WITHOUT_PICTURE, view != WITHOUT_TEXT], (len(rows), 1))
        return self._batch(rows, mask, lambda pictures: plain_view(pictures, self.image_size, self.preprocessing))

    def _augmented(self, epoch: int, rows: Rows, copies: Rows) -> Batch:
        view = mirrored_view if self.augmentation == "mirror" else augmented_view
        params = sample_params(self.seed, epoch, rows, copies)
        mask = self.modality_mask(epoch, rows, copies)
        return self._batch(rows, mask, lambda pictures: view(pictures, self.image_size, params, self.preprocessing))

    def _batch(self, rows: Rows, mask: NDArray[np.bool_], pixels: Callable[[Pictures], Tensor]) -> Batch:
        """Return the input of the rows: pixels, and texts if there are any, of which some are left out."""
        labels = torch.from_numpy(self.labels[rows])
        if self.texts is None:
            return Batch((pixels(self.pictures.take(rows)),), labels, rows)
        ids, has_text = self.texts.take(rows)
        if self.texts.alone:
            return Batch((ids,), labels, rows)
        given = np.stack([mask[:, 0] | ~has_text, mask[:, 1] & has_text], axis=1)
        state = (pixels(self.pictures.take(rows)), ids, torch.from_numpy(given.astype(np.float32)))
        return Batch(state, labels, rows)


@dataclass(frozen=True)
class FeatureBatches:
    """Features at the stage `start`, of a few views of each image, in the order of the pixel batches.

    Epochs cycle through the views, and copies of a product get consecutive views. Without augmented views, training
    uses the plain one, or for some products of each epoch one of `dropped`: those without text and without picture.
    """

    pixels: PixelBatches
    start: int
    plain_features: Features
    view_features: Sequence[Features]
    dropped: tuple[Features, Features] | None = None

    @property
    def steps(self) -> int:
        """Return the number of batches per epoch."""
        return self.pixels.steps

    def training(self, epoch: int) -> Iterator[Batch]:
        """Yield features in the epoch's order."""
        for rows, copies in self.pixels.parts(epoch):
            yield self._batch(rows, self._views(epoch, rows, copies))

    def plain(self, rows: Rows) -> Iterator[Batch]:
        """Yield features of the plain views of the rows, which must be among the run's."""
        for chunk in chunks(rows, PLAIN_BATCH):
            yield self._batch(chunk, self.plain_features.take(chunk))

    def view(self, view: int, rows: Rows) -> Iterator[Batch]:
        """Yield features of a view of the rows, numbered as in `PixelBatches.view`."""
        if view < 0:
            assert self.dropped
            features = self.dropped[view != WITHOUT_TEXT]
        else:
            features = self.view_features[view - 1] if view else self.plain_features
        for chunk in chunks(rows, PLAIN_BATCH):
            yield self._batch(chunk, features.take(chunk))

    @property
    def view_batch(self) -> int:
        """Return the number of rows in a batch of `view`."""
        return PLAIN_BATCH

    def with_batch_size(self, batch_size: int) -> FeatureBatches:
        """Return the same batches with another number of images per step."""
        return replace(self, pixels=self.pixels.with_batch_size(batch_size))

    def _views(self, epoch: int, rows: Rows, copies: Rows) -> State:
        """Return the features (B, ...) of the rows, each of the view that its epoch and copy select."""
        if not self.view_features and self.dropped:
            mask = self.pixels.modality_mask(epoch, rows, copies)
            without_text, without_picture = self.dropped
            whole = mask[:, 0] & mask[:, 1]
            sources = [(whole, self.plain_features), (~mask[:, 1], without_text), (~mask[:, 0], without_picture)]
            return assemble(rows, sources)
        if not self.view_features:
            return self.plain_features.take(rows)
        views = (epoch - 1 + copies) % len(self.view_features)  # (B,)
        return assemble(rows, [(views == view, self.view_features[view]) for view in set(views)])

    def _batch(self, rows: Rows, state: State) -> Batch:
        return Batch(state, torch.from_numpy(self.pixels.labels[rows]), rows)


def assemble(rows: Rows, sources: Sequence[tuple[NDArray[np.bool_], Features]]) -> State:
    """Return the features (B, ...) of the rows (B,), each row's from the source whose mask (B,) selects it."""
    selected = [(mask, features.take(rows[mask])) for mask, features in sources if mask.any()]
    state = tuple(torch.empty(len(rows), *part.shape[1:]) for part in selected[0][1])
    for mask, parts in selected:
        for whole, part in zip(state, parts, strict=True):
            whole[torch.from_numpy(mask)] = part
    return state


@dataclass(frozen=True)
class MaskedFeatures:
    """Features whose last part (B, 2) says what is given, without picture (0) or text (1) where the other is given."""

    features: Features
    place: Literal[0, 1]

    def take(self, rows: Rows) -> State:
        """Return the features of the rows (B,), in their order."""
        *parts, given = self.features.take(rows)
        given = given.clone()
        given[:, self.place] *= given[:, 1 - self.place] == 0
        return (*parts, given)


def sample_modality_mask(seed: int, epoch: int, rows: Rows, copies: Rows, share: float) -> NDArray[np.bool_]:
    """Return whether picture and text (B, 2) of each row stay; each is left out for a `share` of rows, never both."""
    numbers = np.array([_uniform(seed, epoch, int(row), int(copy)) for row, copy in zip(rows, copies, strict=True)])
    return np.stack([numbers >= share, numbers < 1 - share], axis=1).reshape(-1, 2)


def _uniform(seed: int, epoch: int, row: int, copy: int) -> float:
    bits = np.random.Philox(key=np.array([seed, epoch]), counter=np.array([0, _MODALITIES, row, copy]))
    return float(np.random.Generator(bits).random())


def chunks(rows: Rows, size: int) -> Iterator[Rows]:
    """Yield the rows in their order, `size` at a time."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
