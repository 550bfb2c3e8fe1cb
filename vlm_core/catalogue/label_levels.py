"""Further labels of a split's products, such as the department above an article type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from vlm_core.catalogue.labels import counted
from vlm_core.errors import UserError
from vlm_core.pixels.arrays import Rows


@dataclass(frozen=True)
class Level:
    """One label column, with the categories that training products have."""

    label: str
    categories: tuple[str, ...]  # in alphabetical order
    labels: Rows  # (n_products,) index into categories, -1 for another one or none


def find_levels(products: pd.DataFrame, labels: Sequence[str], train: Rows) -> tuple[Level, ...]:
    """Return the level of each of these columns; `train` are the training rows.

    Raises UserError for a column with fewer than two categories in training.
    """
    levels = []
    for label in labels:
        column = products[label]
        counts = {str(name): int(count) for name, count in column.iloc[np.unique(train)].value_counts().items() if name}
        if len(counts) < 2:
            raise UserError(
                f"the label column {label} has {counted(counts) or 'no category'} among the training products, and a "
                "level needs at least two: leave it out of label=."
            )
        names = tuple(sorted(counts))
        index_of = {name: index for index, name in enumerate(names)}
        levels.append(Level(label, names, column.map(index_of).fillna(-1).to_numpy().astype(np.int64)))
    return tuple(levels)
