"""Two to six runs side by side, and whether they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from itertools import combinations
from typing import Any, Final

import dash_mantine_components as dmc
import numpy as np
from dash import Dash, Input, Output, State, dcc, html, no_update
from dash.development.base_component import Component
from numpy.typing import NDArray

from dashboard.comparison import (
    ALL,
    NOBODY,
    ComparedRun,
    RunComparison,
    compare_runs,
    differing_settings,
    disagreements,
    predicted_categories,
    scores_over_seeds,
)
from dashboard.components import (
    aria,
    at_work,
    card,
    empty_state,
    family_dot,
    graph,
    keep_in_url,
    leak_badge,
    notice,
    page_header,
    parse_list,
    store_state,
    too_many,
    wide,
)
from dashboard.figures.compare import (
    agreement,
    category_bars,
    columns_of,
    confusion_difference,
    confusions,
    curves,
    difference_size,
    grid_of,
    matrices_size,
)
from dashboard.leaderboard import SCORE, run_choices, training_seconds
from dashboard.leaks import leak_of_run
from dashboard.live import duration
from dashboard.picture_server import has_pictures, picture_address
from dashboard.runs import Runs
from dashboard.theme import family_colour, shorten, waiting
from vlm_core.evaluation.paired import describe_tests
from vlm_core.evaluation.seeds import few_seeds
from vlm_core.study.formatting import p_value

NAME: Final = "Compare"
PATH: Final = "/compare"
ICON: Final = "compare"
IN_NAVIGATION: Final = True
MOST_RUNS: Final = 6
MOST_PICTURES: Final = 48
COMPARING: Final = "Comparing the runs …"
LETTERS: Final = 60  # of a name in a sentence


def layout(runs: Runs, query: Mapping[str, str]) -> Component:
    """Return the page's frame, with the runs that the address names."""
    view = runs.view()
    named = list(dict.fromkeys(parse_list(query.get("runs"))))
    chosen = named[:MOST_RUNS]
    # older addresses say "right" for "correct"
    choices = {"pair": query.get("pair"), "correct": query.get("correct") or query.get("right")}
    return html.Div(
        [
            page_header(
                "Compare",
                "Compare two to six runs. Runs evaluated on the same products are tested for significant differences.",
            ),
            dcc.Store(id="compare-known"),
            dcc.Store(id="compare-query", data=choices),
            html.Div(store_state(view), id="compare-state"),
            html.Div(
                [
                    too_many(len(named), MOST_RUNS, "run", "compared"),
                    dmc.MultiSelect(
                        id="compare-runs",
                        label="Runs",
                        description="Up to six; search by name, model or test set",
                        data=run_choices(runs.table(), chosen),
                        value=chosen,
                        maxValues=MOST_RUNS,
                        searchable=True,
                        clearable=True,
                        hidePickedOptions=True,
                        nothingFoundMessage="No matching run",
                        mb="lg",
                        debounce=200,
                    ),
                    dcc.Loading(
                        html.Div(at_work(COMPARING) if chosen else None, id="compare-body", style={"minHeight": 320}),
                        custom_spinner=at_work(COMPARING),
                        delay_show=200,
                    ),
                ],
                id="compare-content",
                hidden=view.table.empty,
            ),
        ]
    )


def register(app: Dash, runs: Runs) -> None:
    """Bind the page's callbacks."""
    chosen = Input("compare-runs", "value")
    app.callback(
        Output("compare-state", "children"),
        Output("compare-content", "hidden"),
        Output("compare-runs", "data"),
        Output("compare-known", "data"),
        Input("shell-version", "data"),
        State("compare-runs", "value"),
        State("compare-known", "data"),
    )(partial(update_state, runs))
    app.callback(
        Output("compare-body", "children"), chosen, Input("compare-known", "data"), State("compare-query", "data")
    )(partial(update_body, runs))
    app.callback(
        Output("compare-difference", "figure"), Input("compare-pair", "value"), State("compare-runs", "value")
    )(partial(update_difference, runs))
    app.callback(
        Output("compare-gallery", "children"), Input("compare-correct", "value"), State("compare-runs", "value")
    )(partial(update_gallery, runs))
    keep_in_url(app, "compare", ("runs",))
    keep_in_url(app, "compare", ("pair", "correct"))


