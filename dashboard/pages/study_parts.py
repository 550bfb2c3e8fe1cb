"""What a study's page is made of: a card for everything that its results have something to say of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import dash_mantine_components as dmc
from dash import dcc, html
from dash.development.base_component import Component

from dashboard.components import aria, card, graph, leak_badge, notice, number_tile, status_badge, table
from dashboard.evidence import CellRun, Evidence, runs_address, shown
from dashboard.figures import study as figures
from dashboard.pages.study_labels import labels_card
from dashboard.runs import Runs

Row = Mapping[str, Any]
_MARKS: Final = {"FINISHED": "✓", "RUNNING": "…"}
_RULES: Final = ("macro_f1", "accuracy", "unknown_rate", "coverage", "covered_accuracy")


def progress_cards(found: Evidence) -> Component:
    """How far the study is, and each cell's run."""
    done, running = found.count("FINISHED"), found.count("RUNNING")
    failed = found.count("FAILED", "KILLED")
    whole = max(found.cells, done + running + failed, 1)
    bar = dmc.Progress(value=100 * done / whole, size="lg", **aria(label=f"{done} of {whole} cells are done"))
    words = f"{done} of {whole} cells done, {running} running, {failed} failed"
    head = dmc.Group([status_badge(found.status), dmc.Text(words, size="sm", className="figures")], gap="sm", mb="xs")
    body = [
        [configuration, *(_cell(seeds.get(seed)) for seed in found.seeds)]
        for configuration, seeds in found.runs.items()
    ]
    cells = table(["Cell", *(f"seed {seed}" for seed in found.seeds)], body, "Cells", most_pixels=360)
    note = "Test macro-F1 of each cell; a figure leads to its run."
    return card("Cells", head, bar, dmc.Box(cells, mt="md"), note=note, mb="lg")


def result_cards(runs: Runs, found: Evidence) -> Component:
    """The cards of the results, in the order of the report."""
    makers: tuple[Callable[[Runs, Evidence], Component | None], ...] = (
        _tiles,
        _scores,
        _pairs,
        _leak,
        _ablation,
        _faithfulness,
        _robustness,
        _calibration,
        _gaps,
        _rules,
        _costs,
        labels_card,
    )
    return dmc.Stack([part for make in makers if (part := make(runs, found)) is not None], gap="lg")


def _cell(run: CellRun | None) -> Any:
    if run is None:
        return "–"
    text = _MARKS.get(run.status, "failed") if run.score is None else f"{run.score:.3f}"
    return dcc.Link(text, href=f"/run?run={run.run_id}", className="cell-link", title=run.status.lower())


def _tiles(runs: Runs, found: Evidence) -> Component:
    best = max(_of_kind(found, "family"), key=lambda row: row["macro_f1"]["value"], default=None)
    differ = sum(pair["test"]["p_bootstrap_holm"] < 0.05 for pair in found.part("pairs"))
    tiles = [
        number_tile("Cells in these results", f"{found.results['done']} of {found.results['cells']}"),
        number_tile("Seeds", found.results["settings"].get("seeds", "–"), "each varies the split too"),
        number_tile("Categories", str(len(found.results["categories"])), str(found.results["catalogue"])),
        number_tile("Best family", best["label"] if best else "–", shown(best["macro_f1"]) if best else ""),
        number_tile("Pairs that differ", f"{differ} of {len(found.part('pairs'))}", "bootstrap, after Holm"),
    ]
    parts: list[Any] = [dmc.SimpleGrid(tiles, cols={"base": 2, "sm": 3, "lg": 5}, spacing="md")]
    if failed := found.results.get("failed"):
        lines = [html.Div(f"{key}: {why}") for key, why in failed.items()]
        parts.append(notice("Some cells failed and are left out", lines, "warning"))
    return dmc.Stack(parts)


def _of_kind(found: Evidence, *kinds: str) -> list[dict[str, Any]]:
    rows = [row for row in found.part("rows") if row["kind"] in kinds and row["protocol"] == "holdout"]
    return sorted(rows, key=lambda row: -row["macro_f1"]["value"])


