"""Pretraining exposure: which products pretraining may use, which are reserved, and what given weights have seen.

A hash of the product's id decides, whatever the catalogue, seed or order: weights that were pretrained once can be
evaluated on every later split, because no split takes its evaluation products from those they may have seen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter, ValidationError

from vlm_core.atomic import write_atomically
from vlm_core.pixels.arrays import Rows

RULE: Final = "blake2b(product id)[0] < 192"  # pretraining may use three quarters of all ids
_ALLOWED_BELOW: Final = 192  # of 256
_VALIDATION_BELOW: Final = 16  # of 256: the share of the allowed products that pretraining is validated on
FILE: Final = "exposure.json"


@dataclass(frozen=True)
class Exposure:
    """The products that weights were pretrained on; stored beside the weights."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    rule: str  # all ids that were seen satisfy it
    catalogue: str
    catalogue_fingerprint: str
    products: int
    products_fingerprint: str  # of the sorted ids that were seen
    before: tuple[Exposure, ...] = ()  # of the weights that pretraining started from, newest first

    def write(self, folder: Path) -> None:
        """Write `exposure.json`, atomically."""
        content = json.dumps(asdict(self), indent=2)
        write_atomically(folder / FILE, lambda file: file.write(content.encode()))

    @classmethod
    def read(cls, folder: Path) -> Exposure | None:
        """Return the exposure in a folder, None if it has none. Raises ValueError when the file is not valid."""
        path = folder / FILE
        if not path.is_file():
            return None
        try:
            return TypeAdapter(cls).validate_json(path.read_bytes())
        except ValidationError as error:
            raise ValueError(f"{path} does not describe a pretraining exposure") from error

    def may_have_seen(self, products: pd.DataFrame, groups: Rows) -> NDArray[np.bool_]:
        """Return whether pretraining may have seen each product (n,) or a near-copy of it."""
        return may_have_seen(self.rule, products["product_id"], groups)


def record_exposure(
    catalogue: str, catalogue_fingerprint: str, ids: pd.Series[str], before: Sequence[Exposure | None] = ()
) -> Exposure:
    """Return the exposure of weights pretrained on the products of these ids, starting from weights with `before`."""
    digest = hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()[:16]
    earlier = [part for known in before if known for part in (replace(known, before=()), *known.before)]
    rule = RULE if all(known.rule == RULE for known in earlier) else "unknown"
    return Exposure(rule, catalogue, catalogue_fingerprint, len(ids), digest, tuple(earlier))


def allowed_for_pretraining(ids: pd.Series[str]) -> NDArray[np.bool_]:
    """Return whether pretraining may use each id (n,)."""
    return _first_bytes(ids, "") < _ALLOWED_BELOW


def reserved_for_evaluation(ids: pd.Series[str], groups: Rows) -> NDArray[np.bool_]:
    """Return whether each product (n,) is reserved: pretraining may use neither it nor a near-copy of it."""
    return ~np.isin(groups, groups[allowed_for_pretraining(ids)])


def may_have_seen(rule: str, ids: pd.Series[str], groups: Rows) -> NDArray[np.bool_]:
    """Return whether weights of a rule may have seen each product (n,) or a near-copy; all, for an unknown rule."""
    return ~reserved_for_evaluation(ids, groups) if rule == RULE else np.ones(len(ids), dtype=bool)


def split_for_pretraining(ids: pd.Series[str], groups: Rows) -> tuple[Rows, Rows]:
    """Return rows to pretrain on and rows to validate pretraining on, all of them allowed; no group has both.

    Settings are chosen on the latter, so that no choice depends on the reserved quarter either.
    """
    allowed = np.flatnonzero(allowed_for_pretraining(ids))
    members = pd.DataFrame({"group": groups[allowed], "id": ids.iloc[allowed].to_numpy()})
    names = members.groupby("group")["id"].transform("min")
    validation = _first_bytes(names, "validation:") < _VALIDATION_BELOW
    return allowed[~validation], allowed[validation]


def _first_bytes(ids: pd.Series[str], salt: str) -> NDArray[np.uint8]:
    return np.array([hashlib.blake2b((salt + name).encode(), digest_size=8).digest()[0] for name in ids], np.uint8)
