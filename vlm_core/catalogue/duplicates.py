"""Which products show the same picture: the same bytes, or one photograph encoded, sized, lit or placed anew.

A hash of a whole 60x80 picture does not survive a shift: 2 pixels each way flip 12 of the 64 bits of a pHash in the
median and 24 in the worst hundredth, a radius at which half of Myntra is one group. So the content is framed first,
by its centre and its spread; the hash of the frame proposes pairs, and the frames' own pixels decide.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vlm_core.evaluation.storing import write_whole
from vlm_core.pixels.store import PictureStore
from vlm_core.progress import Progress

Rows = NDArray[np.int64]
Cells = NDArray[np.uint8]  # (n, SIDE, SIDE, 3) framed pictures
Level = TypeVar("Level", np.uint8, np.float32)

VERSION: Final = 1  # of this method: part of the name under which groups are kept
SIDE: Final = 32  # cells a side of a frame
SPREADS: Final = 2.2  # half a frame's side in standard deviations of the content
FAINTEST: Final = 16  # levels of 255 from the background at which content begins, above JPEG's noise

# Chosen by looking at pairs of the real catalogue: recoloured copies of one photograph pass, and so do plain black
# wallets, which are the one thing there that nothing tells apart (214 in a group; the next largest has 25).
HASH_RADIUS: Final = 8  # bits of 64
COARSE_TOLERANCE: Final = 56  # levels
MOST_COARSE_CELLS: Final = 3  # of 8 x 8
TOLERANCE: Final = 32  # levels
MOST_UNREGISTERED: Final = 0.25  # share of the content's cells that differ before registration
MOST_REGISTERED: Final = 0.08  # and after
FEWEST_CELLS: Final = 30  # a smaller content is compared as if it had so many

ROWS_A_BLOCK: Final = 2048
COLUMNS_A_BLOCK: Final = 8192
PAIRS_A_BATCH: Final = 20_000
REGISTERED_A_BATCH: Final = 100


@dataclass(frozen=True)
class LabelConflict:
    """Products with byte-identical pictures and different categories: at least one of them is wrong."""

    group: int  # near-duplicate group
    product_ids: tuple[str, ...]
    categories: tuple[str, ...]  # sorted, without repeats


def near_duplicate_groups(products: pd.DataFrame, pictures: PictureStore, progress: Progress) -> Rows:
    """Group number (n,) of every product, counted from 0 in order of appearance; same picture, same group.

    Transitive: two members may be linked through others. Groups are kept beside the pictures for the next call.
    """
    kept = pictures.path.with_name(f"near-duplicates-{_content(products['picture_digest'])}.npy")
    with contextlib.suppress(OSError, ValueError):
        groups: Rows = np.load(kept, allow_pickle=False)
        if groups.shape == (len(products),):
            return groups
    digests = products["picture_digest"].to_numpy(str)
    _, originals, copies = np.unique(digests, return_index=True, return_inverse=True)
    groups = pd.factorize(_link(pictures, originals, progress)[copies])[0].astype(np.int64)
    with contextlib.suppress(OSError):  # where nothing can be written, the next call looks again
        write_whole(kept, lambda file: np.save(file, groups))
    return groups


def label_conflicts(products: pd.DataFrame, groups: Rows, label: str) -> list[LabelConflict]:
    """Each set of byte-identical pictures whose products disagree on the label; an empty label disagrees with none."""
    known = products[label] != ""
    table = products.loc[known, ["picture_digest", "product_id", label]].assign(group=groups[known.to_numpy()])
    varied = table[table.groupby("picture_digest")[label].transform("nunique") > 1]
    return [
        LabelConflict(int(same["group"].iloc[0]), tuple(same["product_id"]), tuple(sorted(set(same[label]))))
        for _, same in varied.groupby("picture_digest", sort=False)
    ]


def frame_picture(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Cells (SIDE, SIDE, 3) of the content of a picture (H, W, 3), so that place, scale and margins cancel out.

    The window is a square around the centre of what differs from the border's median; a blank picture is taken whole.
    """
    from PIL import Image

    picture = Image.fromarray(pixels)
    if (factor := max(picture.size) // 96) > 1:
        picture = picture.reduce(factor)
    red, green, blue = (int(level) for level in _background(np.asarray(picture)[None])[0])
    x, y, radius = _window(np.asarray(picture.convert("L"), dtype=np.float32))
    window = picture.transform(
        (2 * SIDE, 2 * SIDE),
        Image.Transform.EXTENT,
        (x - radius, y - radius, x + radius, y + radius),
        Image.Resampling.BILINEAR,
        fillcolor=(red, green, blue),
    )
    return np.asarray(window.resize((SIDE, SIDE), Image.Resampling.BOX))


def _content(digests: pd.Series[str]) -> str:
    text = "\n".join([str(VERSION), *digests])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _window(grey: NDArray[np.float32]) -> tuple[float, float, float]:
    """Centre (x, y) and half the side of the content's window, in pixels of a grey picture (H, W)."""
    height, width = grey.shape
    ink = np.abs(grey - np.float32(np.median(_border(grey[None, ..., None]))))
    ink[ink < FAINTEST] = 0
    total = float(ink.sum())
    if total < 0.2 * ink.size:
        return width / 2, height / 2, max(height, width) / 2
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    across, down = ink.sum(axis=0) / total, ink.sum(axis=1) / total
    centre_x, centre_y = float(across @ x), float(down @ y)
    variance = max(float(across @ (x - centre_x) ** 2), float(down @ (y - centre_y) ** 2))
    return centre_x, centre_y, max(4.0, SPREADS * variance**0.5)


def _border(pictures: NDArray[Level]) -> NDArray[Level]:
    """Border pixels (n, 2 (H + W), channels) of pictures (n, H, W, channels)."""
    sides = (pictures[:, 0], pictures[:, -1], pictures[:, :, 0], pictures[:, :, -1])
    return np.concatenate(sides, axis=1)


def _background(pictures: NDArray[np.uint8]) -> NDArray[np.int16]:
    """Median colour (n, 3) of the border of pictures (n, H, W, 3)."""
    return np.asarray(np.median(_border(pictures), axis=1), dtype=np.int16)


def _link(pictures: PictureStore, rows: Rows, progress: Progress) -> Rows:
    """A group number (m,) for each of the rows (m,), whose pictures all differ in their bytes."""
    groups = np.arange(len(rows), dtype=np.int64)
    with tempfile.TemporaryFile() as file:
        hashes = _write_frames(pictures, rows, file, progress)
        cells: Cells = np.memmap(file, dtype=np.uint8, mode="r", shape=(len(rows), SIDE, SIDE, 3))
        comparison = _Comparison(cells)
        blocks = range(0, len(rows), ROWS_A_BLOCK)
        for start in progress(blocks, "comparing pictures", len(blocks)):
            for first, second in _candidates(hashes, start):
                for batch in range(0, len(first), PAIRS_A_BATCH):
                    i, j = first[batch : batch + PAIRS_A_BATCH], second[batch : batch + PAIRS_A_BATCH]
                    apart = groups[i] != groups[j]  # what is linked through others need not be compared
                    i, j = i[apart], j[apart]
                    same = comparison.same(i, j)
                    groups = _merge(groups, i[same], j[same])
    return groups


def _write_frames(pictures: PictureStore, rows: Rows, file: BinaryIO, progress: Progress) -> NDArray[np.float32]:
    """Hashes (m, 64) of ±1; the frames themselves go to the file, so that memory does not grow with them."""
    import imagehash
    from PIL import Image

    hashes = np.empty((len(rows), 64), dtype=np.float32)
    for index, row in enumerate(progress(rows.tolist(), "framing pictures", len(rows))):
        frame = frame_picture(pictures.take(np.array([row]))[0])
        hashes[index] = np.where(imagehash.phash(Image.fromarray(frame), hash_size=8).hash.ravel(), 1, -1)
        file.write(frame.tobytes())
    file.flush()
    return hashes


def _candidates(hashes: NDArray[np.float32], start: int) -> Iterator[tuple[Rows, Rows]]:
    """Every pair (i < j) with i in the block at `start` whose hashes differ in few enough bits: none is overlooked."""
    bits = hashes.shape[1]
    for left in range(start, len(hashes), COLUMNS_A_BLOCK):
        # Of vectors of ±1 the product is the bits that agree less those that differ.
        agreement = hashes[start : start + ROWS_A_BLOCK] @ hashes[left : left + COLUMNS_A_BLOCK].T
        first, second = np.nonzero(agreement >= bits - 2 * HASH_RADIUS)
        first, second = first + start, second + left
        yield first[first < second], second[first < second]


def _merge(groups: Rows, first: Rows, second: Rows) -> Rows:
    """Groups (n,) after linking pairs of rows (p,)."""
    if not len(first):
        return groups
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    size = int(groups.max()) + 1
    links = coo_array((np.ones(len(first), dtype=np.int8), (groups[first], groups[second])), shape=(size, size))
    merged: Rows = connected_components(links, directed=False)[1][groups].astype(np.int64)
    return merged


class _Comparison:
    """Whether pairs of framed pictures are the same photograph, from the cheapest test to the dearest."""

    def __init__(self, cells: Cells) -> None:
        parts = [cells[at : at + ROWS_A_BLOCK] for at in range(0, len(cells), ROWS_A_BLOCK)]
        self._cells = cells
        self._background = np.concatenate([_background(part) for part in parts])  # (n, 3)
        self._coarse = np.concatenate(  # (n, 64, 3)
            [part.reshape(-1, 8, SIDE // 8, 8, SIDE // 8, 3).mean(axis=(2, 4)).astype(np.int16) for part in parts]
        ).reshape(len(cells), 64, 3)

    def same(self, first: Rows, second: Rows) -> NDArray[np.bool_]:
        """Which pairs (p,) of rows are; the order within a pair makes no difference."""
        same = np.asarray(np.abs(self._background[first] - self._background[second]).max(axis=1) <= TOLERANCE)
        for test in (self._coarsely, self._unregistered, self._registered):
            left = np.flatnonzero(same)
            same[left] = test(first[left], second[left])
        return same

    def _coarsely(self, first: Rows, second: Rows) -> NDArray[np.bool_]:
        differing = np.abs(self._coarse[first] - self._coarse[second]).max(axis=2) > COARSE_TOLERANCE
        return np.asarray(differing.sum(axis=1) <= MOST_COARSE_CELLS)

    def _unregistered(self, first: Rows, second: Rows) -> NDArray[np.bool_]:
        passed = np.zeros(len(first), dtype=bool)
        for at in range(0, len(first), 1000):
            i, j = first[at : at + 1000], second[at : at + 1000]
            gap = np.abs(self._cells[i].astype(np.int16) - self._cells[j])
            passed[at : at + 1000] = self._share(gap, i, j) <= MOST_UNREGISTERED
        return passed

    def _registered(self, first: Rows, second: Rows) -> NDArray[np.bool_]:
        passed = np.zeros(len(first), dtype=bool)
        for at in range(0, len(first), REGISTERED_A_BATCH):
            i, j = first[at : at + REGISTERED_A_BATCH], second[at : at + REGISTERED_A_BATCH]
            gap = np.abs(_residual(self._cells[i].astype(np.float32), self._cells[j].astype(np.float32)))
            passed[at : at + REGISTERED_A_BATCH] = self._share(gap, i, j) <= MOST_REGISTERED
        return passed

    def _share(self, gap: NDArray[Any], first: Rows, second: Rows) -> NDArray[np.float64]:
        """Share (p,) of the content's cells that differ visibly, of gaps (p, SIDE, SIDE, 3)."""
        content = self._content(first) | self._content(second)
        differing = (np.max(gap, axis=3) > TOLERANCE) & content
        share: NDArray[np.float64] = differing.sum(axis=(1, 2)) / np.maximum(content.sum(axis=(1, 2)), FEWEST_CELLS)
        return share

    def _content(self, rows: Rows) -> NDArray[np.bool_]:
        content: NDArray[np.bool_] = (
            np.abs(self._cells[rows].astype(np.int16) - self._background[rows][:, None, None]).max(axis=3) > 24
        )
        return content


def _residual(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
    """What differs between frames (p, S, S, 3) beyond a small shift and change of scale.

    One Gauss-Newton step of Lucas and Kanade (1981) on the mean of the two, which makes it symmetric; the step is
    bounded, so that it cannot explain a different picture away.
    """
    pairs, side = first.shape[:2]
    difference = second - first
    down, across = np.gradient((first + second) / 2, axis=(1, 2))
    place = ((np.arange(side) - (side - 1) / 2) / (side / 2)).astype(np.float32)
    growth = across * place[None, None, :, None] + down * place[None, :, None, None]
    slopes = np.stack([across, down, growth], axis=1).reshape(pairs, 3, -1)  # (p, 3, S * S * 3)
    normal = slopes @ slopes.transpose(0, 2, 1)
    ridge = 1 + 1e-3 * np.trace(normal, axis1=1, axis2=2) / 3  # a flat picture has no slope to solve for
    step = np.linalg.solve(normal + ridge[:, None, None] * np.eye(3), slopes @ difference.reshape(pairs, -1, 1))
    most = np.array([1.5, 1.5, 1.0])[:, None]  # cells: right, down, and outwards at the frame's edge
    moved = slopes.transpose(0, 2, 1) @ np.clip(step, -most, most).astype(np.float32)
    residual: NDArray[np.float32] = difference - moved.reshape(difference.shape)
    return residual
