"""Plotly figures of a study's plots."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from typing import Final, assert_never

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboard.figures.attention import faithfulness_curves
from dashboard.theme import FAMILY_COLOURS, SEQUENTIAL, SERIES, layout, plain_text
from vlm_core.study.report_contents import (
    CostPlot,
    FaithfulnessPlot,
    IntervalPlot,
    LeakPlot,
    Plot,
    RiskPlot,
    RobustnessPlot,
)
from vlm_core.study.results import CalibrationRow, CostRow, LeakRow, RobustnessRow

WIDE_PLOTS: Final = (
    IntervalPlot,
    LeakPlot,
    RobustnessPlot,
    FaithfulnessPlot,
)  # scroll by themselves on a narrow screen
_PIXELS_PER_ROW: Final = 30
_GREY: Final = "#8A8F98"


def make_figure(plot: Plot) -> go.Figure:
    """Return the figure of a plot."""
    match plot:
        case IntervalPlot():
            return intervals(plot)
        case LeakPlot():
            return leak_dumbbells(plot.rows)
        case RobustnessPlot():
            return drops(plot.rows)
        case RiskPlot():
            return risk_curves(plot.rows)
        case FaithfulnessPlot():
            return faithfulness_curves(plot.models)
        case CostPlot():
            return costs(plot.rows)
        case _:
            assert_never(plot)


def height_of(plot: Plot) -> int:
    """Return the pixels that a plot's figure needs."""
    match plot:
        case IntervalPlot():
            return 90 + _PIXELS_PER_ROW * len(plot.rows)
        case LeakPlot():
            return 110 + 44 * len(plot.rows[0].scores)
        case RobustnessPlot():
            return 150 + _PIXELS_PER_ROW * len(plot.rows)
        case FaithfulnessPlot():
            return 80 + 270 * len(plot.models)
        case RiskPlot() | CostPlot():
            return 360
        case _:
            assert_never(plot)


def width_of(plot: Plot) -> int:
    """Return the pixels that a plot's figure needs at least: the titles of panels side by side never run together."""
    return max(640, 120 + 220 * len(plot.rows)) if isinstance(plot, LeakPlot) else 640


def colour_of(label: str) -> str:
    """Return the colour of the family that a label begins with; grey for any other label."""
    return FAMILY_COLOURS.get(label.split(" ")[0].split("-")[0], _GREY)


def intervals(plot: IntervalPlot) -> go.Figure:
    """Return one value with its interval per row, the first on top."""
    figure = go.Figure()
    if plot.differences:
        figure.add_vline(x=0, line={"color": _GREY, "width": 1.5, "dash": "dot"})
    coloured: dict[str, list[tuple[str, float, float, float]]] = {}  # one trace per colour: one per row takes seconds
    for label, estimate in plot.rows:
        low, high = (estimate.value if isnan(end) else end for end in (estimate.low, estimate.high))
        colour = SERIES[0] if plot.differences else colour_of(label)
        coloured.setdefault(colour, []).append((plain_text(label), estimate.value, low, high))
    for colour, members in coloured.items():
        names, values, lows, highs = map(list, zip(*members, strict=True))
        figure.add_scatter(
            x=values,
            y=names,
            error_x={
                "array": np.subtract(highs, values).tolist(),
                "arrayminus": np.subtract(values, lows).tolist(),
                **{"color": colour, "thickness": 2, "width": 0},
            },
            customdata=list(zip(lows, highs, strict=True)),
            mode="markers",
            marker={"color": colour, "size": 10},
            hovertemplate="%{y}<br>%{x:.3f} (%{customdata[0]:.3f} to %{customdata[1]:.3f})<extra></extra>",
        )
    order = {"categoryorder": "array", "categoryarray": [plain_text(label) for label, _ in plot.rows]}
    axis = {"autorange": "reversed", "showgrid": False, **order}
    figure.update_layout(**layout(xaxis={"title": {"text": plot.axis}}, yaxis=axis, showlegend=False))
    return figure


