"""The report's figures as SVG."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from vlm_core.evaluation.bootstrap import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which colour-blind readers can tell apart; by the first word of a label.
COLOURS: Final = {"clip": "#0072B2", "blip": "#D55E00", "git": "#009E73"}
_GREY: Final = "#6B7280"


def colour_of(label: str) -> str:
    """A family's colour; grey for what is none."""
    return COLOURS.get(label.split(" ")[0].split("-")[0], _GREY)


def plot_intervals(rows: Sequence[tuple[str, Estimate, str]], title: str, *, zero: bool = False) -> str:
    """Values with their intervals, one a line; with `zero`, a line at no difference."""

    def draw(axes: Axes) -> None:
        for place, (label, estimate, _) in enumerate(rows):
            colour = _GREY if zero else colour_of(label)
            if estimate.low == estimate.low:
                axes.plot([estimate.low, estimate.high], [place, place], color=colour, linewidth=2)
            axes.plot([estimate.value], [place], "o", color=colour, markersize=5)
        if zero:
            axes.axvline(0, color=_GREY, linewidth=1, linestyle=":")
        axes.set_yticks(range(len(rows)), [label for label, _, _ in rows])
        axes.invert_yaxis()
        axes.set_xlabel(title)

    return _svg(draw, height=0.9 + 0.27 * len(rows))


def plot_severities(drops: Mapping[str, Mapping[str, tuple[float, float, float]]]) -> str:
    """Relative drop at each severity, a panel a corruption."""
    names = list(next(iter(drops.values())))

    def draw(panels: Any) -> None:
        for axes, name in zip(panels.flat, names, strict=False):
            for label, by_name in drops.items():
                axes.plot(
                    [1, 2, 3], 100 * np.array(by_name[name]), "o-", color=colour_of(label), label=label, markersize=3
                )
            axes.set_title(name, fontsize=9)
            axes.set_xticks([1, 2, 3])
        for axes in panels.flat[len(names) :]:
            axes.set_visible(False)
        panels.flat[0].legend(fontsize=7, frameon=False)
        panels.flat[0].set_ylabel("drop, %")

    columns = 4
    return _svg(draw, height=2.0 * -(-len(names) // columns), panels=(-(-len(names) // columns), columns))


def plot_risk(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> str:
    """Share of wrong answers among those that are kept, over the share that is kept."""

    def draw(axes: Axes) -> None:
        for label, (coverage, risk) in curves.items():
            axes.plot(coverage, risk, color=colour_of(label), label=label, linewidth=1.5)
        axes.set_xlabel("coverage")
        axes.set_ylabel("risk")
        axes.legend(fontsize=8, frameon=False)

    return _svg(draw, height=3.2)


def plot_costs(points: Sequence[tuple[str, float, float, bool]]) -> str:
    """Macro-F1 against the median latency; those on the front are filled."""

    def draw(axes: Axes) -> None:
        for label, seconds, score, on_front in points:
            colour = colour_of(label)
            axes.plot([1000 * seconds], [score], "o", color=colour, markerfacecolor=colour if on_front else "none")
            axes.annotate(label, (1000 * seconds, score), textcoords="offset points", xytext=(7, -3), fontsize=8)
        axes.set_xscale("log")
        axes.margins(x=0.25, y=0.15)
        axes.set_xlabel("latency of one picture, ms (median)")
        axes.set_ylabel("macro-F1")

    return _svg(draw, height=3.2)


def plot_curves(panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]]) -> str:
    """Deletion or insertion curves: a panel a title, a line a map."""

    def draw(grid: Any) -> None:
        for axes, (title, curves) in zip(grid.flat, panels.items(), strict=False):
            for name, (shares, probabilities) in curves.items():
                axes.plot(shares, probabilities, label=name, linewidth=1.5)
            axes.set_title(title, fontsize=9)
            axes.set_xlabel("share of patches", fontsize=8)
        grid.flat[0].legend(fontsize=7, frameon=False)
        grid.flat[0].set_ylabel("probability", fontsize=8)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)

    columns = 2
    rows = -(-len(panels) // columns)
    return _svg(draw, height=2.6 * rows, panels=(rows, columns))


def _svg(draw: Callable[[Any], None], *, height: float, panels: tuple[int, int] | None = None) -> str:
    """What `draw` draws on axes, or on a grid of them, as the text of an SVG element."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 9,
        "svg.hashsalt": "study",
    }
    with rc_context({**style, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(8, height), layout="constrained")
        rows, columns = panels or (1, 1)
        axes = figure.subplots(rows, columns, squeeze=False)
        draw(axes if panels else axes[0, 0])
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]
