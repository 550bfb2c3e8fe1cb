"""The dashboard's shell: navigation, themes and the table of pages."""

from __future__ import annotations

import logging
import re
from functools import partial
from pathlib import Path
from typing import Any, Final

import dash
import dash_mantine_components as dmc
from dash import Dash, Input, Output, State, dcc, html, no_update
from dash.development.base_component import Component

from dashboard.compact import send_compactly
from dashboard.components import aria, counted, empty_state, icon, notice, page_header
from dashboard.dropzone import sample
from dashboard.limits import LARGEST_REQUEST, one_large_request_at_a_time
from dashboard.model_cache import ModelCache, Uploads
from dashboard.pages import attention, catalogue, categorise, compare, leaderboard, run, search, study
from dashboard.picture_server import serve_pictures
from dashboard.runs import Runs, StoreSnapshot
from dashboard.security import protect
from dashboard.sessions import name_visitors
from dashboard.theme import MANTINE
from vlm_core.errors import redact

# in the navigation's order
PAGES: Final = (leaderboard, run, compare, study, catalogue, categorise, attention, search)
MILLISECONDS_PER_TICK: Final = 2000
TITLE: Final = "VLM product categorisation"
_GRID_SCRIPT: Final = re.compile(r'<script src="([^"]*/dash_ag_grid[^"]*)"></script>')
_log = logging.getLogger(__name__)


class _App(Dash):
    """Dash whose pages have the address of AG Grid's script, which assets/grids.js loads when it is needed."""

    def interpolate_index(self, *unnamed: Any, **parts: Any) -> Any:
        """Return the page; Dash gives its parts, which are HTML, by name."""
        scripts, metas = parts["scripts"], parts["metas"]
        found = _GRID_SCRIPT.search(scripts)
        if found:
            metas += f'<meta name="grid-script" content="{found[1]}">'
        return super().interpolate_index(**{**parts, "metas": metas, "scripts": _GRID_SCRIPT.sub("", scripts)})


def create_app(runs: Runs, *, mlflow_ui: str = "http://127.0.0.1:5000", login: tuple[str, str] | None = None) -> Dash:
    """Return the Dash application over a tracking store; `login` is the user and password that it asks for."""
    app = _App(
        __name__,
        title=TITLE,
        use_pages=True,
        pages_folder="",
        update_title="",
        serve_locally=True,
        suppress_callback_exceptions=True,
        on_error=keep_what_is_shown,
        meta_tags=[{"name": "viewport", "content": "width=device-width, initial-scale=1"}],
    )
    app.index_string = app.index_string.replace("<html>", '<html lang="en">').replace(
        "{%favicon%}", '<link rel="icon" type="image/svg+xml" href="/assets/favicon.svg">'
    )
    app.server.config["MAX_CONTENT_LENGTH"] = LARGEST_REQUEST
    app.server.config["MLFLOW_UI"] = redact(mlflow_ui)  # may be the store's own address
    app.server.config |= {"MODELS": ModelCache(partial(_resolve, runs)), "UPLOADS": Uploads()}  # of all pages together
    dash.page_registry.clear()
    for order, page in enumerate(PAGES):
        dash.register_page(
            page.__name__,
            path=page.PATH,
            name=page.NAME,
            title=f"{page.NAME} · {TITLE}",
            order=order,
            layout=partial(_page, page, runs),
        )
        page.register(app, runs)
    dash.register_page("not_found_404", title=f"Page not found · {TITLE}", layout=_not_found)
    app.layout = _shell()
    app.callback(
        Output("shell-version", "data"),
        Output("shell-state", "data"),
        Output("shell-store", "children"),
        Output("shell-notice", "children"),
        Input("shell-tick", "n_intervals"),
        State("shell-version", "data"),
        State("shell-state", "data"),
    )(partial(tick, runs))
    app.callback(
        Output("shell", "navbar"), Input("shell-burger", "opened"), State("shell", "navbar"), prevent_initial_call=True
    )(toggle_navigation)
    app.callback(Output("shell-links", "children"), Input("_pages_location", "pathname"))(navigation)
    app.callback(Output("shell-burger", "opened"), Input("_pages_location", "pathname"), prevent_initial_call=True)(
        lambda path: False
    )
    serve_pictures(app.server, runs.root)
    app.server.add_url_rule("/sample/<int:place>.jpg", "sample", sample)
    app.server.add_url_rule("/alive", "alive", lambda: ("", 204))  # asked by assets/server.js
    name_visitors(app.server)
    protect(app, login)
    send_compactly(app.server)
    app.server.wsgi_app = one_large_request_at_a_time(app.server.wsgi_app)
    return app


def _resolve(runs: Runs, run_id: str) -> Path:
    from vlm_core.tracking.registry import resolve

    runs.reader()  # raises where the store is gone, which would be made anew
    return resolve(run_id, runs.uri)


def keep_what_is_shown(error: Exception) -> Any:
    """Change nothing on a page whose store cannot be read now, as its notice says; raise any other error."""
    from vlm_core.tracking.store import StoreProblem

    if not isinstance(error, StoreProblem):
        raise error
    _log.info("a page could not be updated: %s", error)
    return no_update


