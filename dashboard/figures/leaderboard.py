"""Score against cost, with the Pareto front."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Final

import plotly.graph_objects as go

from dashboard.components import FAMILY_NAMES
from dashboard.leaderboard import COSTS
from dashboard.theme import family_colour, layout, no_data, plain_text, shorten
from vlm_core.study.cost import pareto

_SYMBOLS: Final = {"zero-shot": "x", "probe": "diamond", "lora": "star", "lp-ft": "square", "full": "circle"}
_WIDE: Final = 4.0  # highest cost over lowest, from which the axis doubles
_DOUBLING: Final = {"type": "log", "dtick": math.log10(2)}
_FORMATS: Final = {"trained_weights": ",.3~s"}  # of a cost's numbers; others in full


def pareto_front(rows: Sequence[dict[str, Any]], cost: str) -> list[dict[str, Any]]:
    """Return the rows that no other row beats in cost and score, cheapest first; rows without either are left out.

    So are those of which only a part of the training time is known.
    """
    partial = "train_partial" if cost == "train" else ""
    usable = [
        row for row in rows if row.get("score") is not None and row.get(cost) is not None and not row.get(partial)
    ]
    on_front = pareto([(row[cost], row["score"]) for row in usable])
    return sorted(itertools.compress(usable, on_front), key=lambda row: row[cost])


def score_against_cost(rows: Sequence[dict[str, Any]], cost: str) -> go.Figure:
    """Return macro-F1 with its interval over a cost (logarithmic where wide), a colour per family, and the front."""
    figure = go.Figure()
    front = pareto_front(rows, cost)
    if len(front) > 1:
        line = {"color": "#8A8F98", "width": 1.5, "dash": "dot", "shape": "hv"}
        points = {"x": [row[cost] for row in front], "y": [row["score"] for row in front]}
        figure.add_scatter(**points, mode="lines", line=line, name="Pareto front", hoverinfo="skip")
    for family, name in FAMILY_NAMES.items():
        members = [row for row in rows if row["family"] == family and None not in (row.get("score"), row.get(cost))]
        if members:
            figure.add_scatter(**_points(members, cost), name=name, marker=_marker(members, family, cost))
    if not figure.data:
        return no_data("No tested run has this cost yet")
    costs = [row[cost] for row in rows if row.get(cost) is not None]
    wide = bool(costs) and min(costs) > 0 and max(costs) > _WIDE * min(costs)
    form = _FORMATS.get(cost, ",.4~r")
    figure.update_layout(
        **layout(
            xaxis={"title": {"text": COSTS[cost][1]}, "tickformat": form, **(_DOUBLING if wide else {})},
            yaxis={"title": {"text": "test macro-F1"}},
        )
    )
    return figure


def _marker(rows: Sequence[dict[str, Any]], family: str, cost: str) -> dict[str, Any]:
    symbols = [
        _SYMBOLS.get(row.get("mode", ""), "circle") + ("-open" if cost == "train" and row.get("train_partial") else "")
        for row in rows
    ]
    return {"color": family_colour(family), "size": 11, "symbol": symbols, "line": {"width": 1, "color": "white"}}


def _points(rows: Sequence[dict[str, Any]], cost: str) -> dict[str, Any]:
    unit, form = COSTS[cost][1], _FORMATS.get(cost, ",.4~r")
    up = [row.get("high", row["score"]) - row["score"] for row in rows]
    down = [row["score"] - row.get("low", row["score"]) for row in rows]
    return {
        "x": [row[cost] for row in rows],
        "y": [row["score"] for row in rows],
        "error_y": {"array": up, "arrayminus": down, "thickness": 1, "width": 0, "color": "#8A8F98"},
        "mode": "markers",
        "customdata": [[plain_text(shorten(row["name"], 60)), row.get("mode", ""), row["run_id"]] for row in rows],
        "hovertemplate": "%{customdata[0]} (%{customdata[1]})<br>macro-F1 %{y:.3f}<br>"
        + f"{unit}: %{{x:{form}}}<extra></extra>",
    }
