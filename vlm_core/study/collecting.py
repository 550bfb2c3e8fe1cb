"""From the runs of a study's cells to its results."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import pandas as pd

from vlm_core.attention.faithfulness import Faithfulness
from vlm_core.attention.statistics import LayerStatistics
from vlm_core.config import StudyConfig
from vlm_core.config.lists import split_list
from vlm_core.data import Data
from vlm_core.evaluation.bootstrap import Estimate
from vlm_core.evaluation.decoding_scores import DecodingScore
from vlm_core.evaluation.evaluation import Evaluation, evaluate
from vlm_core.evaluation.leak import CategoryLeak
from vlm_core.evaluation.predictions import Predictions
from vlm_core.evaluation.seeds import DROP, POSITIVE, SHARE, over_seeds
from vlm_core.evaluation.subgroups import well_tested
from vlm_core.evaluation.summary import macro_f1
from vlm_core.progress import track
from vlm_core.study import results
from vlm_core.study.cell_results import CellResult, CellResults, read_cell_results
from vlm_core.study.plan import LEAKING, MECHANISM, StudyPlan
from vlm_core.study.readers import BASELINE
from vlm_core.study.robustness import Robustness

T = TypeVar("T")
logger = logging.getLogger(__name__)
# Parts that take more than moments, and what stands for them in interim results.
_SLOW: Final[Mapping[str, Any]] = {
    **{"pairs": (), "gaps": (), "cost": (), "label_audit": None, "continual": (), "fusion": None}
}
HELD_OUT: Final = "held_out"  # the measurement, and the group of its pairs
MAJORITY: Final = "majority"  # the simple baseline that needs no features
Configurations = Mapping[str, Sequence[CellResult]]  # label -> cells, one per seed


def collect(
    parent: str,
    name: str,
    plan: StudyPlan,
    config: StudyConfig,
    data: Data,
    root: Path,
    failed: Mapping[str, str],
    *,
    interim: bool = False,
) -> results.Results:
    """Return the results of the cells that have finished; `interim` ones lack what takes more than moments."""
    from vlm_core.study.continual_benchmark import measure_continual
    from vlm_core.study.fusion_comparison import compare_readers
    from vlm_core.study.suspects import find_suspects
    from vlm_core.tracking.tags import machine_tags

    with tempfile.TemporaryDirectory() as temporary:
        cells = read_cell_results(parent, plan, Path(temporary))
        main = cells.main(plan.honest_protocol)
        first = {label: seeds[0] for label, seeds in main.items()}
        headline = headline_categories([cell for cell in cells.cells if cell.cell.is_honest])
        parts: dict[str, Callable[[], Any]] = {
            "thin": lambda: thin_categories(cells, headline),
            "scores": lambda: (*score_rows(cells, headline), *simple_baseline_rows(cells, headline)),
            "pairs": lambda: (
                *pair_rows("families", headline_predictions(main, headline)),
                *mechanism_pair_rows(cells.mechanisms(), headline),
                *pair_rows(HELD_OUT, _held_out(main, headline)),
            ),
            "held_out": lambda: held_out_rows(main, headline),
            "leak": lambda: leak_rows(main, cells.main(LEAKING)),
            "robustness": lambda: robustness_rows(main),
            "calibration": lambda: calibration_rows(main),
            "gaps": lambda: gap_rows(main, data, split_list(config.attributes)),
            "decoding": lambda: decoding_rows(cells),
            "cost": lambda: _cost_rows(main, data, config) if "cost" in plan.parts else (),
            "label_audit": lambda: find_suspects(_predictions(first), data, config) if "labels" in plan.parts else None,
            "faithfulness": lambda: _measured(first, "faithfulness", Faithfulness),
            "layers": lambda: _measured(first, "layers", tuple[LayerStatistics, ...]),
            "continual": lambda: measure_continual(plan, config, data, root) if "continual" in plan.parts else (),
            "fusion": lambda: compare_readers(parent, plan, config, data, root) if "fusion" in plan.parts else None,
        }
        left_out: dict[str, Any] = dict(_SLOW) if interim else {}
        collected = {name: _timed(name, make) for name, make in parts.items() if name not in left_out}
        return results.Results(
            study=name,
            run_id=parent,
            settings=config.to_params(),
            machine=machine_tags(),
            catalogue=data.catalogue.name,
            categories=data.split.categories,
            cells_planned=len(plan.cells),
            cells_finished=cells.finished,
            failed=dict(failed),
            **collected,
            **left_out,
        )


def _timed(name: str, make: Callable[[], T]) -> T:
    """Return what `make` returns, and log what took more than a moment: on a busy machine some parts take minutes."""
    began = time.monotonic()
    made = make()
    seconds = time.monotonic() - began
    if seconds >= 1:
        logger.info(f"Collected: {name.replace('_', ' ')} ({seconds:.0f} s).")
    return made


def _predictions(cells: Mapping[str, CellResult]) -> dict[str, Predictions]:
    return {label: cell.evaluation.predictions for label, cell in cells.items()}


def _measured(cells: Mapping[str, CellResult], name: str, kind: Any) -> dict[str, Any]:
    measurements = {label: cell.measurement(name, kind) for label, cell in cells.items()}
    return {label: measurement for label, measurement in measurements.items() if measurement}


def _run_ids(cells: Sequence[CellResult]) -> tuple[str, ...]:
    return tuple(cell.run_id for cell in cells)


def headline_categories(cells: Sequence[CellResult]) -> frozenset[str]:
    """Return the categories with at least 20 test products in every cell; all of them where fewer than two have."""
    return well_tested([{each.category: each.support for each in cell.evaluation.per_category} for cell in cells])


def thin_categories(cells: CellResults, headline: frozenset[str]) -> dict[str, int]:
    """Return the categories that the headline leaves out, with their test products in the cell that has fewest."""
    supports = [
        (each.category, each.support)
        for cell in cells.cells
        if cell.cell.is_honest
        for each in cell.evaluation.per_category
        if each.category not in headline
    ]
    return {name: min(support for other, support in supports if other == name) for name, _ in sorted(supports)}


def score_rows(cells: CellResults, headline: frozenset[str]) -> list[results.ScoreRow]:
    """Return the scores of each configuration."""
    return [
        _score_row(seeds, [cell.evaluation for cell in seeds], headline) for seeds in cells.by_configuration.values()
    ]


def held_out_rows(configurations: Configurations, headline: frozenset[str]) -> tuple[results.HeldOutRow, ...]:
    """Return the scores on all held-out products, for those that predicted them in every seed."""
    rows = []
    for label, predictions in _held_out(configurations, headline).items():
        seeds = configurations[label]
        evaluations = [_evaluate_like(each, cell.evaluation) for each, cell in zip(predictions, seeds, strict=True)]

        def mean(read: Callable[[Evaluation], Estimate], evaluations: Sequence[Evaluation] = evaluations) -> Estimate:
            return over_seeds([read(each).value for each in evaluations], SHARE)

        rows.append(
            results.HeldOutRow(
                label=label,
                run_ids=_run_ids(seeds),
                products=evaluations[0].n,
                support={each.category: each.support for each in evaluations[0].per_category if each.support},
                macro_f1=mean(lambda each: each.macro_f1),
                accuracy=mean(lambda each: each.accuracy),
                natural_macro_f1=mean(lambda each: each.natural.macro_f1),
                natural_accuracy=mean(lambda each: each.natural.accuracy),
            )
        )
    return tuple(rows)


def _held_out(configurations: Configurations, headline: frozenset[str]) -> dict[str, list[Predictions]]:
    """Return the predictions for held-out products of the headline's categories, where every seed has them.

    Of a small catalogue these are its test products, and nothing is to be told twice.
    """
    measured = {
        label: [
            each.of_categories(headline)
            for cell in seeds
            if (each := cell.predictions(HELD_OUT)) is not None and len(each.labels) > cell.evaluation.n
        ]
        for label, seeds in configurations.items()
    }
    return {label: each for label, each in measured.items() if len(each) == len(configurations[label])}


def headline_predictions(configurations: Configurations, headline: frozenset[str]) -> dict[str, list[Predictions]]:
    """Return the predictions for test products of the headline's categories, over the seeds that all have."""
    if not configurations:
        return {}
    shared = set.intersection(*({cell.cell.seed for cell in seeds} for seeds in configurations.values()))
    return {
        label: [cell.evaluation.predictions.of_categories(headline) for cell in seeds if cell.cell.seed in shared]
        for label, seeds in configurations.items()
    }