def _page(page: Any, runs: Runs, /, **query: str) -> Component:
    """Return a page, with the values in the address as `query`."""
    return html.Div(page.layout(runs, query), className="page")


def _not_found(**query: str) -> Component:
    missing = empty_state("There is no such page", "The address may be cut off. Choose a page on the left.")
    return html.Div([page_header("Page not found", ""), missing], className="page")


def tick(runs: Runs, count: int | None, version: int | None, state: str | None = None) -> tuple[Any, Any, Any, Any]:
    """Return the store's version and state, as far as they changed, the state in words, and what it means.

    A page that outlives a restart of the dashboard keeps what it shows until the store has been read anew.
    """
    view = runs.view()
    if view.version == version:
        return no_update, no_update, no_update, no_update
    if version is not None and version < runs.first_version and not view.whole:
        return no_update, no_update, _store_words(view), _store_notice(view, "This page was read before a restart")
    new_state = no_update if view.state == state else view.state
    said = None if view.table.empty else _store_notice(view, f"This page shows what was read at {view.read} UTC")
    return view.version, new_state, _store_words(view), said


def _store_words(view: StoreSnapshot) -> Component:
    """Return the dot and how the store is, or that the dashboard itself does not respond (assets/server.js)."""
    runs = f"{counted(len(view.table), 'run')} in the store"  # trials, searches and studies among them
    words = {"loading": "loading runs", "away": "store unreachable", "ready": runs}
    dot = html.Span(className=f"store-dot {view.state}", **aria(hidden="true"))
    said = dmc.Text(words[view.state], size="xs", className="store-words")
    stopped = dmc.Text("dashboard not responding", size="xs", className="server-words")
    return dmc.Group([dot, said, stopped], gap=6, wrap="nowrap")


def _store_notice(view: StoreSnapshot, seen: str) -> Component | None:
    """Return what a page's reader must know while the store is away; `seen` says when the page was read."""
    if view.state != "away":
        return None
    text = f"{view.problem} {seen}; anything else is unknown for now. The dashboard keeps trying."
    return notice("The tracking store is unreachable", text, "warning")


def toggle_navigation(opened: bool, navbar: dict[str, Any]) -> dict[str, Any]:
    """Return the navigation of small screens, open or not."""
    return {**navbar, "collapsed": {"mobile": not opened}}


def navigation(path: str) -> list[Component]:
    """Return one link per page, the open one marked."""
    return [
        dmc.NavLink(
            label=page.NAME,
            href=page.PATH,
            leftSection=icon(page.ICON),
            active=path == page.PATH,
            **({"aria-current": "page"} if path == page.PATH else {}),
        )
        for page in PAGES
        if page.IN_NAVIGATION
    ]


def _shell() -> Component:
    brand = dcc.Link(
        dmc.Group([icon("logo", 26), dmc.Text("VLM categorisation", fw=700, visibleFrom="xs")], gap=10, wrap="nowrap"),
        href="/",
        title="Go to the leaderboard",
        className="brand",
    )
    header = dmc.AppShellHeader(
        dmc.Group(
            [
                dmc.Group(
                    [
                        dmc.Burger(id="shell-burger", opened=False, hiddenFrom="sm", size="sm", **aria(label="Pages")),
                        brand,
                    ],
                    gap="sm",
                    wrap="nowrap",
                ),
                dmc.Group(
                    [
                        html.Div(id="shell-store", role="status"),
                        dmc.ColorSchemeToggle(
                            id="shell-scheme",
                            lightIcon=icon("moon"),
                            darkIcon=icon("sun"),
                            size="lg",
                            variant="default",
                            **aria(label="Light or dark theme"),
                        ),
                    ],
                    gap="md",
                    wrap="nowrap",
                ),
            ],
            h="100%",
            px="md",
            justify="space-between",
            wrap="nowrap",
        )
    )
    return dmc.MantineProvider(
        [
            html.A("Skip to content", href="#content", className="skip-link"),
            dcc.Interval(id="shell-tick", interval=MILLISECONDS_PER_TICK),
            dcc.Store(id="shell-version"),
            dcc.Store(id="shell-state"),
            *(dcc.Store(id=name) for page in PAGES for name in getattr(page, "KEPT_STORES", ())),
            dmc.AppShell(
                [
                    header,
                    dmc.AppShellNavbar(html.Nav(id="shell-links", **aria(label="Pages")), p="sm"),
                    dmc.AppShellMain(
                        [
                            html.Div(
                                notice(
                                    "The dashboard is not responding",
                                    "What you see may be out of date, and links do not work. The dashboard may be busy "
                                    "or stopped: start it again with make dashboard. This page keeps trying.",
                                    "error",
                                ),
                                className="page server-notice",
                                role="alert",
                            ),
                            html.Div(id="shell-notice", className="page", role="status"),
                            html.Div(dash.page_container, id="content", tabIndex=-1),
                        ]
                    ),
                ],
                id="shell",
                header={"height": 56},
                navbar={"width": 216, "breakpoint": "sm", "collapsed": {"mobile": True}},
                padding="lg",
            ),
        ],
        theme=MANTINE,
        defaultColorScheme="auto",
    )
