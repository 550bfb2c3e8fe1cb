"""Coverage and accuracy under a confidence threshold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import plotly.graph_objects as go

from dashboard.figures.compare import RunStyle
from dashboard.theme import layout, no_data
from vlm_core.evaluation.predictions import Predictions

_STEPS: Final = np.linspace(0, 1, 101)


def coverage_at(predictions: Predictions, threshold: float) -> tuple[float, float]:
    """Return the share of labelled products predicted with at least that confidence, and the accuracy on these.

    Accuracy is NaN where coverage is zero.
    """
    known = predictions.labels >= 0
    covered = predictions.probabilities.max(axis=1)[known] >= threshold
    correct = (predictions.predicted == predictions.labels)[known]
    return float(covered.mean()), float(correct[covered].mean()) if covered.any() else float("nan")


def coverage_curves(styles: Sequence[RunStyle], predictions: Sequence[Predictions], threshold: float) -> go.Figure:
    """Return coverage (solid) and accuracy on what is covered (dotted) over the threshold, for each model."""
    if not styles:
        return no_data("No chosen model stored validation predictions")
    figure = go.Figure()
    figure.add_vline(x=threshold, line={"color": "#8A8F98", "width": 1.5, "dash": "dash"})
    for style, each in zip(styles, predictions, strict=True):
        points = np.array([coverage_at(each, step) for step in _STEPS])
        for column, (name, dash) in enumerate((("coverage", "solid"), ("accuracy where predicted", "dot"))):
            figure.add_scatter(
                x=_STEPS,
                y=points[:, column],
                mode="lines",
                name=style.label,
                legendgroup=style.name,
                showlegend=dash == "solid",
                line={"color": style.colour, "dash": dash, "width": 2},
                hovertemplate="threshold %{x:.2f}<br>" + name + " %{y:.1%}",
            )
    figure.update_layout(
        **layout(
            xaxis={"title": {"text": "confidence threshold"}, "range": [0, 1]},
            yaxis={"title": {"text": "share of products"}, "range": [0, 1.03], "tickformat": ".0%"},
        )
    )
    return figure