def simple_baseline_rows(cells: CellResults, headline: frozenset[str]) -> list[results.ScoreRow]:
    """Return the scores of the simple baselines on frozen features, whose predictions the probes' runs hold."""
    from vlm_core.models.simple_baselines import SIMPLE_BASELINES

    rows = []
    for name in SIMPLE_BASELINES:
        for seeds in cells.by_configuration.values():
            predictions = [each for cell in seeds if (each := cell.predictions(name)) is not None]
            if len(predictions) == len(seeds):
                evaluations = [
                    _evaluate_like(each, cell.evaluation) for each, cell in zip(predictions, seeds, strict=True)
                ]
                rows.append(_score_row(seeds, evaluations, headline, simple_baseline=name))
                if name == MAJORITY:  # the same on every family's features
                    break
    return rows


def _evaluate_like(predictions: Predictions, other: Evaluation) -> Evaluation:
    """Evaluate predictions on the products of another evaluation; their intervals are not used."""
    prior = np.array(other.natural.shares)
    return evaluate(predictions, pd.DataFrame(index=range(len(predictions))), prior, resamples=100, seed=0)


def _score_row(
    seeds: Sequence[CellResult],
    evaluations: Sequence[Evaluation],
    headline: frozenset[str],
    simple_baseline: str = "",
) -> results.ScoreRow:
    """Return a configuration's means, or those of the simple baseline of that name on its features."""

    def mean(read: Callable[[Evaluation], float]) -> Estimate:
        return over_seeds([float(read(each)) for each in evaluations], SHARE)

    of_headline = [each.predictions.of_categories(headline) for each in evaluations]
    cell = seeds[0].cell
    features = "" if simple_baseline == MAJORITY else f", {cell.model} features"
    is_baseline = bool(simple_baseline) or cell.model == BASELINE
    return results.ScoreRow(
        configuration=f"{simple_baseline}/{cell.configuration}" if simple_baseline else cell.configuration,
        label=f"{simple_baseline}{features}" if simple_baseline else cell.label,
        model=cell.model,
        kind=BASELINE if is_baseline else MECHANISM if cell.model == MECHANISM else "family",
        protocol=cell.protocol,
        seeds=tuple(each.cell.seed for each in seeds),
        run_ids=_run_ids(seeds),
        test_products=evaluations[0].n,
        headline_macro_f1=over_seeds([macro_f1(each.labels, each.predicted) for each in of_headline], SHARE),
        macro_f1=mean(lambda each: each.macro_f1.value),
        accuracy=mean(lambda each: each.accuracy.value),
        worst_recall=mean(lambda each: each.worst_recall.recall),
        natural_macro_f1=mean(lambda each: each.natural.macro_f1.value),
        per_category={
            score.category: over_seeds([each.per_category[place].f1.value for each in evaluations], SHARE)
            for place, score in enumerate(evaluations[0].per_category)
        },
        weights=0 if simple_baseline else _count(seeds[0].row.get("tags.weights_total")),
        weights_trained=0 if simple_baseline else _count(seeds[0].row.get("tags.weights_trained")),
        train_seconds=0.0 if simple_baseline else _mean_seconds(seeds),
        learning_rates=tuple(
            float(rate) for each in seeds if isinstance(rate := each.row.get("tags.chosen_learning_rate"), str)
        ),
    )


