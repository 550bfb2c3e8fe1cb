"""Sections of a report that look closer at the models that were compared most closely."""

from __future__ import annotations

from collections import Counter
from typing import Final

from vlm_core.study import svg_plots
from vlm_core.study.formatting import Section, Table, interval, p_value, shown
from vlm_core.study.results import Results

LABELS: Final = "Labels that look wrong"


def robustness(results: Results) -> Section | None:
    """How much spoilt pictures cost."""
    if not results.robustness:
        return None
    names = list(results.robustness[0].drops)
    rows = tuple(
        (row.label, shown(row.mean_drop, percent=True), *(f"{row.drops[name].value:.1%}" for name in names))
        for row in results.robustness
    )
    figure = svg_plots.plot_severities({row.label: row.by_severity for row in results.robustness})
    says = (
        "Relative drop of test macro-F1 on spoilt pictures, mean over three severities and the seeds; none was trained "
        "on. Below zero: better than on clean pictures.",
    )
    table = Table("Relative drop", ("", "mean drop", *names), rows)
    return Section("Robustness", says, (table,), (("Relative drop by severity", figure),))


def calibration(results: Results) -> Section | None:
    """What probabilities are worth, and whether they tell the unknown."""
    if not results.calibration:
        return None
    rows = tuple(
        (
            row.label,
            *(shown(each) for each in (row.temperature, row.ece, row.ece_scaled, row.nll, row.nll_scaled, row.aurc)),
            *("" if each is None else shown(each) for each in (row.auroc_unknown, row.auroc_products)),
        )
        for row in results.calibration
    )
    columns = (
        "",
        "temperature",
        "ECE",
        "ECE, scaled",
        "NLL",
        "NLL, scaled",
        "AURC",
        "AUROC over seeds",
        "AUROC, one seed",
    )
    says = (
        "Temperature is fitted on validation (Guo et al. 2017). AURC is the area under the risk-coverage curve, lower "
        "is better. AUROC is of telling, by confidence, products of known categories from "
        f"{results.calibration[0].unknown} of categories that no model was trained on; 0.5 is guessing. Its first "
        "interval is over seeds, which all see the same unknown products; the second is DeLong's over products, of "
        "one seed.",
    )
    figure = svg_plots.plot_risk({row.label: (row.coverage, row.risk) for row in results.calibration})
    return Section(
        "Calibration and the unknown",
        says,
        (Table("Means over seeds", columns, rows),),
        (("Risk and coverage", figure),),
    )


def attention(results: Results) -> Section | None:
    """Whether maps show what models go by, and what each layer's attention is like."""
    if not results.faithfulness:
        return None
    curves = {
        f"{label}: {name}": {each["map"]: (found["shares"], each[name]) for each in found["curves"]}
        for label, found in results.faithfulness.items()
        for name in ("deletion", "insertion")
    }
    n = next(iter(results.faithfulness.values()))["n"]
    says = (
        f"Maps of {n} test products of the first seed, by each family's own mechanism (raw) and weighted by gradients "
        "(Chefer et al. 2021). Cells of a grid take the mean colour, most important first (deletion: low is good), "
        "or come back (insertion: a high one is). Controls: a random order, nearness to the centre, and the map of "
        "another picture.",
    )
    verdicts = tuple((each["verdict"],) for found in results.faithfulness.values() for each in found["comparisons"])
    words = Table("In words", ("",), verdicts)
    tables = (words, _area_table(results), _randomised_table(results), _mechanism_table(results))
    figure = svg_plots.plot_curves(curves)
    return Section("What attention maps are worth", says, tables, (("Deletion and insertion", figure),))


def _area_table(results: Results) -> Table:
    rows = tuple(
        (f"{label}: {each['map']}", interval(each["deletion_area"]), interval(each["insertion_area"]))
        for label, found in results.faithfulness.items()
        for each in found["curves"]
    )
    return Table("Area under the curves, mean over pictures", ("", "deletion", "insertion"), rows)


def _randomised_table(results: Results) -> Table:
    rows = tuple(
        (f"{label}: {each['method']}", interval(each["correlation"]))
        for label, found in results.faithfulness.items()
        for each in found["randomised"]
    )
    return Table("Likeness to the map of shuffled weights (Adebayo et al. 2018)", ("", "Spearman's correlation"), rows)


def _mechanism_table(results: Results) -> Table:
    names = ("relative_entropy", "distance_share", "class_share", "product_share", "product_area", "head_diversity")
    rows = tuple(
        (
            f"{label}: {layer['name']}, {layer['kind']}",
            *("" if layer[name] is None else f"{layer[name]:.3f}" for name in names),
        )
        for label, layers in results.mechanism.items()
        for layer in layers
    )
    columns = (
        "entropy (1: even)",
        "distance (share of side)",
        "on the class token",
        "on the product",
        "product's area",
    )
    return Table("Each layer's attention", ("", *columns, "head diversity"), rows)


