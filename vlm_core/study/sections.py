"""A study's results as a report's sections: what each table and figure says, and what it does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vlm_core.study import measurement_sections, svg_plots
from vlm_core.study.formatting import Section, Table, p_value, share, shown
from vlm_core.study.results import Results, ScoreRow


def make_sections(results: Results) -> list[Section]:
    """The sections that the results have something to say in, in the order of the report."""
    makers: tuple[Callable[[Results], Section | None], ...] = (
        _protocol,
        _scores,
        _pairs,
        _leak,
        _ablation,
        measurement_sections.attention,
        measurement_sections.robustness,
        measurement_sections.calibration,
        measurement_sections.gaps,
        measurement_sections.rules,
        measurement_sections.cost,
        measurement_sections.labels,
        _runs,
    )
    return [section for make in makers if (section := make(results)) is not None]


def _protocol(results: Results) -> Section:
    settings, machine = results.settings, results.machine
    seeds = int(settings["seeds"])
    says = [
        f"Catalogue {results.catalogue}, label {settings['label']}, {len(results.categories)} categories: "
        f"{', '.join(results.categories)}. {results.done} of {results.cells} runs are in this report.",
        f"{seeds} seed{'s' * (seeds > 1)}; a seed varies the split, initialisation, order and augmentation. Means "
        "over seeds carry Student's interval of 95 %. Near-duplicate pictures stay on one side of a split, training "
        "alone is balanced, models are selected on validation, and each run reads its test split once.",
        f"Tuning budget: none. Every family has the settings of preset {settings['preset']}, and nothing was searched "
        "for any of them; so a family for which these settings happen to be better has an advantage. Mechanisms of the "
        "ablation choose among the same learning rates on validation.",
        f"Machine: {machine.get('cpu')}, {machine.get('cores')} cores; PyTorch {machine.get('torch')}, transformers "
        f"{machine.get('transformers')}; code {machine.get('git_commit', '')[:12]}.",
    ]
    if results.failed:
        says.append("Failed, and left out: " + "; ".join(f"{key} ({why})" for key, why in results.failed.items()) + ".")
    return Section("What was done", tuple(says))


def _scores(results: Results) -> Section | None:
    rows = [row for row in results.rows if row.kind != "mechanism" and row.protocol == "holdout"]
    if not rows:
        return None
    rows = sorted(rows, key=lambda row: -row.macro_f1.value)
    figure = svg_plots.plot_intervals(
        [(row.label, row.macro_f1, row.kind) for row in rows], "macro-F1, mean over seeds"
    )
    says = (
        f"Test macro-F1 of about {rows[0].test_products} products a seed. The natural prior weights each category to "
        "its share of the catalogue. Worst recall is that of the category found least often.",
    )
    return Section(
        "Scores", says, (_score_table(rows), _category_table(rows)), (("Macro-F1 with its interval", figure),)
    )


def _score_table(rows: Sequence[ScoreRow]) -> Table:
    return Table(
        "Mean over seeds with its 95 % interval",
        ("", "macro-F1", "accuracy", "worst recall", "macro-F1, natural prior", "weights trained", "train s"),
        tuple(
            (
                row.label,
                *(shown(each) for each in (row.macro_f1, row.accuracy, row.worst_recall, row.natural_macro_f1)),
                f"{row.weights_trained:,}" if row.weights_trained else "",
                f"{row.train_seconds:.0f}" if row.train_seconds else "",
            )
            for row in rows
        ),
    )


def _category_table(rows: Sequence[ScoreRow]) -> Table:
    names = list(rows[0].per_category)
    cells = tuple((row.label, *(shown(row.per_category[name]) for name in names)) for row in rows)
    return Table("F1 a category", ("", *names), cells)


def _pairs(results: Results) -> Section | None:
    return _compared(results, "families", "Do the families differ?")


def _compared(results: Results, group: str, title: str, before: tuple[str, ...] = ()) -> Section | None:
    pairs = [pair for pair in results.pairs if pair.group == group]
    if not pairs:
        return None
    rows = tuple(
        (
            f"{pair.a} − {pair.b}",
            shown(pair.test.difference, signed=True),
            shown(pair.test.over_seeds, signed=True),
            p_value(pair.test.p_bootstrap_holm),
            f"{p_value(pair.test.p_mcnemar_holm)} ({p_value(pair.test.p_mcnemar_mid_holm)})",
            f"{pair.test.only_a_right} : {pair.test.only_b_right}",
            f"{100 * pair.test.detectable_macro_f1:.1f}",
        )
        for pair in pairs
    )
    columns = (
        "pair",
        "difference of macro-F1 (products resampled)",
        "the same over seeds",
        "p, bootstrap",
        "p, exact McNemar (mid-p)",
        "one alone is right",
        "detectable, points",
    )
    says = (
        *before,
        "Both models of a pair answered the same products in every seed. The interval resamples products within their "
        "category, with all their appearances in all seeds; p-values are corrected by Holm's method over the "
        f"{len(pairs)} pairs. McNemar's test counts each product once. The last column is the smallest difference that "
        "would be found four times in five with this many products: what is smaller may exist unseen.",
    )
    words = Table("In words", ("",), tuple((pair.words,) for pair in pairs))
    figure = svg_plots.plot_intervals(
        [(f"{pair.a} − {pair.b}", pair.test.difference, "pair") for pair in pairs], "difference of macro-F1", zero=True
    )
    return Section(title, says, (Table("Pairs", columns, rows), words), (("Differences with their intervals", figure),))


def _leak(results: Results) -> Section | None:
    if not results.leak:
        return None
    rows = tuple(
        (
            f"{row.label}: {score.category}",
            shown(score.holdout),
            shown(score.study),
            shown(score.difference, signed=True),
            *(share(each) for each in (leak.copied, leak.accuracy_copied, leak.accuracy_others, leak.right_by_copy)),
        )
        for row in results.leak
        for score, leak in zip(row.scores, row.leaks, strict=True)
    )
    columns = (
        *("", "F1, holdout", "F1, study (LEAKS)", "change", "tested with a copy", "right with a copy"),
        *("right without", "of the right, with a copy"),
    )
    says = (
        "The original protocol repeats small categories before it splits, and selects on its test rows. The same "
        "configurations under both protocols; a copy is a near-duplicate in training, and `all` is macro-F1. The "
        "protocols test other products, so the change is one of protocols, with Welch's interval.",
    )
    return Section("What the leak is worth", says, (Table("Both protocols, means over seeds", columns, rows),))


def _ablation(results: Results) -> Section | None:
    rows = [row for row in results.rows if row.kind == "mechanism"]
    if not rows:
        return None
    rows = sorted(rows, key=lambda row: -row.macro_f1.value)
    before = (
        "One frozen vision tower with kept tokens, and only the fusion exchanged: the same number of weights to 10 %, "
        "the same data, order, optimiser, steps and learning rates to choose from. This, and not the comparison of the "
        "families, can speak of the mechanism: families differ in much else.",
    )
    compared = _compared(results, "mechanisms", "What the attention mechanism contributes", before)
    figure = svg_plots.plot_intervals(
        [(row.label, row.macro_f1, row.kind) for row in rows], "macro-F1, mean over seeds"
    )
    tables, figures = (compared.tables, compared.figures) if compared else ((), ())
    return Section(
        "What the attention mechanism contributes",
        compared.says if compared else before,
        (_score_table(rows), *tables),
        (("Macro-F1 with its interval", figure), *figures),
    )


def _runs(results: Results) -> Section:
    rows = tuple((f"{row.label} ({row.protocol})", *_ids(row)) for row in results.rows)
    says = (f"Every figure above is computed from these runs, below the run {results.run_id}.",)
    return Section("Runs", says, (Table("Seed: run", ("", "runs"), rows),))


def _ids(row: ScoreRow) -> tuple[str]:
    return (", ".join(f"{seed}: {run_id}" for seed, run_id in zip(row.seeds, row.run_ids, strict=True)),)