def _count(text: Any) -> int:
    return int(text) if isinstance(text, str) and text.isdigit() else 0


def _mean_seconds(seeds: Sequence[CellResult]) -> float:
    """Return the mean training time, what came from the feature cache counted as if computed, where that is known."""
    full, spent = (
        np.array([cell.row.get(f"metrics.{name}", np.nan) for cell in seeds], dtype=np.float64)
        for name in ("train_seconds_full", "train_seconds")
    )
    return float(np.nan_to_num(np.where(np.isnan(full), spent, full)).mean())


def pair_rows(
    group: str,
    predictions: Mapping[str, Sequence[Predictions]],
    pairs: Sequence[tuple[str, str]] | None = None,
) -> list[results.PairRow]:
    """Compare these pairs of configurations (label -> predictions, one per seed), or all of them."""
    from vlm_core.evaluation.seed_comparison import compare_all, describe_comparison

    if len(predictions) < 2 or not all(predictions.values()) or len(set(map(len, predictions.values()))) > 1:
        return []
    return [
        results.PairRow(group, a, b, test, describe_comparison(a, b, test))
        for (a, b), test in compare_all(predictions, pairs).items()
    ]


def mechanism_pair_rows(configurations: Configurations, headline: frozenset[str]) -> list[results.PairRow]:
    """Compare the mechanisms of the main comparison on each tower, and each control with what it is the control of."""
    from vlm_core.attention.mechanisms import CONTROLS, MAIN, control_of

    labels = {(seeds[0].cell.tower, seeds[0].cell.mechanism): label for label, seeds in configurations.items()}
    towers = tuple(dict.fromkeys(tower for tower, _ in labels))
    predictions = headline_predictions(configurations, headline)
    rows: list[results.PairRow] = []
    for tower in towers:
        main = [labels[tower, name] for name in MAIN if (tower, name) in labels]
        rows += pair_rows("mechanisms", {label: predictions[label] for label in main})
        known = [name for name in CONTROLS if {(tower, name), (tower, control_of(name))} <= labels.keys()]
        pairs = [(labels[tower, control_of(name)], labels[tower, name]) for name in known]
        rows += pair_rows("controls", {label: predictions[label] for pair in pairs for label in pair}, pairs)
    return rows


