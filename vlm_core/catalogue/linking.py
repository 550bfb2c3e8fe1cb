"""Which framed pictures are the same photograph: a hash proposes pairs, and the frames' pixels decide.

Near hashes are found by an index of their bits, in bands (Norouzi, Punjani & Fleet 2012, "Fast search in Hamming space
with multi-index hashing"): where all bits differ in few places, those of some band differ in very few, and whatever has
almost the same bits there is looked up. What grows with the number of pictures lies in files, which processes share:
frames, hashes, the index, and the group of each picture. A process compares a block of pictures with all that come
after it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vlm_core.catalogue.framing import FAINTEST_CELL, SIDE, background_of, frame_picture, hash_frame
from vlm_core.catalogue.processes import in_processes
from vlm_core.errors import UserError
from vlm_core.pixels.arrays import Rows
from vlm_core.pixels.picture_store import PictureStore
from vlm_core.progress import track

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

BANDS: Final = 3  # each has every third bit: neighbours tell much the same
RADIUS_OF_BAND: Final = HASH_RADIUS // BANDS  # bits in which some band differs at most
MOST_BITS: Final = 64 // BANDS  # of a band
FEWEST_BITS: Final = 4

ROWS_PER_BLOCK: Final = 1024
CANDIDATES_AT_ONCE: Final = 100_000  # which stay in the processor's cache
ROWS_PER_TASK: Final = 512  # framed at once
PAIRS_PER_BATCH: Final = 200_000
WORTH_PROCESSES: Final = 5000  # rows
FRAMES, COARSE = "frames", "coarse"  # files
# Of the coarse cells, row by row: those looked at first are spread over the frame. The corner is the first of all.
FIRST_CELLS: Final = 16
CELL_ORDER: Final = np.argsort([(row % 2 or column % 2) for row in range(8) for column in range(8)], kind="stable")


@dataclass(frozen=True)
class _Files:
    """Where all processes find the pictures, their frames, and the group of each."""

    pictures: PictureStore
    folder: Path
    count: int

    def open(self, name: str, kind: Any, *shape: int, mode: Any = "r") -> NDArray[Any]:
        """Return an array of so many pictures in a file; with mode "w+" a new one."""
        return np.memmap(self.folder / name, kind, mode, shape=(self.count, *shape))


def link_pictures(pictures: PictureStore, rows: Rows) -> Rows:
    """Return a group number (m,) for each of the rows (m,), whose pictures all differ in their bytes.

    Memory holds some 100 bytes a picture, and what is compared at a time.
    Raises UserError where frames cannot be stored.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = _Files(pictures, Path(folder), len(rows))
        try:
            codes = _write_frames(files, rows)
            groups = np.arange(len(rows), dtype=np.int64)
            _Index.write(codes, files.folder)
            _write(files, groups)
        except OSError as error:
            raise UserError(
                f"{tempfile.gettempdir()} cannot store the pictures' frames ({error.strerror}): free some space there."
            ) from None
        blocks = range(0, len(rows), ROWS_PER_BLOCK)
        compared = in_processes(partial(_compare, files), blocks, worth=len(rows) > WORTH_PROCESSES)
        for first, second in track(compared, "comparing pictures", len(blocks)):
            if len(first):
                groups = merge(groups, first, second)
                _write(files, groups)
    return groups


def _write(files: _Files, groups: Rows) -> None:
    """Write the groups where processes see them, at whatever moment: each number is of a member of the group."""
    with (files.folder / "groups").open("r+b" if (files.folder / "groups").exists() else "wb", 0) as file:
        file.write(groups.tobytes())


def _write_frames(files: _Files, rows: Rows) -> NDArray[np.uint64]:
    """Return the hashes (m,) of the rows (m,), and write their frames."""
    for name in (FRAMES, COARSE):
        (files.folder / name).touch()
    tasks = [(start, rows[start : start + ROWS_PER_TASK]) for start in range(0, len(rows), ROWS_PER_TASK)]
    done = in_processes(partial(_frame, files), tasks, worth=len(rows) > WORTH_PROCESSES)
    return np.concatenate([*track(done, "framing pictures", len(tasks)), np.empty(0, np.uint64)])