def update_state(
    runs: Runs, version: int | None, chosen: Sequence[str] | None, known: Sequence[str] | None
) -> tuple[Any, bool, Any, Any]:
    """Return what takes the page's place, the runs to choose from, and which of the chosen ones can be compared."""
    state = store_state(runs.view())
    tested = list(_tested(runs, chosen or ()))
    return state, state is not None, run_choices(runs.table(), chosen), no_update if tested == known else tested


def update_body(
    runs: Runs,
    chosen: Sequence[str] | None,
    known: Sequence[str] | None = None,
    choices: Mapping[str, str | None] | None = None,
) -> Component:
    """Return the comparison of the chosen runs; `choices` are the address's values of `pair` and `correct`."""
    run_ids = list(chosen or ())[:MOST_RUNS]
    if len(run_ids) < 2:
        advice = "Or select them on the leaderboard and press Compare."
        return empty_state("Choose two runs", advice, picture="compare")
    comparison = _compare(runs, _tested(runs, run_ids))
    if len(comparison.runs) < 2:
        missing = (
            "These runs have no test evaluation that can be read: they have not finished, are no longer in the store, "
            "or their files were moved."
        )
        return empty_state("Nothing to compare yet", missing, picture="compare")
    return _cards(comparison, choices or {})


def update_difference(runs: Runs, pair: str, chosen: Sequence[str] | None) -> Any:
    """Return the confusion matrix of one run minus that of the other."""
    comparison = _compare(runs, _tested(runs, chosen or ()))
    one, other = map(int, pair.split("-"))
    if max(one, other) >= len(comparison.runs):
        return no_update
    return confusion_difference(comparison.runs[one].evaluation, comparison.runs[other].evaluation)


def update_gallery(runs: Runs, correct: str | None, chosen: Sequence[str] | None) -> Component:
    """Return products of the largest group for which its runs disagree, by who is `correct`, as pictures."""
    comparison = _compare(runs, _tested(runs, chosen or ()))
    group, correct = comparison.largest_group, correct or ALL
    if len(group) < 2:
        return empty_state("No disagreements to show", "The runs were not evaluated on the same products.")
    labels, predicted = predicted_categories(comparison, group)
    known = correct in (ALL, NOBODY) or int(correct) < len(group)
    rows = disagreements(labels, predicted, correct if known else ALL)
    if not len(rows):
        return empty_state("No such products", "The test split holds no product of this kind.")
    members = [comparison.runs[place] for place in group]
    fingerprint = str(members[0].row.get("tags.fingerprint", ""))
    here = has_pictures(runs.root, fingerprint)
    figures = [
        _disagreement(members, labels[row], predicted[:, row], int(row), fingerprint if here else "")
        for row in rows[:MOST_PICTURES]
    ]
    summary = f"{len(rows):,} of {len(labels):,} products"
    if len(rows) > MOST_PICTURES:
        summary += f", the first {MOST_PICTURES} shown"
    if not here:
        summary += ". The catalogue's images are not on this machine; prepare the catalogue here to see them."
    return dmc.Stack([dmc.Text(summary, size="sm", c="dimmed"), html.Div(figures, className="gallery")])


def pair_choices(comparison: RunComparison, group: Sequence[int]) -> list[dict[str, str]]:
    """Return every two runs of the group, as "i-j" and in words, the better one first as in the tests."""
    names = comparison.names
    pairs = [(i, j) for i, j in comparison.tests if i in group]
    return [{"value": f"{i}-{j}", "label": f"{names[i]} − {names[j]}"} for i, j in pairs]


def correct_choices(names: Sequence[str]) -> list[dict[str, str]]:
    """Return the kinds of disagreement: all of them, or by which run is correct."""
    alone = [{"value": str(place), "label": f"only {name} is correct"} for place, name in enumerate(names)]
    return [{"value": ALL, "label": "all disagreements"}, *alone, {"value": NOBODY, "label": "all wrong"}]


@lru_cache(maxsize=16)
def _compare(runs: Runs, run_ids: tuple[str, ...]) -> RunComparison:
    return compare_runs(runs, run_ids)


def _tested(runs: Runs, chosen: Sequence[str]) -> tuple[str, ...]:
    """Return those of the chosen runs that have a score on their test split."""
    return tuple(run_id for run_id in list(chosen)[:MOST_RUNS] if SCORE in (runs.row(run_id) or {}))


