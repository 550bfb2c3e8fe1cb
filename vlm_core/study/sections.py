"""A study's results as the sections of its report, for the HTML file and the dashboard alike."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from vlm_core.config.presets import MECHANISM_LEARNING_RATES
from vlm_core.evaluation.paired import SIGNIFICANT
from vlm_core.evaluation.seeds import few_seeds
from vlm_core.evaluation.subgroups import THIN
from vlm_core.study import fusion_section, measurement_sections
from vlm_core.study.formatting import UNKNOWN, format_count, format_estimate, format_number, p_value
from vlm_core.study.plan import GIVEN, LEAKING, MECHANISM
from vlm_core.study.report_contents import IntervalPlot, LeakPlot, Section, Table, Tile, linked_row
from vlm_core.study.results import PairRow, Results, ScoreRow, is_simple_baseline


def make_sections(results: Results) -> list[Section]:
    """Return the sections that the results have content for, in the order of the report."""
    makers: tuple[Callable[[Results], Section | None], ...] = (
        _overview,
        _scores,
        _pairs,
        _held_out,
        _leak,
        _ablation,
        measurement_sections.faithfulness,
        measurement_sections.robustness,
        measurement_sections.calibration,
        measurement_sections.gaps,
        measurement_sections.decoding,
        measurement_sections.cost,
        measurement_sections.label_audit,
        measurement_sections.continual,
        fusion_section.fusion,
        _runs,
    )
    return [section for make in makers if (section := make(results)) is not None]


_OWN_SPLITS: Final = (
    "A seed sets the split, the initialisation, the order and the augmentation. Near-duplicates never lie on both "
    "sides of a split."
)
_GIVEN_PARTS: Final = (
    "A seed sets the initialisation, the order and the augmentation; the parts are those that the catalogue has, the "
    "same in all seeds, so intervals over seeds are of trainings alone."
)


def _keeps_parts(results: Results) -> bool:
    return results.settings.get("protocols") == GIVEN


def _overview(results: Results) -> Section:
    settings, machine = defaultdict(lambda: UNKNOWN, results.settings), defaultdict(lambda: UNKNOWN, results.machine)
    seeds = settings["seeds"]
    paragraphs = (
        f"Catalogue {results.catalogue}, label {settings['label']}, {len(results.categories)} categories: "
        f"{', '.join(results.categories)}.",
        f"{seeds} seed{'s' * (seeds != '1')}. {_GIVEN_PARTS if _keeps_parts(results) else _OWN_SPLITS} Only training "
        "is balanced, models are selected on validation, and each run reads its test split once. Means over seeds have "
        "a 95 % interval: Student's t, on the logit scale for scores between 0 and 1.",
        f"No family was tuned: all use the settings of the preset {settings['preset']}, so a family that these "
        "settings happen to suit has an advantage. The baselines tune a little on validation (HOG + colour its "
        "regularisation, nearest neighbours their number), and the mechanisms of the ablation their learning rate.",
        f"Machine: {machine['cpu']}, {machine['cores']} cores; PyTorch {machine['torch']}, Transformers "
        f"{machine['transformers']}; code {machine['git_commit'][:12]}.",
    )
    failures = tuple(f"{key}: {error}" for key, error in results.failed.items())
    return Section("overview", "Overview", paragraphs, _tiles(results), failures)


def _tiles(results: Results) -> tuple[Tile, ...]:
    compared = [pair for pair in results.pairs if pair.group != "held_out"]  # which has pairs of families once more
    significant = sum(min(pair.test.p_bootstrap_holm, pair.test.p_mcnemar_holm) < SIGNIFICANT for pair in compared)
    seeds = results.settings.get("seeds", UNKNOWN)
    own_split = "all on the given parts" if _keeps_parts(results) else "each with a split of its own"
    cells = Tile("Runs in these results", f"{results.cells_finished} of {results.cells_planned}")
    pairs = f"{significant} of {len(compared)}"
    tiles = (
        cells if results.cells_planned else None,
        Tile("Seeds", seeds, "too few for intervals" if seeds.isdecimal() and few_seeds(int(seeds)) else own_split),
        Tile("Categories", str(len(results.categories)), results.catalogue),
        _best_tile(results),
        Tile("Significant differences", pairs, "pairs, in macro-F1 or accuracy, Holm-corrected") if compared else None,
    )
    return tuple(filter(None, tiles))


def _best_tile(results: Results) -> Tile | None:
    rows = _best_first(results, "family", "baseline")
    if not rows:
        return None
    of_which = f", {_headline(results)}" if results.thin else ""
    return Tile("Best macro-F1", rows[0].label, format_estimate(rows[0].headline_macro_f1) + of_which)


def _best_first(results: Results, *kinds: str) -> list[ScoreRow]:
    """Return the configurations of these kinds under the honest protocol."""
    rows = [row for row in results.scores if row.kind in kinds and row.protocol != LEAKING]
    return sorted(rows, key=lambda row: -row.headline_macro_f1.value)


def _scores(results: Results) -> Section | None:
    rows = _best_first(results, "family", "baseline")
    if not rows:
        return None
    paragraph = (
        f"Scores on about {rows[0].test_products:,} test products per seed; means over seeds with their 95 % interval. "
        "The natural prior weights each category by its share of the catalogue. Worst recall is that of the category "
        "with the lowest recall. Predictions of nearest neighbours and the majority are stored in the runs of the "
        "probe whose features they use."
    )
    too_few = few_seeds(min(len(row.seeds) for row in rows))
    paragraphs = tuple(filter(None, (paragraph, _thin_paragraph(results), too_few)))
    tables = (_score_table(results, rows), _category_table(rows))
    return Section("scores", "Scores", paragraphs, plots=(_score_plot(rows),), tables=tables)


def _thin_paragraph(results: Results) -> str:
    """Say which categories the headline leaves out, and what the intervals are of; "" where it leaves out none."""
    if not results.thin:
        return ""
    counts = ", ".join(f"{name} ({count})" for name, count in results.thin.items())
    return (
        f"The headline, and every test of pairs, is of {_headline(results)}: with fewer than {THIN} test products a "
        f"category's F1 is nearly chance. Left out, with the test products of the seed that has fewest: {counts}. "
        "Seeds only shuffle such a category's few products between validation and test, so no interval over seeds says "
        "how its F1 would be on others."
    )


def _headline(results: Results) -> str:
    count = len(results.categories) - len(results.thin)
    return f"{count} of {len(results.categories)} categories" if results.thin else f"all {count} categories"


def _score_plot(rows: Sequence[ScoreRow]) -> IntervalPlot:
    points = tuple((row.label, row.headline_macro_f1) for row in rows)
    return IntervalPlot("Macro-F1 with its interval", "macro-F1, mean over seeds", points)


def _score_table(results: Results, rows: Sequence[ScoreRow]) -> Table:
    of_all = ("Macro-F1, all categories",) if results.thin else ()
    columns = (
        *("Configuration", "Seeds", "Macro-F1", *of_all, "Accuracy", "Worst recall", "Macro-F1, natural prior"),
        *("Trained weights", "Training, s"),
    )
    body = tuple(
        linked_row(
            row.label,
            _own_runs(row),
            str(len(row.seeds)),
            format_estimate(row.headline_macro_f1),
            *(format_estimate(row.macro_f1) for _ in of_all),
            *(format_estimate(each) for each in (row.accuracy, row.worst_recall, row.natural_macro_f1)),
            format_count(row.weights_trained),
            format_number(row.train_seconds or None, ".0f"),
        )
        for row in rows
    )
    return Table("Mean over seeds with its 95 % interval", columns, body)


def _category_table(rows: Sequence[ScoreRow]) -> Table:
    categories = tuple(rows[0].per_category)
    body = tuple(
        linked_row(row.label, _own_runs(row), *(format_estimate(row.per_category.get(name)) for name in categories))
        for row in rows
    )
    return Table("F1 per class", ("Configuration", *categories), body)


def _own_runs(row: ScoreRow) -> tuple[str, ...]:
    """Return the runs of the configuration; () for a baseline on the features of another one's runs."""
    return () if is_simple_baseline(row) else row.run_ids