def leak_rows(holdout: Configurations, original: Configurations) -> tuple[results.LeakRow, ...]:
    """Compare both protocols for the configurations that ran under both."""
    from vlm_core.evaluation.leak import leak_comparison

    def predictions(seeds: Sequence[CellResult]) -> list[Predictions]:
        return [cell.evaluation.predictions for cell in seeds]

    return tuple(
        results.LeakRow(
            label=label,
            run_ids=_run_ids(seeds),
            scores=leak_comparison(predictions(holdout[label]), predictions(seeds)),
            leaks=_mean_leaks(
                [leaks for cell in seeds if (leaks := cell.measurement("leak", tuple[CategoryLeak, ...]))]
            ),
        )
        for label, seeds in original.items()
        if label in holdout
    )


def _mean_leaks(seeds: Sequence[Sequence[CategoryLeak]]) -> tuple[CategoryLeak, ...]:
    return tuple(
        CategoryLeak(
            category=of_seeds[0].category,
            support=sum(each.support for each in of_seeds),
            copied=_mean([each.copied for each in of_seeds]),
            accuracy_copied=_mean([each.accuracy_copied for each in of_seeds]),
            accuracy_others=_mean([each.accuracy_others for each in of_seeds]),
            correct_with_copy=_mean([each.correct_with_copy for each in of_seeds]),
        )
        for of_seeds in zip(*seeds, strict=True)
    )


