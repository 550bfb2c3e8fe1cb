"""Sections on what was measured on the main models, beyond their scores."""

from __future__ import annotations

from collections import Counter
from typing import Final

from vlm_core.evaluation.gaps import Gap, ServedValue
from vlm_core.evaluation.seeds import few_seeds
from vlm_core.study.formatting import UNKNOWN, format_count, format_estimate, format_number, p_value
from vlm_core.study.plan import LEAKING
from vlm_core.study.report_contents import (
    CostPlot,
    FaithfulnessPlot,
    IntervalPlot,
    RiskPlot,
    RobustnessPlot,
    Section,
    Table,
    TableCell,
    linked_row,
)
from vlm_core.study.results import CostRow, Results, ScoreRow

MOST_SUSPECTS: Final = 36  # to show as pictures


def robustness(results: Results) -> Section | None:
    """Return the section on scores of corrupted images."""
    if not results.robustness:
        return None
    corruptions = tuple(results.robustness[0].drops)
    body = tuple(
        linked_row(
            row.label,
            row.run_ids,
            format_estimate(row.mean_drop, ".1%"),
            *(format_number(row.drops[name].value, ".1%") for name in corruptions),
        )
        for row in results.robustness
    )
    paragraph = (
        "Relative drop of test macro-F1 on corrupted images, mean over three severities and the seeds. No model was "
        "trained on these corruptions. Below zero: better than on clean images."
    )
    return Section(
        "robustness",
        "Robustness",
        (paragraph,),
        plots=(RobustnessPlot("Relative drop by corruption and severity", results.robustness),),
        tables=(Table("Relative drop", ("Configuration", "Mean drop", *corruptions), body),),
    )


def calibration(results: Results) -> Section | None:
    """Return the section on calibration, selective prediction and unknown categories."""
    if not results.calibration:
        return None
    columns = (
        *("Configuration", "Temperature", "ECE", "ECE, scaled", "NLL", "NLL, scaled", "AURC"),
        *("AUROC, over seeds", "AUROC, over products", "Out-of-distribution products"),
    )
    body = tuple(
        linked_row(
            row.label,
            row.run_ids,
            *map(format_estimate, (row.temperature, row.ece, row.ece_scaled, row.nll, row.nll_scaled, row.aurc)),
            format_estimate(row.auroc_unknown),
            format_estimate(row.auroc_products),
            format_count(row.unknown),
        )
        for row in results.calibration
    )
    paragraph = (
        "The temperature is fitted on validation (Guo et al. 2017). AURC is the area under the risk-coverage curve; "
        "lower is better. AUROC: how well confidence separates products of known categories from products of "
        "others, which no model was fine-tuned on and no weights known here may have been pretrained on; 0.5 is "
        "chance. Its first interval is over seeds, which all see the same unknown products; "
        "the second is DeLong's over the products of one seed."
    )
    return Section(
        "calibration",
        "Calibration and out-of-distribution detection",
        (paragraph,),
        plots=(RiskPlot("Risk over coverage, first seed", results.calibration),),
        tables=(Table("Means over seeds", columns, body),),
    )


def faithfulness(results: Results) -> Section | None:
    """Return the section on attention maps and on each layer's attention."""
    measured = results.faithfulness
    if not measured:
        return None
    paragraph = (
        f"Maps of {next(iter(measured.values())).n} test products of the first seed: each family's own attention (raw) "
        "and attention weighted by gradients (Chefer et al. 2021). Grid cells are replaced by the mean colour, the "
        "most relevant first (deletion: a small area is good), or restored (insertion: a large area is good). The "
        "controls, in grey, are a random order, the distance from the centre, and the map of another image."
    )
    tables = (_area_table(results), _randomisation_table(results), _layer_table(results))
    return Section(
        "faithfulness",
        "Faithfulness of attention maps",
        (paragraph,),
        conclusions=tuple(each.verdict for model in measured.values() for each in model.comparisons),
        plots=(FaithfulnessPlot("Deletion and insertion", measured),),
        tables=tuple(table for table in tables if table.rows),
    )


def _area_table(results: Results) -> Table:
    body = tuple(
        (label, curves.map, format_estimate(curves.deletion_area), format_estimate(curves.insertion_area))
        for label, model in results.faithfulness.items()
        for curves in model.curves
    )
    return Table("Area under the curves, mean over images", ("Configuration", "Map", "Deletion", "Insertion"), body)


def _randomisation_table(results: Results) -> Table:
    body = tuple(
        (label, check.method, format_estimate(check.correlation))
        for label, model in results.faithfulness.items()
        for check in model.randomised
    )
    title = "Similarity to the map of randomised weights (Adebayo et al. 2018)"
    return Table(title, ("Configuration", "Map", "Spearman's correlation"), body)


