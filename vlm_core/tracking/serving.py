"""The served model: images as base64 text in, category and probabilities out, one row per image.

A model that reads texts also takes a column `text`, the product's title and whatever else it was trained with; both
columns may be missing, or empty in a row.

MLflow loads this module by name (`loader_module`) from the copy of vlm_core that lies in the model's own folder: no
pickle, and no repository on the path. Columns in: `picture`. Columns out: `category`, `confidence`, one
`p_<category>` each, for models of several labels `category_<label>` and `confidence_<label>` of those above the last,
for models that write also `text` and `text_category`, for models that read texts `read` (what the prediction is made
from), and `error`.
"""

from __future__ import annotations

import base64
import binascii
import re
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

import pandas as pd

from vlm_core.inference import REQUEST_BATCH, predict_records, record_columns
from vlm_core.pixels.picture_store import MAX_SENT_BYTES, PixelBudget

if TYPE_CHECKING:
    from vlm_core.models.categoriser import Categoriser

_ADDRESS: Final = re.compile(r"\s*[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_URL_SAFE: Final = str.maketrans("-_", "+/")  # RFC 4648, section 5
_SEND: Final = "send the picture itself, as base64 or as a data URL"
_TOO_LARGE: Final = f"The picture is larger than {MAX_SENT_BYTES // 1_000_000} MB."


def _load_pyfunc(data_path: str) -> ServedCategoriser:
    """Return what MLflow serves, from the folder that a categoriser was saved in."""
    from vlm_core.models.saved import load_categoriser

    return ServedCategoriser(load_categoriser(Path(data_path)))


class ServedCategoriser:
    """A categoriser that treats rows separately: a bad image has an `error` and no category, the others predictions."""

    def __init__(self, categoriser: Categoriser) -> None:
        self._categoriser = categoriser
        # MLflow's server calls `predict` from several threads: one batch at a time has all cores, memory stays bounded,
        # and a long request lets short ones pass
        self._turn = threading.Lock()

    def predict(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return one row (see the module) for each row of the table.

        Images beyond `MOST_REQUEST_PIXELS` of a request have an `error`. Raises MlflowException where both are missing.
        """
        if not {"picture", "text"} & set(table):  # MLflow drops columns of other names, and the rows with them
            from mlflow.exceptions import MlflowException

            raise MlflowException.invalid_parameter_value(
                "The request has no column named picture, nor one named text: send rows with one of them, or both."
            )
        readers, texts = self._inputs(table)
        records: list[dict[str, Any]] = []
        budget = PixelBudget()
        for start in range(0, len(readers), REQUEST_BATCH):
            with self._turn:
                some = slice(start, start + REQUEST_BATCH)
                records += predict_records(self._categoriser, readers[some], budget, texts[some])
        # None, not NaN: MLflow's server writes NaN as it is, which is no JSON
        return pd.DataFrame(
            {
                name: pd.Series([record.get(name) for record in records], dtype=object)
                for name in record_columns(self._categoriser)
            }
        )

    def _inputs(self, table: pd.DataFrame) -> tuple[list[Callable[[], bytes] | None], list[str]]:
        """Return a reader of each row's picture, and its text; a model that reads texts may do without either."""
        if not self._categoriser.reads:
            return [partial(picture_bytes, picture) for picture in table["picture"]], [""] * len(table)
        nothing = [None] * len(table)
        pictures, texts = (table[name].tolist() if name in table else nothing for name in ("picture", "text"))
        readers: list[Callable[[], bytes] | None] = [
            None if _is_empty(picture) else partial(picture_bytes, picture) for picture in pictures
        ]
        return readers, ["" if _is_empty(text) else str(text) for text in texts]


def _is_empty(cell: object) -> bool:
    """Return whether nothing was sent in a cell."""
    return cell is None or cell == "" or cell != cell


def picture_bytes(picture: object) -> bytes:
    """Return the bytes of a base64 text, URL-safe or not, or a data URL.

    Raises ValueError, before decoding if it is too long.
    """
    if not isinstance(picture, str) or not picture.strip():
        raise ValueError(f"The picture is not a text: {_SEND}.")
    if _ADDRESS.match(picture):
        raise ValueError(f"The picture is an address: {_SEND}.")
    if picture.lstrip().startswith(("b'", 'b"')):
        raise ValueError("The picture is Python's notation of bytes: decode() the base64 into a text and send that.")
    header, comma, text = picture.partition(",") if picture.lstrip()[:5].lower() == "data:" else ("", "", picture)
    if header and not (comma and header.rstrip().lower().endswith(";base64")):
        raise ValueError("The data URL does not hold base64: it should begin like data:image/jpeg;base64,")
    if len(text) > MAX_SENT_BYTES * 4 // 3 + 1000:
        raise ValueError(_TOO_LARGE)
    text = "".join(unquote(text).split()).translate(_URL_SAFE)
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"The picture is not base64: {_SEND}.") from None
    if len(data) > MAX_SENT_BYTES:
        raise ValueError(_TOO_LARGE)
    return data
