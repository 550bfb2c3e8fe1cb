"""The class balance of each part of a split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from dashboard.theme import SERIES, layout, plain_text

PIXELS_PER_BAR: Final = 13


def balance(categories: Sequence[str], counts: Mapping[str, NDArray[np.int64]]) -> go.Figure:
    """Return products per category, a bar for each part, the largest category on top."""
    order = np.argsort(next(iter(counts.values())), kind="stable")
    names = [plain_text(categories[place]) for place in order]
    figure = go.Figure()
    for (part, values), colour in zip(reversed(list(counts.items())), SERIES[len(counts) - 1 :: -1], strict=False):
        figure.add_bar(
            x=values[order],
            y=names,
            orientation="h",
            name=part,
            marker_color=colour,
            hovertemplate="%{y}: %{x:,}<extra>" + part + "</extra>",
        )
    figure.update_layout(
        **layout(xaxis={"title": {"text": "products"}}, legend={"traceorder": "reversed"}), barmode="group", bargap=0.3
    )
    return figure


def height_of(categories: Sequence[str], counts: Mapping[str, NDArray[np.int64]]) -> int:
    """Return the pixels that the bars need."""
    return 110 + PIXELS_PER_BAR * len(counts) * len(categories)
