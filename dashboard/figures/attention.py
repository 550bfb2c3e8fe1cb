"""Deletion and insertion curves: the probability left as the cells of a map are removed, or restored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboard.figures.compare import RunStyle
from dashboard.theme import DASHES, SERIES, layout, plain_text, shorten
from vlm_core.study.report_contents import FaithfulnessPlot

if TYPE_CHECKING:
    from vlm_core.attention.faithfulness import Faithfulness, PictureCurves

CURVES: Final = ("deletion", "insertion")
_CHANGES: Final = ("removed", "restored")
_GREY: Final = "#8A8F98"


def faithfulness_curves(models: Mapping[str, Faithfulness]) -> go.Figure:
    """Return a row of two panels per model (by label): deletion and insertion, a line per map; controls are grey."""
    titles = [f"{plain_text(shorten(label, 36))}: {curve}" for label in models for curve in CURVES]
    figure = make_subplots(rows=len(models), cols=2, subplot_titles=titles, vertical_spacing=0.4 / len(models) ** 1.3)
    names = list(dict.fromkeys(curves.map for model in models.values() for curves in model.curves))
    styles = _line_styles(names)
    for row, model in enumerate(models.values(), start=1):
        for column, curve in enumerate(CURVES, start=1):
            for curves in model.curves:
                figure.add_scatter(
                    x=model.shares,
                    y=getattr(curves, curve),
                    mode="lines",
                    line=styles[curves.map],
                    name=plain_text(curves.map),
                    legendgroup=curves.map,
                    showlegend=row == column == 1,
                    hovertemplate="%{x:.0%} of the grid cells<br>probability %{y:.2f}",
                    row=row,
                    col=column,
                )
    figure.update_annotations(font_size=13)
    figure.update_layout(**layout(margin={"t": 88}, legend={"y": 1 + 0.22 / len(models)}))
    figure.update_xaxes(tickformat=".0%", zeroline=False, range=[0, 1.02])
    figure.update_xaxes(title_text=FaithfulnessPlot.x_axis, title_font_size=13, row=len(models))
    figure.update_yaxes(zeroline=False, rangemode="tozero")
    figure.update_yaxes(title_text=FaithfulnessPlot.y_axis, title_font_size=13, col=1)
    return figure


def picture_curves(styles: Sequence[RunStyle], curves: Sequence[PictureCurves]) -> go.Figure:
    """Return deletion and insertion on one picture, a line per model."""
    figure = make_subplots(cols=2, subplot_titles=CURVES)
    for style, each in zip(styles, curves, strict=True):
        for column, (values, change) in enumerate(zip((each.deletion, each.insertion), _CHANGES, strict=True), start=1):
            figure.add_scatter(
                x=each.shares,
                y=values,
                mode="lines+markers",
                line={"color": style.colour, "dash": style.dash, "width": 2},
                name=style.label,
                legendgroup=style.name,
                showlegend=column == 1,
                hovertemplate="%{x:.0%} " + change + "<br>probability %{y:.2f}",
                row=1,
                col=column,
            )
    figure.update_layout(**layout(margin={"t": 64}, legend={"y": 1.16}))
    figure.update_annotations(font_size=13)
    figure.update_xaxes(tickformat=".0%", zeroline=False, title_font_size=13)
    for column, change in enumerate(_CHANGES, start=1):
        figure.update_xaxes(title_text=f"share of the image {change}", col=column)
    figure.update_yaxes(zeroline=False, range=[0, 1.03])
    figure.update_yaxes(title_text=FaithfulnessPlot.y_axis, title_font_size=13, col=1)
    return figure


def _line_styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return a colour for each method, and a grey dash for each control."""
    styles: dict[str, dict[str, Any]] = {}
    controls = [name for name in names if _is_control(name)]
    for place, name in enumerate(name for name in names if name not in controls):
        styles[name] = {"color": SERIES[place % len(SERIES)], "width": 2.5}
    for place, name in enumerate(controls):
        styles[name] = {"color": _GREY, "width": 1.5, "dash": DASHES[1 + place % (len(DASHES) - 1)]}
    return styles


def _is_control(name: str) -> bool:
    return name in ("random", "centre") or name.endswith("of another picture")
