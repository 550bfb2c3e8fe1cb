"""Components that pages share: badges, cards, tables, empty states, and a page's state in its address."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final
from uuid import uuid4

import dash_ag_grid as dag
import dash_mantine_components as dmc
from dash import ClientsideFunction, Dash, Input, Output, State, dcc, html, no_update
from dash.development.base_component import Component

from dashboard.runs import StoreSnapshot
from dashboard.theme import family_colour
from vlm_core.config.families import FAMILIES, family_of

GRAPH_CONFIG: Final[Any] = {"displaylogo": False, "displayModeBar": False, "responsive": True}
# AG Grid in the theme's colours, which follow from light to dark by themselves.
GRID_OPTIONS: Final[dict[str, Any]] = {
    "theme": {
        "function": "themeQuartz.withParams({backgroundColor: 'var(--surface)', borderColor: 'var(--line)', "
        "foregroundColor: 'var(--mantine-color-text)', headerBackgroundColor: 'var(--faint)', fontSize: 13, "
        "accentColor: 'var(--accent)', browserColorScheme: 'inherit', fontFamily: 'inherit', headerFontWeight: 600, "
        "wrapperBorderRadius: 8, cellHorizontalPadding: 10, headerFontSize: 12, spacing: 7, "
        "oddRowBackgroundColor: 'transparent'})"
    },
    "animateRows": True,
    "ensureDomOrder": True,
    # the tab key enters a grid and leaves it; arrows move within
    "tabToNextCell": {"function": "leaveGrid(params)"},
    "tabToNextHeader": {"function": "leaveGrid(params)"},
    "tooltipShowDelay": 400,
}
KEYBOARD: Final[Any] = {"cellKeyDown": ["followLink(params)"]}  # a grid's event listeners: Enter follows a row's link
_CELL_PIXELS: Final = 36  # a row of a table
_LETTER_PIXELS: Final = 7.8
_HEADER_LETTER_PIXELS: Final = 8.0  # bold, and smaller
_LINE_PIXELS: Final = 18  # a second line of a column's name
_LONGEST_LINE: Final = 9  # letters of a column's name
_PADDING_PIXELS: Final = 26  # beside a text
_WIDEST_PIXELS: Final = 360
FAMILY_NAMES: Final = {**{name: family.label for name, family in FAMILIES.items()}, "baseline": "Baseline"}


def aria(**names: str) -> dict[str, Any]:
    """Return ARIA attributes for any component: `aria(label="Pages")`."""
    return {f"aria-{name}": text for name, text in names.items()}


def icon(name: str, size: int = 18) -> Component:
    """Return a decorative icon of assets/icons, in the colour of the text around it."""
    address = f"url(/assets/icons/{name}.svg)"
    style = {"width": size, "height": size, "maskImage": address, "WebkitMaskImage": address}
    return html.Span(className="icon", style=style, **aria(hidden="true"))


def button_link(text: Any, address: str, primary: bool = False) -> Component:
    """Return a link that looks like a button: one element, one stop of the tab key."""
    return dcc.Link(text, href=address, className="button-link primary" if primary else "button-link")


def page_header(title: str, text: str, *actions: Component) -> Component:
    """Return a page's title, one sentence on what it is for, and its actions on the right."""
    words = dmc.Box([dmc.Title(title, order=1, size="h2"), dmc.Text(text, c="dimmed", size="sm", maw=760)])
    return dmc.Group([words, dmc.Group(list(actions), gap="sm")], justify="space-between", align="flex-end", mb="lg")


def card(title: str, *children: Any, note: str = "", actions: Sequence[Component] = (), **settings: Any) -> Component:
    """Return a titled panel, with a small `note` below the title."""
    heading = dmc.Box(
        [dmc.Title(title, order=2, size="h5"), dmc.Text(note, size="xs", c="dimmed", mt=2) if note else None]
    )
    head = dmc.Group([heading, dmc.Group(list(actions), gap="xs")], justify="space-between", align="flex-start")
    body = dmc.Stack([child for child in children if child is not None], gap="md", mt="sm")
    return dmc.Paper([head, body], withBorder=True, p="lg", **settings)


