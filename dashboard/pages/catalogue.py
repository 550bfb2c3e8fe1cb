"""The products that models are trained and evaluated on, and what leaks between the two."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import dash_mantine_components as dmc
import numpy as np
from dash import Dash, Input, Output, State, dcc, html, no_update
from dash.development.base_component import Component

from dashboard.components import (
    aria,
    card,
    counted,
    empty_state,
    graph,
    keep_in_url,
    leak_badge,
    number_tile,
    page_header,
    parse_number,
    skeleton,
    store_state,
    take_first,
)
from dashboard.figures.catalogue import balance, height_of
from dashboard.leaks import leak_of_split, percent
from dashboard.picture_server import picture_address
from dashboard.runs import Runs
from dashboard.splits import PARTS, SplitView, duplicate_report, page_rows, read_split, split_choices

NAME: Final = "Catalogue"
PATH: Final = "/catalogue"
ICON: Final = "catalogue"
IN_NAVIGATION: Final = True
PAGE_SIZE: Final = 24  # products
MOST_CONFLICTS: Final = 8  # groups
NOT_HERE: Final = "The catalogue's images are not on this machine. Run `make prepare DATA=...` to see them."


def layout(runs: Runs, query: Mapping[str, str]) -> Component:
    """Return the page, with the split that the address names or the newest one."""
    choices = split_choices(runs)
    chosen = query.get("split") or (choices[0]["value"] if choices else None)
    part = query.get("part", "test")
    return html.Div(
        [
            page_header(
                "Catalogue", "The products that models are trained and evaluated on, and what leaks between the two."
            ),
            html.Div(id="catalogue-state"),
            html.Div(
                [
                    dmc.Select(
                        id="catalogue-split",
                        label="Split",
                        data=choices,
                        value=chosen,
                        searchable=True,
                        allowDeselect=False,
                        w={"base": "100%", "sm": 760},
                        mb="lg",
                    ),
                    dcc.Loading(
                        html.Div(id="catalogue-report", style={"minHeight": 240}),
                        custom_spinner=skeleton(240),
                        delay_show=200,
                    ),
                    _products_card(
                        query.get("category"), part if part in PARTS else "test", parse_number(query.get("page"))
                    ),
                    dcc.Loading(
                        html.Div(id="catalogue-duplicates", style={"minHeight": 120}),
                        custom_spinner=skeleton(120),
                        delay_show=200,
                    ),
                ],
                id="catalogue-content",
            ),
        ]
    )


def register(app: Dash, runs: Runs) -> None:
    """Bind the page's callbacks."""
    split, state = Input("catalogue-split", "value"), Input("shell-state", "data")
    app.callback(
        Output("catalogue-state", "children"),
        Output("catalogue-content", "hidden"),
        Output("catalogue-split", "data"),
        Input("shell-version", "data"),
        State("catalogue-split", "value"),
    )(partial(update_state, runs))
    app.callback(
        Output("catalogue-report", "children"),
        Output("catalogue-category", "data"),
        Output("catalogue-category", "value"),
        split,
        state,
        State("catalogue-category", "value"),
    )(partial(update_report, runs))
    app.callback(Output("catalogue-duplicates", "children"), split, state)(partial(update_duplicates, runs))
    app.callback(
        Output("catalogue-pictures", "children"),
        Output("catalogue-page", "total"),
        split,
        Input("catalogue-category", "value"),
        Input("catalogue-part", "value"),
        Input("catalogue-page", "value"),
        state,
    )(partial(update_pictures, runs))
    app.callback(
        Output("catalogue-page", "value"),
        split,
        Input("catalogue-category", "value"),
        Input("catalogue-part", "value"),
        prevent_initial_call=True,
    )(lambda *controls: 1)
    take_first(app, "catalogue-split")
    keep_in_url(app, "catalogue", ("split", "category", "part", "page"))


def update_state(runs: Runs, version: int | None, chosen: str | None) -> tuple[Any, bool, Any]:
    """Return what takes the page's place without a split, and the splits to choose from."""
    choices = split_choices(runs)
    if chosen and chosen not in {each["value"] for each in choices}:
        choices.append({"value": chosen, "label": f"split of run {chosen[:8]}"})
    missing = empty_state("No split yet", "The first training run adds its split here.", "make train")
    state = store_state(runs.view()) or (None if choices else missing)
    return state, state is not None, choices


def update_report(runs: Runs, run_id: str | None, state: str | None, category: str | None) -> tuple[Any, Any, Any]:
    """Return the split's report, and its categories to choose from."""
    split = read_split(runs, run_id or "")
    if split is None:
        missing = "This run logged no split." if runs.row(run_id or "") else "This run is not in the store."
        return dmc.Text(missing, c="dimmed"), [], ""
    choices = [{"value": "", "label": "All categories"}, *({"value": name, "label": name} for name in split.categories)]
    return _report(split), choices, no_update if category in ("", *split.categories) else ""