def leak_dumbbells(rows: Sequence[LeakRow]) -> go.Figure:
    """Return F1 of each category under both protocols, joined by a line, one panel per model."""
    titles = [plain_text(row.label) for row in rows]
    figure = make_subplots(cols=len(rows), shared_yaxes=True, subplot_titles=titles)
    for column, row in enumerate(rows, start=1):
        names = [plain_text(score.category) for score in row.scores]
        ends = {
            "holdout": [score.holdout.value for score in row.scores],
            "original (leaks)": [score.original.value for score in row.scores],
        }
        pairs = zip(names, *ends.values(), strict=True)
        lines = [point for name, *both in pairs for point in (*((x, name) for x in both), (None, None))]
        x, y = zip(*lines, strict=True)
        grey = {"mode": "lines", "line": {"color": _GREY, "width": 2}, "showlegend": False, "hoverinfo": "skip"}
        figure.add_scatter(x=x, y=y, **grey, row=1, col=column)
        for (title, values), colour, symbol in zip(ends.items(), SERIES, ("circle", "diamond"), strict=False):
            figure.add_scatter(
                x=values,
                y=names,
                mode="markers",
                marker={"color": colour, "size": 11, "symbol": symbol},
                name=title,
                legendgroup=title,
                showlegend=column == 1,
                hovertemplate="%{y}<br>F1 %{x:.3f}<extra>" + title + "</extra>",
                row=1,
                col=column,
            )
    figure.update_layout(**layout(legend={"y": 1.12}, margin={"t": 64}))
    figure.update_annotations(font_size=13)
    figure.update_xaxes(range=[0, 1.03], title_text="F1", title_font_size=13, zeroline=False)
    figure.update_yaxes(automargin=True, autorange="reversed", showgrid=False)
    return figure


def drops(rows: Sequence[RobustnessRow]) -> go.Figure:
    """Return the relative drop of macro-F1 by model and corruption, mean over severities; on hover each severity."""
    names = list(rows[0].drops)
    values = np.array([[row.drops[name].value for name in names] for row in rows])
    severities = [[", ".join(f"{drop:.1%}" for drop in row.by_severity[name]) for name in names] for row in rows]
    figure = go.Figure(
        go.Heatmap(
            z=values,
            x=[plain_text(name) for name in names],
            y=[plain_text(row.label) for row in rows],
            zmin=min(0.0, float(values.min())),
            zmax=max(0.01, float(values.max())),
            colorscale=SEQUENTIAL,
            showscale=False,
            xgap=2,
            ygap=2,
            texttemplate="%{z:.0%}",
            customdata=severities,
            hovertemplate="%{y}, %{x}<br>drop %{z:.1%}<br>mild to severe: %{customdata}<extra></extra>",
        )
    )
    figure.update_layout(
        **layout(xaxis={"showgrid": False, "tickangle": -35}, yaxis={"showgrid": False, "autorange": "reversed"})
    )
    return figure


def risk_curves(rows: Sequence[CalibrationRow]) -> go.Figure:
    """Return the share of incorrect predictions among the most confident ones over their share, one line per model."""
    figure = go.Figure()
    for row in rows:
        line = {"color": colour_of(row.label), "width": 2}
        points = {"x": row.coverage, "y": row.risk, "mode": "lines", "name": plain_text(row.label)}
        figure.add_scatter(**points, line=line, hovertemplate="coverage %{x:.0%}<br>incorrect %{y:.1%}")
    figure.update_layout(
        **layout(
            xaxis={"title": {"text": RiskPlot.x_axis}, "tickformat": ".0%", "range": [0, 1.02]},
            yaxis={"title": {"text": RiskPlot.y_axis}, "tickformat": ".0%", "rangemode": "tozero"},
        )
    )
    return figure


def costs(rows: Sequence[CostRow]) -> go.Figure:
    """Return macro-F1 over the median latency; models on the Pareto front are filled."""
    figure = go.Figure()
    front = sorted((row for row in rows if row.on_front), key=lambda row: row.cost.p50_seconds)
    line = {"color": _GREY, "width": 1.5, "dash": "dot", "shape": "hv"}
    figure.add_scatter(
        x=[1000 * row.cost.p50_seconds for row in front],
        y=[row.macro_f1 for row in front],
        mode="lines",
        line=line,
        name="Pareto front",
        hoverinfo="skip",
    )
    for row in rows:
        symbol = "circle" if row.on_front else "circle-open"
        figure.add_scatter(
            x=[1000 * row.cost.p50_seconds],
            y=[row.macro_f1],
            mode="markers",
            marker={"color": colour_of(row.label), "size": 12, "symbol": symbol, "line": {"width": 2}},
            name=plain_text(row.label),
            hovertemplate="%{x:.3g} ms<br>macro-F1 %{y:.3f}",
        )
    axis = {"title": {"text": CostPlot.x_axis}, "rangemode": "tozero"}
    figure.update_layout(**layout(xaxis=axis, yaxis={"title": {"text": CostPlot.y_axis}}))
    return figure