def graph(identity: str | dict[str, str], figure: Any, label: str, height: int = 340) -> Component:
    """Return a Plotly figure, a text for those who cannot see it, and a button that saves it (assets/figures.js)."""
    plot = html.Div(
        dcc.Graph(id=identity, figure=figure, config=GRAPH_CONFIG, style={"height": f"{height}px"}),
        role="img",
        style={"minHeight": height},  # nothing below moves when Plotly has loaded
        **aria(label=label),
    )
    save = html.Button("Save as SVG", className="save-figure", title=f"Save as SVG: {label}")
    return html.Div([plot, save], className="figure")


def wide(content: Component, label: str, pixels: int = 640) -> Component:
    """Return the content in a region that scrolls by itself where the page is narrower, by keyboard too."""
    inner = html.Div(content, style={"minWidth": pixels})
    return html.Div(inner, className="scroll-x", tabIndex=0, role="region", **aria(label=label))


def number_tile(label: str, value: Any, note: str = "") -> Component:
    """Return a large number, with its name above and its interval or unit below."""
    return dmc.Paper(
        [
            dmc.Text(label, size="xs", c="dimmed"),
            dmc.Text(value, size="xl", fw=650, className="numbers"),
            dmc.Text(note or "\u00a0", size="xs", c="dimmed", className="numbers"),
        ],
        withBorder=True,
        p="md",
    )


def family_dot(model: str) -> Component:
    """Return a dot in the colour of the model's family."""
    return html.Span(className="family-dot", style={"backgroundColor": family_colour(model)}, **aria(hidden="true"))


def family_label(model: str) -> Component:
    """Return the dot and the family's name."""
    name = FAMILY_NAMES.get(family_of(str(model)), str(model))
    return dmc.Group([family_dot(model), dmc.Text(name, size="sm", fw=550)], gap=6, wrap="nowrap")


def leak_badge() -> Component:
    """Return the red badge of a protocol that leaks."""
    return dmc.Badge("leaking", className="badge-leaking", variant="filled", size="sm")


def status_badge(status: str, *, lost: bool = False) -> Component:
    """Return a run's status, in words as well as in colour; one that is `lost` shows no sign of life."""
    if lost:
        return dmc.Badge("no sign of life", color="orange", variant="outline", size="sm", className="status")
    colours = {"FINISHED": "teal", "RUNNING": "blue", "FAILED": "red", "KILLED": "orange"}
    return dmc.Badge(
        status.lower(), color=colours.get(status, "gray"), variant="outline", size="sm", className="status"
    )


def notice(title: str, text: Any, kind: str = "info") -> Component:
    """Return a message of the kind "info", "warning" or "error"."""
    colours = {"info": "blue", "warning": "orange", "error": "red"}
    return dmc.Alert(text, title=title, color=colours[kind], variant="outline", className=f"notice {kind}")


def too_many(named: int, most: int, noun: str, verb: str) -> Component | None:
    """Return what becomes of the runs or models that the address names, where they are more than fit; else None."""
    if named <= most:
        return None
    text = f"{named} {noun}s are named in the address: the first {most} are {verb}."
    return dmc.Box(notice(f"Too many {noun}s", text, "warning"), mb="md")


def empty_state(title: str, text: str, command: str = "", picture: str = "empty") -> Component:
    """Return a page without content: what is missing and, as a command, how to get it."""
    return dmc.Stack(
        [
            html.Div(icon(picture, 44), className="empty-icon"),
            dmc.Title(title, order=2, size="h4"),
            dmc.Text(text, c="dimmed", ta="center", maw=520),
            dmc.Code(command, block=True) if command else None,
        ],
        align="center",
        gap="sm",
        py=64,
        className="empty-state",
    )