def _cards(comparison: RunComparison, choices: Mapping[str, str | None]) -> Component:
    styles = [run.style for run in comparison.runs]
    evaluations = [run.evaluation for run in comparison.runs]
    columns = columns_of(len(styles))
    side_by_side, rows = grid_of(evaluations)
    size = matrices_size(evaluations)
    learning = graph("compare-curves", curves(styles, [run.epochs for run in comparison.runs]), "Learning curves")
    bars = graph("compare-bars", category_bars(styles, evaluations), "F1 of each category")
    matrices = graph(
        "compare-confusions",
        confusions(styles, evaluations),
        "Confusion matrices",
        60 + rows * (size.height if size.cell else 330),
    )
    parts = [
        dmc.SimpleGrid(
            [_run_card(run) for run in comparison.runs], cols={"base": 1, "xs": 2, "md": columns}, spacing="md"
        ),
        _tests_card(comparison),
        _seeds_card(comparison),
        dmc.SimpleGrid(
            [card("Learning curves", learning, note="On the validation split."), card("Per class", bars)],
            cols={"base": 1, "lg": 2},
        ),
        card(
            "Confusion matrices",
            wide(matrices, "Confusion matrices side by side", max(240 * side_by_side, size.width * side_by_side)),
            note="Share of each true category's products, all on one colour scale.",
        ),
        *_largest_group_cards(comparison, choices),
        _settings_card(comparison),
    ]
    return dmc.Stack([part for part in parts if part is not None], gap="lg")


def _run_card(run: ComparedRun) -> Component:
    row, score = run.row, run.evaluation.macro_f1
    seconds = training_seconds(row)
    seed = f"seed {row.get('params.seed')}"
    model = str(row.get("params.model", ""))
    of_network = () if model == "baseline" else (row.get("params.mode"), row.get("tags.weights_source"))
    facts = (model, *of_network, seed)
    leaking = leak_badge() if row.get("tags.leaking") != "false" else None
    name = dcc.Link(run.style.name, href=f"/run?run={run.run_id}", className="cell-link")
    title = dmc.Text(name, fw=600, className="truncate")
    small: dict[str, Any] = {"size": "xs", "c": "dimmed", "className": "numbers"}
    scores = [
        dmc.Text(f"{score.value:.3f}", size="xl", fw=650, className="numbers"),
        dmc.Text(f"macro-F1, {score.low:.3f} to {score.high:.3f}", **small),
        dmc.Text("" if seconds is None else f"{duration(seconds)} training", **small),
    ]
    return dmc.Paper(
        [
            dmc.Group([family_dot(model), title, leaking], gap="xs", wrap="nowrap"),
            dmc.Text(" · ".join(str(fact) for fact in facts if fact), size="xs", c="dimmed", mt=4),
            dmc.Group(scores, gap="sm", align="baseline", mt="xs"),
        ],
        withBorder=True,
        p="md",
    )


def _tests_card(comparison: RunComparison) -> Component:
    """Return the paired tests, and what forbids them or makes them worthless."""
    names = [shorten(name, LETTERS) for name in comparison.names]
    parts: list[Component] = []
    if len(comparison.groups) > 1:
        sets = "; ".join(", ".join(names[place] for place in group) for group in comparison.groups)
        text = f"These groups were evaluated on different products, so they are not tested against each other: {sets}."
        parts.append(notice("Some of these runs cannot be compared", text, "warning"))
    leaks = [leak_of_run(run.row) for run in comparison.runs]
    lines = [f"{name}: {' '.join(leak.sentences())}" for name, leak in zip(names, leaks, strict=True) if leak.leaking]
    if lines:
        parts.append(notice("Some scores may be memorised", html.Div("\n".join(lines), className="lines"), "error"))
    if comparison.tests:
        body = [
            [
                describe_tests(names[a], names[b], test),
                f"{test.only_a_correct:,} : {test.only_b_correct:,}",
                f"{p_value(test.p_mcnemar_holm)} ({p_value(test.p_mcnemar_mid_holm)})",
                f"{test.agreement:.1%}",
                f"{test.kappa:.2f}",
            ]
            for (a, b), test in comparison.tests.items()
        ]
        columns = ("Only A correct : only B correct", "Corrected McNemar p (mid-p)", "Agreement", "Kappa")
        head = ["Difference, A before B", *columns]
        table = dmc.Table(data={"head": head, "body": body}, verticalSpacing="sm", className="sentences")
        parts.append(html.Div(table, className="scroll-x", tabIndex=0))
    note = (
        "Paired bootstrap of macro-F1 and exact McNemar test of accuracy, corrected together by Holm's method over all "
        "pairs. A is the run with the higher macro-F1. Each run was trained once; another seed may give another result."
    )
    return card("Significance tests", dmc.Stack(parts, gap="md"), note=note)


