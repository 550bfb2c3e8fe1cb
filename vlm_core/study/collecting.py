"""From the runs of a study's cells to its results."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from vlm_core.config import STUDY, Config
from vlm_core.data import Data, words
from vlm_core.evaluation.decoding_scores import DecodingScore
from vlm_core.evaluation.evaluation import Evaluation, evaluate
from vlm_core.evaluation.leak import CategoryLeak
from vlm_core.evaluation.predictions import Predictions
from vlm_core.evaluation.seeds import over_seeds
from vlm_core.study import results
from vlm_core.study.cell_results import CellResult, CellResults, read_cell_results
from vlm_core.study.plan import BASELINE, MECHANISM, Cell, StudyPlan

if TYPE_CHECKING:
    from vlm_core.evaluation.bootstrap import Estimate

FEATURES_OF_SIMPLE: Final = "features"


def collect(
    parent: str,
    name: str,
    plan: StudyPlan,
    config: Config,
    data: Data,
    failed: Mapping[str, str],
    *,
    whole: bool = True,
) -> results.Results:
    """The results of the cells that have finished so far; not `whole`, without what takes more than moments."""
    from vlm_core.study.suspects import find_suspects
    from vlm_core.tracking.tags import machine_tags

    with tempfile.TemporaryDirectory() as temporary:
        trials = read_cell_results(parent, plan, Path(temporary))
        main = trials.main("holdout")
        return results.Results(
            study=name,
            run_id=parent,
            settings=config.to_params(STUDY),
            machine=machine_tags(),
            catalogue=data.catalogue.name,
            categories=data.split.categories,
            cells=len(plan.cells),
            done=len(trials.trials),
            failed=dict(failed),
            rows=(*_rows(trials), *_simple_rows(trials)),
            pairs=(*_pairs("families", main), *_pairs("mechanisms", trials.mechanisms())) if whole else (),
            leak=tuple(_leak(main, trials.main("study"))),
            robustness=tuple(_robustness(main)),
            calibration=tuple(_calibration(main)),
            gaps=tuple(_gaps(main, data, words(config.attributes))) if whole else (),
            rules=tuple(_rules(trials)),
            cost=_costs(main, data, config) if whole and "cost" in plan.parts else (),
            labels=find_suspects(_first_answers(main), data, config) if whole and "labels" in plan.parts else None,
            faithfulness={label: found for label, each in main.items() if (found := each[0].json("faithfulness"))},
            mechanism={label: found for label, each in main.items() if (found := each[0].json("mechanism"))},
        )


def _first_answers(cells: Mapping[str, Sequence[CellResult]]) -> dict[str, Predictions]:
    return {label: trials[0].evaluation.predictions for label, trials in cells.items()}


def _rows(trials: CellResults) -> list[results.ScoreRow]:
    return [_row(each[0].cell, each, [trial.evaluation for trial in each]) for each in trials.by_configuration.values()]


def _simple_rows(trials: CellResults) -> list[results.ScoreRow]:
    """Rules on frozen features, whose answers the probes' runs keep; the commonest category needs no features."""
    from vlm_core.models.simple_baselines import SIMPLE_BASELINES

    rows = []
    for name in SIMPLE_BASELINES:
        for each in trials.by_configuration.values():
            answers = [trial.answers(name) for trial in each]
            kept = [given for given in answers if given is not None]
            if len(kept) == len(each):
                evaluations = [_scores(given, trial.evaluation) for given, trial in zip(kept, each, strict=True)]
                rows.append(_row(each[0].cell, each, evaluations, simple=name))
                if name == "majority":
                    break
    return rows


def _scores(answers: Predictions, like: Evaluation) -> Evaluation:
    """The evaluation of answers on the products of another, whose intervals are not asked for."""
    prior = np.array(like.natural.shares)
    return evaluate(answers, pd.DataFrame(index=range(len(answers))), prior, resamples=100, seed=0)


