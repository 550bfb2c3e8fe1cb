"""A model's predictions for the products of a split, the same for every family."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vlm_core.errors import UserError
from vlm_core.evaluation.category_matching import UNKNOWN_CATEGORY
from vlm_core.evaluation.level_scores import LevelPredictions
from vlm_core.files.atomic import write_atomically

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
_TOLERANCE = 1e-3  # of the sum of a row's probabilities; float32 log-softmax over 1,000 categories stays below 1e-5


@dataclass(frozen=True)
class Predictions:
    """One row per product, validated and converted to the types below on construction.

    Raises ValueError when shapes, indices or probabilities do not fit.
    """

    product_ids: NDArray[np.str_]  # (n,)
    labels: NDArray[np.int64]  # (n,) index into categories, -1 where the true category is unknown
    log_probabilities: NDArray[np.float32]  # (n, C), finite; each row's exp sums to one
    categories: tuple[str, ...]  # (C,)
    texts: tuple[str, ...] | None = None  # (n,) generated texts
    text_categories: NDArray[np.int64] | None = None  # (n,) category a text maps to, -1 = Unknown Category
    levels: LevelPredictions | None = None  # of a model of several labels, of which `categories` are the last one's

    def __post_init__(self) -> None:
        self._set("product_ids", np.asarray(self.product_ids, dtype=np.str_))
        self._set("labels", _indices(self.labels, "labels"))
        self._set("log_probabilities", np.asarray(self.log_probabilities, dtype=np.float32))
        self._set("categories", tuple(str(name) for name in self.categories))
        if self.texts is not None:
            self._set("texts", tuple(self.texts))
        if self.text_categories is not None:
            self._set("text_categories", _indices(self.text_categories, "text_categories"))
        self._check()

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # the only way in a frozen dataclass

    def _check(self) -> None:
        n, count = len(self.labels), len(self.categories)
        if count == 0 or len(set(self.categories)) < count:
            raise ValueError(f"categories must be named and all different, not {self.categories}")
        if self.product_ids.shape != (n,) or self.labels.shape != (n,):
            raise ValueError(f"{self.product_ids.shape} product ids do not fit {self.labels.shape} labels")
        if self.log_probabilities.shape != (n, count):
            raise ValueError(f"log-probabilities have shape {self.log_probabilities.shape}, not {(n, count)}")
        if not np.isfinite(self.log_probabilities).all():
            raise ValueError("log-probabilities must be finite: use a log-softmax, not the log of a rounded zero")
        if n and np.abs(self.probabilities.sum(axis=1) - 1).max() > _TOLERANCE:
            raise ValueError("each row of probabilities must sum to one")
        if (self.texts is None) != (self.text_categories is None):
            raise ValueError("texts and text_categories come together or not at all")
        for name, indices in (("labels", self.labels), ("text_categories", self.text_categories)):
            if indices is not None and n and not -1 <= indices.min() <= indices.max() < count:
                raise ValueError(f"{name} must lie in -1..{count - 1}")
        if self.levels is not None and (
            self.levels.hierarchy.categories[-1] != self.categories or len(self.levels.own) != n
        ):
            raise ValueError(f"the last of the levels must have the {count} categories, and {n} products")
        if self.texts is not None and (len(self.texts) != n or self.text_categories.shape != (n,)):  # type: ignore[union-attr]
            raise ValueError(f"{len(self.texts)} texts do not fit {n} products")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """Return the probabilities (n, C)."""
        return np.exp(self.log_probabilities.astype(np.float64))

    @property
    def predicted(self) -> NDArray[np.int64]:
        """Return the index (n,) of the most probable category, the first of several equally probable ones."""
        indices: NDArray[np.int64] = self.log_probabilities.argmax(axis=1)
        return indices

    def of_categories(self, names: Collection[str]) -> Predictions:
        """Return the rows whose true category is one of these; without generated texts."""
        rows = np.isin(self.labels, [place for place, name in enumerate(self.categories) if name in names])
        return Predictions(self.product_ids[rows], self.labels[rows], self.log_probabilities[rows], self.categories)

    def to_frame(self) -> pd.DataFrame:
        """Return one row per product: product_id, true, predicted, confidence, p_<category>..., text, text_category,
        and of several labels true_<label>, category_<label> and confidence_<label> of those above the last one.

        `true` is empty where the true category is unknown; `text_category` is "Unknown Category" for index -1.
        """
        import pandas as pd

        names = np.array([*self.categories, ""], dtype=object)  # index -1 is the last one
        probabilities = self.probabilities
        columns: dict[str, Any] = {
            "product_id": self.product_ids,
            "true": names[self.labels],
            "predicted": names[self.predicted],
            "confidence": probabilities.max(axis=1),
        }
        columns |= {f"p_{name}": probabilities[:, index] for index, name in enumerate(self.categories)}
        if self.texts is not None:
            columns["text"] = list(self.texts)
            columns["text_category"] = np.array([*self.categories, UNKNOWN_CATEGORY], dtype=object)[
                self.text_categories
            ]
        if self.levels is not None:
            columns |= self.levels.columns()
        return pd.DataFrame(columns)

    def write(self, path: Path) -> None:
        """Write a compressed NPZ without pickle, atomically."""
        arrays: dict[str, Any] = {
            "schema": np.array(SCHEMA),
            "product_ids": self.product_ids,
            "labels": self.labels,
            "log_probabilities": self.log_probabilities,
            "categories": np.array(self.categories),
        }
        if self.texts is not None:
            arrays |= {**_packed(self.texts), "text_categories": self.text_categories}
        if self.levels is not None:
            arrays |= self.levels.to_arrays()
        write_atomically(path, lambda file: np.savez_compressed(file, **arrays))

    @classmethod
    def read(cls, path: Path) -> Predictions:
        """Return the predictions in a file. Raises UserError when it is missing, damaged or of another schema."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path} cannot be read as stored predictions ({error}): evaluate the run again."
            ) from error
        if int(arrays.get("schema", -1)) != SCHEMA:
            raise UserError(f"{path} is not in schema {SCHEMA}: evaluate the run again with this version.")
        texts = _unpacked(arrays) if "text_ends" in arrays else None
        return cls(
            product_ids=arrays["product_ids"],
            labels=arrays["labels"],
            log_probabilities=arrays["log_probabilities"],
            categories=tuple(arrays["categories"].tolist()),
            texts=texts,
            text_categories=arrays.get("text_categories"),
            levels=LevelPredictions.from_arrays(arrays),
        )


def _packed(texts: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    """Return the texts as one array of UTF-8 bytes, and where each ends.

    An array of str would give each text the size of the longest, and drop trailing null characters.
    """
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    ends = np.cumsum([len(part) for part in encoded], dtype=np.int64)
    return {"text_bytes": np.frombuffer(b"".join(encoded), dtype=np.uint8), "text_ends": ends}


def _unpacked(arrays: Mapping[str, NDArray[Any]]) -> tuple[str, ...]:
    content, ends = arrays["text_bytes"].tobytes(), arrays["text_ends"].tolist()
    starts = [0, *ends][:-1]
    return tuple(content[a:b].decode("utf-8", "surrogatepass") for a, b in zip(starts, ends, strict=True))


def _indices(values: object, name: str) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.size and array.dtype.kind not in "iu":
        raise ValueError(f"{name} must be whole numbers, not {array.dtype}")
    return array.astype(np.int64)
