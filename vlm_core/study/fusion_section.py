"""The section on pictures with texts."""

from __future__ import annotations

from vlm_core.evaluation.paired import SIGNIFICANT
from vlm_core.evaluation.seeds import few_seeds
from vlm_core.study.formatting import UNKNOWN, format_estimate, format_number, p_value
from vlm_core.study.report_contents import IntervalPlot, Section, Table
from vlm_core.study.results import FusionResults, FusionRow, PairRow, Results


def fusion(results: Results) -> Section | None:
    """Return the section on pictures, texts and both."""
    found = results.fusion
    if found is None or not found.rows:
        return None
    unmasked = sorted((row for row in found.rows if not row.masked), key=lambda row: -row.headline_macro_f1.value)
    masked = sorted((row for row in found.rows if row.masked), key=lambda row: -row.headline_macro_f1.value)
    return Section(
        "fusion",
        "Pictures with texts",
        tuple(filter(None, _paragraphs(results, found))),
        conclusions=tuple(pair.conclusion for pair in found.pairs),
        plots=tuple(
            IntervalPlot(
                f"Macro-F1 with its interval, texts {'MASKED' if rows is masked else 'UNMASKED'}",
                "macro-F1, mean over seeds",
                tuple((row.label, row.headline_macro_f1) for row in rows),
            )
            for rows in (unmasked, masked)
            if rows
        ),
        tables=(
            Table(
                "Means over seeds with their 95 % interval",
                ("Configuration", "Texts", "Macro-F1", "Accuracy", "Fusion against one input alone"),
                tuple(_score_cells(row, found.pairs) for row in (*unmasked, *masked)),
            ),
            _missing_table([row for row in (*unmasked, *masked) if row.missing]),
            Table(
                "Texts that name their own category, by a word of it or of its article types",
                ("Category", "Share of texts"),
                tuple((each.category, format_number(100 * each.share, ".1f") + " %") for each in found.leaks),
            ),
        ),
    )


def _paragraphs(results: Results, found: FusionResults) -> tuple[str, ...]:
    rows = found.rows
    columns = results.settings.get("text_columns") or "the title"
    leak = next((each.share for each in found.leaks if each.category == "all"), float("nan"))
    alone = {row.masked: row.headline_macro_f1 for row in rows if row.family == "baseline" and row.inputs == "text"}
    scores = " and ".join(
        f"{format_estimate(score)} {'masked' if is_masked else 'UNMASKED'}" for is_masked, score in alone.items()
    )
    return (
        f"A head is trained on each family's frozen towers from the picture alone, from the text ({columns}) alone, "
        f"and from both in every way of fusion, over {rows[0].seeds} seed{'s' * (rows[0].seeds != 1)}, each with a "
        f"split of its own and about {rows[0].test_products:,} test products. Baselines: HOG + colour, TF-IDF with "
        "logistic regression, and both stacked. Macro-F1 is of the categories with enough test products in every seed. "
        "Picture and text alone have a linear layer; concat and cross-attention have a hidden one. So each fusion is "
        "compared with the best of the picture alone, the text alone, and itself with texts or pictures withheld.",
        f"TEXTS LEAK: {leak:.1%} of them name their own category or one of its article types, so scores on UNMASKED "
        "texts reward reading the label. Masked texts lack these words, for all products alike, in training and test. "
        f"Texts alone, by TF-IDF, score {scores} macro-F1.",
        _claim(found.pairs),
        few_seeds(rows[0].seeds),
    )


def _claim(pairs: tuple[PairRow, ...]) -> str:
    """Say which fusions beat the best of one input alone; nothing else is claimed of fusion."""
    winners = [pair.a for pair in pairs if _beats(pair)]
    if not winners:
        return "No fusion beats the best of one input alone in macro-F1, in paired tests corrected over all of them."
    are = "fusion beats" if len(winners) == 1 else "fusions beat"
    return (
        f"{len(winners)} of {len(pairs)} {are} the best of one input alone in macro-F1, in paired tests corrected "
        f"over all of them: {', '.join(winners)}. Nothing is claimed of the others."
    )


def _beats(pair: PairRow) -> bool:
    """Return whether the fusion, which is first in its pair, is significantly better in macro-F1."""
    return pair.test.difference.value > 0 and pair.test.p_bootstrap_holm < SIGNIFICANT


def _score_cells(row: FusionRow, pairs: tuple[PairRow, ...]) -> tuple[str, ...]:
    texts = UNKNOWN if row.inputs == "image" else "masked" if row.masked else "UNMASKED"
    pair = next((each for each in pairs if each.a == row.label), None)
    verdict = ""
    if pair:
        points = 100 * pair.test.difference.value
        verdict = f"{points:+.1f} points against {pair.b} (corrected p = {p_value(pair.test.p_bootstrap_holm)})"
    return row.label, texts, format_estimate(row.headline_macro_f1), format_estimate(row.accuracy), verdict


def _missing_table(rows: list[FusionRow]) -> Table:
    shares = tuple(rows[0].missing)
    return Table(
        "Macro-F1 with that share of test products without text",
        ("Configuration", *shares),
        tuple((row.label, *(format_estimate(row.missing[share]) for share in shares)) for row in rows),
    )