def _row(
    cell: Cell, trials: Sequence[CellResult], evaluations: Sequence[Evaluation], simple: str = ""
) -> results.ScoreRow:
    """A configuration's means; with `simple`, of the rule of that name on its features."""

    def mean(read: Any) -> Estimate:
        return over_seeds([float(read(each)) for each in evaluations])

    features = "" if simple == "majority" else f", {cell.model} {FEATURES_OF_SIMPLE}"
    facts = trials[0].facts
    kind = BASELINE if simple or cell.model == BASELINE else MECHANISM if cell.model == MECHANISM else "family"
    return results.ScoreRow(
        configuration=f"{simple}/{cell.configuration}" if simple else cell.configuration,
        label=f"{simple}{features}" if simple else cell.label,
        model=cell.model,
        kind=kind,
        protocol=cell.protocol,
        seeds=tuple(trial.cell.seed for trial in trials),
        run_ids=tuple(trial.run_id for trial in trials),
        test_products=evaluations[0].n,
        macro_f1=mean(lambda each: each.macro_f1.value),
        accuracy=mean(lambda each: each.accuracy.value),
        worst_recall=mean(lambda each: each.worst_recall.recall),
        natural_macro_f1=mean(lambda each: each.natural.macro_f1.value),
        per_category={
            score.category: mean(lambda each, place=place: each.per_category[place].f1.value)
            for place, score in enumerate(evaluations[0].per_category)
        },
        weights=0 if simple else _whole(facts.get("tags.weights_total")),
        weights_trained=0 if simple else _whole(facts.get("tags.weights_trained")),
        train_seconds=0.0 if simple else _mean_seconds(trials),
    )


def _whole(text: Any) -> int:
    return int(text) if isinstance(text, str) and text.isdigit() else 0


def _mean_seconds(trials: Sequence[CellResult]) -> float:
    seconds = [trial.facts.get("metrics.train_seconds", 0.0) for trial in trials]
    return float(np.nan_to_num(seconds).mean())


def _pairs(group: str, cells: Mapping[str, Sequence[CellResult]]) -> list[results.Pair]:
    """Every pair of the configurations, over the seeds that all of them have."""
    from vlm_core.evaluation.seed_comparison import compare_all, describe_comparison

    shared = set.intersection(*({trial.cell.seed for trial in each} for each in cells.values())) if cells else set()
    answers = {
        label: [trial.evaluation.predictions for trial in each if trial.cell.seed in shared]
        for label, each in cells.items()
    }
    if not shared or len(cells) < 2:
        return []
    return [
        results.Pair(group, a, b, test, describe_comparison(a, b, test))
        for (a, b), test in compare_all(answers).items()
    ]


def _leak(
    honest: Mapping[str, Sequence[CellResult]], leaking: Mapping[str, Sequence[CellResult]]
) -> list[results.LeakRow]:
    from vlm_core.evaluation.leak import leak_comparison

    def answers(trials: Sequence[CellResult]) -> list[Predictions]:
        return [trial.evaluation.predictions for trial in trials]

    return [
        results.LeakRow(
            label=label,
            run_ids=tuple(trial.run_id for trial in trials),
            scores=leak_comparison(answers(honest[label]), answers(trials)),
            leaks=_mean_leaks([each for trial in trials if (each := trial.json("leak"))]),
        )
        for label, trials in leaking.items()
        if label in honest
    ]


def _mean_leaks(seeds: Sequence[Sequence[Mapping[str, Any]]]) -> tuple[CategoryLeak, ...]:
    names = ("copied", "accuracy_copied", "accuracy_others", "right_by_copy")
    return tuple(
        CategoryLeak(
            category=parts[0]["category"],
            support=sum(part["support"] for part in parts),
            **{name: _mean([part[name] for part in parts]) for name in names},
        )
        for parts in zip(*seeds, strict=True)
    )


