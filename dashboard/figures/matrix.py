"""Matrices of categories: a number in each cell where there is room, and the same names on both sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from dashboard.theme import DIVERGING, SEQUENTIAL, name_ticks

PAGE_ROOM: Final = 930  # pixels that a page has for the cells of a matrix
_LABEL_PIXELS: Final = 12  # that a name takes up beside its row
_LETTERS: Final = 22  # of a name beside a row of many
_MARGINS: Final = (200, 190)  # pixels beside and below the cells, for names and the colour scale
_LEAST_PIXELS: Final = 420
# Of a matrix that is mostly zeros, whose cells are small: whatever is not zero is seen.
_SPARSE: Final = ((0.0, "#F4F7FB"), (1e-9, "#B5D4E9"), (0.1, "#7FB2DA"), (0.4, "#3182BD"), (1.0, "#08519C"))
_SPARSE_DIVERGING: Final = (
    *((0.0, "#B35806"), (0.3, "#F1A340"), (0.5 - 1e-9, "#FBD9A5"), (0.5, "#F7F7F7")),
    *((0.5 + 1e-9, "#BFDDED"), (0.7, "#67A9CF"), (1.0, "#2166AC")),
)


@dataclass(frozen=True)
class MatrixSize:
    """How large a matrix of so many categories is drawn, in pixels, and how many of its names."""

    cell: int  # 0: the cells share the room there is, and each has its number
    step: int  # every so many names are written, on both sides
    width: int  # at least; 0 for any
    height: int


def size_of(count: int, most_numbers: int, room: int) -> MatrixSize:
    """Return the size for `count` categories, whose cells get `room` pixels; up to `most_numbers` show numbers."""
    if count <= most_numbers:
        return MatrixSize(0, 1, 0, _LEAST_PIXELS)
    cell = max(2, min(_LABEL_PIXELS, room // count))
    beside, below = _MARGINS
    return MatrixSize(cell, -(-_LABEL_PIXELS // cell), beside + cell * count, max(_LEAST_PIXELS, below + cell * count))


def heat(
    values: NDArray[Any],
    names: Sequence[str],
    form: str,
    limits: tuple[float, float],
    size: MatrixSize,
    *,
    diverging: bool = False,
    true_first: bool = True,
) -> go.Heatmap:
    """Return the cells (C, C) of named rows and columns, in a number format of d3's; limits are those of the colours.

    Rows are true and columns predicted categories where `true_first`.
    """
    colours = (DIVERGING if diverging else SEQUENTIAL) if not size.cell else _SPARSE_DIVERGING if diverging else _SPARSE
    texts = list(name_ticks(names)["tickvals"])
    of_cell = "true %{y}<br>predicted %{x}<br>" if true_first else "%{y} and %{x}<br>"
    return go.Heatmap(
        z=values,
        x=texts,
        y=texts,
        zmin=limits[0],
        zmax=limits[1],
        colorscale=colours,
        texttemplate="" if size.cell else f"%{{z:{form}}}",
        xgap=0 if size.cell else 2,  # between hundreds of cells, a gap is wider than a cell
        ygap=0 if size.cell else 2,
        showscale=False,
        hovertemplate=f"{of_cell}%{{z:{form}}}<extra></extra>",
    )


def axes(names: Sequence[str], size: MatrixSize) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return settings of the horizontal and the vertical axis, which write the same names."""
    ticks = name_ticks(names[:: size.step], _LETTERS) if size.cell else name_ticks(names)
    shared = {"showgrid": False, "automargin": True, **ticks, **({"tickfont": {"size": 10}} if size.cell else {})}
    return {**shared, "tickangle": -90 if size.cell else -35}, {**shared, "autorange": "reversed"}


def row_shares(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return a confusion matrix (C, C) as shares of its rows, zeros where a row is empty."""
    return np.asarray(confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1))