def _pairs(results: Results) -> Section | None:
    pairs = [pair.better_first() for pair in results.pairs if pair.group == "families"]
    return _pair_section("pairs", "Do the families differ?", pairs) if pairs else None


def _held_out(results: Results) -> Section | None:
    rows = sorted(results.held_out, key=lambda row: -row.macro_f1.value)
    if not rows:
        return None
    support = ", ".join(f"{name} {count:,}" for name, count in rows[0].support.items())
    tested = max((score.test_products for score in results.scores), default=0)
    more = f"The test split has {tested:,}: with more products, smaller differences show. "
    paragraph = (
        f"The same models on every product that may be evaluated and that neither training nor validation has, nor a "
        f"near-copy of it: {rows[0].products:,} products in the first seed ({support}). "
        f"{more if rows[0].products > tested else ''}Unweighted, each product counts once; weighted, each category "
        "counts as much as its share of the catalogue. Seeds share nearly all of these products: the interval over "
        "seeds is of trainings, not of other products."
    )
    columns = (*("Configuration", "Macro-F1", "Accuracy", "Macro-F1, weighted", "Accuracy, weighted"),)
    body = tuple(
        linked_row(
            row.label,
            row.run_ids,
            *map(format_estimate, (row.macro_f1, row.accuracy, row.natural_macro_f1, row.natural_accuracy)),
        )
        for row in rows
    )
    table = Table("Means over seeds with their 95 % interval", columns, body)
    pairs = [pair.better_first() for pair in results.pairs if pair.group == "held_out"]
    if not pairs:
        return Section("held_out", "All held-out products", (paragraph,), tables=(table,))
    compared = _pair_section("held_out", "All held-out products", pairs)
    return replace(compared, paragraphs=(paragraph, *compared.paragraphs), tables=(table, *compared.tables))


