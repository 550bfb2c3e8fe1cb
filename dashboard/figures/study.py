"""Figures of a study: intervals, the leak, robustness, risk, costs and faithfulness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboard.theme import FAMILY_COLOURS, SEQUENTIAL, SERIES, layout, plain_text

_GREY: Final = "#8A8F98"
PIXELS_A_ROW: Final = 30
Estimate = Mapping[str, Any]  # value, low, high


def colour_of(label: str) -> str:
    """The colour of the family that a label begins with; grey for what is none."""
    return FAMILY_COLOURS.get(label.split(" ")[0].split("-")[0], _GREY)


def height_of(rows: int) -> int:
    """Pixels that so many rows need."""
    return 90 + PIXELS_A_ROW * rows


def intervals(rows: Sequence[tuple[str, Estimate]], title: str, *, zero: bool = False) -> go.Figure:
    """A value and its interval a row, the first on top; with `zero` a line at no difference."""
    figure = go.Figure()
    if zero:
        figure.add_vline(x=0, line={"color": _GREY, "width": 1.5, "dash": "dot"})
    coloured: dict[str, list[tuple[str, float, float, float]]] = {}  # a trace a colour: one a row takes seconds
    for label, estimate in rows:
        value = estimate["value"]
        low, high = (value if estimate[end] is None else estimate[end] for end in ("low", "high"))
        coloured.setdefault(SERIES[0] if zero else colour_of(label), []).append((plain_text(label), value, low, high))
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
    order = {"categoryorder": "array", "categoryarray": [plain_text(label) for label, _ in rows]}
    axis = {"autorange": "reversed", "showgrid": False, **order}
    figure.update_layout(**layout(xaxis={"title": {"text": title}}, yaxis=axis, showlegend=False))
    return figure


def leak_dumbbells(rows: Sequence[Mapping[str, Any]]) -> go.Figure:
    """F1 of each category under the honest and under the leaking protocol, joined by a line, a panel a model."""
    titles = [plain_text(row["label"]) for row in rows]
    figure = make_subplots(cols=len(rows), shared_yaxes=True, subplot_titles=titles)
    for column, row in enumerate(rows, start=1):
        names = [plain_text(score["category"]) for score in row["scores"]]
        ends = {name: [score[name]["value"] for score in row["scores"]] for name in ("holdout", "study")}
        pairs = zip(names, *ends.values(), strict=True)
        lines = [point for name, *both in pairs for point in (*((x, name) for x in both), (None, None))]
        x, y = zip(*lines, strict=True)
        grey = {"mode": "lines", "line": {"color": _GREY, "width": 2}, "showlegend": False, "hoverinfo": "skip"}
        figure.add_scatter(x=x, y=y, **grey, row=1, col=column)
        for (protocol, values), colour, symbol in zip(ends.items(), SERIES, ("circle", "diamond"), strict=False):
            title = protocol if protocol == "holdout" else "study (leaks)"
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
    figure.update_xaxes(range=[0, 1.03], title_text="F1", title_font_size=13, zeroline=False)
    figure.update_yaxes(automargin=True, autorange="reversed", showgrid=False)
    return figure


def drops(rows: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Relative drop of macro-F1 by model and corruption, mean over severities; on hover each severity."""
    names = list(rows[0]["drops"])
    values = np.array([[row["drops"][name]["value"] for name in names] for row in rows])
    severities = [[", ".join(f"{drop:.1%}" for drop in row["by_severity"][name]) for name in names] for row in rows]
    figure = go.Figure(
        go.Heatmap(
            z=values,
            x=names,
            y=[plain_text(row["label"]) for row in rows],
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


def risk_curves(rows: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Share of wrong answers among those that are kept over the share that is kept, a line a model."""
    figure = go.Figure()
    for row in rows:
        line = {"color": colour_of(row["label"]), "width": 2}
        points = {"x": row["coverage"], "y": row["risk"], "mode": "lines", "name": plain_text(row["label"])}
        figure.add_scatter(**points, line=line, hovertemplate="kept %{x:.0%}<br>wrong %{y:.1%}")
    figure.update_layout(
        **layout(
            xaxis={"title": {"text": "coverage, most confident first"}, "tickformat": ".0%", "range": [0, 1.02]},
            yaxis={"title": {"text": "risk"}, "tickformat": ".0%", "rangemode": "tozero"},
        )
    )
    return figure


def costs(rows: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Macro-F1 over the median latency; filled where no other is both faster and better."""
    figure = go.Figure()
    front = sorted((row for row in rows if row["on_front"]), key=lambda row: row["cost"]["p50_seconds"])
    line = {"color": _GREY, "width": 1.5, "dash": "dot", "shape": "hv"}
    figure.add_scatter(
        x=[1000 * row["cost"]["p50_seconds"] for row in front],
        y=[row["macro_f1"] for row in front],
        mode="lines",
        line=line,
        name="Pareto front",
        hoverinfo="skip",
    )
    for row in rows:
        symbol = "circle" if row["on_front"] else "circle-open"
        figure.add_scatter(
            x=[1000 * row["cost"]["p50_seconds"]],
            y=[row["macro_f1"]],
            mode="markers",
            marker={"color": colour_of(row["label"]), "size": 12, "symbol": symbol, "line": {"width": 2}},
            name=plain_text(row["label"]),
            hovertemplate="%{x:.3g} ms<br>macro-F1 %{y:.3f}",
        )
    axis = {"title": {"text": "latency of one picture, ms (median)"}, "rangemode": "tozero"}
    figure.update_layout(**layout(xaxis=axis, yaxis={"title": {"text": "macro-F1"}}))
    return figure