def _frame(files: _Files, task: tuple[int, Rows]) -> NDArray[np.uint64]:
    """Write the frames of rows from a place on, and return their hashes."""
    start, rows = task
    bits = np.zeros((len(rows), 64), dtype=bool)
    frames = np.empty((len(rows), 4, SIDE, SIDE), np.uint8)
    for index, row in enumerate(rows.tolist()):
        frame = frame_picture(files.pictures.take(np.array([row]))[0])
        bits[index] = hash_frame(frame)
        away = np.abs(frame - background_of(frame)).transpose(2, 0, 1).max(axis=0)
        frames[index, :3], frames[index, 3] = frame.transpose(2, 0, 1), away > FAINTEST_CELL
    cells = SIDE // COARSE_SIDE
    means = frames[:, :3].reshape(-1, 3, COARSE_SIDE, cells, COARSE_SIDE, cells).mean(axis=(3, 5)).astype(np.uint8)
    coarse = means.reshape(len(rows), 3, -1)[:, :, CELL_ORDER]
    for name, array in ((FRAMES, frames), (COARSE, coarse)):
        with (files.folder / name).open("r+b", 0) as file:  # not mapped: a full disk is an error, not a signal
            file.seek(start * array[0].nbytes)
            file.write(np.ascontiguousarray(array).tobytes())
    return np.packbits(bits, axis=1).view(">u8").astype(np.uint64).ravel()


def _compare(files: _Files, start: int) -> tuple[Rows, Rows]:
    """Return pairs (p,) that are the same photograph, of the block at `start` and all after it, but for linked ones."""
    groups = files.open("groups", np.int64)
    matcher = _Matcher(files)
    found: list[tuple[Rows, Rows]] = []
    for first, second in _Index.read(files.folder).near_pairs(start):
        apart = groups[first] != groups[second]
        first, second = first[apart], second[apart]
        near = matcher.coarsely(first, second)
        found += _link_in_turn(matcher, first[near], second[near])
    if not found:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    return np.concatenate([first for first, _ in found]), np.concatenate([second for _, second in found])


def _link_in_turn(matcher: _Matcher, first: Rows, second: Rows) -> list[tuple[Rows, Rows]]:
    """Return pairs that are the same photograph, so many that what they link is all that is linked.

    Of each picture one pair is looked at, then two, then four; those that are linked by then are passed over. So the
    many copies of a picture are not all compared with each other.
    """
    found: list[tuple[Rows, Rows]] = []
    members, places = np.unique(np.concatenate([first, second]), return_inverse=True)
    one, other = places[: len(first)], places[len(first) :]
    linked = np.arange(len(members), dtype=np.int64)
    order = np.argsort(one, kind="stable")
    one, other = one[order], other[order]
    rank = np.arange(len(one)) - np.searchsorted(one, one)
    most = 1
    while len(one):
        now = rank < most
        i, j = one[now], other[now]
        apart = linked[i] != linked[j]
        i, j = i[apart], j[apart]
        same = matcher.same(members[i], members[j])
        found.append((members[i[same]], members[j[same]]))
        linked = merge(linked, i[same], j[same])
        one, other, rank, most = one[~now], other[~now], rank[~now], 2 * most
    return found


def merge(groups: Rows, first: Rows, second: Rows) -> Rows:
    """Return the groups (n,) after linking pairs of rows (p,); each is numbered by the first of its members."""
    if not len(first):
        return groups
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    touched, places = np.unique(np.concatenate([groups[first], groups[second]]), return_inverse=True)
    one, other = places[: len(first)], places[len(first) :]
    links = coo_array((np.ones(len(one), dtype=np.int8), (one, other)), shape=(len(touched), len(touched)))
    count, parts = connected_components(links, directed=False)
    lowest = np.full(count, len(groups), dtype=np.int64)
    np.minimum.at(lowest, parts, touched)
    numbers = np.arange(len(groups), dtype=np.int64)
    numbers[touched] = lowest[parts]
    return numbers[groups]


@dataclass(frozen=True)
class _Band:
    """All hashes in the order of the bits of a band."""

    bits: np.uint64  # that it has, of 64
    codes: NDArray[np.uint64]  # (n,)
    rows: Rows  # (n,), whose hashes these are
    starts: Rows  # (2 ** width + 1,) where those with each value of the band's bits begin


