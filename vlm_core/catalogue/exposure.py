"""Pretraining exposure: which products pretraining may use, which are reserved, and what given weights have seen.

A hash of the product's id decides, whatever the seed or order: weights that were pretrained once can be evaluated on
every later split of their catalogue, in whatever form it comes, because no split of it takes its evaluation products
from those they may have seen. Catalogues that no weights have seen are not bound by it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from vlm_core.catalogue.recognition import SAME, SHARED, SeenProducts
from vlm_core.files.atomic import write_atomically
from vlm_core.pixels.arrays import Rows

if TYPE_CHECKING:
    from vlm_core.catalogue.catalogue import Catalogue

RULE: Final = "blake2b(product id)[0] < 192"  # pretraining may use three quarters of all ids
_ALLOWED_BELOW: Final = 192  # of 256
_VALIDATION_BELOW: Final = 16  # of 256: the share of the allowed products that pretraining is validated on
FILE: Final = "exposure.json"
SHIPPED: Final = Path(__file__).parent / "seen"  # hashes of what the weights that come with this package have seen


@dataclass(frozen=True)
class Exposure:
    """The products that weights were pretrained on; stored beside the weights."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    rule: str  # all ids that were seen satisfy it
    catalogue: str
    catalogue_fingerprint: str
    products: int
    products_fingerprint: str  # of the sorted ids that were seen
    before: tuple[Exposure, ...] = ()  # of the weights that pretraining started from, newest first
    # hashes of what was seen, in a file of its own; None where weights of an earlier version have none
    seen: Annotated[SeenProducts | None, Field(exclude=True)] = field(default=None, compare=False, repr=False)

    @property
    def parts(self) -> tuple[Exposure, ...]:
        """Return this exposure and those before it, each by itself."""
        return (replace(self, before=()), *self.before)

    def write(self, folder: Path) -> None:
        """Write `exposure.json` and, where this package does not hold them, the hashes of what was seen; atomically."""
        write_atomically(folder / FILE, lambda file: file.write(TypeAdapter(Exposure).dump_json(self, indent=2)))
        for part in self.parts:
            if part.seen and not _seen_file(SHIPPED, part.products_fingerprint).exists():
                part.seen.write(_seen_file(folder, part.products_fingerprint))

    @classmethod
    def read(cls, folder: Path) -> Exposure | None:
        """Return the exposure in a folder, None if it has none. Raises ValueError when a file is not valid."""
        path = folder / FILE
        if not path.is_file():
            return None
        try:
            exposure = TypeAdapter(cls).validate_json(path.read_bytes())
        except ValidationError as error:
            raise ValueError(f"{path} does not describe a pretraining exposure") from error
        before = tuple(part.with_hashes(folder) for part in exposure.before)
        return replace(exposure.with_hashes(folder), before=before)

    def with_hashes(self, folder: Path = SHIPPED) -> Exposure:
        """Return it with the hashes of what was seen, from that folder or this package. Raises ValueError."""
        files = (_seen_file(place, self.products_fingerprint) for place in (folder, SHIPPED))
        return replace(self, seen=next((seen for file in files if (seen := SeenProducts.read(file))), None))

    def may_have_seen(self, catalogue: Catalogue, groups: Rows) -> NDArray[np.bool_]:
        """Return whether pretraining may have seen each product (n,) of the catalogue, or a near-copy of it."""
        seen = [part._has_seen(catalogue, groups) for part in dict.fromkeys(self.parts)]
        return np.asarray(np.any(seen, axis=0))

    def _has_seen(self, catalogue: Catalogue, groups: Rows) -> NDArray[np.bool_]:
        """Return what this part alone may have seen: by the rule where it knows the catalogue, else by pictures."""
        ids = catalogue.products["product_id"]
        if self.seen is None or catalogue.fingerprint == self.catalogue_fingerprint:
            return may_have_seen(self.rule, ids, groups)
        allowed = ids[allowed_for_pretraining(ids)] if self.rule == RULE else ids
        if self.seen.share_of_products(allowed, catalogue.pictures) >= SAME:
            return may_have_seen(self.rule, ids, groups)
        if self.seen.share_of_pictures(catalogue.pictures) >= SHARED:
            return np.isin(groups, groups[self.seen.has_pictures(catalogue.pictures)])
        return np.zeros(len(ids), dtype=bool)


def shipped_exposures() -> tuple[Exposure, ...]:
    """Return one exposure for each catalogue that weights in this package have seen. Raises ValueError."""
    return tuple(
        Exposure(RULE, "", "", 0, path.stem.removeprefix("seen-")).with_hashes() for path in SHIPPED.glob("seen-*.npz")
    )


def record_exposure(
    catalogue: str,
    catalogue_fingerprint: str,
    ids: pd.Series[str],
    before: Sequence[Exposure | None] = (),
    seen: SeenProducts | None = None,
) -> Exposure:
    """Return the exposure of weights pretrained on the products of these ids, starting from weights with `before`."""
    digest = hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()[:16]
    earlier = [part for known in before if known for part in known.parts]
    rule = RULE if all(known.rule == RULE for known in earlier) else "unknown"
    return Exposure(rule, catalogue, catalogue_fingerprint, len(ids), digest, tuple(earlier), seen)


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


def _seen_file(folder: Path, products_fingerprint: str) -> Path:
    return folder / f"seen-{re.sub('[^0-9a-z]', '_', products_fingerprint)}.npz"


def _first_bytes(ids: pd.Series[str], salt: str) -> NDArray[np.uint8]:
    return np.array([hashlib.blake2b((salt + name).encode(), digest_size=8).digest()[0] for name in ids], np.uint8)
