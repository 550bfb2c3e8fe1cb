"""A catalogue of pairs out of a catalogue: two products side by side, labelled by whether they are of one category.

No place tells the label. In each part of the pairs a product stands in two of them, on the same side: beside one of its
own category, and beside one of another. Whatever is known of the left half alone, or of the right, both labels are
equally frequent; and the sum of what is seen on both sides is the same on average. Only the relation tells.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vlm_core.catalogue.catalogue import Catalogue
from vlm_core.catalogue.containers.arrow_table import RowPicture
from vlm_core.catalogue.exposure import reserved_for_evaluation
from vlm_core.catalogue.labels import counted
from vlm_core.catalogue.parts import TEST, TRAIN, VALIDATION
from vlm_core.catalogue.shards import Packed, ShardRow, ShardRows, pack_rows
from vlm_core.catalogue.splitting import check_names
from vlm_core.errors import UserError
from vlm_core.pixels.arrays import Rows

SAME, DIFFERENT = "same", "different"
LABEL: Final = "relation"
MOST_CATEGORIES: Final = 10  # that are paired unless they are named
FEWEST: Final = 40  # products of a category, of which two are for validation
# Of the products of each category. Training may use what pretraining may; the others are of the reserved quarter.
_SHARES: Final = {TRAIN: 0.75, VALIDATION: 0.05, TEST: 0.2}
_COLUMNS: Final = ("id", LABEL, "part", "left", "right", "left_category", "right_category")
_ROWS_PER_SHARD, _BYTES_PER_SHARD = 10_240, 256_000_000


class _Pool(NamedTuple):
    """The rows of a category that can be paired, in the order of their ids."""

    trainable: Rows
    reserved: Rows  # for evaluation

    @property
    def room(self) -> int:
        """Return how many of them can be, with each part's share."""
        return int(min(len(self.trainable) / _SHARES[TRAIN], len(self.reserved) / (1 - _SHARES[TRAIN])))