def update_pictures(
    runs: Runs, run_id: str | None, category: str | None, part: str, page: int | None, state: str | None = None
) -> tuple[Any, int]:
    """Return one page of a part's products as pictures."""
    split = read_split(runs, run_id or "")
    if split is None:
        return None, 1
    if split.catalogue is None:
        return dmc.Text(NOT_HERE, size="sm", c="dimmed"), 1
    rows = split.products(part, category or "")
    pages = max(1, -(-len(rows) // PAGE_SIZE))
    figures = [_product(split, row) for row in page_rows(rows, min(page or 1, pages), PAGE_SIZE)]
    count = dmc.Text(counted(len(rows), "product"), size="sm", c="dimmed", mb="sm")
    return html.Div([count, html.Div(figures, className="gallery")]), pages


def update_duplicates(runs: Runs, run_id: str | None, state: str | None = None) -> Any:
    """Return near-duplicates and label conflicts of the whole catalogue."""
    split = read_split(runs, run_id or "")
    if split is None:
        return None
    report = duplicate_report(runs.root, split.fingerprint, split.info["label"])
    if split.catalogue is None or report is None:
        return card("Duplicates and label conflicts", dmc.Text(NOT_HERE, size="sm", c="dimmed"), mt="lg")
    groups, products, conflicts, group_of = report
    share = products / len(split.catalogue.products)
    summary = (
        f"{groups:,} groups of near-duplicates hold {products:,} products ({share:.1%} of the catalogue). "
        f"In {len(conflicts):,} of these groups, the {split.info['label']} labels conflict."
    )
    figures = [
        _product(split, row)
        for conflict in conflicts[:MOST_CONFLICTS]
        for row in split.catalogue.products.iloc[np.flatnonzero(group_of == conflict.group)[:3]].to_dict("records")
    ]
    gallery = html.Div(figures, className="gallery") if figures else None
    note = "An honest split keeps near-duplicates together. Below: up to three products of each group with a conflict."
    return card("Duplicates and label conflicts", dmc.Text(summary, size="sm"), gallery, note=note, mt="lg")


def _report(split: SplitView) -> Component:
    info, counts = split.info, split.counts()
    tiles = [
        number_tile("Rows in the catalogue", f"{info['total_original_csv_entries']:,}"),
        number_tile("Categories", str(len(split.categories)), f"{len(info['removed_categories'])} left out"),
        number_tile("Training rows", f"{info['training_samples']:,}", f"{len(split.ids('training')):,} products"),
        number_tile("Validation", f"{info['validation_samples']:,}"),
        number_tile("Test", f"{info['test_samples']:,}"),
        number_tile("Also in training", percent(info["leakage"]["near"]), "of evaluated products, near-duplicates too"),
        number_tile("Seen in pretraining", percent(info["leakage"]["pretraining"]), "of evaluated products, at most"),
    ]
    figure = graph(
        "catalogue-balance",
        balance(split.categories, counts),
        "Products per category",
        height_of(split.categories, counts),
    )
    return dmc.Stack(
        [
            dmc.SimpleGrid(tiles, cols={"base": 2, "sm": 3, "lg": 7}, spacing="md"),
            dmc.SimpleGrid(
                [
                    card(
                        "Class balance",
                        html.Div(figure, style={"maxHeight": 640, "overflowY": "auto"}, tabIndex=0),
                        note="The whole catalogue and each part of the split, training before and after balancing.",
                    ),
                    dmc.Stack([_leakage_card(info), _reading_card(split)], gap="lg"),
                ],
                cols={"base": 1, "lg": 2},
            ),
        ],
        gap="lg",
        mb="lg",
    )


def _leakage_card(info: Mapping[str, Any]) -> Component:
    leakage = info["leakage"]
    body = [[name, percent(share)] for name, share in leakage["near_by_category"].items()]
    body.append(["exact duplicates, all categories", percent(leakage["exact"])])
    table = dmc.Table(data={"head": ["Evaluated products", "Also in training"], "body": body})
    scroll = html.Div(table, className="scroll-x", style={"maxHeight": 320, "overflowY": "auto"}, tabIndex=0)
    badge = [leak_badge()] if info["leaking"] else []
    summary = html.Div("\n".join(leak_of_split(info).sentences()), className="lines section-text")
    return card("Leakage", summary, scroll, actions=badge)


def _reading_card(split: SplitView) -> Component:
    lines = [f"{name}: {reason}" for name, reason in split.info["removed_categories"].items()]
    reasons = html.Div(
        [dmc.Text(line, size="sm") for line in lines], style={"maxHeight": 200, "overflowY": "auto"}, tabIndex=0
    )
    left_out = [dmc.Text("Categories left out", size="sm", fw=600, mt="sm"), reasons]
    summary = split.catalogue.reading.summary() if split.catalogue is not None else NOT_HERE
    return card("Import report", dmc.Text(summary, size="sm"), *(left_out if lines else []))


def _products_card(category: str | None, part: str, page: int) -> Component:
    controls = dmc.Group(
        [
            dmc.Select(
                id="catalogue-category", data=[], value=category or "", searchable=True, allowDeselect=False, size="xs",
                w=200, **aria(label="Category"),
            ),
            dmc.SegmentedControl(id="catalogue-part", data=list(PARTS), value=part, size="xs", **aria(label="Part")),
        ],
        gap="sm",
    )  # fmt: skip
    pages = dmc.Pagination(
        id="catalogue-page",
        total=page,
        value=page,
        size="sm",
        withControls=False,
        **aria(label="Pages of products"),
    )
    pictures = html.Div(id="catalogue-pictures", style={"minHeight": 320})
    loading = dcc.Loading(pictures, custom_spinner=skeleton(320), delay_show=200)
    return card("Products", loading, pages, actions=[controls])


def _product(split: SplitView, row: Mapping[Any, Any]) -> Component:
    product, label = str(row["product_id"]), str(row[split.info["label"]])
    picture = html.Img(src=picture_address(split.fingerprint, product), alt=f"Product {product}: {label}")
    lines = [html.B(label), html.Div(str(row.get("title", ""))), html.Div(product, className="numbers")]
    return html.Figure([picture, html.Figcaption(lines)])
