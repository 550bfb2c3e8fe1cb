"""The dashboard's shell: navigation, themes and the table of pages."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Final

import dash
import dash_mantine_components as dmc
from dash import Dash, Input, Output, State, dcc, html, no_update
from dash.development.base_component import Component

from dashboard.components import aria, icon
from dashboard.dropzone import sample
from dashboard.limits import LARGEST_REQUEST, one_large_request_at_a_time
from dashboard.model_cache import ModelCache, Uploads
from dashboard.pages import attention, catalogue, categorise, compare, leaderboard, run, search, study
from dashboard.pictures import serve_pictures
from dashboard.runs import Runs
from dashboard.security import protect
from dashboard.theme import MANTINE
from vlm_core.errors import redact

# in the navigation's order
PAGES: Final = (leaderboard, run, compare, study, catalogue, categorise, attention, search)
MILLISECONDS_PER_TICK: Final = 2000


def create_app(runs: Runs, *, mlflow_ui: str = "http://127.0.0.1:5000", login: tuple[str, str] | None = None) -> Dash:
    """Return the Dash application over a tracking store; `login` is the user and password that it asks for."""
    app = Dash(
        __name__,
        title="VLM product categorisation",
        use_pages=True,
        pages_folder="",
        update_title="",
        serve_locally=True,
        suppress_callback_exceptions=True,
        meta_tags=[{"name": "viewport", "content": "width=device-width, initial-scale=1"}],
    )
    app.index_string = app.index_string.replace("<html>", '<html lang="en">')
    app.server.config["MAX_CONTENT_LENGTH"] = LARGEST_REQUEST
    app.server.config["MLFLOW_UI"] = redact(mlflow_ui)  # may be the store's own address
    app.server.config |= {"MODELS": ModelCache(partial(_resolve, runs)), "UPLOADS": Uploads()}  # of all pages together
    dash.page_registry.clear()
    for order, page in enumerate(PAGES):
        dash.register_page(
            page.__name__,
            path=page.PATH,
            name=page.NAME,
            title=f"{page.NAME} · VLM product categorisation",
            order=order,
            layout=partial(_page, page, runs),
        )
        page.register(app, runs)
    app.layout = _shell()
    app.callback(
        Output("shell-version", "data"),
        Output("shell-store", "children"),
        Input("shell-tick", "n_intervals"),
        State("shell-version", "data"),
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
    protect(app, login)
    app.server.wsgi_app = one_large_request_at_a_time(app.server.wsgi_app)
    return app


def _resolve(runs: Runs, run_id: str) -> Path:
    from vlm_core.tracking.registry import resolve

    return resolve(run_id, runs.uri)


def _page(page: Any, runs: Runs, /, **query: str) -> Component:
    """Return a page, with the values in the address as `query`."""
    return html.Div(page.layout(runs, query), className="page")


def tick(runs: Runs, count: int | None, version: int | None) -> tuple[Any, Any]:
    """Return the store's version if it changed, and the store's state in words."""
    view = runs.view()
    if view.version == version:
        return no_update, no_update
    words = {"loading": "loading runs", "away": "store unavailable", "ready": f"{len(view.table):,} runs"}
    dot = html.Span(className=f"store-dot {view.state}", **aria(hidden="true"))
    return view.version, dmc.Group([dot, dmc.Text(words[view.state], size="xs")], gap=6, wrap="nowrap")


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
            dmc.AppShell(
                [
                    header,
                    dmc.AppShellNavbar(html.Nav(id="shell-links", **aria(label="Pages")), p="sm"),
                    dmc.AppShellMain(html.Div(dash.page_container, id="content", tabIndex=-1)),
                ],
                id="shell",
                header={"height": 56},
                navbar={"width": 200, "breakpoint": "sm", "collapsed": {"mobile": True}},
                padding="lg",
            ),
        ],
        theme=MANTINE,
        defaultColorScheme="auto",
    )