def _layer_table(results: Results) -> Table:
    columns = (
        *(
            "Configuration",
            "Layer",
            "Queries",
            "Entropy, nats",
            "Share of maximum entropy",
            "Distance, patches",
            "Distance / side",
        ),
        *("On class token", "On product", "Product's area", "Head diversity"),
    )
    body = tuple(
        (
            label,
            layer.name,
            layer.kind,
            *(
                format_number(value)
                for value in (
                    layer.entropy,
                    layer.relative_entropy,
                    layer.distance_patches,
                    layer.distance_share,
                    layer.class_share,
                    layer.product_share,
                    layer.product_area,
                    layer.head_diversity,
                )
            ),
        )
        for label, layers in results.layers.items()
        for layer in layers
    )
    return Table("Attention of each layer", columns, body)


def gaps(results: Results) -> Section | None:
    """Return the section on differences between subgroups of products."""
    if not results.gaps:
        return None
    paragraph = (
        "Accuracy of an attribute's best value less that of its worst. Each product counts once over the seeds; values "
        "with fewer than 20 products are marked * and left out of the gap. Subgroups contain different categories, "
        "some harder than others: the last p-value tests the gap that is left within categories."
    )
    rows = [(row, gap) for row in results.gaps for gap in row.gaps]
    gap_columns = (
        "Configuration",
        "Attribute",
        "Best and worst",
        "Accuracy gap",
        "Corrected p",
        "p within categories",
    )
    value_columns = ("Configuration", "Attribute", "Value", "Products", "Accuracy", "Macro-F1")
    tables = (
        Table("Gaps", gap_columns, tuple(linked_row(row.label, row.run_ids, *_gap_cells(gap)) for row, gap in rows)),
        Table(
            "Values",
            value_columns,
            tuple(
                linked_row(row.label, row.run_ids, gap.attribute, *_value_cells(value))
                for row, gap in rows
                for value in gap.values
            ),
        ),
    )
    return Section("gaps", "Subgroup gaps", (paragraph,), tables=tables)


def _gap_cells(gap: Gap) -> tuple[str, ...]:
    return (
        gap.attribute,
        f"{gap.best}, {gap.worst}" if gap.best else UNKNOWN,
        format_estimate(gap.accuracy_gap, ".1%"),
        p_value(gap.p_holm),
        p_value(gap.p_within_categories),
    )


def _value_cells(value: ServedValue) -> tuple[str, ...]:
    return (
        (value.value or "not given") + "*" * value.thin,
        f"{value.n:,}",
        format_estimate(value.accuracy, ".1%"),
        format_number(value.macro_f1),
    )


def decoding(results: Results) -> Section | None:
    """Return the section on ways from a generative model to a category."""
    if not results.decoding:
        return None
    body = tuple(
        linked_row(
            row.label,
            row.run_ids,
            rule,
            *map(format_number, (score.macro_f1, score.accuracy)),
            *(format_number(each, ".1%") for each in (score.unknown_rate, score.coverage, score.covered_accuracy)),
        )
        for row in results.decoding
        for rule, score in row.scores.items()
    )
    columns = ("Configuration", "Decoding", "Macro-F1", "Accuracy", "Unknown", "Coverage", "Accuracy where predicted")
    paragraph = (
        "Models trained to write the category's name, decoded in several ways. An Unknown Category counts as incorrect."
    )
    table = Table("Means over seeds", columns, body)
    return Section("decoding", "Decoding of generative models", (paragraph,), tables=(table,))


def cost(results: Results) -> Section | None:
    """Return the section on the cost of a prediction."""
    if not results.cost:
        return None
    scores = {row.label: row for row in results.scores if row.protocol != LEAKING}
    columns = (
        *(
            "Configuration",
            "Macro-F1",
            "Weights",
            "Trained",
            "GFLOP per image",
            "p50, ms",
            "p95, ms",
            "Images/s, batch 32",
        ),
        *("Peak MiB above the model", "Training, s", "On the Pareto front"),
    )
    paragraph = (
        "Latency is that of one image. The models were measured one after the other with nothing else running; "
        f"threads: {results.cost[0].cost.threads}. On the Pareto front (filled): no other model is both faster and "
        "better."
    )
    body = tuple(_cost_cells(row, scores.get(row.label)) for row in results.cost)
    return Section(
        "cost",
        "Cost",
        (paragraph,),
        plots=(CostPlot("Macro-F1 against latency", results.cost),),
        tables=(Table("Cost of a prediction", columns, body),),
    )


