"""The served model: pictures as base64 text in, category and probabilities out, one row a picture.

MLflow loads this module by name (`loader_module`) from the copy of vlm_core that lies in the model's own folder: no
pickle, and no repository on the path. Columns in: `picture`. Columns out: `category`, `confidence`, one
`p_<category>` each, for models that write also `text` and `text_category`, and `error`.
"""

from __future__ import annotations

import base64
import binascii
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from vlm_core.evaluation.texts import UNKNOWN_CATEGORY
from vlm_core.pixels.store import LARGEST_BYTES, UnreadablePicture, decode_picture, fit_picture

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vlm_core.models.categoriser import Categoriser

PICTURES_A_BATCH: Final = 32


def _load_pyfunc(data_path: str) -> ServedCategoriser:
    """What MLflow serves, from the folder that a categoriser was saved in."""
    from vlm_core.models.saved import load_categoriser

    return ServedCategoriser(load_categoriser(Path(data_path)))


class ServedCategoriser:
    """Answers each row by itself: a bad picture has an `error` and no category, and its neighbours are answered."""

    def __init__(self, categoriser: Categoriser) -> None:
        self._categoriser = categoriser
        # MLflow's server calls `predict` from several threads: one at a time has all cores, and memory stays bounded
        self._turn = threading.Lock()

    def predict(self, table: pd.DataFrame) -> pd.DataFrame:
        """One row (see the module) for each row of the column `picture`."""
        pictures = list(table["picture"])
        answers: list[dict[str, Any]] = []
        with self._turn:
            for start in range(0, len(pictures), PICTURES_A_BATCH):
                answers += self._answer(pictures[start : start + PICTURES_A_BATCH])
        columns = ["category", "confidence", *(f"p_{name}" for name in self._categoriser.categories)]
        if any("text" in answer for answer in answers):
            columns += ["text", "text_category"]
        # None, not NaN: MLflow's server writes NaN as it is, which is no JSON
        return pd.DataFrame(
            {name: pd.Series([answer.get(name) for answer in answers], dtype=object) for name in (*columns, "error")}
        )

    def _answer(self, pictures: Sequence[object]) -> list[dict[str, Any]]:
        """Answers for at most a batch; only pictures that could be read reach the model."""
        read = [self._read(picture) for picture in pictures]
        good = [picture for picture, _ in read if picture is not None]
        answered = iter(self._categorise(np.stack(good)) if good else ())
        return [{"error": problem} if picture is None else next(answered) for picture, problem in read]

    def _read(self, picture: object) -> tuple[NDArray[np.uint8] | None, str | None]:
        """The picture (height, width, 3) on the model's canvas, or what is wrong with it."""
        try:
            return fit_picture(decode_picture(picture_bytes(picture)), self._categoriser.canvas), None
        except (ValueError, UnreadablePicture) as error:
            return None, str(error)

    def _categorise(self, pictures: NDArray[np.uint8]) -> list[dict[str, Any]]:
        names = self._categoriser.categories
        probabilities = np.exp(self._categoriser.log_probabilities(pictures).astype(np.float64))  # (B, C)
        answers: list[dict[str, Any]] = [
            {"category": names[int(row.argmax())], "confidence": float(row.max())}
            | {f"p_{name}": float(value) for name, value in zip(names, row, strict=True)}
            for row in probabilities
        ]
        described = self._categoriser.describe(pictures)
        if described is not None:
            for answer, text, index in zip(answers, *described, strict=True):
                answer |= {"text": text, "text_category": names[index] if index >= 0 else UNKNOWN_CATEGORY}
        return answers


def picture_bytes(picture: object) -> bytes:
    """The bytes of a base64 text or a data URL. Raises ValueError, before anything is decoded if it is too long."""
    if not isinstance(picture, str) or not picture.strip():
        raise ValueError("The picture is not a text: send it as base64 or as a data URL.")
    header, comma, text = picture.partition(",") if picture.lstrip()[:5].lower() == "data:" else ("", "", picture)
    if header and not (comma and header.rstrip().lower().endswith(";base64")):
        raise ValueError("The data URL does not hold base64: it should begin like data:image/jpeg;base64,")
    if len(text) > LARGEST_BYTES * 4 // 3 + 1000:
        raise ValueError(f"The picture is larger than {LARGEST_BYTES // 1_000_000} MB.")
    text = "".join(text.split())
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("The picture is not base64.") from None