def _mean(values: Sequence[float | None]) -> float:
    """The mean of what is known; nan where nothing is."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else float("nan")


def _robustness(cells: Mapping[str, Sequence[CellResult]]) -> list[results.RobustnessRow]:
    rows = []
    for label, trials in cells.items():
        found = [each for trial in trials if (each := trial.json("robustness"))]
        if not found:
            continue
        names = list(found[0]["drops"])

        def severities(name: str, found: list[Any] = found) -> tuple[float, float, float]:
            drops = [[score["drop"] for score in each["scores"] if score["corruption"] == name] for each in found]
            one, two, three = np.mean(drops, axis=0).tolist()
            return one, two, three

        rows.append(
            results.RobustnessRow(
                label=label,
                run_ids=tuple(trial.run_id for trial in trials),
                mean_drop=over_seeds([each["mean_drop"] for each in found]),
                drops={name: over_seeds([each["drops"][name] for each in found]) for name in names},
                by_severity={name: severities(name) for name in names},
            )
        )
    return rows


def _calibration(cells: Mapping[str, Sequence[CellResult]]) -> list[results.CalibrationRow]:
    from vlm_core.evaluation.selective import detect_unknown, measure_risk_coverage
    from vlm_core.evaluation.temperature import measure_scaling

    rows = []
    for label, trials in cells.items():
        tested = [trial.evaluation.predictions for trial in trials]
        scalings = [measure_scaling(trial.validation, each) for trial, each in zip(trials, tested, strict=True)]
        curves = [measure_risk_coverage(each) for each in tested]
        unknown = [trial.answers("unknown") for trial in trials]
        found = [
            detect_unknown(each.probabilities.max(axis=1), strange.probabilities.max(axis=1))
            for each, strange in zip(tested, unknown, strict=True)
            if strange is not None and len(strange)
        ]
        rows.append(
            results.CalibrationRow(
                label=label,
                run_ids=tuple(trial.run_id for trial in trials),
                temperature=over_seeds([each.temperature for each in scalings]),
                ece=over_seeds([each.before.ece for each in scalings]),
                ece_scaled=over_seeds([each.after.ece for each in scalings]),
                nll=over_seeds([each.before.nll for each in scalings]),
                nll_scaled=over_seeds([each.after.nll for each in scalings]),
                aurc=over_seeds([each.aurc for each in curves]),
                coverage=curves[0].coverage,
                risk=curves[0].risk,
                unknown=found[0].unknown if found else 0,
                auroc_unknown=over_seeds([each.auroc.value for each in found]) if found else None,
                auroc_products=found[0].auroc if found else None,
            )
        )
    return rows


def _gaps(cells: Mapping[str, Sequence[CellResult]], data: Data, attributes: Sequence[str]) -> list[results.GapRow]:
    from vlm_core.evaluation.gaps import measure_gaps

    products = data.catalogue.products.set_index("product_id")
    table = products[[name for name in attributes if name in products.columns]]
    return [
        results.GapRow(
            label,
            tuple(trial.run_id for trial in trials),
            measure_gaps([trial.evaluation.predictions for trial in trials], table),
        )
        for label, trials in cells.items()
    ]


def _rules(trials: CellResults) -> list[results.RulesRow]:
    rows = []
    for each in trials.by_configuration.values():
        found = [given for trial in each if (given := trial.json("rules"))]
        if found:
            rules = {name: _mean_rule([given[name] for given in found]) for name in found[0]}
            rows.append(results.RulesRow(each[0].cell.label, tuple(trial.run_id for trial in each), rules))
    return rows


def _mean_rule(scores: Sequence[Mapping[str, Any]]) -> DecodingScore:
    names = ("accuracy", "macro_f1", "unknown_rate", "coverage", "covered_accuracy")
    means = {name: _mean([score[name] for score in scores]) for name in names}
    return DecodingScore(n=sum(score["n"] for score in scores), **means)


def _costs(cells: Mapping[str, Sequence[CellResult]], data: Data, config: Config) -> tuple[results.CostRow, ...]:
    """Measured here, one after the other, when no cell is running any more."""
    from vlm_core.benchmark.cost import measure_cost, pareto
    from vlm_core.models.saved import load_categoriser
    from vlm_core.tracking.registry import resolve

    threads = min(config.threads, os.cpu_count() or 1)
    pictures = data.catalogue.pictures.take(data.split.validation[:32])
    costs = {
        label: measure_cost(load_categoriser(resolve(trials[0].run_id)), pictures, threads=threads)
        for label, trials in cells.items()
    }
    scores = {
        label: float(np.mean([trial.evaluation.macro_f1.value for trial in trials])) for label, trials in cells.items()
    }
    front = pareto([(costs[label].p50_seconds, scores[label]) for label in costs])
    return tuple(
        results.CostRow(label, cells[label][0].run_id, costs[label], scores[label], on_front)
        for label, on_front in zip(costs, front, strict=True)
    )