@dataclass(frozen=True)
class _Index:
    """Hashes (n,), and the bands by which near ones are found."""

    codes: NDArray[np.uint64]
    bands: tuple[_Band, ...]

    @classmethod
    def write(cls, codes: NDArray[np.uint64], folder: Path) -> None:
        """Write the index of hashes (n,) into a folder."""
        np.save(folder / "codes.npy", codes)
        width = min(MOST_BITS, max(FEWEST_BITS, len(codes).bit_length()))
        for band in range(BANDS):
            values = _values(codes, band, width)
            rows = np.argsort(values, kind="stable").astype(np.int32)
            starts = np.zeros((1 << width) + 1, np.int32)
            np.cumsum(np.bincount(values, minlength=1 << width), out=starts[1:])
            for name, array in (("codes", codes[rows]), ("rows", rows), ("starts", starts)):
                np.save(folder / f"{name}-{band}.npy", array)

    @classmethod
    def read(cls, folder: Path) -> _Index:
        """Return the index in a folder, of which only what is looked up is read."""
        load = partial(np.load, mmap_mode="r")
        bands = []
        for band in range(BANDS):
            starts = load(folder / f"starts-{band}.npy")
            bits = sum(1 << place for place in _places(band, _width(starts)))
            bands.append(
                _Band(np.uint64(bits), load(folder / f"codes-{band}.npy"), load(folder / f"rows-{band}.npy"), starts)
            )
        return cls(load(folder / "codes.npy"), tuple(bands))

    def near_pairs(self, start: int) -> Iterator[tuple[Rows, Rows]]:
        """Yield all pairs (i < j) with i in the block at `start` whose hashes differ in few enough bits, in batches."""
        some: list[tuple[Rows, Rows]] = []
        waiting = 0
        for pair in self._found(np.array(self.codes[start : start + ROWS_PER_BLOCK]), start):
            some.append(pair)
            waiting += len(pair[0])
            if waiting >= PAIRS_PER_BATCH:
                yield _joined(some)
                some, waiting = [], 0
        yield _joined(some)

    def _found(self, block: NDArray[np.uint64], start: int) -> Iterator[tuple[Rows, Rows]]:
        """Yield each pair of a block from the first band in which it is near enough."""
        for number, band in enumerate(self.bands):
            earlier = [other.bits for other in self.bands[:number]]
            for item, place in _candidates(_values(block, number, _width(band.starts)), band.starts):
                differing = block[item] ^ band.codes[place]
                near = np.flatnonzero(np.bitwise_count(differing) <= HASH_RADIUS)
                first, second = item[near] + start, band.rows[place[near]].astype(np.int64)
                kept = first < second
                for bits in earlier:
                    kept &= np.bitwise_count(differing[near] & bits) > RADIUS_OF_BAND
                yield first[kept], second[kept]


def _width(starts: Rows) -> int:
    """Return how many bits a band has, by where the hashes with each value of them begin."""
    return (len(starts) - 1).bit_length() - 1


def _places(band: int, width: int) -> range:
    """Return the places of a band's bits in a hash."""
    return range(band, band + BANDS * width, BANDS)


def _values(codes: NDArray[np.uint64], band: int, width: int) -> Rows:
    """Return the bits of a band in hashes (n,), as numbers (n,)."""
    values = np.zeros(len(codes), np.int64)
    for bit, place in enumerate(_places(band, width)):
        values |= (codes >> np.uint64(place) & np.uint64(1)).astype(np.int64) << bit
    return values


def _candidates(values: Rows, starts: Rows) -> Iterator[tuple[Rows, Rows]]:
    """Yield items (c,) of the numbers (m,) and places (c,) in a band with almost the same bits, some at a time."""
    bits = [0, *(1 << bit for bit in range(_width(starts)))]
    changes = np.unique([one | other for one in bits for other in bits])  # of RADIUS_OF_BAND bits at most
    probed = values[:, None] ^ changes
    begin = starts[probed]
    counts = starts[probed + 1] - begin
    items, probes = np.nonzero(counts)
    begin, counts = begin[items, probes].astype(np.int64), counts[items, probes]
    ends = np.cumsum(counts, dtype=np.int64)
    left = 0
    while left < len(counts):
        done = int(ends[left - 1]) if left else 0
        right = max(left + 1, int(np.searchsorted(ends, done + CANDIDATES_AT_ONCE)))
        some = counts[left:right]
        within = np.arange(done, int(ends[right - 1])) - np.repeat(ends[left:right] - some, some)
        yield np.repeat(items[left:right], some), np.repeat(begin[left:right], some) + within
        left = right


