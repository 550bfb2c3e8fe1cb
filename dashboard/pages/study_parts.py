"""What a study's page is made of: a card for everything that its results have something to say of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import dash_mantine_components as dmc
from dash import html
from dash.development.base_component import Component

from dashboard.components import (
    aria,
    card,
    cell_link,
    graph,
    leak_badge,
    notice,
    number_tile,
    status_badge,
    table,
    wide,
)
from dashboard.figures import study as figures
from dashboard.pages.study_attention import attention_card
from dashboard.pages.study_labels import labels_card
from dashboard.pages.study_looks import calibration_card, costs_card, gaps_card, robustness_card, rules_card
from dashboard.pages.study_rows import Row, linked, share
from dashboard.runs import Runs
from dashboard.studies import CellRun, StoredStudy, shown
from vlm_core.study.formatting import p_value

Maker = Callable[[Runs, StoredStudy], Component | None]
_MARKS: Final = {"FINISHED": "✓", "RUNNING": "…"}


def progress_cards(found: StoredStudy) -> Component:
    """How far the study is, and each cell's run."""
    done, running = found.count("FINISHED"), found.count("RUNNING")
    failed = found.count("FAILED", "KILLED")
    whole = max(found.cells, done + running + failed, 1)
    bar = dmc.Progress(value=100 * done / whole, size="lg", **aria(label=f"{done} of {whole} cells are done"))
    words = f"{done} of {whole} cells done, {running} running, {failed} failed"
    head = dmc.Group([status_badge(found.status), dmc.Text(words, size="sm", className="figures")], gap="sm")
    body = [
        [configuration, *(_cell(seeds.get(seed)) for seed in found.seeds)]
        for configuration, seeds in found.runs.items()
    ]
    cells = table(["Cell", *(f"seed {seed}" for seed in found.seeds)], body, "Cells", most_pixels=360)
    note = "Test macro-F1 of each cell; a figure leads to its run."
    return card("Cells", head, bar, cells, note=note, mb="lg")


def first_cards(runs: Runs, found: StoredStudy) -> Component:
    """The cards that the report begins with."""
    return _stack(runs, found, (_tiles, _scores, _pairs))


def further_cards(runs: Runs, found: StoredStudy) -> Component:
    """The cards behind them, in the order of the report."""
    makers: tuple[Maker, ...] = (
        _leak,
        _ablation,
        attention_card,
        robustness_card,
        calibration_card,
        gaps_card,
        rules_card,
        costs_card,
        labels_card,
    )
    return _stack(runs, found, makers)


def _stack(runs: Runs, found: StoredStudy, makers: Sequence[Maker]) -> Component:
    return dmc.Stack([part for make in makers if (part := make(runs, found)) is not None], gap="lg")


def _cell(run: CellRun | None) -> Any:
    if run is None:
        return "–"
    text = _MARKS.get(run.status, "failed") if run.score is None else f"{run.score:.3f}"
    return cell_link(text, f"/run?run={run.run_id}", run.status.lower())


def _tiles(runs: Runs, found: StoredStudy) -> Component:
    best = max(_of_kind(found, "family"), key=lambda row: row["macro_f1"]["value"], default=None)
    pairs = [pair["test"]["p_bootstrap_holm"] < 0.05 for pair in found.part("pairs")]
    tiles = [
        number_tile("Cells in these results", f"{found.results['done']} of {found.results['cells']}"),
        number_tile("Seeds", found.results["settings"].get("seeds", "–"), "each varies the split too"),
        number_tile("Categories", str(len(found.results["categories"])), str(found.results["catalogue"])),
        number_tile("Best family", best["label"] if best else "–", shown(best["macro_f1"]) if best else ""),
        number_tile("Pairs that differ", f"{sum(pairs)} of {len(pairs)}" if pairs else "–", "bootstrap, after Holm"),
    ]
    parts: list[Any] = [dmc.SimpleGrid(tiles, cols={"base": 2, "sm": 3, "lg": 5}, spacing="md")]
    if failed := found.results.get("failed"):
        lines = [html.Div(f"{key}: {why}") for key, why in failed.items()]
        parts.append(notice("Some cells failed and are left out", lines, "warning"))
    return dmc.Stack(parts)


def _of_kind(found: StoredStudy, *kinds: str) -> list[dict[str, Any]]:
    rows = [row for row in found.part("rows") if row["kind"] in kinds and row["protocol"] == "holdout"]
    return sorted(rows, key=lambda row: -row["macro_f1"]["value"])


