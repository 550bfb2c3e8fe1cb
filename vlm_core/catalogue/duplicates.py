"""Near-duplicates: products with identical picture bytes, or one photograph re-encoded, resized, relit or shifted.

A hash of a whole 60x80 picture does not survive a shift: 2 pixels in each direction flip 12 of the 64 bits of a pHash
in the median and 24 in the worst percentile, a radius at which half of Myntra is one group. So the content is framed
first, by its centre and spread; the frame's hash proposes pairs, and the frames' pixels decide.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vlm_core.atomic import write_atomically
from vlm_core.errors import UserError
from vlm_core.pixels.arrays import Rows
from vlm_core.pixels.picture_store import PictureStore
from vlm_core.progress import track

Planes = NDArray[np.uint8]  # (n, 4, SIDE, SIDE): red, green, blue, and 1 where there is content

VERSION: Final = 1  # of this method: part of the cache file's name
SIDE: Final = 32  # cells per side of a frame
LUMA: Final = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601, as Pillow's grey
SPREADS: Final = 2.2  # half a frame's side, in standard deviations of the content
FAINTEST: Final = 16  # difference from the background, of 255 levels, at which content begins: above JPEG noise
FAINTEST_CELL: Final = 24  # the same for a cell of a frame

# Chosen on pairs of the real catalogue: recoloured copies of one photograph pass, and so do plain black wallets, the
# one kind of product there that looks identical (214 in a group; the next largest group has 25).
HASH_RADIUS: Final = 8  # bits of 64
COARSE_SIDE: Final = 8
COARSE_TOLERANCE: Final = 56  # levels
MOST_COARSE_CELLS: Final = 3  # of COARSE_SIDE squared
TOLERANCE: Final = 32  # levels
MOST_UNREGISTERED: Final = 0.25  # share of the content's cells that differ before registration
MOST_REGISTERED: Final = 0.08  # and after
FEWEST_CELLS: Final = 30  # smaller content is compared as if it had this many

SOME_PRODUCTS: Final = 5  # of several categories with one picture, for it to be a placeholder
MANY_PRODUCTS: Final = 20  # of one category

ROWS_PER_BLOCK: Final = 2048
COLUMNS_PER_BLOCK: Final = 8192
PAIRS_PER_BATCH: Final = 20_000


@dataclass(frozen=True)
class LabelConflict:
    """Products with byte-identical pictures but different categories: at least one label is incorrect."""

    group: int  # near-duplicate group
    product_ids: tuple[str, ...]
    categories: tuple[str, ...]  # sorted, without repeats


@dataclass(frozen=True)
class Placeholder:
    """A picture, byte for byte the same, of many products; such as a "no image" picture."""

    digest: str
    product_ids: tuple[str, ...]
    categories: tuple[str, ...]  # sorted, without repeats


def near_duplicate_groups(products: pd.DataFrame, pictures: PictureStore) -> Rows:
    """Return the group (n,) of every product, numbered from 0 in order of appearance; near-duplicates share a group.

    Groups are transitive: two members may be linked through others. They are cached beside the pictures.
    """
    cached = pictures.path.with_name(f"near-duplicates-{_content(products['picture_digest'])}.npy")
    with contextlib.suppress(OSError, ValueError):
        groups: Rows = np.load(cached, allow_pickle=False)
        if groups.shape == (len(products),):
            return groups
    digests = products["picture_digest"].to_numpy(str)
    _, originals, copies = np.unique(digests, return_index=True, return_inverse=True)
    groups = pd.factorize(_link(pictures, originals)[copies])[0].astype(np.int64)
    with contextlib.suppress(OSError):  # a read-only folder: the next call computes them again
        write_atomically(cached, lambda file: np.save(file, groups))
    return groups


def label_conflicts(products: pd.DataFrame, groups: Rows, label: str) -> list[LabelConflict]:
    """Return the sets of byte-identical pictures whose products have different labels; empty labels are ignored."""
    known = products[label] != ""
    table = products.loc[known, ["picture_digest", "product_id", label]].assign(group=groups[known.to_numpy()])
    varied = table[table.groupby("picture_digest")[label].transform("nunique") > 1]
    return [
        LabelConflict(int(same["group"].iloc[0]), tuple(same["product_id"]), tuple(sorted(set(same[label]))))
        for _, same in varied.groupby("picture_digest", sort=False)
    ]


def hash_pictures(pictures: PictureStore, rows: Rows) -> NDArray[np.uint64]:
    """Return a 64-bit perceptual hash of the framed content of each picture (n,) in the rows (n,)."""
    bits = np.zeros((len(rows), 64), dtype=bool)
    for index, row in enumerate(rows.tolist()):
        bits[index] = _hash_frame(frame_picture(pictures.take(np.array([row]))[0]))
    return np.packbits(bits, axis=1).view(">u8").astype(np.uint64).ravel()


def find_placeholders(products: pd.DataFrame, label: str) -> list[Placeholder]:
    """Return the pictures that stand for many products as if for none, the most frequent first.

    Variants of one product share a picture, too: only many products, or some of different categories, are reported.
    """
    table = products[["picture_digest", "product_id", label]]
    sizes = table.groupby("picture_digest")[label].agg(["size", "nunique"])
    many = (sizes["size"] >= MANY_PRODUCTS) | ((sizes["size"] >= SOME_PRODUCTS) & (sizes["nunique"] > 1))
    return [
        Placeholder(digest, tuple(same["product_id"]), tuple(sorted(set(same[label]))))
        for digest in sizes[many].sort_values("size", ascending=False, kind="stable").index
        for same in [table[table["picture_digest"] == digest]]
    ]


def frame_picture(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the content of a picture (H, W, 3) as cells (SIDE, SIDE, 3), normalised for position, scale and margins.

    The window is a square around the centre of what differs from the border's median; a blank picture is used whole.
    """
    from PIL import Image

    picture = Image.fromarray(pixels)
    if (factor := max(picture.size) // 96) > 1:
        picture = picture.reduce(factor)
        pixels = np.asarray(picture)
    background = _background(pixels)
    x, y, radius = _window(np.abs(pixels @ LUMA - background @ LUMA))
    red, green, blue = (int(level) for level in background)
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


def _window(ink: NDArray[np.float32]) -> tuple[float, float, float]:
    """Return centre (x, y) and half side of the content's window in pixels; `ink` (H, W) is contrast."""
    height, width = ink.shape
    ink[ink < FAINTEST] = 0
    total = float(ink.sum())
    if total < 0.2 * ink.size:
        return width / 2, height / 2, max(height, width) / 2
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    across, down = ink.sum(axis=0) / total, ink.sum(axis=1) / total
    centre_x, centre_y = float(across @ x), float(down @ y)
    variance = max(float(across @ (x - centre_x) ** 2), float(down @ (y - centre_y) ** 2))
    return centre_x, centre_y, max(4.0, SPREADS * variance**0.5)


def _background(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the median colour (3,) of the border of a picture (H, W, 3)."""
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    border.sort(axis=0)
    return np.asarray(border[len(border) // 2], dtype=np.float32)


def _link(pictures: PictureStore, rows: Rows) -> Rows:
    """Return a group number (m,) for each of the rows (m,), whose pictures all differ in their bytes."""
    groups = np.arange(len(rows), dtype=np.int64)
    with tempfile.TemporaryFile() as file:
        try:
            hashes = _write_frames(pictures, rows, file)
        except OSError as error:
            with contextlib.suppress(OSError):  # closing it writes what is left, and fails likewise
                file.close()
            raise UserError(
                f"{tempfile.gettempdir()} cannot store the pictures' frames ({error.strerror}): free some space there."
            ) from None
        matcher = _FrameMatcher(np.memmap(file, dtype=np.uint8, mode="r", shape=(len(rows), 4, SIDE, SIDE)))
        blocks = range(0, len(rows), ROWS_PER_BLOCK)
        for start in track(blocks, "comparing pictures", len(blocks)):
            for first, second in _candidates(hashes, start):
                for batch in range(0, len(first), PAIRS_PER_BATCH):
                    i, j = first[batch : batch + PAIRS_PER_BATCH], second[batch : batch + PAIRS_PER_BATCH]
                    apart = groups[i] != groups[j]  # already linked through others
                    i, j = i[apart], j[apart]
                    same = matcher.same(i, j)
                    groups = _merge(groups, i[same], j[same])
    return groups


def _write_frames(pictures: PictureStore, rows: Rows, file: BinaryIO) -> NDArray[np.float32]:
    """Return hashes (m, 64) of ±1, and write the frames to the file, which saves memory."""
    hashes = np.empty((len(rows), 64), dtype=np.float32)
    for index, row in enumerate(track(rows.tolist(), "framing pictures", len(rows))):
        frame = frame_picture(pictures.take(np.array([row]))[0])
        hashes[index] = np.where(_hash_frame(frame), 1, -1)
        away = np.abs(frame - _background(frame)).transpose(2, 0, 1).max(axis=0)
        file.write(frame.transpose(2, 0, 1).tobytes())
        file.write((away > FAINTEST_CELL).tobytes())
    file.flush()
    return hashes


def _hash_frame(frame: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return the pHash (64,) of a frame."""
    import imagehash
    from PIL import Image

    return np.asarray(imagehash.phash(Image.fromarray(frame), hash_size=8).hash.ravel())


def _candidates(hashes: NDArray[np.float32], start: int) -> Iterator[tuple[Rows, Rows]]:
    """Yield every pair (i < j) with i in the block at `start` whose hashes differ in few enough bits."""
    bits = hashes.shape[1]
    for left in range(start, len(hashes), COLUMNS_PER_BLOCK):
        # The dot product of ±1 vectors is the number of equal bits minus that of different ones.
        agreement = hashes[start : start + ROWS_PER_BLOCK] @ hashes[left : left + COLUMNS_PER_BLOCK].T
        first, second = np.nonzero(agreement >= bits - 2 * HASH_RADIUS)
        first, second = first + start, second + left
        yield first[first < second], second[first < second]


def _merge(groups: Rows, first: Rows, second: Rows) -> Rows:
    """Return the groups (n,) after linking pairs of rows (p,)."""
    if not len(first):
        return groups
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    size = int(groups.max()) + 1
    links = coo_array((np.ones(len(first), dtype=np.int8), (groups[first], groups[second])), shape=(size, size))
    merged: Rows = connected_components(links, directed=False)[1][groups].astype(np.int64)
    return merged


class _FrameMatcher:
    """Decides whether pairs of framed pictures are the same photograph, cheap tests first."""

    def __init__(self, planes: Planes) -> None:
        self._planes = planes
        cells = SIDE // COARSE_SIDE
        self._coarse = np.concatenate(  # (n, 3, COARSE_SIDE, COARSE_SIDE)
            [
                part[:, :3].reshape(-1, 3, COARSE_SIDE, cells, COARSE_SIDE, cells).mean(axis=(3, 5)).astype(np.int16)
                for part in (planes[at : at + ROWS_PER_BLOCK] for at in range(0, len(planes), ROWS_PER_BLOCK))
            ]
        )

    def same(self, first: Rows, second: Rows) -> NDArray[np.bool_]:
        """Return which pairs (p,) of rows are the same photograph; the order within a pair does not matter."""
        same = np.ones(len(first), dtype=bool)
        for test, pairs in ((self._coarsely, 5000), (self._unregistered, 1000), (self._registered, 100)):
            remaining = np.flatnonzero(same)
            for at in range(0, len(remaining), pairs):  # batches that fit into the processor's cache
                some = remaining[at : at + pairs]
                same[some] = test(first[some], second[some])
        return same

    def _coarsely(self, first: Rows, second: Rows) -> NDArray[np.bool_]:
        gap = np.abs(self._coarse[first] - self._coarse[second]).max(axis=1)
        # The window's corner is nearly always background, which `_share` ignores.
        corner = gap[:, 0, 0] <= TOLERANCE
        return np.asarray(corner & ((gap > COARSE_TOLERANCE).sum(axis=(1, 2)) <= MOST_COARSE_CELLS))

    def _unregistered(self, first: Rows, second: Rows) -> NDArray[np.bool_]:
        one, other = self._planes[first], self._planes[second]
        gap = np.abs(one[:, :3].astype(np.int16) - other[:, :3])
        return np.asarray(_share(gap, one[:, 3] | other[:, 3]) <= MOST_UNREGISTERED)

    def _registered(self, first: Rows, second: Rows) -> NDArray[np.bool_]:
        one, other = self._planes[first], self._planes[second]
        gap = np.abs(_residual(one[:, :3].astype(np.float32), other[:, :3].astype(np.float32)))
        return np.asarray(_share(gap, one[:, 3] | other[:, 3]) <= MOST_REGISTERED)


def _share(gap: NDArray[Any], content: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the share (p,) of content cells (p, SIDE, SIDE) with a visible difference, by gaps (p, 3, SIDE, SIDE)."""
    differing = (gap.max(axis=1) > TOLERANCE) & (content > 0)
    return np.asarray(differing.sum(axis=(1, 2)) / np.maximum(content.sum(axis=(1, 2)), FEWEST_CELLS))


def _residual(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the difference between frames (p, 3, S, S) after registration for a small shift and change of scale.

    Registration is one Gauss-Newton step of Lucas and Kanade (1981) on the mean of the two, which makes it symmetric;
    the step is bounded, so that it cannot turn one picture into another.
    """
    pairs, side = len(first), first.shape[-1]
    difference = second - first
    down, across = np.gradient((first + second) / 2, axis=(2, 3))
    position = ((np.arange(side) - (side - 1) / 2) / (side / 2)).astype(np.float32)
    growth = across * position + down * position[:, None]
    slopes = np.stack([across, down, growth], axis=1).reshape(pairs, 3, -1)  # (p, 3, 3 * S * S)
    normal = slopes @ slopes.transpose(0, 2, 1)
    ridge = 1 + 1e-3 * np.trace(normal, axis1=1, axis2=2) / 3  # a flat picture has no gradient to solve for
    step = np.linalg.solve(normal + ridge[:, None, None] * np.eye(3), slopes @ difference.reshape(pairs, -1, 1))
    most = np.array([1.5, 1.5, 1.0])[:, None]  # cells: right, down, and outwards at the frame's edge
    moved = slopes.transpose(0, 2, 1) @ np.clip(step, -most, most).astype(np.float32)
    residual: NDArray[np.float32] = difference - moved.reshape(difference.shape)
    return residual
