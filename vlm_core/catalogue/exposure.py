"""Which products may be pretrained on and which are kept for evaluation, and what weights have seen.

The side is fixed by a hash of the product's id, whatever the catalogue, seed or order: weights that were pretrained
once can then be judged on every later split, because no split draws its evaluation from what they may have seen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vlm_core.arrays import Rows
from vlm_core.atomic import write_atomically

RULE: Final = "blake2b(product id)[0] < 192"  # three quarters of all ids may be pretrained on
_SIDES_BELOW: Final = 192  # of 256
_VALIDATION_BELOW: Final = 16  # of 256: the share of what may be pretrained on that pretraining is scored with
FILE: Final = "exposure.json"


@dataclass(frozen=True)
class Exposure:
    """What weights were pretrained on; kept beside them."""

    rule: str  # no id outside of it was seen
    catalogue: str
    catalogue_fingerprint: str
    products: int
    products_fingerprint: str  # of the sorted ids that were seen
    before: tuple[Exposure, ...] = ()  # of the weights that these went on from, newest first

    def write(self, folder: Path) -> None:
        """Write `exposure.json`, whole."""
        write_atomically(folder / FILE, lambda file: file.write(json.dumps(asdict(self), indent=2).encode()))

    @classmethod
    def read(cls, folder: Path) -> Exposure | None:
        """What `write` wrote; None where weights say nothing of what they saw. Raises ValueError for another form."""
        path = folder / FILE
        if not path.is_file():
            return None
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        try:
            return cls(**{**content, "before": tuple(cls(**earlier) for earlier in content.get("before", ()))})
        except (TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not what this version writes") from error

    def may_have_seen(self, products: pd.DataFrame, groups: Rows) -> NDArray[np.bool_]:
        """Whether each product (n,), or a near-copy of it, may have been pretrained on."""
        return may_have_seen(self.rule, products["product_id"], groups)


def record_exposure(
    catalogue: str, catalogue_fingerprint: str, ids: pd.Series[str], before: Sequence[Exposure | None] = ()
) -> Exposure:
    """The exposure of weights that learn from the products of these ids, and began with those of `before`."""
    digest = hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()[:16]
    earlier = [part for known in before if known for part in (replace(known, before=()), *known.before)]
    rule = RULE if all(known.rule == RULE for known in earlier) else "unknown"
    return Exposure(rule, catalogue, catalogue_fingerprint, len(ids), digest, tuple(earlier))


def allowed_for_pretraining(ids: pd.Series[str]) -> NDArray[np.bool_]:
    """Whether each id (n,) is one of the three quarters."""
    return _first_bytes(ids, "") < _SIDES_BELOW


def reserved_for_evaluation(ids: pd.Series[str], groups: Rows) -> NDArray[np.bool_]:
    """Whether each product (n,) is kept for evaluation: neither it nor a near-copy of it may be pretrained on."""
    return ~np.isin(groups, groups[allowed_for_pretraining(ids)])


def may_have_seen(rule: str, ids: pd.Series[str], groups: Rows) -> NDArray[np.bool_]:
    """Whether weights of that rule may have seen each product (n,) or a near-copy; all, for a rule not known here."""
    return ~reserved_for_evaluation(ids, groups) if rule == RULE else np.ones(len(ids), dtype=bool)


def split_for_pretraining(ids: pd.Series[str], groups: Rows) -> tuple[Rows, Rows]:
    """Rows to pretrain on, and rows to score pretraining with, both of the three quarters; no group has both.

    Recipes are chosen on the second, so that the reserved quarter stays unseen by choices too.
    """
    allowed = np.flatnonzero(allowed_for_pretraining(ids))
    members = pd.DataFrame({"group": groups[allowed], "id": ids.iloc[allowed].to_numpy()})
    names = members.groupby("group")["id"].transform("min")
    scored = _first_bytes(names, "validation:") < _VALIDATION_BELOW
    return allowed[~scored], allowed[scored]


def _first_bytes(ids: pd.Series[str], salt: str) -> NDArray[np.uint8]:
    return np.array([hashlib.blake2b((salt + name).encode(), digest_size=8).digest()[0] for name in ids], np.uint8)