def _joined(pairs: list[tuple[Rows, Rows]]) -> tuple[Rows, Rows]:
    nothing = np.empty(0, np.int64)
    return np.concatenate([nothing, *(one for one, _ in pairs)]), np.concatenate([nothing, *(two for _, two in pairs)])


class _Matcher:
    """Decides whether pairs of framed pictures are the same photograph, cheap tests first."""

    def __init__(self, files: _Files) -> None:
        self._planes = files.open(FRAMES, np.uint8, 4, SIDE, SIDE)
        self._coarse = files.open(COARSE, np.uint8, 3, COARSE_SIDE**2)

    def coarsely(self, first: Rows, second: Rows) -> NDArray[np.bool_]:
        """Return which pairs (p,) of rows may be the same photograph by a few means of their frames."""
        first_cells = partial(self._few_differ, FIRST_CELLS)
        return _narrow((first_cells, 20_000), (self._corner_and_few_differ, 5000))(first, second)

    def same(self, first: Rows, second: Rows) -> NDArray[np.bool_]:
        """Return which pairs (p,) of rows, in any order, are the same photograph, of those that may be."""
        return _narrow((self._unregistered, 200), (self._registered, 100))(first, second)

    def _few_differ(self, cells: int, first: Rows, second: Rows) -> NDArray[np.bool_]:
        gap = _gap(self._coarse[first, :, :cells], self._coarse[second, :, :cells])
        return np.asarray(_count(_in_any_channel(gap > COARSE_TOLERANCE)) <= MOST_COARSE_CELLS)

    def _corner_and_few_differ(self, first: Rows, second: Rows) -> NDArray[np.bool_]:
        # The window's corner is nearly always background, which `_share` ignores.
        corner_differs = _in_any_channel(_gap(self._coarse[first, :, 0], self._coarse[second, :, 0]) > TOLERANCE)
        return np.asarray(~corner_differs & self._few_differ(COARSE_SIDE**2, first, second))

    def _unregistered(self, first: Rows, second: Rows) -> NDArray[np.bool_]:
        one, other = self._planes[first], self._planes[second]
        gap = _gap(one[:, :3], other[:, :3])
        return np.asarray(_share(gap, one[:, 3] | other[:, 3]) <= MOST_UNREGISTERED)

    def _registered(self, first: Rows, second: Rows) -> NDArray[np.bool_]:
        one, other = self._planes[first], self._planes[second]
        gap = np.abs(_residual(one[:, :3].astype(np.float32), other[:, :3].astype(np.float32)))
        return np.asarray(_share(gap, one[:, 3] | other[:, 3]) <= MOST_REGISTERED)


def _narrow(*tests: tuple[Callable[[Rows, Rows], NDArray[np.bool_]], int]) -> Callable[[Rows, Rows], NDArray[np.bool_]]:
    """Return a test that pairs pass if they pass all, each on batches that fit into the processor's cache."""

    def passes(first: Rows, second: Rows) -> NDArray[np.bool_]:
        left = np.ones(len(first), dtype=bool)
        for test, pairs in tests:
            remaining = np.flatnonzero(left)
            for at in range(0, len(remaining), pairs):
                some = remaining[at : at + pairs]
                left[some] = test(first[some], second[some])
        return left

    return passes


def _gap(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the absolute difference of levels, which needs no more than their eight bits."""
    return np.asarray(np.maximum(one, other) - np.minimum(one, other))


def _in_any_channel(differs: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return where a channel (p, 3, ...) differs, without a reduction: NumPy is slow along so short an axis."""
    return np.asarray(differs[:, 0] | differs[:, 1] | differs[:, 2])


def _count(cells: NDArray[Any]) -> NDArray[np.uint16]:
    """Return how many of the cells (p, ...) of each pair are set, at most SIDE squared."""
    return np.asarray(cells.reshape(len(cells), -1).sum(axis=1, dtype=np.uint16))


def _share(gap: NDArray[Any], content: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the share (p,) of content cells (p, SIDE, SIDE) with a visible difference, by gaps (p, 3, SIDE, SIDE)."""
    differing = _in_any_channel(gap > TOLERANCE) & (content > 0)
    return np.asarray(_count(differing) / np.maximum(_count(content), FEWEST_CELLS))


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
