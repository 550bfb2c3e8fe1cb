"""Searches of settings: what was tried, what it brought, and what mattered."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any, Final

import dash_ag_grid as dag
import dash_mantine_components as dmc
from dash import Dash, Input, Output, State, dcc, html
from dash.development.base_component import Component

from dashboard.components import (
    GRID_OPTIONS,
    aria,
    card,
    empty_state,
    graph,
    keep_in_url,
    number_tile,
    page_header,
    skeleton,
    store_state,
    take_first,
)
from dashboard.figures.search import history, importance_bars, parallel, pareto, slices
from dashboard.runs import Runs
from dashboard.searches import Search, read_search, search_choices
from dashboard.theme import family_colour
from vlm_core.config import searchable

NAME: Final = "Search"
PATH: Final = "/search"
ICON: Final = "search"
IN_NAVIGATION: Final = True


def layout(runs: Runs, query: Mapping[str, str]) -> Component:
    """The page, with the study that the address names or the newest one."""
    choices = search_choices(runs.table())
    chosen = query.get("study") or (choices[0]["value"] if choices else None)
    return html.Div(
        [
            page_header(
                "Search", "Optuna's studies: every trial is a run, and the test split is read by the winner alone."
            ),
            html.Div(id="search-state"),
            html.Div(
                [
                    dmc.Select(
                        id="search-study",
                        label="Search",
                        data=choices,
                        value=chosen,
                        searchable=True,
                        allowDeselect=False,
                        w={"base": "100%", "sm": 420},
                        mb="lg",
                    ),
                    dcc.Loading(
                        html.Div(id="search-body", style={"minHeight": 320}),
                        custom_spinner=skeleton(320),
                        delay_show=200,
                    ),
                ],
                id="search-content",
            ),
        ]
    )


def register(app: Dash, runs: Runs) -> None:
    """Bind the page's callbacks."""
    version = Input("shell-version", "data")
    app.callback(
        Output("search-state", "children"),
        Output("search-content", "hidden"),
        Output("search-study", "data"),
        version,
        State("search-study", "value"),
    )(partial(update_state, runs))
    app.callback(Output("search-body", "children"), Input("search-study", "value"), version)(partial(update_body, runs))
    take_first(app, "search-study")
    keep_in_url(app, "search", ("study",))


def update_state(runs: Runs, version: int | None, chosen: str | None) -> tuple[Any, bool, Any]:
    """What stands in the page's place without a study, and the studies to choose from."""
    choices = search_choices(runs.table())
    missing = "Search the settings of a model; its trials appear here while they learn."
    state = store_state(runs.view()) or (
        None if choices else empty_state("No search yet", missing, "make tune", "search")
    )
    return state, state is not None, choices


def update_body(runs: Runs, run_id: str | None, version: int | None) -> Any:
    """All of the study."""
    study = read_search(runs.table(), run_id or "")
    if study is None:
        return None
    if not study.trials:
        return empty_state("No trial yet", "The first one is on its way.", picture="search")
    return dmc.Stack([_tiles(study), *_figures(study), _table(study)], gap="lg")


@lru_cache(maxsize=32)
def _shares(trials: tuple[tuple[tuple[tuple[str, float | str], ...], float], ...]) -> dict[str, float]:
    from dashboard.importances import importances

    return importances([dict(settings) for settings, _ in trials], [score for _, score in trials])


def _tiles(study: Search) -> Component:
    counts = {
        state: sum(trial.state == state for trial in study.trials)
        for state in ("complete", "pruned", "running", "failed")
    }
    best = study.best
    settings = ", ".join(f"{name} {_shown(value)}" for name, value in best.settings.items()) if best else ""
    tiles = [
        number_tile(
            "Best validation macro-F1", f"{best.score:.4f}" if best else "–", f"trial {best.number}" if best else ""
        ),
        number_tile("Complete", str(counts["complete"]), f"{counts['running']} running"),
        number_tile("Pruned", str(counts["pruned"]), f"{counts['failed']} failed"),
        number_tile("Settings searched", str(len(study.searched)), settings),
    ]
    return dmc.SimpleGrid(tiles, cols={"base": 1, "xs": 2, "lg": 4})


def _figures(study: Search) -> list[Component]:
    colour = family_colour(study.model)
    scored = [trial for trial in study.trials if trial.state == "complete" and trial.score is not None]
    shares = _shares(tuple((tuple(sorted(trial.settings.items())), trial.score or 0.0) for trial in scored))
    few = "Four complete trials with different settings are needed to say which mattered."
    importances = (
        graph("search-importances", importance_bars(shares, colour), "Importance of each setting", 300)
        if shares
        else dmc.Text(few, size="sm", c="dimmed")
    )
    figures = [
        dmc.SimpleGrid(
            [
                card("History", graph("search-history", history(study, colour), "Score of each trial", 300)),
                card("Importances", importances, note="Share of the score's variance (fANOVA), complete trials."),
            ],
            cols={"base": 1, "lg": 2},
        ),
        card(
            "Slices",
            html.Div(
                graph("search-slices", slices(study, searchable(), colour), "Score over each setting", 300),
                className="scroll-x wide",
                tabIndex=0,
            ),
        ),
        card(
            "Parallel coordinates",
            html.Div(
                graph("search-parallel", parallel(study), "Settings and score of each trial", 320),
                className="scroll-x wide",
                tabIndex=0,
            ),
            note="A line a trial, each axis from its lowest to its highest value; dark is good, faint was pruned.",
        ),
    ]
    if study.both:
        figures.append(
            card("Score against time", graph("search-pareto", pareto(study, colour), "Pareto front of the trials"))
        )
    return figures


def _table(study: Search) -> Component:
    rows = [
        {
            "run_id": trial.run_id,
            "trial": f"trial {trial.number}",
            "number": trial.number,
            "state": trial.state,
            "score": None if trial.score is None else round(trial.score, 4),
            "ms": None if trial.seconds is None else round(trial.seconds * 1000, 2),
            **{f"setting_{name}": _shown(value) for name, value in trial.settings.items()},
        }
        for trial in study.trials
    ]
    columns: list[dict[str, Any]] = [
        {"field": "trial", "headerName": "Trial", "cellRenderer": "RunLink", "minWidth": 110},
        {"field": "state", "headerName": "State", "minWidth": 110},
        {"field": "score", "headerName": "Validation macro-F1", "sort": "desc", "minWidth": 170},
        {"field": "ms", "headerName": "Latency, ms", "minWidth": 120},
        *({"field": f"setting_{name}", "headerName": name, "minWidth": 130} for name in study.searched),
    ]
    grid = dag.AgGrid(
        id="search-trials",
        rowData=rows,
        columnDefs=columns,
        getRowId="params.data.run_id",
        dashGridOptions=GRID_OPTIONS,
        defaultColDef={"flex": 1, "sortable": True, "filter": True},
        style={"height": f"{min(520, 60 + 42 * (len(rows) + 1))}px"},
    )
    return card(
        "Trials", html.Div(grid, role="region", **aria(label="Trials")), note="A trial's name leads to its run."
    )


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