def _cost_cells(row: CostRow, score: ScoreRow | None) -> tuple[TableCell, ...]:
    cost = row.cost
    return linked_row(
        row.label,
        (row.run_id,),
        format_number(row.macro_f1),
        format_count(cost.weights),
        format_count(score.weights_trained if score else 0),
        format_number(None if cost.flops is None else cost.flops / 1e9),
        format_number(1000 * cost.p50_seconds, ".1f"),
        format_number(1000 * cost.p95_seconds, ".1f"),
        format_number(cost.images_per_second, ".0f"),
        format_number(cost.peak_mib, ".0f"),
        format_number(score.train_seconds if score else None, ".0f"),
        "yes" if row.on_front else "",
    )


def label_audit(results: Results) -> Section | None:
    """Return the section on products whose label looks wrong."""
    audit = results.label_audit
    if audit is None:
        return None
    counts = Counter(suspect.label for suspect in audit.suspects)
    without = tuple(
        (label, f"{each.left_out:,}", format_estimate(each.before), format_estimate(each.after))
        for label, each in audit.without.items()
    )
    paragraphs = (
        f"Labels that look wrong: {len(audit.suspects):,} of {audit.audited:,} products, by confident learning "
        "(Northcutt et al. 2021) on out-of-fold probabilities of a logistic regression over frozen features of "
        f"{audit.encoder} (macro-F1 {audit.macro_f1:.3f}).",
        "They are candidates, not errors: hard products look wrong too, and so does a category of price such as Free "
        "Items. Macro-F1 without them may rise even where every label is right. The file labels.csv beside the report "
        "lists all of them; the most suspicious are shown here.",
    )
    tables = (
        Table(
            "Test macro-F1 of the first seed",
            ("Configuration", "Left out", "All products", "Without the suspects"),
            without,
        ),
        Table(
            "Suspects by label",
            ("Label", "Products"),
            tuple((name, f"{count:,}") for name, count in counts.most_common()),
        ),
    )
    return Section(
        "label_audit",
        "Labels that look wrong",
        paragraphs,
        tables=tuple(table for table in tables if table.rows),
        suspects=audit.suspects[:MOST_SUSPECTS],
    )


def continual(results: Results) -> Section | None:
    """Return the section on categories that are learnt step by step."""
    rows = results.continual
    if not rows:
        return None
    steps, orders = len(rows[0].accuracies), rows[0].orders
    paragraphs = (
        f"{rows[0].categories} categories are learnt in {steps} steps on each family's frozen features, before any "
        f"fine-tuning, in {orders} order{'s' * (orders != 1)}, each with a split of its own; intervals are over "
        "orders. After each step the test products of all categories learnt so far are sorted into all of these. "
        "prototypes: nearest class mean; head: a head that replays exemplars; distil: replay and distillation; joint: "
        "all products (upper bound); naive: the new products alone (lower bound).",
        "Average accuracy is the mean over steps of the accuracy on what was learnt so far; forgetting is what earlier "
        "steps lost from their best; backward transfer is their change since they were learnt. A head has no output "
        "for a category that it has not learnt, so forward transfer is 0 by construction. Seconds are those of a step "
        "after the first, without the frozen layers; the memory is of old products, after the last step.",
        few_seeds(orders),
    )
    columns = (
        *("Configuration", "Average accuracy", "Final accuracy", "Forgetting", "Backward transfer"),
        *("Forward transfer", "Seconds", "Memory, kB"),
    )
    body = tuple(
        (
            row.label,
            *map(format_estimate, (row.average_accuracy, row.final_accuracy, row.forgetting)),
            *(format_estimate(each, "+.3f") for each in (row.backward_transfer, row.forward_transfer)),
            *(format_estimate(row.seconds, ".2f"), format_number(row.memory_bytes / 1000, ",.0f")),
        )
        for row in rows
    )
    matrix = tuple(
        (row.label, f"after step {step}", *(format_number(each) if place < step else UNKNOWN for place, each in line))
        for row in rows
        for step, line in enumerate((tuple(enumerate(line)) for line in row.accuracies), start=1)
    )
    steps_columns = ("Configuration", "", *(f"Step {step}" for step in range(1, steps + 1)))
    plot = IntervalPlot(
        "Average accuracy with its interval",
        "average incremental accuracy, mean over orders",
        tuple((row.label, row.average_accuracy) for row in rows),
    )
    return Section(
        "continual",
        "Categories that come later",
        tuple(filter(None, paragraphs)),
        plots=(plot,),
        tables=(
            Table("Means over orders with their 95 % interval", columns, body),
            Table("Accuracy on the test products of each step, mean over orders", steps_columns, matrix),
        ),
    )