def gaps(results: Results) -> Section | None:
    """How unequally products are served."""
    if not results.gaps:
        return None
    gaps = tuple(
        (
            f"{row.label}: {gap.attribute}",
            f"{gap.best} − {gap.worst}",
            shown(gap.accuracy_gap),
            p_value(gap.p_holm),
            p_value(gap.p_within_categories),
        )
        for row in results.gaps
        for gap in row.gaps
        if gap.best
    )
    values = tuple(
        (
            f"{row.label}: {gap.attribute} {value.value or 'not given'}" + (" (thin)" if value.thin else ""),
            f"{value.n:,}",
            shown(value.accuracy),
            f"{value.macro_f1:.3f}",
        )
        for row in results.gaps
        for gap in row.gaps
        for value in gap.values
    )
    says = (
        "Accuracy of the best served value less that of the worst. Each product counts once over the seeds; values "
        "with fewer than 20 products are thin and left out. Subgroups hold different categories, some harder than "
        "others: the last p-value is of a difference that is left within categories.",
    )
    columns = ("", "best and worst", "gap (95 %)", "p, Holm", "p within categories")
    tables = (Table("Gaps", columns, gaps), Table("Values", ("", "n", "accuracy (95 %)", "macro-F1"), values))
    return Section("Subgroup gaps", says, tables)


def labels(results: Results) -> Section | None:
    """Products whose label looks wrong."""
    labels = results.labels
    if labels is None:
        return None
    counts = Counter(suspect.given for suspect in labels.suspects)
    without = tuple(
        (label, f"{each.left_out}", shown(each.before), shown(each.after)) for label, each in labels.without.items()
    )
    says = (
        f"Confident learning (Northcutt et al. 2021) on out-of-fold probabilities of a logistic regression over frozen "
        f"features of {labels.encoder} (macro-F1 {labels.macro_f1:.3f}): of {labels.audited:,} products "
        f"{len(labels.suspects):,} have a label that looks wrong. They are candidates, not errors: what is hard looks "
        "wrong, and a category of price, such as Free Items, does by construction. Macro-F1 may rise without them even "
        "where every label is right. `labels.csv` lists all; the worst are shown.",
    )
    columns = ("", "left out", "all", "without those")
    tables = (
        Table("Test macro-F1 of the first seed", columns, without),
        Table("Suspects, by given category", ("", "products"), tuple((n, f"{c:,}") for n, c in counts.most_common())),
    )
    return Section(LABELS, says, tables)


def rules(results: Results) -> Section | None:
    """Ways from written text to a category."""
    if not results.rules:
        return None
    rows = tuple(
        (
            f"{row.label}: {name}",
            *(f"{each:.3f}" for each in (rule.macro_f1, rule.accuracy)),
            *(
                "" if each is None else f"{each:.1%}"
                for each in (rule.unknown_rate, rule.coverage, rule.covered_accuracy)
            ),
        )
        for row in results.rules
        for name, rule in row.rules.items()
    )
    columns = ("", "macro-F1", "accuracy", "unknown", "coverage", "right of the covered")
    says = (
        "Models that learnt to write the category's name, asked in several ways; an Unknown Category counts as wrong.",
    )
    return Section("Decision rules of models that write", says, (Table("Means over seeds", columns, rows),))


def cost(results: Results) -> Section | None:
    """What an answer costs, and who is worth it."""
    if not results.cost:
        return None
    trained = {row.label: row for row in results.rows if row.protocol == "holdout"}
    rows = tuple(
        (
            row.label,
            f"{row.macro_f1:.3f}",
            f"{row.cost.weights:,}",
            f"{trained[row.label].weights_trained:,}",
            "" if row.cost.flops is None else f"{row.cost.flops / 1e9:.3f}",
            f"{1000 * row.cost.p50_seconds:.1f} / {1000 * row.cost.p95_seconds:.1f}",
            f"{row.cost.pictures_a_second:.0f}",
            f"{row.cost.peak_mib:.0f}",
            f"{trained[row.label].train_seconds:.0f}",
            "yes" if row.on_front else "",
        )
        for row in results.cost
    )
    columns = ("", "macro-F1", "weights", "trained", "GFLOP a picture", "p50 / p95, ms", "pictures a second at 32")
    figure = svg_plots.plot_costs(
        [(row.label, row.cost.p50_seconds, row.macro_f1, row.on_front) for row in results.cost]
    )
    says = (f"Threads: {results.cost[0].cost.threads}. Measured one after the other, with no run beside them.",)
    table = Table("Cost of an answer", (*columns, "peak MiB over the model", "train s", "on the front"), rows)
    return Section("Cost", says, (table,), (("Score against latency", figure),))
