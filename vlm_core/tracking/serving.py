"""The served model: images as base64 text in, category and probabilities out, one row per image.

MLflow loads this module by name (`loader_module`) from the copy of vlm_core that lies in the model's own folder: no
pickle, and no repository on the path. Columns in: `picture`. Columns out: `category`, `confidence`, one
`p_<category>` each, for models that write also `text` and `text_category`, and `error`.
"""

from __future__ import annotations

import base64
import binascii
import re
import threading
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
        """Return one row (see the module) for each row of the column `picture`.

        Images beyond `MOST_REQUEST_PIXELS` of a request have an `error`.
        """
        readers = [partial(picture_bytes, picture) for picture in table["picture"]]
        records: list[dict[str, Any]] = []
        budget = PixelBudget()
        for start in range(0, len(readers), REQUEST_BATCH):
            with self._turn:
                records += predict_records(self._categoriser, readers[start : start + REQUEST_BATCH], budget)
        # None, not NaN: MLflow's server writes NaN as it is, which is no JSON
        return pd.DataFrame(
            {
                name: pd.Series([record.get(name) for record in records], dtype=object)
                for name in record_columns(self._categoriser)
            }
        )


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
