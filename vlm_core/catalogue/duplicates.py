"""Near-duplicates: products with identical picture bytes, or one photograph re-encoded, resized, relit or shifted.

Pictures are framed (`framing.py`), and their frames are compared (`linking.py`).
"""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vlm_core.catalogue.framing import frame_picture, hash_frame
from vlm_core.catalogue.linking import link_pictures
from vlm_core.files.atomic import write_atomically
from vlm_core.pixels.arrays import Rows
from vlm_core.pixels.picture_store import PictureStore

VERSION: Final = 1  # of this method: part of the cache file's name

SOME_PRODUCTS: Final = 5  # of several categories with one picture, for it to be a placeholder
MANY_PRODUCTS: Final = 20  # of one category


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
    groups = pd.factorize(link_pictures(pictures, originals)[copies])[0].astype(np.int64)
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
        bits[index] = hash_frame(frame_picture(pictures.take(np.array([row]))[0]))
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


def _content(digests: pd.Series[str]) -> str:
    text = "\n".join([str(VERSION), *digests])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
