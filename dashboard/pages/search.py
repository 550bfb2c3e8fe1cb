"""Hyperparameter searches: their trials, their scores, and which settings matter."""

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
    KEYBOARD,
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
    wide,
)
from dashboard.figures.search import history, importance_bars, parallel, pareto, slices
from dashboard.runs import Runs
from dashboard.searches import Search, read_search, search_choices
from dashboard.theme import family_colour
from vlm_core.config import searchable

NAME: Final = "Hyperparameter search"
PATH: Final = "/search"
ICON: Final = "search"
IN_NAVIGATION: Final = True


def layout(runs: Runs, query: Mapping[str, str]) -> Component:
    """Return the page, with the search that the address names or the newest one."""
    choices = search_choices(runs.table())
    named = query.get("search") or query.get("study")  # older addresses say "study"
    chosen = named or (choices[0]["value"] if choices else None)
    return html.Div(
        [
            page_header(
                "Hyperparameter search",
                "Searches by Optuna. Every trial is a run; only the winner reads the test split.",
            ),
            html.Div(id="search-state"),
            html.Div(
                [
                    dmc.Select(
                        id="search-search",
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
        Output("search-search", "data"),
        version,
        State("search-search", "value"),
    )(partial(update_state, runs))
    app.callback(Output("search-body", "children"), Input("search-search", "value"), version)(
        partial(update_body, runs)
    )
    take_first(app, "search-search")
    keep_in_url(app, "search", ("search",))


def update_state(runs: Runs, version: int | None, chosen: str | None) -> tuple[Any, bool, Any]:
    """Return what takes the page's place without a search, and the searches to choose from."""
    choices = search_choices(runs.table())
    missing = "Search a model's settings: the trials appear here while they train."
    state = store_state(runs.view()) or (
        None if choices else empty_state("No search yet", missing, "make tune", "search")
    )
    return state, state is not None, choices


def update_body(runs: Runs, run_id: str | None, version: int | None) -> Any:
    """Return all cards of the search."""
    search = read_search(runs.table(), run_id or "")
    if search is None:
        return None
    if not search.trials:
        return empty_state("No trials yet", "The first trial is being prepared.", picture="search")
    return dmc.Stack([_tiles(search), *_figure_cards(search), _trials_card(search)], gap="lg")


@lru_cache(maxsize=32)
def _importances(trials: tuple[tuple[tuple[tuple[str, float | str], ...], float], ...]) -> dict[str, float]:
    from dashboard.importances import importances

    return importances([dict(settings) for settings, _ in trials], [score for _, score in trials])


def _tiles(search: Search) -> Component:
    counts = {
        state: sum(trial.state == state for trial in search.trials)
        for state in ("complete", "pruned", "running", "failed")
    }
    best = search.best
    settings = ", ".join(f"{name} {_format(value)}" for name, value in best.settings.items()) if best else ""
    settings = f"best: {settings}" if settings else ""
    tiles = [
        number_tile(
            "Best validation macro-F1", f"{best.score:.4f}" if best else "–", f"trial {best.number}" if best else ""
        ),
        number_tile("Complete", str(counts["complete"]), f"{counts['running']} running"),
        number_tile("Pruned", str(counts["pruned"]), f"{counts['failed']} failed"),
        number_tile("Settings searched", str(len(search.searched)), settings),
        _winner_tile(search),
    ]
    return dmc.SimpleGrid(tiles, cols={"base": 1, "xs": 2, "lg": 5})


def _winner_tile(search: Search) -> Component:
    """Return the test score of the model retrained with the best settings, with a link to its run."""
    winner = search.winner
    if winner is None:
        return number_tile("Test macro-F1 of the winner", "–", "retrained when all trials have finished")
    value = dcc.Link(
        "–" if winner.score is None else f"{winner.score:.4f}", href=f"/run?run={winner.run_id}", className="cell-link"
    )
    interval = "" if winner.low is None or winner.high is None else f"{winner.low:.4f} to {winner.high:.4f}"
    return number_tile("Test macro-F1 of the winner", value, interval or winner.status.lower())


def _figure_cards(search: Search) -> list[Component]:
    colour = family_colour(search.model)
    scored = [trial for trial in search.trials if trial.state == "complete" and trial.score is not None]
    shares = _importances(tuple((tuple(sorted(trial.settings.items())), trial.score or 0.0) for trial in scored))
    few = "Importances need at least four complete trials with different settings."
    bars = (
        graph("search-importances", importance_bars(shares, colour), "Importance of each setting", 300)
        if shares
        else dmc.Text(few, size="sm", c="dimmed")
    )
    cards = [
        dmc.SimpleGrid(
            [
                card("History", graph("search-history", history(search, colour), "Score of each trial", 300)),
                card("Importances", bars, note="Share of the variance in the scores of complete trials (fANOVA)."),
            ],
            cols={"base": 1, "lg": 2},
        ),
        card(
            "Slices",
            wide(
                graph(
                    "search-slices", slices(search, searchable(), colour), "Score at each value of each setting", 300
                ),
                "Slices",
                max(640, 150 * len(search.searched)),
            ),
        ),
        card(
            "Parallel coordinates",
            wide(
                graph("search-parallel", parallel(search), "Settings and score of each trial", 320),
                "Parallel coordinates",
                max(640, 120 * (len(search.searched) + 1)),
            ),
            note="One line per trial, the bluer the higher its score; dotted lines were pruned.",
        ),
    ]
    if search.two_objectives:
        cards.append(
            card("Score against latency", graph("search-pareto", pareto(search, colour), "Pareto front of the trials"))
        )
    return cards


def _trials_card(search: Search) -> Component:
    rows = [
        {
            "run_id": trial.run_id,
            "trial": f"trial {trial.number}",
            "number": trial.number,
            "state": trial.state,
            "score": None if trial.score is None else round(trial.score, 4),
            "ms": None if trial.seconds is None else round(trial.seconds * 1000, 2),
            **{f"setting_{name}": value for name, value in trial.settings.items()},
        }
        for trial in search.trials
    ]
    columns: list[dict[str, Any]] = [
        {"field": "trial", "headerName": "Trial", "cellRenderer": "RunLink", "minWidth": 110},
        {"field": "state", "headerName": "State", "minWidth": 110},
        {
            "field": "score",
            "headerName": "Validation macro-F1",
            "initialSort": "desc",
            "minWidth": 230,
            **_shown_as(".4f"),
        },
        {"field": "ms", "headerName": "Latency, ms per image", "minWidth": 230, **_shown_as(".2f")},
        *(
            {
                "field": f"setting_{name}",
                "headerName": name,
                "minWidth": 130,
                **(_shown_as(".4~g") if is_number else {}),
            }
            for name, is_number in _numeric(search).items()
        ),
    ]
    grid = dag.AgGrid(
        id="search-trials",
        rowData=rows,
        columnDefs=columns,
        getRowId="params.data.run_id",
        dashGridOptions=GRID_OPTIONS,
        eventListeners=KEYBOARD,
        defaultColDef={"flex": 1, "sortable": True, "filter": True},
        style={"height": f"{min(520, 60 + 42 * (len(rows) + 1))}px"},
    )
    return card(
        "Trials", html.Div(grid, role="region", **aria(label="Trials")), note="Each trial's name links to its run."
    )


def _shown_as(form: str) -> dict[str, Any]:
    """Return what shows a column's numbers in a format of d3's, and a dash where there is none."""
    return {"valueFormatter": {"function": f"params.value == null ? '–' : d3.format('{form}')(params.value)"}}


def _numeric(search: Search) -> dict[str, bool]:
    """Return for each searched setting whether all of its values are numbers."""
    return {
        name: not any(isinstance(trial.settings.get(name), str) for trial in search.trials) for name in search.searched
    }


def _format(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