def _pair_section(key: str, title: str, pairs: Sequence[PairRow]) -> Section:
    columns = (
        "A − B",
        "Difference of macro-F1",
        "Difference over seeds",
        "Corrected p, bootstrap",
        "Corrected p, exact McNemar (mid-p)",
        "Only A correct : only B correct",
        "Detectable, points",
    )
    paragraph = (
        "Both models of a pair predicted the same products in every seed; A is the one that scores higher. The "
        "interval resamples products within their category, with all their predictions in all seeds. McNemar's test "
        "compares accuracies, and counts each product once. The p-values of both tests are corrected together by "
        f"Holm's method, over the {len(pairs)} pair{'s' * (len(pairs) != 1)} of this table, and the intervals over "
        "seeds by Bonferroni's: with 95 % confidence, all of them hold at once. The last "
        "column is the smallest difference that would be found in four of five cases with this many products; smaller "
        "ones may go unnoticed."
    )
    plot = IntervalPlot(
        "Differences with their intervals",
        "difference of macro-F1",
        tuple((f"{pair.a} − {pair.b}", pair.test.difference) for pair in pairs),
        differences=True,
    )
    return Section(
        key,
        title,
        (paragraph,),
        conclusions=tuple(pair.conclusion for pair in pairs),
        plots=(plot,),
        tables=(Table("Pairs", columns, tuple(_pair_cells(pair) for pair in pairs)),),
    )


def _pair_cells(pair: PairRow) -> tuple[str, ...]:
    test = pair.test
    return (
        f"{pair.a} − {pair.b}",
        format_estimate(test.difference, "+.3f"),
        format_estimate(test.over_seeds, "+.3f"),
        p_value(test.p_bootstrap_holm),
        f"{p_value(test.p_mcnemar_holm)} ({p_value(test.p_mcnemar_mid_holm)})",
        f"{test.only_a_correct} : {test.only_b_correct}",
        format_number(100 * test.detectable_macro_f1, ".1f"),
    )


def _leak(results: Results) -> Section | None:
    if not results.leak:
        return None
    columns = (
        *("Configuration", "Category", "F1, holdout", "F1, original (leaks)", "Change", "Products with a copy"),
        *("Accuracy with a copy", "Accuracy without", "Correct predictions with a copy"),
    )
    body = tuple(
        linked_row(
            row.label,
            row.run_ids,
            score.category,
            format_estimate(score.holdout),
            format_estimate(score.original),
            format_estimate(score.difference, "+.3f"),
            *(
                format_number(share, ".1%")
                for share in (leak.copied, leak.accuracy_copied, leak.accuracy_others, leak.correct_with_copy)
            ),
        )
        for row in results.leak
        for score, leak in zip(row.scores, row.leaks, strict=True)
    )
    paragraph = (
        "The original protocol repeats products of small categories before it splits, and selects models on its test "
        "rows. Here are the same configurations under both protocols, as means over seeds; “all” is macro-F1. A copy "
        "is a near-duplicate in training; the last column is the share of the correct predictions whose product has "
        "one. The protocols test different products, so the change compares protocols, with Welch's interval."
    )
    plot = LeakPlot("F1 under both protocols", results.leak)
    table = Table("Both protocols, means over seeds", columns, body)
    return Section("leak", "Effect of the leak", (paragraph,), plots=(plot,), tables=(table,))


def _ablation(results: Results) -> Section | None:
    rows = _best_first(results, "mechanism")
    if not rows:
        return None
    title = "What the attention mechanism contributes"
    main, controls = (
        [pair.better_first() for pair in results.pairs if pair.group == group] for group in ("mechanisms", "controls")
    )
    compared = _pair_section("ablation", title, main) if main else Section("ablation", title, ())
    beside = _pair_section("ablation", title, controls) if controls else Section("ablation", title, ())
    return Section(
        "ablation",
        title,
        tuple(filter(None, (*_described(results, rows), *compared.paragraphs))),
        conclusions=(*compared.conclusions, *beside.conclusions),
        plots=(_score_plot(rows), *compared.plots, *beside.plots),
        tables=(
            _score_table(results, rows),
            _category_table(rows),
            *compared.tables,
            *(replace(table, title="Controls, each beside its mechanism") for table in beside.tables),
        ),
    )