def plan_pairs(
    products: pd.DataFrame, groups: Rows, *, label: str, categories: Sequence[str], pairs: int, seed: int
) -> pd.DataFrame:
    """Return the pairs: `left` and `right`, rows of `products`, `relation` and `part`.

    `pairs` is their number, 0 for as many as there can be; it is rounded down to what is balanced. A product that has
    near-copies (`groups`, (n,)) stands for all of them. Validation and test use products that no pretraining may use,
    training the others. Raises UserError for unknown categories, and for too few products.
    """
    pools = _pools(products, groups, label)
    chosen, most = _choose(products[label], pools, categories)
    wanted = pairs // len(chosen) if pairs else most  # products of each category, which are as many as its pairs
    if not FEWEST <= wanted <= most:
        raise UserError(
            f"pairs={pairs} is not to be had of {len(chosen)} categories: give {FEWEST * len(chosen):,} to "
            f"{most * len(chosen):,}, or name other categories=."
        )
    generator = np.random.default_rng([seed, 2])
    sizes = {part: int(share * wanted) // 2 * 2 for part, share in _SHARES.items()}
    trained = _draw([pools[name].trainable for name in chosen], sizes[TRAIN], generator)
    evaluated = _draw([pools[name].reserved for name in chosen], sizes[VALIDATION] + sizes[TEST], generator)
    validation, test = np.split(evaluated, [sizes[VALIDATION]], axis=1)
    parts = {TRAIN: trained, VALIDATION: validation, TEST: test}
    return pd.concat([_pairs_of(rows, generator).assign(part=part) for part, rows in parts.items()], ignore_index=True)


def _choose(column: pd.Series[str], pools: Mapping[str, _Pool], wanted: Sequence[str]) -> tuple[list[str], int]:
    """Return the categories to pair, and how many products of each can be. Raises UserError where they are too few."""
    counts = {str(name): int(count) for name, count in column[column != ""].value_counts().items()}
    check_names(str(column.name), counts, wanted)
    room = {name: pools[name].room if name in pools else 0 for name in wanted or pools}
    enough = [name for name in room if room[name] >= FEWEST]
    chosen = sorted(enough, key=lambda name: (-room[name], name))[: None if wanted else MOST_CATEGORIES]
    if len(chosen) < 2 or (wanted and len(chosen) < len(room)):
        raise UserError(
            f"The column {column.name} has too few products to pair: two categories or more need {FEWEST} each, a "
            f"quarter of them of the ids that no pretraining may use, and there are {counted(room) or 'none'}: name "
            "other categories=, or choose another label=."
        )
    return sorted(chosen), min(room[name] for name in chosen)


def _pools(products: pd.DataFrame, groups: Rows, label: str) -> dict[str, _Pool]:
    """Return what there is of each category.

    Of near-copies only the first is used, and none where they are of several categories.
    """
    ids, names = products["product_id"], products[label].to_numpy(str)
    table = pd.DataFrame({"group": groups, "name": names, "reserved": reserved_for_evaluation(ids, groups)})
    table = table.iloc[np.argsort(ids.to_numpy(str), kind="stable")]
    alike = table.groupby("group")["name"].transform("nunique") == 1
    table = table[alike & (table["name"] != "")].drop_duplicates("group")
    return {
        str(name): _Pool(*(members.index[members["reserved"] == reserved].to_numpy() for reserved in (False, True)))
        for name, members in table.groupby("name")
    }


def _draw(pools: Sequence[Rows], count: int, generator: np.random.Generator) -> Rows:
    """Return as many rows of each category, in a random order (C, count)."""
    return np.stack([generator.choice(rows, count, replace=False) for rows in pools])


def _pairs_of(rows: Rows, generator: np.random.Generator) -> pd.DataFrame:
    """Return the pairs of a part out of as many products of each category, rows (C, 2 m): 2 m pairs of each.

    The first half of them stand on the left, the others on the right. The n-th of each are paired with each other, and
    with those of the category that comes next in a random circle.
    """
    lefts, rights = np.split(rows, 2, axis=1)  # (C, m) each
    circles = generator.permuted(np.tile(np.arange(len(rows))[:, None], lefts.shape[1]), axis=0)  # (C, m)
    turned = np.roll(circles, -1, axis=0)
    frames = [
        pd.DataFrame({"left": lefts.ravel(), "right": rights.ravel(), LABEL: SAME}),
        pd.DataFrame(
            {
                "left": np.take_along_axis(lefts, circles, axis=0).ravel(),
                "right": np.take_along_axis(rights, turned, axis=0).ravel(),
                LABEL: DIFFERENT,
            }
        ),
    ]
    return pd.concat(frames, ignore_index=True)


def write_pairs(catalogue: Catalogue, pairs: pd.DataFrame, label: str, output: Path) -> Packed:
    """Write the pairs of `plan_pairs` as a catalogue of Parquet shards in the folder `output`; return what is in it.

    Each picture has both products on canvases side by side. Raises UserError as `pack_rows` does.
    """
    rows = ShardRows(f"pairs of {catalogue.name}", _COLUMNS, "image", _table_rows(catalogue, pairs, label))
    return pack_rows(rows, output, rows_per_shard=_ROWS_PER_SHARD, bytes_per_shard=_BYTES_PER_SHARD)


def _table_rows(catalogue: Catalogue, pairs: pd.DataFrame, label: str) -> Iterator[ShardRow]:
    products = catalogue.products
    ids, names, digests = (products[name].to_numpy(str) for name in ("product_id", label, "picture_digest"))
    for left, right, relation, part in pairs[["left", "right", LABEL, "part"]].itertuples(index=False):
        cells = (f"{ids[left]}+{ids[right]}", relation, part, ids[left], ids[right], names[left], names[right])
        state = f"{digests[left]}+{digests[right]}"
        picture = RowPicture("", "", partial(_picture, catalogue, left, right), partial(str, state))
        yield ShardRow(cells, "", picture)


def _picture(catalogue: Catalogue, left: int, right: int) -> bytes:
    """Return a PNG of two products (H, 2 W)."""
    from PIL import Image

    both: NDArray[np.uint8] = np.concatenate(list(catalogue.pictures.take(np.array([left, right]))), axis=1)
    file = io.BytesIO()
    Image.fromarray(both).save(file, "PNG")
    return file.getvalue()
