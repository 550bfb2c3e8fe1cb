"""Figures of several runs at once; each run keeps one colour and one dash through all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from dashboard.figures.matrix import PAGE_ROOM, MatrixSize, axes, heat, row_shares, size_of
from dashboard.theme import DASHES, family_colour, layout, name_ticks, no_data, plain_text, shorten, whole_numbers
from vlm_core.config.families import family_of
from vlm_core.evaluation.evaluation import Evaluation

MOST_BARS: Final = 20  # categories in the bars; of more, those in which the runs differ most
MOST_NUMBERS: Final = 12  # categories or runs in a matrix whose cells still have room for a number
_ROOM_OF_EACH: Final = 460  # pixels for the cells of one of several matrices
_PATTERNS: Final = ("", "/", ".", "x", "-", "+")


@dataclass(frozen=True)
class RunStyle:
    """A run's name, colour, dash and hatching, the same in every figure."""

    name: str
    colour: str
    dash: str
    pattern: str

    @property
    def label(self) -> str:
        """The name as figures write it: shortened, and escaped for Plotly."""
        return plain_text(shorten(self.name))


def run_styles(names: Sequence[str], models: Sequence[str]) -> list[RunStyle]:
    """Return the family's colour for each run; a second run of a family is dashed, and its bars are hatched."""
    counts: Counter[str] = Counter()
    styles = []
    for name, model in zip(names, models, strict=True):
        number = counts[family_of(model)]
        counts[family_of(model)] += 1
        dash, pattern = DASHES[number % len(DASHES)], _PATTERNS[number % len(_PATTERNS)]
        styles.append(RunStyle(name, family_colour(model), dash, pattern))
    return styles


def curves(styles: Sequence[RunStyle], epochs: Sequence[Sequence[dict[str, Any]]]) -> go.Figure:
    """Return validation loss and macro-F1 of each run over its epochs."""
    if not any(epochs):
        return no_data("None of these runs was trained in epochs")
    figure = make_subplots(cols=2, subplot_titles=("loss, nats", "macro-F1"))
    for style, entries in zip(styles, epochs, strict=True):
        for column, name in enumerate(("overall_loss", "macro_f1"), start=1):
            figure.add_scatter(
                x=[entry["epoch"] for entry in entries],
                y=[entry["validation_summary"][name] for entry in entries],
                name=style.label,
                legendgroup=style.name,
                showlegend=column == 1,
                mode="lines+markers",
                line={"color": style.colour, "dash": style.dash, "width": 2},
                row=1,
                col=column,
            )
    figure.update_layout(**layout(margin={"t": 64}, legend={"y": 1.12}))
    figure.update_annotations(font_size=13)
    last = max(int(entry["epoch"]) for entries in epochs for entry in entries)
    figure.update_xaxes(title_text="epoch", zeroline=False, title_font_size=13, **whole_numbers(last))
    figure.update_yaxes(zeroline=False)
    return figure


def category_bars(styles: Sequence[RunStyle], evaluations: Sequence[Evaluation]) -> go.Figure:
    """Return F1 of each category with its interval, side by side; of many categories those that differ most."""
    categories = most_different(evaluations, MOST_BARS)
    figure = go.Figure()
    for style, evaluation in zip(styles, evaluations, strict=True):
        scores = {score.category: score.f1 for score in evaluation.per_category if score.support}
        names = [name for name in categories if name in scores]
        figure.add_bar(
            x=[plain_text(name) for name in names],
            y=[scores[name].value for name in names],
            error_y={
                "array": [scores[name].high - scores[name].value for name in names],
                "arrayminus": [scores[name].value - scores[name].low for name in names],
                "color": "#8A8F98",
                "thickness": 1.2,
                "width": 2,
            },
            name=style.label,
            marker={"color": style.colour, "pattern": {"shape": style.pattern, "fgcolor": "white"}},
            meta=style.label,  # in the template itself, a name such as %{x} would be filled in
            hovertemplate="%{x}<br>F1 %{y:.3f}<extra>%{meta}</extra>",
        )
    scale = {"title": {"text": "F1"}, "range": [0, 1.03]}
    figure.update_layout(**layout(xaxis=name_ticks(categories), yaxis=scale), barmode="group", bargap=0.25)
    return figure


