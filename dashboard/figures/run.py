"""Figures of one run: learning curves, confusion, calibration and subgroups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from dashboard.figures.matrix import PAGE_ROOM, MatrixSize, axes, heat, row_shares, size_of
from dashboard.theme import layout, plain_text, shorten, whole_numbers
from vlm_core.evaluation.calibration import ReliabilityBin
from vlm_core.evaluation.subgroups import Subgroup

MOST_WITH_NUMBERS: Final = 20  # categories a side of a matrix whose cells still have room for a number
_GREY: Final = "#8A8F98"


def learning_curves(epochs: Sequence[Mapping[str, Any]], colour: str) -> go.Figure:
    """Return loss and macro-F1 over the epochs of a training log, training dotted and validation solid."""
    figure = make_subplots(cols=2, subplot_titles=("loss, nats", "macro-F1"))
    for column, name in enumerate(("overall_loss", "macro_f1"), start=1):
        for part, dash in (("training", "dot"), ("validation", "solid")):
            figure.add_scatter(
                x=[entry["epoch"] for entry in epochs],
                y=[entry[f"{part}_summary"][name] for entry in epochs],
                name=part,
                showlegend=column == 1,
                mode="lines+markers",
                line={"color": colour if part == "validation" else _GREY, "dash": dash, "width": 2},
                row=1,
                col=column,
            )
    figure.update_layout(**layout(margin={"t": 64}, legend={"y": 1.1}))
    figure.update_annotations(font_size=13)
    last = max((int(entry["epoch"]) for entry in epochs), default=0)
    figure.update_xaxes(title_text="epoch", zeroline=False, title_font_size=13, **whole_numbers(last))
    figure.update_yaxes(zeroline=False)
    return figure


def confusion(
    matrix: NDArray[np.int64], categories: Sequence[str], kind: str, before: NDArray[np.int64] | None
) -> go.Figure:
    """Return a confusion matrix (C, C), rows = true category.

    `kind` is "counts", "share" of the row, or "difference" from the matrix of the epoch `before` (none: zeros).
    """
    values: NDArray[Any] = matrix
    form, limits = ".0f", (0.0, float(max(1, matrix.max(initial=0))))
    if kind == "share":
        values, form, limits = row_shares(matrix), ".0%", (0.0, 1.0)
    elif kind == "difference":
        values = matrix - (matrix if before is None else before)
        top = float(max(1, np.abs(values).max(initial=0)))
        form, limits = "+.0f", (-top, top)
    size = confusion_size(len(categories))
    cells = heat(values, categories, form, limits, size, diverging=kind == "difference")
    figure = go.Figure(cells)
    figure.update_traces(showscale=bool(size.cell))
    across, down = axes(categories, size)
    across, down = {**across, "title": {"text": "predicted category"}}, {**down, "title": {"text": "true category"}}
    figure.update_layout(**layout(xaxis=across, yaxis=down))
    return figure


def confusion_size(count: int) -> MatrixSize:
    """Return the size of a confusion matrix of so many categories, which has the whole page where they are many."""
    return size_of(count, MOST_WITH_NUMBERS, PAGE_ROOM)


def reliability(curve: Sequence[ReliabilityBin], colour: str) -> go.Figure:
    """Return the accuracy at each confidence, and how many products have that confidence."""
    filled = [part for part in curve if part.n]
    figure = make_subplots(rows=2, shared_xaxes=True, row_heights=[0.76, 0.24], vertical_spacing=0.06)
    line = {"color": _GREY, "dash": "dot"}
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", line=line, name="perfectly calibrated", hoverinfo="skip", row=1, col=1
    )
    figure.add_scatter(
        x=[part.confidence for part in filled],
        y=[part.accuracy for part in filled],
        mode="lines+markers",
        line={"color": colour, "width": 2},
        marker={"size": 8},
        name="this run",
        cliponaxis=False,
        customdata=[part.n for part in filled],
        hovertemplate="confidence %{x:.2f}<br>accuracy %{y:.1%}<br>%{customdata} products<extra></extra>",
        row=1,
        col=1,
    )
    figure.add_bar(
        x=[(part.low + part.high) / 2 for part in curve],
        y=[part.n for part in curve],
        marker_color=_GREY,
        showlegend=False,
        hovertemplate="%{y} products<extra></extra>",
        row=2,
        col=1,
    )
    figure.update_layout(**layout(), bargap=0.1)
    figure.update_xaxes(range=[0, 1], zeroline=False)
    figure.update_xaxes(title_text="confidence", title_font_size=13, row=2, col=1)
    figure.update_yaxes(title_text="accuracy", title_font_size=13, range=[0, 1.03], zeroline=False, row=1, col=1)
    figure.update_yaxes(title_text="n", title_font_size=13, zeroline=False, row=2, col=1)
    return figure


def subgroups(groups: Sequence[Subgroup], colour: str, overall: float) -> go.Figure:
    """Return each subgroup's accuracy with Wilson's interval; a hollow marker has fewer than 20 products."""
    names = [f"{plain_text(shorten(group.value or 'unknown'))}  (n {group.n:,})" for group in groups]
    figure = go.Figure()
    figure.add_vline(x=overall, line={"color": _GREY, "dash": "dot", "width": 1})
    figure.add_scatter(
        x=[group.accuracy.value for group in groups],
        y=names,
        mode="markers",
        error_x={
            "array": [group.accuracy.high - group.accuracy.value for group in groups],
            "arrayminus": [group.accuracy.value - group.accuracy.low for group in groups],
            "color": colour,
            "thickness": 1.5,
            "width": 0,
        },
        marker={
            "color": colour,
            "size": 10,
            "symbol": ["circle-open" if group.n < 20 else "circle" for group in groups],
        },
        cliponaxis=False,
        hovertemplate="%{y}<br>accuracy %{x:.1%}<extra></extra>",
    )
    figure.update_layout(
        **layout(
            xaxis={"title": {"text": "accuracy (dotted: all products)"}, "range": [0, 1.02], "tickformat": ".0%"},
            yaxis={"autorange": "reversed"},
            showlegend=False,
        )
    )
    return figure