def _linked(row: Row) -> Component:
    """The row's label, which leads to the runs behind its figures."""
    run_ids = list(row.get("run_ids") or [row["run_id"]])
    return dcc.Link(row["label"], href=runs_address(run_ids), className="cell-link", title="the runs behind this row")


def _score_table(rows: Sequence[Row]) -> Component:
    categories = list(rows[0]["per_category"])
    head = ["", "Macro-F1", "Accuracy", "Worst recall", "Natural prior", *categories, "Trained", "Train, s"]
    body = [
        [
            _linked(row),
            *(shown(row[name]) for name in ("macro_f1", "accuracy", "worst_recall", "natural_macro_f1")),
            *(shown({"value": row["per_category"][name]["value"]}) for name in categories),
            f"{row['weights_trained']:,}" if row["weights"] else "",
            f"{row['train_seconds']:.0f}" if row["train_seconds"] else "",
        ]
        for row in rows
    ]
    return table(head, body, "Scores")


def _scores(runs: Runs, found: Evidence) -> Component | None:
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


def _pair_parts(found: Evidence, group: str) -> list[Component]:
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
        "p, McNemar",
        "One alone right",
        "Detectable",
    ]
    body = [
        [
            f"{pair['a']} − {pair['b']}",
            shown(test["difference"], "+.3f"),
            shown(test["over_seeds"], "+.3f"),
            _p(test["p_bootstrap_holm"]),
            _p(test["p_mcnemar_holm"]),
            f"{test['only_a_right']} : {test['only_b_right']}",
            f"{100 * test['detectable_macro_f1']:.1f} points",
        ]
        for pair in pairs
        for test in [pair["test"]]
    ]
    figure = figures.intervals(drawn, "difference of macro-F1", zero=True)
    return [
        html.Ul([html.Li(pair["words"]) for pair in pairs], className="said"),
        graph(f"study-pairs-{group}", figure, "Differences with their intervals", figures.height_of(len(pairs))),
        table(head, body, "Pairs", most_pixels=420),
    ]


def _pairs(runs: Runs, found: Evidence) -> Component | None:
    parts = _pair_parts(found, "families")
    note = "Same products in every seed. Intervals resample products; p-values are Holm's over all pairs."
    return card("Do the families differ?", *parts, note=note) if parts else None


def _leak(runs: Runs, found: Evidence) -> Component | None:
    rows = found.part("leak")
    if not rows:
        return None
    head = ["", "Category", "F1, holdout", "F1, study", "Change", "Test products copied", "Right answers with a copy"]
    body = [
        [
            row["label"],
            row["category"],
            f"{row['holdout_f1']:.3f}",
            f"{row['study_f1']:.3f}",
            f"{row['study_f1'] - row['holdout_f1']:+.3f}",
            f"{row['copied']:.1%}",
            f"{row['right_by_copy']:.1%}",
        ]
        for row in rows
    ]
    panels, categories = len({row["label"] for row in rows}), len({row["category"] for row in rows})
    drawn = graph("study-leak", figures.leak_dumbbells(rows), "F1 under both protocols", 110 + 44 * categories)
    return card(
        "What the leak is worth",
        _wide(drawn, "F1 under both protocols") if panels > 1 else drawn,
        table(head, body, "Both protocols", most_pixels=420),
        note="The same configurations under both protocols, means over seeds; their test products differ.",
        actions=[leak_badge()],
    )


def _ablation(runs: Runs, found: Evidence) -> Component | None:
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


def _robustness(runs: Runs, found: Evidence) -> Component | None:
    rows = found.part("robustness")
    if not rows:
        return None
    figure = figures.drops(rows)
    drawn = graph("study-drops", figure, "Relative drop by corruption", figures.height_of(len(rows)) + 60)
    return card(
        "Robustness",
        _wide(drawn, "Relative drop"),
        table(["", "Mean drop"], [[_linked(row), shown(row["mean_drop"], ".1%")] for row in rows], "Mean drop"),
        note="Relative drop of macro-F1 on spoilt pictures, mean over three severities; none was trained on.",
    )