def _mean(values: Sequence[float]) -> float:
    """Return the mean of the values that are known (not nan); nan where none is."""
    known = [value for value in values if not isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def robustness_rows(configurations: Configurations) -> tuple[results.RobustnessRow, ...]:
    """Return each configuration's relative drops, for those where robustness was measured."""
    rows = []
    for label, seeds in configurations.items():
        measured: list[Robustness] = [each for cell in seeds if (each := cell.measurement("robustness", Robustness))]
        if measured:
            names = list(measured[0].drops)
            rows.append(
                results.RobustnessRow(
                    label=label,
                    run_ids=_run_ids(seeds),
                    mean_drop=over_seeds([each.mean_drop for each in measured], DROP),
                    drops={name: over_seeds([each.drops[name] for each in measured], DROP) for name in names},
                    by_severity={name: _mean_by_severity(measured, name) for name in names},
                )
            )
    return tuple(rows)


def _mean_by_severity(seeds: Sequence[Robustness], corruption: str) -> tuple[float, float, float]:
    drops = [[score.drop for score in each.scores if score.corruption == corruption] for each in seeds]
    mild, middle, severe = np.mean(drops, axis=0).tolist()
    return mild, middle, severe


def calibration_rows(configurations: Configurations) -> tuple[results.CalibrationRow, ...]:
    """Return each configuration's calibration, risk over coverage, and detection of unknown categories."""
    return tuple(_calibration_row(label, seeds) for label, seeds in configurations.items())


def _calibration_row(label: str, seeds: Sequence[CellResult]) -> results.CalibrationRow:
    from vlm_core.evaluation.selective import detect_unknown, measure_risk_coverage
    from vlm_core.evaluation.temperature import measure_scaling

    scalings = [measure_scaling(cell.validation, cell.evaluation.predictions) for cell in seeds]
    curves = [measure_risk_coverage(cell.evaluation.predictions) for cell in seeds]
    detections = [
        detect_unknown(cell.evaluation.predictions.probabilities.max(axis=1), unknown.probabilities.max(axis=1))
        for cell in seeds
        if (unknown := cell.predictions("unknown")) is not None and len(unknown)
    ]
    return results.CalibrationRow(
        label=label,
        run_ids=_run_ids(seeds),
        temperature=over_seeds([each.temperature for each in scalings], POSITIVE),
        ece=over_seeds([each.before.ece for each in scalings], SHARE),
        ece_scaled=over_seeds([each.after.ece for each in scalings], SHARE),
        nll=over_seeds([each.before.nll for each in scalings], POSITIVE),
        nll_scaled=over_seeds([each.after.nll for each in scalings], POSITIVE),
        aurc=over_seeds([each.aurc for each in curves], SHARE),
        coverage=curves[0].coverage,
        risk=curves[0].risk,
        unknown=detections[0].unknown if detections else 0,
        auroc_unknown=over_seeds([each.auroc.value for each in detections], SHARE) if detections else None,
        auroc_products=detections[0].auroc if detections else None,
    )


def gap_rows(configurations: Configurations, data: Data, attributes: Sequence[str]) -> tuple[results.GapRow, ...]:
    """Return each configuration's gaps between the values of the catalogue's attributes."""
    from vlm_core.evaluation.gaps import measure_gaps

    products = data.catalogue.products.set_index("product_id")
    table = products[[name for name in attributes if name in products.columns]]
    return tuple(
        results.GapRow(label, _run_ids(seeds), measure_gaps([cell.evaluation.predictions for cell in seeds], table))
        for label, seeds in track(configurations.items(), "measuring subgroup gaps", len(configurations))
    )


def decoding_rows(cells: CellResults) -> tuple[results.DecodingRow, ...]:
    """Return the scores of each generative configuration by decoding rule."""
    rows = []
    for seeds in cells.by_configuration.values():
        measured = [each for cell in seeds if (each := cell.measurement("decoding", dict[str, DecodingScore]))]
        if measured:
            means = {rule: _mean_decoding([scores[rule] for scores in measured]) for rule in measured[0]}
            rows.append(results.DecodingRow(seeds[0].cell.label, _run_ids(seeds), means))
    return tuple(rows)


def _mean_decoding(seeds: Sequence[DecodingScore]) -> DecodingScore:
    covered = [each.covered_accuracy for each in seeds if each.covered_accuracy is not None]
    return DecodingScore(
        n=sum(each.n for each in seeds),
        accuracy=_mean([each.accuracy for each in seeds]),
        macro_f1=_mean([each.macro_f1 for each in seeds]),
        unknown_rate=_mean([each.unknown_rate for each in seeds]),
        coverage=_mean([each.coverage for each in seeds]),
        covered_accuracy=_mean(covered),
    )


def _cost_rows(configurations: Configurations, data: Data, config: StudyConfig) -> tuple[results.CostRow, ...]:
    """Measure the first model of each configuration, one after the other, when no cell is running any more."""
    from vlm_core.models.saved import load_categoriser
    from vlm_core.study.cost import measure_cost, pareto
    from vlm_core.tracking.registry import resolve

    threads = min(config.threads, os.cpu_count() or 1)
    pictures = data.catalogue.pictures.take(data.split.validation[:32])
    costs = {
        label: measure_cost(load_categoriser(resolve(seeds[0].run_id)), pictures, threads=threads)
        for label, seeds in track(configurations.items(), "measuring the cost of a prediction", len(configurations))
    }
    scores = {
        label: float(np.mean([cell.evaluation.macro_f1.value for cell in seeds]))
        for label, seeds in configurations.items()
    }
    front = pareto([(costs[label].p50_seconds, scores[label]) for label in costs])
    return tuple(
        results.CostRow(label, configurations[label][0].run_id, costs[label], scores[label], on_front)
        for label, on_front in zip(costs, front, strict=True)
    )
