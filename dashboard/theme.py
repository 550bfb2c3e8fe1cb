"""Colours, type and spacing: one scale of each, for every page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from vlm_core.config.families import FAMILIES, family_of

if TYPE_CHECKING:
    import plotly.graph_objects as go

FAMILY_COLOURS: Final = {**{name: family.colour for name, family in FAMILIES.items()}, "baseline": "#8A8F98"}
OTHER_COLOUR: Final = "#56B4E9"  # of the same palette
SERIES: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # where runs, not families, differ
DASHES: Final = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SEQUENTIAL: Final = ((0.0, "#F4F7FB"), (0.25, "#C6DBEF"), (0.5, "#7FB2DA"), (0.75, "#3182BD"), (1.0, "#08519C"))
DIVERGING: Final = ((0.0, "#B35806"), (0.25, "#F1A340"), (0.5, "#F7F7F7"), (0.75, "#67A9CF"), (1.0, "#2166AC"))
_FEW_STEPS: Final = 8  # of an axis of whole numbers, each of which has a tick
FONT: Final = "Inter, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

MANTINE: Final[dict[str, Any]] = {
    "primaryColor": "blue",
    "primaryShade": {"light": 8, "dark": 5},
    "fontFamily": FONT,
    "headings": {"fontFamily": FONT, "fontWeight": "650"},
    "defaultRadius": "md",
    "autoContrast": True,
}


def family_colour(model: str) -> str:
    """Return the colour of a model's family, the same on every page."""
    return FAMILY_COLOURS.get(family_of(str(model)), OTHER_COLOUR)


def shorten(name: str, most: int = 28) -> str:
    """Return a name of at most so many letters: of a longer one its beginning and its end, which tells runs apart."""
    end = most * 2 // 5
    return name if len(name) <= most else f"{name[: most - end - 1]}…{name[-end:]}"


def name_ticks(names: Sequence[str], most: int = 28) -> dict[str, Any]:
    """Return what an axis of names writes: each shortened, and escaped for Plotly."""
    texts = [plain_text(shorten(name, most)) for name in names]
    return {"tickmode": "array", "tickvals": [plain_text(name) for name in names], "ticktext": texts}


def plain_text(text: str) -> str:
    """Return the text escaped for Plotly, which reads some HTML in texts."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def layout(**settings: Any) -> dict[str, Any]:
    """Return a figure's layout, without background and text colours, which assets/style.css sets for both themes."""
    base: dict[str, Any] = {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": FONT, "size": 13},
        "margin": {"l": 56, "r": 16, "t": 16, "b": 48},
        "hoverlabel": {"font": {"family": FONT, "size": 13}},
        "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0, "title": {"text": ""}},
        "colorway": list(SERIES),
        "xaxis": {"zeroline": False, "automargin": True, "title": {"font": {"size": 13}}},
        "yaxis": {"zeroline": False, "automargin": True, "title": {"font": {"size": 13}}},
    }
    return _merged(base, settings)


def whole_numbers(last: int) -> dict[str, Any]:
    """Return what keeps an axis that ends at `last` from naming halves, as Plotly does where it has room for them."""
    return {"dtick": 1} if last <= _FEW_STEPS else {}


def waiting() -> go.Figure:
    """Return what stands in a figure's place until its callback has read the store, or while the store is away."""
    return no_data("Waiting for the tracking store")


def no_data(text: str) -> go.Figure:
    """Return the figure of what there is no data for yet: a sentence in place of empty axes."""
    import plotly.graph_objects as go

    hidden = {"visible": False, "range": [0, 1]}
    figure = go.Figure(layout=layout(xaxis=hidden, yaxis=hidden))
    where = {"xref": "paper", "yref": "paper", "x": 0.5, "y": 0.5, "showarrow": False}
    figure.add_annotation(text=plain_text(text), font={"size": 14}, opacity=0.75, **where)
    return figure


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in over.items():
        old = merged.get(name)
        merged[name] = _merged(old, value) if isinstance(value, dict) and isinstance(old, dict) else value
    return merged
