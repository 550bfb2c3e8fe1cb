"""The report's plots as SVG."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, assert_never

import numpy as np

from vlm_core.config.families import FAMILIES, family_of
from vlm_core.evaluation.plots import quiet_about_glyphs
from vlm_core.study.report_contents import (
    CostPlot,
    FaithfulnessPlot,
    IntervalPlot,
    LeakPlot,
    Plot,
    RiskPlot,
    RobustnessPlot,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GREY: Final = "#6B7280"


def colour_of(label: str) -> str:
    """Return the colour of the family that a label begins with; grey for any other label."""
    family = FAMILIES.get(family_of(label.split(" ")[0]))
    return family.colour if family else _GREY


def plot_svg(plot: Plot) -> str:
    """Return the plot as the text of an SVG element."""
    match plot:
        case IntervalPlot():
            return plot_intervals(plot)
        case LeakPlot():
            return plot_leak(plot)
        case RobustnessPlot():
            return plot_robustness(plot)
        case RiskPlot():
            return plot_risk(plot)
        case FaithfulnessPlot():
            return plot_faithfulness(plot)
        case CostPlot():
            return plot_costs(plot)
        case _:
            assert_never(plot)


def plot_intervals(plot: IntervalPlot) -> str:
    """Plot one value with its interval per line."""

    def paint(axes: Axes) -> None:
        for place, (label, estimate) in enumerate(plot.rows):
            colour = _GREY if plot.differences else colour_of(label)
            if estimate.low == estimate.low:
                axes.plot([estimate.low, estimate.high], [place, place], color=colour, linewidth=2)
            axes.plot([estimate.value], [place], "o", color=colour, markersize=5)
        if plot.differences:
            axes.axvline(0, color=_GREY, linewidth=1, linestyle=":")
        axes.set_yticks(range(len(plot.rows)), [label for label, _ in plot.rows])
        axes.invert_yaxis()
        axes.set_xlabel(plot.axis)

    return _svg(paint, height=0.9 + 0.27 * len(plot.rows))


def plot_leak(plot: LeakPlot) -> str:
    """Plot F1 of each category under both protocols, joined by a line, one panel per model."""
    # matplotlib reads what stands between two dollar signs as mathematics
    categories = [score.category.replace("$", r"\$") for score in plot.rows[0].scores]

    def paint(panels: Any) -> None:
        for axes, row in zip(panels.flat, plot.rows, strict=False):
            for place, score in enumerate(row.scores):
                holdout, original = score.holdout.value, score.original.value
                axes.plot([holdout, original], [place, place], color=_GREY, linewidth=1)
                axes.plot([holdout], [place], "o", color="#0072B2", markersize=5, label="holdout")
                axes.plot([original], [place], "D", color="#D55E00", markersize=5, label="original (leaks)")
            axes.set_title(row.label, fontsize=9)
            axes.set_yticks(range(len(categories)), categories)
            axes.invert_yaxis()
            axes.set_xlim(0, 1.03)
            axes.set_xlabel("F1", fontsize=8)
        handles, labels = panels.flat[0].get_legend_handles_labels()
        panels.flat[0].legend(handles[:2], labels[:2], fontsize=7, frameon=False)
        _hide_rest(panels, len(plot.rows))

    shape = _grid(len(plot.rows), columns=2)
    return _svg(paint, height=(1.0 + 0.27 * len(categories)) * shape[0], panels=shape)


def plot_robustness(plot: RobustnessPlot) -> str:
    """Plot the relative drop over severity, one panel per corruption."""
    corruptions = list(plot.rows[0].drops)

    def paint(panels: Any) -> None:
        for axes, name in zip(panels.flat, corruptions, strict=False):
            for row in plot.rows:
                drops = 100 * np.array(row.by_severity[name])
                axes.plot([1, 2, 3], drops, "o-", color=colour_of(row.label), label=row.label, markersize=3)
            axes.set_title(name, fontsize=9)
            axes.set_xticks([1, 2, 3])
        _hide_rest(panels, len(corruptions))
        panels.flat[0].legend(fontsize=7, frameon=False)
        panels.flat[0].set_ylabel("drop, %")

    shape = _grid(len(corruptions), columns=4)
    return _svg(paint, height=2.0 * shape[0], panels=shape)


def plot_risk(plot: RiskPlot) -> str:
    """Plot the share of incorrect predictions among those above a confidence, over the share that is."""

    def paint(axes: Axes) -> None:
        for row in plot.rows:
            axes.plot(row.coverage, row.risk, color=colour_of(row.label), label=row.label, linewidth=1.5)
        axes.set_xlabel(plot.x_axis)
        axes.set_ylabel(plot.y_axis)
        axes.legend(fontsize=8, frameon=False)

    return _svg(paint, height=3.2)


def plot_costs(plot: CostPlot) -> str:
    """Plot macro-F1 against the median latency; points on the Pareto front are filled."""

    def paint(axes: Axes) -> None:
        for row in plot.rows:
            milliseconds, colour = 1000 * row.cost.p50_seconds, colour_of(row.label)
            fill = colour if row.on_front else "none"
            axes.plot([milliseconds], [row.macro_f1], "o", color=colour, markerfacecolor=fill)
            place = (milliseconds, row.macro_f1)
            axes.annotate(row.label, place, textcoords="offset points", xytext=(7, -3), fontsize=8)
        axes.set_xscale("log")
        axes.margins(x=0.25, y=0.15)
        axes.set_xlabel(plot.x_axis)
        axes.set_ylabel(plot.y_axis)

    return _svg(paint, height=3.2)


def plot_faithfulness(plot: FaithfulnessPlot) -> str:
    """Plot a deletion and an insertion panel per model, one line per map."""
    panels_of = [(label, model, curve) for label, model in plot.models.items() for curve in ("deletion", "insertion")]

    def paint(panels: Any) -> None:
        for axes, (label, model, curve) in zip(panels.flat, panels_of, strict=False):
            for curves in model.curves:
                axes.plot(model.shares, getattr(curves, curve), label=curves.map, linewidth=1.5)
            axes.set_title(f"{label}: {curve}", fontsize=9)
            axes.set_xlabel(plot.x_axis, fontsize=8)
        panels.flat[0].legend(fontsize=7, frameon=False)
        panels.flat[0].set_ylabel(plot.y_axis, fontsize=8)

    shape = _grid(len(panels_of), columns=2)
    return _svg(paint, height=2.6 * shape[0], panels=shape)


def _grid(panels: int, *, columns: int) -> tuple[int, int]:
    return -(-panels // columns), columns


def _hide_rest(panels: Any, used: int) -> None:
    for axes in panels.flat[used:]:
        axes.set_visible(False)


def _svg(paint: Callable[[Any], None], *, height: float, panels: tuple[int, int] | None = None) -> str:
    """Return what `paint` plots on axes, or on a grid (rows, columns) of them, as the text of an SVG element."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 9,
        "svg.hashsalt": "study",
    }
    with rc_context({**style, "axes.spines.top": False, "axes.spines.right": False}), quiet_about_glyphs():
        figure = Figure(figsize=(8, height), layout="constrained")
        rows, columns = panels or (1, 1)
        axes = figure.subplots(rows, columns, squeeze=False)
        paint(axes if panels else axes[0, 0])
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]