def _seeds_card(comparison: RunComparison) -> Component | None:
    lines = scores_over_seeds(comparison)
    if not lines:
        return None
    body = [[name, str(count), f"{mean:.3f}", f"{deviation:.3f}"] for name, count, mean, deviation in lines]
    head = ["Configuration", "Seeds", "Mean macro-F1", "Standard deviation"]
    note = "Runs that differ only in their seed. The seed also changes the split, so their test products differ."
    return card(
        "Across seeds",
        html.Div(dmc.Table(data={"head": head, "body": body}), className="scroll-x", tabIndex=0),
        note=f"{note} {few_seeds(min(count for _, count, _, _ in lines))}",
    )


def _largest_group_cards(comparison: RunComparison, choices: Mapping[str, str | None]) -> list[Component]:
    """Return what needs runs of the same test products."""
    group = comparison.largest_group
    if len(group) < 2:
        return []
    names = [comparison.names[place] for place in group]
    pair = _select("compare-pair", pair_choices(comparison, group), choices.get("pair"), "Runs to subtract")
    correct = _select("compare-correct", correct_choices(names), choices.get("correct"), "Which run is correct")
    size = difference_size([comparison.runs[place].evaluation for place in group])
    label = "Difference between two confusion matrices"
    difference = wide(graph("compare-difference", waiting(), label, size.height), f"{label}, in full", size.width)
    shares = graph(
        "compare-agreement", agreement(names, _agreement(comparison, group)), "Share of equal predictions", 400
    )
    return [
        dmc.SimpleGrid(
            [
                card(
                    "Difference between two runs",
                    difference,
                    note="Row shares of A minus those of B.",
                    actions=[pair],
                ),
                card("Agreement", shares, note="Share of test products with the same prediction."),
            ],
            cols=1 if size.cell else {"base": 1, "lg": 2},
        ),
        card("Disagreements", html.Div(id="compare-gallery"), actions=[correct]),
    ]


def _agreement(comparison: RunComparison, group: Sequence[int]) -> NDArray[np.float64]:
    """Return how often each two of the group's runs predict the same category (R, R)."""
    shares = np.eye(len(group))
    for (i, a), (j, b) in combinations(enumerate(group), 2):
        test = comparison.tests.get((a, b)) or comparison.tests[b, a]
        shares[i, j] = shares[j, i] = test.agreement
    return shares


def _select(identity: str, choices: list[dict[str, str]], chosen: str | None, label: str) -> Component:
    known = [choice["value"] for choice in choices]
    turned = "-".join(reversed(chosen.split("-"))) if chosen else None  # an address may name a pair the other way round
    chosen = turned if turned in known else chosen
    return dmc.Select(
        id=identity,
        data=choices,
        value=chosen if chosen in known else known[0],
        allowDeselect=False,
        w=260,
        size="xs",
        **aria(label=label),
    )


def _disagreement(
    members: Sequence[ComparedRun], label: int, predicted: NDArray[np.int64], row: int, fingerprint: str
) -> Component:
    predictions = members[0].evaluation.predictions
    product, categories = str(predictions.product_ids[row]), predictions.categories
    lines = [
        html.Div(
            categories[category],
            className=f"prediction {'correct' if category == label else 'incorrect'}",
            style={"--dot": family_colour(str(run.row.get("params.model", "")))},
            title=run.style.name,
        )
        for run, category in zip(members, predicted, strict=True)
    ]
    picture = html.Img(src=picture_address(fingerprint, product), alt=f"Product {product}: {categories[label]}")
    caption = html.Figcaption([html.B(categories[label]), *lines, product])
    return html.Figure([picture if fingerprint else None, caption])


def _settings_card(comparison: RunComparison) -> Component:
    lines = differing_settings(comparison)
    if not lines:
        return card("Settings", dmc.Text("All settings are the same.", size="sm"))
    data = {"head": ["Setting", *comparison.names], "body": [list(line) for line in lines]}
    table = html.Div(dmc.Table(data=data, striped="odd"), className="scroll-x", tabIndex=0)
    return card("Settings", table, note="Only settings that differ.")