def most_different(evaluations: Sequence[Evaluation], most: int) -> list[str]:
    """Return up to `most` categories, in the evaluations' order, on which the F1 of the runs differs most."""
    values: dict[str, list[float]] = {}
    for evaluation in evaluations:
        for score in evaluation.per_category:
            if score.support:
                values.setdefault(score.category, []).append(score.f1.value)
    widest = sorted(values, key=lambda name: min(values[name]) - max(values[name]))[:most]
    return [name for name in values if name in widest]


def columns_of(count: int) -> int:
    """Return how many of so many runs to put side by side, with none alone in the last row where possible."""
    return 2 if count in (2, 4) else 3


def confusions(styles: Sequence[RunStyle], evaluations: Sequence[Evaluation]) -> go.Figure:
    """Return the runs' confusion matrices as shares of each row, on one scale."""
    columns, rows = grid_of(evaluations)
    size = matrices_size(evaluations)
    figure = make_subplots(
        rows=rows,
        cols=columns,
        subplot_titles=[style.label for style in styles],
        horizontal_spacing=0.05,
        vertical_spacing=0.3 / rows,
        shared_yaxes=True,
    )
    figure.update_layout(**layout(margin={"t": 32}))
    figure.update_annotations(font_size=13)
    for place, evaluation in enumerate(evaluations):
        where = {"row": place // columns + 1, "col": place % columns + 1}
        shares = row_shares(evaluation.confusion)
        figure.add_trace(heat(shares, evaluation.categories, ".0%", (0.0, 1.0), size), **where)
        across, down = axes(evaluation.categories, size)
        figure.update_xaxes(**across, **where)
        figure.update_yaxes(**down, **where)
    return figure


def grid_of(evaluations: Sequence[Evaluation]) -> tuple[int, int]:
    """Return how many matrices stand side by side, and in how many rows: two where their categories are many."""
    count = len(evaluations)
    columns = min(count, 2 if matrices_size(evaluations).cell else columns_of(count))
    return columns, -(-count // columns)


def matrices_size(evaluations: Sequence[Evaluation]) -> MatrixSize:
    """Return the size of each of several matrices."""
    return size_of(max(len(each.categories) for each in evaluations), MOST_NUMBERS, _ROOM_OF_EACH)


def difference_size(evaluations: Sequence[Evaluation]) -> MatrixSize:
    """Return the size of the difference of two matrices."""
    return size_of(max(len(each.categories) for each in evaluations), MOST_NUMBERS, PAGE_ROOM)


def confusion_difference(a: Evaluation, b: Evaluation) -> go.Figure:
    """Return row shares of a minus those of b, for two runs of the same categories."""
    values = row_shares(a.confusion) - row_shares(b.confusion)
    top, size = float(max(0.01, np.abs(values).max())), difference_size([a])
    figure = go.Figure(heat(values, a.categories, "+.0%", (-top, top), size, diverging=True))
    across, down = axes(a.categories, size)
    across, down = {**across, "title": {"text": "predicted category"}}, {**down, "title": {"text": "true category"}}
    figure.update_layout(**layout(xaxis=across, yaxis=down))
    return figure


def agreement(names: Sequence[str], shares: NDArray[np.float64]) -> go.Figure:
    """Return how often each two of the runs predict the same category (R, R)."""
    size = size_of(len(names), MOST_NUMBERS, PAGE_ROOM)
    cells = heat(shares, names, ".0%", (float(min(0.5, shares.min())), 1.0), size, true_first=False)
    across, down = axes(names, size)
    figure = go.Figure(cells)
    figure.update_layout(**layout(xaxis=across, yaxis=down))
    return figure