_ABLATION: Final = (
    "A frozen vision tower with cached tokens; only the part after it is replaced, with the same number of weights "
    "within 5 %, the same data, order, optimiser, steps and candidate learning rates. Only this ablation can say what "
    "the mechanism contributes; the families differ in much else. All mechanisms of the main comparison read every "
    "token, the class token included. Controls ask what a difference comes from. Patches only: from the class token, "
    "which pretraining may have filled. Penultimate layer: from the attention of the tower's own last block. Uniform "
    "and shuffled weights: from where attention looks. One head row: from what the category names say; there a "
    "category is told from others by its name's vector alone, its own, a random one, or another category's."
)
# Earlier versions did not name the tower.
_FORMER_ABLATION: Final = (
    "One frozen vision tower with cached tokens; only the part after it is replaced. This study is of an earlier "
    "version: all mechanisms but class-token read the patches alone, without the token into which pretraining may have "
    "put everything, so a difference may be that token's and not the mechanism's. Run the study again for the "
    "comparison in which all of them read it."
)
# control, as its label says, and what it asks for
_QUESTIONS: Final = (
    ("patches only", "without the class token"),
    ("penultimate layer", "without the tower's last block"),
    ("uniform weights", "with uniform attention weights"),
    ("shuffled weights", "with attention weights on other tokens"),
    ("random names", "with random vectors for names"),
    ("exchanged names", "with the names of other categories"),
)


def _described(results: Results, rows: Sequence[ScoreRow]) -> tuple[str, ...]:
    if not any("@" in row.configuration for row in rows):
        return (_FORMER_ABLATION,)
    return _ABLATION, _contribution(results), _chosen_rates(rows)


def _contribution(results: Results) -> str:
    """Say in one paragraph how many mechanisms differ, and what each kind of control changes."""
    main = [pair for pair in results.pairs if pair.group == "mechanisms"]
    if not main:
        return ""
    largest = max(abs(pair.test.difference.value) for pair in main)
    detectable = max(pair.test.detectable_macro_f1 for pair in main)
    parts = [
        f"Of {_pairs_counted(main)} of mechanisms that read every token, {_differing(main)} in macro-F1; the largest "
        f"difference is {100 * largest:.1f} points, and {100 * detectable:.1f} points would be found in four of five "
        "cases."
    ]
    for mark, change in _QUESTIONS:
        asked = [pair for pair in results.pairs if pair.group == "controls" and mark in pair.b]
        if asked:
            mean = sum(pair.test.difference.value for pair in asked) / len(asked)
            parts.append(
                f"A mechanism {change} scores {abs(100 * mean):.1f} points {'less' if mean >= 0 else 'more'} on "
                f"average ({len(asked)} compared, of which {_differing(asked)})."
            )
    towers = {row.configuration.partition("@")[2].partition("/")[0] for row in results.scores if row.model == MECHANISM}
    scope = (
        "This is one tower: another may give another result."
        if len(towers) == 1
        else (f"This is over {len(towers)} towers; the tables have each.")
    )
    return " ".join([*parts, scope])


def _pairs_counted(pairs: Sequence[PairRow]) -> str:
    return f"{len(pairs)} pair{'s' * (len(pairs) != 1)}"


def _differing(pairs: Sequence[PairRow]) -> str:
    count = sum(pair.test.p_bootstrap_holm < SIGNIFICANT for pair in pairs)
    return f"{count} differ{'s' * (count == 1)} significantly"


def _chosen_rates(rows: Sequence[ScoreRow]) -> str:
    """Say how often validation chose a learning rate at the edge of those it could choose from."""
    chosen = [rate for row in rows for rate in row.learning_rates]
    if not chosen:
        return ""
    low, high = min(MECHANISM_LEARNING_RATES), max(MECHANISM_LEARNING_RATES)
    edge = sum(rate in (low, high) for rate in chosen)
    return (
        f"Validation chose among {len(MECHANISM_LEARNING_RATES)} learning rates from {low:g} to {high:g}, and the "
        f"smallest or largest in {edge} of {len(chosen)} runs."
    )


def _runs(results: Results) -> Section | None:
    if not results.scores:
        return None
    body = tuple(
        linked_row(
            row.label,
            _own_runs(row),
            row.protocol if row.protocol != LEAKING else f"{row.protocol} (leaks)",
            ", ".join(f"{seed}: {run_id}" for seed, run_id in zip(row.seeds, row.run_ids, strict=True)),
        )
        for row in results.scores
    )
    paragraph = f"All numbers above are computed from these runs, which are children of run {results.run_id}."
    return Section(
        "runs", "Runs", (paragraph,), tables=(Table("Runs", ("Configuration", "Protocol", "Seed: run"), body),)
    )