def table(head: Sequence[str], body: Sequence[Sequence[Any]], label: str, most_pixels: int = 0) -> Component:
    """Return a table of texts and of links by `cell_link`, whose first column names the row; it scrolls by itself.

    It is a grid, which is one component: with a component for each of thousands of cells, Dash 4 took forty seconds,
    since each new one asks all others whether they changed.
    """
    columns = [
        {
            "field": str(place),
            "headerName": name,
            "cellRenderer": "Cell",
            "wrapHeaderText": True,
            "flex": 1,
            "minWidth": _width(place, name, body),
        }
        for place, name in enumerate(head)
    ]
    is_wrapped = any(_letters(name) < len(name) for name in head)
    head_height = _CELL_PIXELS + is_wrapped * _LINE_PIXELS
    height = head_height + _CELL_PIXELS * len(body) + 20  # with the bar below
    grid = dag.AgGrid(
        id=f"table-{uuid4().hex}",  # by which assets/print.js finds it
        rowData=[{str(place): cell for place, cell in enumerate(row)} for row in body],
        columnDefs=columns,
        defaultColDef={"sortable": False, "resizable": True, "cellDataType": False, "suppressMovable": True},
        dashGridOptions={**GRID_OPTIONS, "rowHeight": _CELL_PIXELS, "headerHeight": head_height},
        eventListeners=KEYBOARD,
        style={"height": min(height, most_pixels or height)},
    )
    return html.Div(grid, role="region", **aria(label=label))


def cell_link(text: str, href: str, title: str) -> dict[str, str]:
    """Return a cell of a `table` that links to a page."""
    return {"text": text, "href": href, "title": title}


def _width(place: int, name: str, body: Sequence[Sequence[Any]]) -> int:
    """Return the pixels that the longest text of a column needs, up to a limit."""
    texts = (row[place]["text"] if isinstance(row[place], dict) else str(row[place]) for row in body)
    widths = [_letters(name) * _HEADER_LETTER_PIXELS, *(len(text) * _LETTER_PIXELS for text in texts)]
    return min(int(max(widths)) + _PADDING_PIXELS, _WIDEST_PIXELS)


def _letters(name: str) -> int:
    """Return the letters of the longer line of a column's name, which stands on two lines where it is long."""
    if len(name) <= _LONGEST_LINE or " " not in name:
        return len(name)
    places = [place for place, letter in enumerate(name) if letter == " "]
    return min(max(place, len(name) - place - 1) for place in places)


def skeleton(height: int = 320) -> Component:
    """Return a placeholder for what is still loading."""
    return dmc.Skeleton(height=height, radius="md")


def at_work(text: str, height: int = 320) -> Component:
    """Return a placeholder that says what is done meanwhile, for what may take seconds."""
    words = dmc.Text(text, size="sm", c="dimmed", mb="xs")
    return html.Div([words, skeleton(height)], role="status", className="at-work")


def store_state(view: StoreSnapshot) -> Component | None:
    """Return what a page shows in place of its content while there are no runs; None when there are."""
    if not view.table.empty:
        return None
    if view.state == "loading":
        return html.Div(dmc.Stack([skeleton(80), skeleton(420)]), role="group", **aria(label="Loading runs"))
    if view.state == "away":
        return empty_state(
            "The tracking store is unreachable", f"{view.problem} The dashboard keeps trying.", picture="away"
        )
    return empty_state("No runs yet", "Train your first model: it appears here while it trains.", "make train")


def keep_in_url(app: Dash, page: str, names: Sequence[str], prop: str = "value") -> None:
    """Write the values of the page's controls `<page>-<name>` into the address, so that it can be shared."""
    controls = [Input(f"{page}-{name}", prop) for name in names]
    app.clientside_callback(ClientsideFunction("address", "keep"), controls)


def take_first(app: Dash, identity: str) -> None:
    """Select the first choice, as soon as there is one, where none is selected."""
    app.callback(
        Output(identity, "value"), Input(identity, "data"), State(identity, "value"), prevent_initial_call=True
    )(first_choice)


def first_choice(choices: Sequence[dict[str, str]], chosen: str | None) -> Any:
    """Return the first of the choices where none is chosen."""
    return no_update if chosen or not choices else choices[0]["value"]


def counted(count: int, noun: str) -> str:
    """Return the number with its noun: "1 run", "2 runs"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def parse_list(text: str | None) -> list[str]:
    """Return the parts of a comma-separated value in the address."""
    return [part for part in (text or "").split(",") if part]


def parse_number(text: str | None, least: int = 1) -> int:
    """Return the number in a value of the address, at least `least`; `least` where it holds none."""
    return max(least, int(text)) if text and text.isdecimal() and len(text) < 7 else least
