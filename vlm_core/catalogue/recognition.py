"""Whether a catalogue is one that weights were pretrained on, by the ids and pictures that both have.

A fingerprint knows a catalogue only while nothing in it changes. A subset, another container or table, and pictures
that were encoded or resized anew are known by products whose id and picture are those of a product that was seen;
where the ids were changed as well, the pictures alone decide. Ids alone say nothing: many shops count from 1001.
"""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vlm_core.catalogue.duplicates import hash_pictures
from vlm_core.catalogue.linking import HASH_RADIUS
from vlm_core.files.atomic import write_atomically
from vlm_core.pixels.arrays import Rows

if TYPE_CHECKING:
    from vlm_core.pixels.picture_store import PictureStore

# Measured with the real catalogue's pictures, encoded anew at qualities of 50 to 90, halved, doubled or trebled: 38 to
# 80 % keep their whole hash and 94 to 100 % all but 4 bits of it. Of the products reserved there, 2 % share a whole
# hash with one that was seen, and 43 % all but 4 bits.
SAMPLED: Final = 128  # products whose pictures are compared before all are
MOST_BITS: Final = 4  # of 64, between two pictures of one photograph whose ids say nothing
SAME: Final = 0.5  # share of products seen, with their ids, from which on it is the same catalogue
SHARED: Final = 0.1  # share of pictures seen, from which on products are known by their pictures
MOST_BYTES: Final = 200_000_000  # of a file, unpacked: 12 bytes a product
_ROWS_PER_BLOCK: Final = 256


@dataclass(frozen=True, eq=False)
class SeenProducts:
    """Hashes of the products that weights were pretrained on; neither ids nor pictures can be read from them."""

    ids: NDArray[np.uint32]  # (n,) rising
    pictures: NDArray[np.uint64]  # (n,) of the same products

    @classmethod
    def of(cls, ids: pd.Series[str], pictures: NDArray[np.uint64]) -> SeenProducts:
        """Return those of products with these ids and hashes of pictures (n,)."""
        hashes = _hash_ids(ids)
        order = np.argsort(hashes, kind="stable")
        return cls(hashes[order], pictures[order])

    @classmethod
    def read(cls, path: Path) -> SeenProducts | None:
        """Return those in a file, None without one. Raises ValueError when it holds something else."""
        if not path.is_file():
            return None
        try:
            with zipfile.ZipFile(path) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > MOST_BYTES:
                    raise ValueError("it is too large")
            with np.load(path, allow_pickle=False) as file:
                ids, pictures = file["ids"], file["pictures"]
        except Exception as error:  # numpy and zipfile raise many types on broken files
            raise ValueError(f"{path} does not hold hashes of products") from error
        if ids.dtype != np.uint32 or pictures.dtype != np.uint64 or ids.ndim != 1 or ids.shape != pictures.shape:
            raise ValueError(f"{path} does not hold hashes of products")
        return cls(ids, pictures)

    def write(self, path: Path) -> None:
        """Write them to an .npz file, atomically."""
        write_atomically(path, lambda file: np.savez(file, ids=self.ids, pictures=self.pictures))

    def share_of_products(self, ids: pd.Series[str], pictures: PictureStore) -> float:
        """Return the share of products with these ids (n,), at their rows of the store, that were seen: id and picture.

        The pictures of up to `SAMPLED` of them are compared.
        """
        if not len(ids) or not len(self.ids):
            return 0.0
        hashes = _hash_ids(ids)
        places = np.minimum(np.searchsorted(self.ids, hashes), len(self.ids) - 1)
        known = self.ids[places] == hashes
        rows = _sample(np.flatnonzero(known))
        if not len(rows):
            return 0.0
        distances = np.bitwise_count(hash_pictures(pictures, ids.index.to_numpy()[rows]) ^ self.pictures[places[rows]])
        return float(known.mean() * (distances <= HASH_RADIUS).mean())

    def share_of_pictures(self, pictures: PictureStore) -> float:
        """Return the share of the different pictures in up to `SAMPLED` rows of the store that were seen.

        Pictures without content, whose hash is 0, are no evidence.
        """
        hashes = np.unique(hash_pictures(pictures, _sample(np.arange(len(pictures)))))
        hashes = hashes[hashes != 0]
        return float(np.isin(hashes, self.pictures).mean()) if len(hashes) else 0.0

    def has_pictures(self, pictures: PictureStore) -> NDArray[np.bool_]:
        """Return whether each picture (n,) of the store, or nearly the same one, was seen."""
        hashes, places = np.unique(hash_pictures(pictures, np.arange(len(pictures))), return_inverse=True)
        seen = np.unique(self.pictures)
        near = [
            (np.bitwise_count(hashes[at : at + _ROWS_PER_BLOCK, None] ^ seen) <= MOST_BITS).any(axis=1)
            for at in range(0, len(hashes), _ROWS_PER_BLOCK)
        ]
        return np.asarray(np.concatenate(near)[places]) if near else np.zeros(0, dtype=bool)


def _hash_ids(ids: pd.Series[str]) -> NDArray[np.uint32]:
    data = b"".join(hashlib.blake2b(name.encode("utf-8", "replace"), digest_size=4).digest() for name in ids)
    return np.frombuffer(data, dtype="<u4").astype(np.uint32)


def _sample(rows: Rows) -> Rows:
    """Return up to `SAMPLED` of the rows, evenly spread."""
    if len(rows) <= SAMPLED:
        return rows
    return np.asarray(rows[np.linspace(0, len(rows) - 1, SAMPLED).astype(np.int64)])
