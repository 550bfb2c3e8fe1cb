"""Curves of what maps are worth: the probability that is left as what they point to goes, or comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboard.figures.compare import RunStyle
from dashboard.theme import DASHES, SERIES, layout, plain_text

if TYPE_CHECKING:
    from vlm_core.attention.faithfulness import PictureCurves

CURVES: Final = ("deletion", "insertion")
_GREY: Final = "#8A8F98"


def faithfulness_curves(found: Mapping[str, Mapping[str, Any]]) -> go.Figure:
    """A row of two panels a model: deletion and insertion, a line a map; what knows nothing of the picture is grey.

    `found` is label -> what `vlm_core.attention.faithfulness.Faithfulness` holds.
    """
    titles = [f"{plain_text(label)}: {curve}" for label in found for curve in CURVES]
    figure = make_subplots(rows=len(found), cols=2, subplot_titles=titles, vertical_spacing=0.4 / len(found) ** 1.3)
    names = list(dict.fromkeys(each["map"] for of_model in found.values() for each in of_model["curves"]))
    looks = _looks(names)
    for row, of_model in enumerate(found.values(), start=1):
        for column, curve in enumerate(CURVES, start=1):
            for each in of_model["curves"]:
                figure.add_scatter(
                    x=of_model["shares"],
                    y=each[curve],
                    mode="lines",
                    line=looks[each["map"]],
                    name=plain_text(each["map"]),
                    legendgroup=each["map"],
                    showlegend=row == column == 1,
                    hovertemplate="%{x:.0%} of the cells<br>probability %{y:.2f}",
                    row=row,
                    col=column,
                )
    figure.update_layout(**layout(margin={"t": 88}, legend={"y": 1 + 0.22 / len(found)}))
    figure.update_xaxes(tickformat=".0%", zeroline=False, range=[0, 1.02])
    figure.update_xaxes(title_text="share of the cells", title_font_size=13, row=len(found))
    figure.update_yaxes(zeroline=False, rangemode="tozero")
    figure.update_yaxes(title_text="probability", title_font_size=13, col=1)
    return figure


def followed_curves(looks: Sequence[RunStyle], followed: Sequence[PictureCurves]) -> go.Figure:
    """Deletion and insertion in one picture, a line a model."""
    figure = make_subplots(cols=2, subplot_titles=CURVES)
    for look, each in zip(looks, followed, strict=True):
        for column, values in enumerate((each.deletion, each.insertion), start=1):
            figure.add_scatter(
                x=each.shares,
                y=values,
                mode="lines+markers",
                line={"color": look.colour, "dash": look.dash, "width": 2},
                name=plain_text(look.name),
                legendgroup=look.name,
                showlegend=column == 1,
                hovertemplate="%{x:.0%} of the cells<br>probability %{y:.2f}",
                row=1,
                col=column,
            )
    figure.update_layout(**layout(margin={"t": 64}, legend={"y": 1.16}))
    figure.update_xaxes(tickformat=".0%", zeroline=False, title_text="share of the cells", title_font_size=13)
    figure.update_yaxes(zeroline=False, range=[0, 1.03])
    figure.update_yaxes(title_text="probability", title_font_size=13, col=1)
    return figure


def _looks(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A colour for each method, and a grey dash for each control."""
    looks: dict[str, dict[str, Any]] = {}
    controls = [name for name in names if _is_control(name)]
    for place, name in enumerate(name for name in names if name not in controls):
        looks[name] = {"color": SERIES[place % len(SERIES)], "width": 2.5}
    for place, name in enumerate(controls):
        looks[name] = {"color": _GREY, "width": 1.5, "dash": DASHES[1 + place % (len(DASHES) - 1)]}
    return looks


def _is_control(name: str) -> bool:
    return name in ("random", "centre") or name.endswith("of another picture")