def _calibration(runs: Runs, found: Evidence) -> Component | None:
    rows = found.part("calibration")
    if not rows:
        return None
    names = ("temperature", "ece", "ece_scaled", "nll", "nll_scaled", "aurc", "auroc_unknown")
    head = ["", "Temperature", "ECE", "scaled", "NLL", "scaled", "AURC", "AUROC of unknown", "Unknown, n"]
    body = [[_linked(row), *(shown(row[name]) for name in names), f"{row['unknown']:,}"] for row in rows]
    return card(
        "Calibration and the unknown",
        graph("study-risk", figures.risk_curves(rows), "Risk over coverage", 340),
        table(head, body, "Calibration"),
        note="Temperature is fitted on validation. Unknown products are of categories that no model learnt.",
    )


def _gaps(runs: Runs, found: Evidence) -> Component | None:
    rows = [(row, gap) for row in found.part("gaps") for gap in row["gaps"]]
    if not rows:
        return None
    body = [
        [
            _linked(row),
            gap["attribute"],
            shown(gap["accuracy_gap"], ".1%"),
            f"{gap['best'] or '–'} over {gap['worst'] or '–'}",
            _p(gap["p_holm"]),
            _p(gap["p_within_categories"]),
            ", ".join(_served(value) for value in gap["values"]),
        ]
        for row, gap in rows
    ]
    head = [
        "",
        "Attribute",
        "Gap of accuracy",
        "Best and worst",
        "p, Holm",
        "p, within categories",
        "Accuracy by value",
    ]
    note = "Each product counted once; values of fewer than 20 products are marked * and left out of the gap."
    return card("Subgroup gaps", table(head, body, "Subgroup gaps", most_pixels=480), note=note)


def _served(value: Row) -> str:
    return f"{value['value'] or 'not given'}{'*' * value['thin']} {value['accuracy']['value']:.1%} (n {value['n']:,})"


def _rules(runs: Runs, found: Evidence) -> Component | None:
    rows = found.part("rules")
    if not rows:
        return None
    body = [
        [_linked(row), rule, *("–" if score[name] is None else f"{score[name]:.3f}" for name in _RULES)]
        for row in rows
        for rule, score in row["rules"].items()
    ]
    head = ["", "Rule", "Macro-F1", "Accuracy", "Unknown", "Coverage", "Right of the covered"]
    note = "Models that learnt to write the category, asked in several ways; an Unknown Category counts as wrong."
    return card("Decision rules of models that write", table(head, body, "Decision rules"), note=note)


def _costs(runs: Runs, found: Evidence) -> Component | None:
    rows = found.part("cost")
    if not rows:
        return None
    head = ["", "Macro-F1", "Weights", "GFLOP", "p50, ms", "p95, ms", "Pictures a second", "Peak, MiB", "On the front"]
    body = [
        [
            _linked(row),
            f"{row['macro_f1']:.3f}",
            f"{cost['weights']:,}",
            "–" if cost["flops"] is None else f"{cost['flops'] / 1e9:.3f}",
            f"{1000 * cost['p50_seconds']:.1f}",
            f"{1000 * cost['p95_seconds']:.1f}",
            f"{cost['pictures_a_second']:.0f}",
            f"{cost['peak_mib']:.0f}",
            "yes" if row["on_front"] else "",
        ]
        for row in rows
        for cost in [row["cost"]]
    ]
    note = f"One picture at a time, {rows[0]['cost']['threads']} threads; filled: no other is both faster and better."
    drawn = graph("study-costs", figures.costs(rows), "Macro-F1 against latency", 360)
    return card("Cost", drawn, table(head, body, "Cost of an answer"), note=note)


def _faithfulness(runs: Runs, found: Evidence) -> Component | None:
    return None


def _wide(drawn: Component, label: str) -> Component:
    """A figure that scrolls by itself where the page is narrow."""
    return html.Div(drawn, className="scroll-x wide", tabIndex=0, role="region", **aria(label=label))


def _p(value: float | None) -> str:
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"
