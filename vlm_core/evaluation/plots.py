"""Plots of an evaluation, rendered without a display and written atomically."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from vlm_core.files.atomic import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from vlm_core.evaluation.calibration import Calibration

_COLOURS: Final = "Blues"  # one hue, light to dark: works for colour-blind readers and in print
_DARK: Final = 0.55  # row share from which a cell's text is white
_INK, _GREY, _LINE = "#1b1f24", "#6a737d", "#e6e9ec"
_MOST_WITH_SHARES: Final = 14  # categories whose cells have room for a second line
_MOST_WITH_COUNTS: Final = 80  # categories whose cells have room for a number at all
_LONGEST_NAME: Final = 26  # characters of a category's name
_DPI: Final = 130


def plot_confusion(confusion: NDArray[np.int64], categories: Sequence[str], title: str, path: Path) -> None:
    """Write a PNG of a confusion matrix (C, C), rows = true category.

    Colour is the share of the row. Up to 14 categories each cell shows its count and share, up to 80 its count where
    it is not 0. The margins show each row's n and recall, and each column's precision.
    """
    count = len(categories)
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)  # (C, C)
    cell_inches = 0.95 if count <= _MOST_WITH_SHARES else 0.34 if count <= _MOST_WITH_COUNTS else 0.16
    side = max(3.2, count * cell_inches)
    figure = _figure(side + 3.4, side + 2.4)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap=_COLOURS, vmin=0, vmax=1, aspect="equal", interpolation="nearest")
    if count <= _MOST_WITH_COUNTS:
        _write_cells(axes, confusion, shares)
    _name_sides(axes, confusion, categories, title)
    height = min(1.0, 4.5 / side)  # a colour bar needs no more than 4.5 inches
    scale = axes.inset_axes((1 + 0.15 / side, 1 - height, 0.18 / side, height))
    bar = figure.colorbar(image, cax=scale, ticks=[0, 0.25, 0.5, 0.75, 1])
    bar.ax.set_yticklabels(["0 %", "25 %", "50 %", "75 %", "100 %"], fontsize=8, color=_GREY)
    bar.ax.set_title("of row", fontsize=8, color=_GREY, pad=6)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)
    _save(figure, path)


def _write_cells(axes: Axes, confusion: NDArray[np.int64], shares: NDArray[np.float64]) -> None:
    roomy = len(confusion) <= _MOST_WITH_SHARES
    for row, column in np.ndindex(*confusion.shape):
        number, share = int(confusion[row, column]), float(shares[row, column])
        if number == 0 and not roomy:
            continue
        colour = "white" if share >= _DARK else _INK if number else "#b4bcc4"
        weight = "bold" if row == column else "normal"
        down = 0.1 if roomy and number else 0.0  # cells; the share is below
        size = 13 if roomy else 7
        axes.text(column, row - down, f"{number:,}", ha="center", va="center", color=colour, size=size, weight=weight)
        if roomy and number:
            text = f"{share:.1%}" if share < 0.995 else f"{share:.0%}"
            axes.text(column, row + 0.22, text, ha="center", va="center", color=colour, size=8, alpha=0.85)


def _name_sides(axes: Axes, confusion: NDArray[np.int64], categories: Sequence[str], title: str) -> None:
    count = len(categories)
    hits, support, predicted = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    names = [_escape(name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…") for name in categories]
    roomy = count <= _MOST_WITH_SHARES
    rows = [f"{name}\nn {n:,} · recall {_share(hit, n)}" for name, n, hit in zip(names, support, hits, strict=True)]
    columns = [f"{name}\nprecision {_share(hit, n)}" for name, n, hit in zip(names, predicted, hits, strict=True)]
    size = 10 if roomy else 7.5 if count <= _MOST_WITH_COUNTS else 5.5
    ticks = range(count)
    axes.set_yticks(ticks, rows if roomy else [row.replace("\n", "   ") for row in rows], fontsize=size, color=_INK)
    if roomy:
        axes.set_xticks(ticks, columns, fontsize=size, color=_INK, rotation=40, ha="right", rotation_mode="anchor")
    else:
        axes.set_xticks(ticks, [text.replace("\n", "   ") for text in columns], fontsize=size, color=_INK, rotation=90)
    edges = np.arange(count + 1) - 0.5
    width = 1.2 if roomy else 0.5
    axes.hlines(edges, edges[0], edges[-1], color=_LINE, linewidth=width)
    axes.vlines(edges, edges[0], edges[-1], color=_LINE, linewidth=width)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_ylabel("true category", color=_GREY, fontsize=10, labelpad=10)
    axes.set_xlabel("predicted category", color=_GREY, fontsize=10, labelpad=10)
    accuracy = _share(int(hits.sum()), int(support.sum()))
    _head(axes, title, f"{int(support.sum()):,} products, {accuracy} correct")


def _head(axes: Axes, title: str, subtitle: str) -> None:
    """Write a title above the axes, and a smaller line between the two."""
    axes.set_title(_escape(title), loc="left", fontsize=14, color=_INK, weight="bold", pad=28)
    place: dict[str, Any] = {"xytext": (0, 10), "xycoords": "axes fraction", "textcoords": "offset points"}
    axes.annotate(subtitle, (0, 1), color=_GREY, fontsize=10, **place)


def _escape(text: str) -> str:
    """Return the text with dollar signs escaped: matplotlib would read a formula between them."""
    return text.replace("$", r"\$")


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "–"


def plot_reliability(calibration: Calibration, title: str, path: Path) -> None:
    """Write a PNG of a reliability diagram: accuracy at each confidence, and how many products have it."""
    figure = _figure(6.4, 6.6)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
    bins = [part for part in calibration.curve if part.n]
    middles = [(part.low + part.high) / 2 for part in bins]
    width = calibration.curve[0].high - calibration.curve[0].low
    above.bar(middles, [part.accuracy for part in bins], width * 0.92, color="#2c6fad", label="accuracy")
    above.plot([0, 1], [0, 1], color=_GREY, linewidth=1, linestyle=(0, (4, 3)), label="perfectly calibrated")
    above.scatter(
        [part.confidence for part in bins],
        [part.accuracy for part in bins],
        s=26,
        color="#e08214",
        edgecolor="white",
        linewidth=0.7,
        zorder=3,
        label="bin, at its mean confidence",
    )
    above.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy")
    above.legend(frameon=False, fontsize=9, loc="upper left")
    scores = f"ECE {calibration.ece:.3f}   Brier {calibration.brier:.3f}   NLL {calibration.nll:.3f}"
    _head(above, title, scores)
    below.bar(middles, [part.n for part in bins], width * 0.92, color="#b9c6d3")
    below.set(xlabel="confidence: probability of the predicted category", ylabel="products")
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=_INK, labelsize=9)
        axes.xaxis.label.set_color(_GREY)
        axes.yaxis.label.set_color(_GREY)
        axes.grid(axis="y", color=_LINE, linewidth=0.8)
        axes.set_axisbelow(True)
    _save(figure, path)


def _figure(width_inches: float, height_inches: float) -> Figure:
    """Return a figure with an Agg canvas: pyplot would keep it alive and pick a backend for the whole process."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_inches, height_inches), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> None:
    # bbox_inches="tight" would render everything twice; a layout engine takes seconds for 100 categories.
    with quiet_about_glyphs():
        box = figure.get_tightbbox(figure.canvas.get_renderer()).padded(0.2)  # type: ignore[attr-defined]
        write_atomically(path, lambda file: figure.savefig(file, format="png", bbox_inches=box))


@contextmanager
def quiet_about_glyphs() -> Iterator[None]:
    """Draw a box, without a warning for each, in the place of letters that the font lacks, as it lacks emoji."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"(Glyph|Matplotlib currently does not support)", UserWarning)
        yield
