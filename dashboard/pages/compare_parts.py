"""What the comparison's page is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, Final

import dash_mantine_components as dmc
import numpy as np
from dash import dcc, html
from dash.development.base_component import Component

from dashboard.comparison import (
    ALL,
    NOBODY,
    ComparedRun,
    RunComparison,
    answers_of,
    describe_paired_test,
    differing_settings,
    disagreements,
    seeds_of_one,
)
from dashboard.components import aria, card, empty_state, family_dot, graph, leak_badge, notice
from dashboard.figures.compare import agreement, category_bars, columns_of, confusions, curves
from dashboard.pictures import has_pictures, picture_address
from dashboard.runs import Runs
from dashboard.theme import family_colour
from vlm_core.study.formatting import p_value

MOST_PICTURES: Final = 48


def comparison_cards(found: RunComparison, asked: Mapping[str, str | None]) -> Component:
    """All of the page below the choice of runs; `asked` are the first values of the choices `pair` and `right`."""
    looks = [each.look for each in found.runs]
    evaluations = [each.evaluation for each in found.runs]
    columns = columns_of(len(looks))
    rows = -(-len(looks) // columns)
    parts: list[Any] = [
        dmc.SimpleGrid(
            [_run_card(each) for each in found.runs], cols={"base": 1, "xs": 2, "md": columns}, spacing="md"
        ),
        card(
            "What can be said", *_sentences(found), note="Paired bootstrap of macro-F1, Holm-corrected; exact McNemar."
        ),
        _seeds(found),
        dmc.SimpleGrid(
            [
                card(
                    "Learning curves",
                    graph("compare-curves", curves(looks, [each.epochs for each in found.runs]), "Curves"),
                ),
                card("Per category", graph("compare-bars", category_bars(looks, evaluations), "F1 of each category")),
            ],
            cols={"base": 1, "lg": 2},
        ),
        card(
            "Confusion matrices",
            html.Div(
                graph("compare-confusions", confusions(looks, evaluations), "Confusion matrices", 60 + 330 * rows),
                className="scroll-x wide",
                tabIndex=0,
            ),
            note="Share of each true category's products, one scale for all.",
        ),
        *_largest_group(found, asked),
        _settings(found),
    ]
    return dmc.Stack([part for part in parts if part is not None], gap="lg")


def right_choices(names: Sequence[str]) -> list[dict[str, str]]:
    """Who may be right where the runs disagree."""
    alone = [{"value": str(place), "label": f"only {name} is right"} for place, name in enumerate(names)]
    return [{"value": ALL, "label": "all disagreements"}, *alone, {"value": NOBODY, "label": "nobody is right"}]


def pair_choices(found: RunComparison, group: Sequence[int]) -> list[dict[str, str]]:
    """Every two runs of the group, as "i-j" and in words."""
    names = [each.look.name for each in found.runs]
    return [{"value": f"{i}-{j}", "label": f"{names[i]} − {names[j]}"} for i, j in combinations(group, 2)]


def disagreement_gallery(runs: Runs, found: RunComparison, who: str) -> Component:
    """Products of the largest comparable group on which its runs disagree, as pictures."""
    group = max(found.groups, key=len, default=())
    if len(group) < 2:
        return empty_state("No disagreements to show", "The runs were not tested on the same products.")
    labels, answers = answers_of(found, group)
    rows = disagreements(labels, answers, who if who in (ALL, NOBODY) or int(who) < len(group) else ALL)
    first = found.runs[group[0]]
    if not len(rows):
        return empty_state("None", "There is no product of this kind in the test split.")
    fingerprint = str(first.row.get("tags.fingerprint", ""))
    here = has_pictures(runs.root, fingerprint)
    members = [found.runs[place] for place in group]
    cards = [
        _disagreement(first, members, labels[row], answers[:, row], int(row), fingerprint if here else "")
        for row in rows[:MOST_PICTURES]
    ]
    said = f"{len(rows):,} of {len(labels):,} products" + (
        f", {MOST_PICTURES} shown" if len(rows) > MOST_PICTURES else ""
    )
    if not here:
        said += ". The catalogue's pictures are not on this machine: prepare it here to see them."
    return dmc.Stack([dmc.Text(said, size="sm", c="dimmed"), html.Div(cards, className="gallery")])


def _run_card(each: ComparedRun) -> Component:
    row, score = each.row, each.evaluation.macro_f1
    seconds = row.get("metrics.train_seconds")
    facts = " · ".join(
        str(part)
        for part in (
            row.get("params.model"),
            row.get("params.mode"),
            row.get("tags.weights_source"),
            f"seed {row.get('params.seed')}",
        )
        if part
    )
    leaking = leak_badge() if row.get("tags.leaking") != "false" else None
    name = dcc.Link(each.look.name, href=f"/run?run={each.run_id}", className="cell-link")
    return dmc.Paper(
        [
            dmc.Group([family_dot(str(row.get("params.model", ""))), dmc.Text(name, fw=600), leaking], gap="xs"),
            dmc.Text(facts, size="xs", c="dimmed", mt=4),
            dmc.Group(
                [
                    dmc.Text(f"{score.value:.3f}", size="xl", fw=650, className="figures"),
                    dmc.Text(
                        f"macro-F1, {score.low:.3f} to {score.high:.3f}", size="xs", c="dimmed", className="figures"
                    ),
                    dmc.Text(
                        f"{seconds:,.0f} s training" if seconds else "", size="xs", c="dimmed", className="figures"
                    ),
                ],
                gap="sm",
                align="baseline",
                mt="xs",
            ),
        ],
        withBorder=True,
        p="md",
    )


def _sentences(found: RunComparison) -> list[Component]:
    names = [each.look.name for each in found.runs]
    parts: list[Component] = []
    if len(found.groups) > 1:
        sets = "; ".join(", ".join(names[place] for place in group) for group in found.groups)
        text = f"These groups were tested on other products, so no test is made across them: {sets}."
        parts.append(notice("Not all of these runs can be compared", text, "warning"))
    leaking = [each.look.name for each in found.runs if each.row.get("tags.leaking") != "false"]
    if leaking:
        text = f"Test products leak into the training of {', '.join(leaking)}: a high score there is memory."
        parts.append(notice("Leaking protocol", text, "error"))
    if found.tests:
        body = [
            [
                describe_paired_test(names[a], names[b], test),
                f"{test.only_a_right} : {test.only_b_right}",
                f"{p_value(test.p_mcnemar)} ({p_value(test.p_mcnemar_mid)})",
                f"{test.agreement:.1%}",
                f"{test.kappa:.2f}",
            ]
            for (a, b), test in found.tests.items()
        ]
        head = ["Macro-F1, paired", "Right alone", "McNemar p (mid-p)", "Agree", "Kappa"]
        table = dmc.Table(data={"head": head, "body": body}, verticalSpacing="sm", className="sentences")
        parts.append(html.Div(table, className="scroll-x", tabIndex=0))
    return [dmc.Stack(parts, gap="md")]


def _seeds(found: RunComparison) -> Component | None:
    groups = seeds_of_one(found)
    if not groups:
        return None
    body = [[name, str(count), f"{mean:.3f}", f"{deviation:.3f}"] for name, count, mean, deviation in groups]
    head = ["Configuration", "Seeds", "Mean macro-F1", "Standard deviation"]
    note = "Runs that differ in the seed alone. A seed varies the split too: their test products differ."
    return card(
        "Over seeds",
        html.Div(dmc.Table(data={"head": head, "body": body}), className="scroll-x", tabIndex=0),
        note=note,
    )


def _largest_group(found: RunComparison, asked: Mapping[str, str | None]) -> list[Component]:
    """What needs runs of the same test products."""
    group = max(found.groups, key=len, default=())
    if len(group) < 2:
        return []
    names = [found.runs[place].look.name for place in group]
    shares = np.eye(len(group))
    for i, a in enumerate(group):
        for j, b in enumerate(group):
            test = found.tests.get((min(a, b), max(a, b)))
            shares[i, j] = test.agreement if test else 1.0
    pair = _choice("compare-pair", pair_choices(found, group), asked.get("pair"), "Which two")
    right = _choice("compare-right", right_choices(names), asked.get("right"), "Who is right")
    return [
        dmc.SimpleGrid(
            [
                card(
                    "Difference of two",
                    graph("compare-difference", {"data": [], "layout": {}}, "Difference of the matrices", 400),
                    note="Row share of the first minus that of the second.",
                    actions=[pair],
                ),
                card(
                    "Agreement",
                    graph("compare-agreement", agreement(names, shares), "Share of equal answers", 400),
                    note="Share of test products with the same answer.",
                ),
            ],
            cols={"base": 1, "lg": 2},
        ),
        card("Where they disagree", html.Div(id="compare-gallery"), actions=[right]),
    ]


def _choice(identity: str, choices: list[dict[str, str]], asked: str | None, label: str) -> Component:
    known = [each["value"] for each in choices]
    return dmc.Select(
        id=identity,
        data=choices,
        value=asked if asked in known else known[0],
        allowDeselect=False,
        w=260,
        size="xs",
        **aria(label=label),
    )


def _disagreement(
    first: ComparedRun, members: Sequence[ComparedRun], label: int, answers: Any, row: int, fingerprint: str
) -> Component:
    predictions = first.evaluation.predictions
    product, categories = str(predictions.product_ids[row]), predictions.categories
    lines = [
        html.Div(
            categories[answer],
            className=f"answer {_mark(answer, label)}",
            style={"--dot": family_colour(str(each.row.get("params.model", "")))},
            title=each.look.name,
        )
        for each, answer in zip(members, answers, strict=True)
    ]
    picture = html.Img(src=picture_address(fingerprint, product), alt=f"Product {product}, a {categories[label]}")
    caption = html.Figcaption([html.B(categories[label]), *lines, product])
    return html.Figure([picture if fingerprint else None, caption])


def _mark(answer: int, label: int) -> str:
    return "right" if answer == label else "wrong"


def _settings(found: RunComparison) -> Component:
    lines = differing_settings(found)
    if not lines:
        return card("Settings", dmc.Text("All settings are the same.", size="sm"))
    head = ["Setting", *(each.look.name for each in found.runs)]
    table = dmc.Table(data={"head": head, "body": [list(line) for line in lines]}, striped="odd")
    return card("Settings", html.Div(table, className="scroll-x", tabIndex=0), note="Where the runs differ.")
