"""The texts of a catalogue's products, as token ids of the model that reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vlm_core.pixels.arrays import Rows

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray
    from torch import Tensor

    from vlm_core.models.categoriser import VisionLanguageCategoriser


@dataclass(frozen=True)
class ProductTexts:
    """The texts of the products of a catalogue; only those that are taken are made."""

    products: pd.DataFrame  # one row a product
    model: VisionLanguageCategoriser  # which reads texts

    @property
    def alone(self) -> bool:
        """Return whether the model reads no pictures."""
        return not self.model.reads_both

    def take(self, rows: Rows) -> tuple[Tensor, NDArray[np.bool_]]:
        """Return token ids (B, T) of the texts of the rows (B,), and whether there is a text (B,)."""
        assert self.model.reads
        texts = self.model.reads.texts(self.products.iloc[rows])
        return self.model.text_ids(texts), np.array([bool(text) for text in texts])
