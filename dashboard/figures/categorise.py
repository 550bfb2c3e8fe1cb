"""What a threshold for "Unknown" costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import plotly.graph_objects as go

from dashboard.figures.compare import RunStyle
from dashboard.theme import layout
from vlm_core.evaluation.predictions import Predictions

_STEPS: Final = np.linspace(0, 1, 101)


def coverage_at(predictions: Predictions, threshold: float) -> tuple[float, float]:
    """Share of the labelled products answered with at least that confidence, and share of these that is right.

    The latter is NaN where none is answered.
    """
    known = predictions.labels >= 0
    answered = predictions.probabilities.max(axis=1)[known] >= threshold
    right = (predictions.predicted == predictions.labels)[known]
    return float(answered.mean()), float(right[answered].mean()) if answered.any() else float("nan")


def coverage_curves(looks: Sequence[RunStyle], predictions: Sequence[Predictions], threshold: float) -> go.Figure:
    """Coverage (solid) and accuracy of what is answered (dotted) over the threshold, for each model."""
    figure = go.Figure()
    figure.add_vline(x=threshold, line={"color": "#8A8F98", "width": 1.5, "dash": "dash"})
    for look, each in zip(looks, predictions, strict=True):
        points = np.array([coverage_at(each, step) for step in _STEPS])
        for column, (name, dash) in enumerate((("answered", "solid"), ("right of these", "dot"))):
            figure.add_scatter(
                x=_STEPS,
                y=points[:, column],
                mode="lines",
                name=f"{look.name}: {name}",
                line={"color": look.colour, "dash": dash, "width": 2},
                hovertemplate="threshold %{x:.2f}<br>%{y:.1%}<extra></extra>",
            )
    figure.update_layout(
        **layout(
            xaxis={"title": {"text": "threshold"}, "range": [0, 1]},
            yaxis={"title": {"text": "share, validation"}, "range": [0, 1.03], "tickformat": ".0%"},
        )
    )
    return figure