def _score_table(rows: Sequence[Row]) -> Component:
    categories = list(rows[0]["per_category"])
    head = ["", "Macro-F1", "Accuracy", "Worst recall", "Natural prior", *categories, "Trained", "Train, s"]
    body = [
        [
            linked(row),
            *(shown(row[name]) for name in ("macro_f1", "accuracy", "worst_recall", "natural_macro_f1")),
            *(shown({"value": row["per_category"][name]["value"]}) for name in categories),
            f"{row['weights_trained']:,}" if row["weights_trained"] else "",
            f"{row['train_seconds']:.0f}" if row["train_seconds"] else "",
        ]
        for row in rows
    ]
    return table(head, body, "Scores")


def _scores(runs: Runs, found: StoredStudy) -> Component | None:
    rows = _of_kind(found, "family", "baseline")
    if not rows:
        return None
    drawn = [(row["label"], row["macro_f1"]) for row in rows]
    return card(
        "Scores",
        graph("study-scores", figures.intervals(drawn, "macro-F1, mean over seeds"), "Macro-F1 of each configuration",
              figures.height_of(len(rows))),
        _score_table(rows),
        note="Mean over seeds with Student's 95 % interval; F1 of each category. A name leads to its runs.",
    )  # fmt: skip


def _pair_parts(found: StoredStudy, group: str) -> list[Component]:
    """Every pair of the group in words, drawn and in figures."""
    pairs = [pair for pair in found.part("pairs") if pair["group"] == group]
    if not pairs:
        return []
    drawn = [(f"{pair['a']} − {pair['b']}", pair["test"]["difference"]) for pair in pairs]
    head = [
        "Pair",
        "Difference, products",
        "The same, seeds",
        "p, bootstrap",
        "p, exact McNemar (mid-p)",
        "One alone right",
        "Detectable",
    ]
    body = [
        [
            f"{pair['a']} − {pair['b']}",
            shown(test["difference"], "+.3f"),
            shown(test["over_seeds"], "+.3f"),
            p_value(test["p_bootstrap_holm"]),
            f"{p_value(test['p_mcnemar_holm'])} ({p_value(test.get('p_mcnemar_mid_holm'))})",
            f"{test['only_a_right']} : {test['only_b_right']}",
            f"{100 * test['detectable_macro_f1']:.1f} points",
        ]
        for pair in pairs
        for test in [pair["test"]]
    ]
    figure = figures.intervals(drawn, "difference of macro-F1", zero=True)
    return [
        html.Div("\n".join("• " + pair["words"] for pair in pairs), className="said scrolled", tabIndex=0),
        graph(f"study-pairs-{group}", figure, "Differences with their intervals", figures.height_of(len(pairs))),
        table(head, body, "Pairs", most_pixels=420),
    ]


def _pairs(runs: Runs, found: StoredStudy) -> Component | None:
    parts = _pair_parts(found, "families")
    note = "Same products in every seed. Intervals resample products; p-values are Holm's over all pairs."
    return card("Do the families differ?", *parts, note=note) if parts else None


def _leak(runs: Runs, found: StoredStudy) -> Component | None:
    rows = found.part("leak")
    if not rows:
        return None
    head = [
        "",
        "Category",
        "F1, holdout",
        "F1, study",
        "Change",
        "Copied",
        "Right, copied",
        "Right, others",
        "Right by copy",
    ]
    body = [
        [
            linked(row),
            score["category"],
            *(shown(score[name]) for name in ("holdout", "study")),
            shown(score["difference"], "+.3f"),
            *(share(leak[name]) for name in ("copied", "accuracy_copied", "accuracy_others", "right_by_copy")),
        ]
        for row in rows
        for score, leak in zip(row["scores"], row["leaks"], strict=True)
    ]
    drawn = graph(
        "study-leak", figures.leak_dumbbells(rows), "F1 under both protocols", 110 + 44 * len(rows[0]["scores"])
    )
    return card(
        "What the leak is worth",
        wide(drawn, "F1 under both protocols"),
        table(head, body, "Both protocols", most_pixels=420),
        note="The same configurations under both protocols, means over seeds; their test products differ. A copy is a "
        "near-duplicate in training; right by copy: share of the right answers that have one.",
        actions=[leak_badge()],
    )


def _ablation(runs: Runs, found: StoredStudy) -> Component | None:
    rows = _of_kind(found, "mechanism")
    if not rows:
        return None
    drawn = [(row["label"], row["macro_f1"]) for row in rows]
    figure = figures.intervals(drawn, "macro-F1, mean over seeds")
    return card(
        "What the attention mechanism contributes",
        graph("study-ablation", figure, "Macro-F1 of each mechanism", figures.height_of(len(rows))),
        _score_table(rows),
        *_pair_parts(found, "mechanisms"),
        note="One frozen vision tower; only the fusion is exchanged, with as many weights, the same data and steps.",
    )
