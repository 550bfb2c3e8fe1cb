"""The class balance of each part of a split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from dashboard.theme import SERIES, layout, name_ticks

PIXELS_PER_BAR: Final = 13
_WIDE: Final = 20  # the largest count over the smallest, from which the axis is logarithmic


def balance(categories: Sequence[str], counts: Mapping[str, NDArray[np.int64]]) -> go.Figure:
    """Return products per category, a bar for each part, the largest category on top."""
    order = np.argsort(next(iter(counts.values())), kind="stable")
    ticks = name_ticks([categories[place] for place in order])
    figure = go.Figure()
    for (part, values), colour in zip(reversed(list(counts.items())), SERIES[len(counts) - 1 :: -1], strict=False):
        figure.add_bar(
            x=values[order],
            y=ticks["tickvals"],
            orientation="h",
            name=part,
            marker_color=colour,
            hovertemplate="%{y}: %{x:,}<extra>" + part + "</extra>",
        )
    axis = {"title": {"text": "products"}, **_axis(counts)}
    figure.update_layout(
        **layout(xaxis=axis, yaxis=ticks, legend={"traceorder": "reversed"}), barmode="group", bargap=0.3
    )
    return figure


def _axis(counts: Mapping[str, NDArray[np.int64]]) -> dict[str, Any]:
    """Return a logarithmic axis where a linear one would hide the small categories."""
    known = np.concatenate(list(counts.values()))
    known = known[known > 0]
    wide = len(known) > 0 and known.max() > _WIDE * known.min()
    return {"type": "log", "dtick": 1, "title": {"text": "products (logarithmic)"}} if wide else {}


def height_of(categories: Sequence[str], counts: Mapping[str, NDArray[np.int64]]) -> int:
    """Return the pixels that the bars need."""
    return 110 + PIXELS_PER_BAR * len(counts) * len(categories)
