"""Several runs against each other, by their stored evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dashboard.figures.compare import RunStyle, run_styles
from dashboard.leaderboard import COMPARABLE, distinct_names
from dashboard.run_settings import effective_settings
from dashboard.runs import Runs
from vlm_core.config import OF_MACHINES, Config
from vlm_core.evaluation.evaluation import Evaluation
from vlm_core.evaluation.paired import PairedTest, better_first, match_rows, paired_tests

# Which disagreements: all of them, those where no run is correct, or those where one run alone is (by its index).
ALL: Final = "all"
NOBODY: Final = "nobody"


@dataclass(frozen=True)
class ComparedRun:
    """One of the runs."""

    run_id: str
    row: dict[str, Any]
    style: RunStyle
    evaluation: Evaluation
    epochs: list[dict[str, Any]]


@dataclass(frozen=True)
class RunComparison:
    """The runs that have an evaluation, grouped by the products they were tested on, and the tests in each group."""

    runs: tuple[ComparedRun, ...]
    groups: tuple[tuple[int, ...], ...]  # indices of runs that were tested on the same products
    tests: dict[tuple[int, int], PairedTest]  # of indices (a, b) within one group, the better one first

    @property
    def names(self) -> list[str]:
        """The runs' names, each its own."""
        return [run.style.name for run in self.runs]

    @property
    def largest_group(self) -> tuple[int, ...]:
        """The largest group; () without runs."""
        return max(self.groups, key=len, default=())


def compare_runs(runs: Runs, run_ids: Sequence[str]) -> RunComparison:
    """Compare the runs of those ids; those without an evaluation are left out."""
    stored = [(run_id, runs.row(run_id), runs.evaluation(run_id)) for run_id in dict.fromkeys(run_ids)]
    evaluated = [(run_id, row, evaluation) for run_id, row, evaluation in stored if row and evaluation]
    run_names = [str(row.get("name", run_id)) for run_id, row, _ in evaluated]
    names = distinct_names(run_names, [run_id for run_id, _, _ in evaluated])
    styles = run_styles(names, [str(row.get("params.model", "")) for _, row, _ in evaluated])
    compared = tuple(
        ComparedRun(run_id, row, style, evaluation, runs.epochs(run_id))
        for (run_id, row, evaluation), style in zip(evaluated, styles, strict=True)
    )
    keys = [tuple(str(run.row.get(key, "")) for key in COMPARABLE) for run in compared]
    groups = tuple(tuple(place for place, other in enumerate(keys) if other == key) for key in dict.fromkeys(keys))
    tests: dict[tuple[int, int], PairedTest] = {}
    for group in groups:
        of_group = paired_tests([compared[place].evaluation.predictions for place in group])
        ordered = (better_first(group[i], group[j], test) for (i, j), test in of_group.items())
        tests |= {(a, b): test for a, b, test in ordered}
    return RunComparison(compared, groups, tests)


def predicted_categories(
    comparison: RunComparison, group: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return true (n,) and predicted categories (R, n) of the group's runs, in the product order of its first run."""
    first = comparison.runs[group[0]].evaluation.predictions
    predictions = [comparison.runs[place].evaluation.predictions for place in group]
    return first.labels, np.stack([each.predicted[match_rows(first, each)] for each in predictions])


def disagreements(labels: NDArray[np.int64], predicted: NDArray[np.int64], correct: str) -> NDArray[np.int64]:
    """Return the labelled products, by row, for which the runs' predictions (R, n) differ.

    `correct` is "all", "nobody" (no run is correct), or the index of the only run that is.
    """
    differ = (predicted != predicted[0]).any(axis=0) & (labels >= 0)
    is_correct = predicted == labels
    if correct == NOBODY:
        differ &= ~is_correct.any(axis=0)
    elif correct != ALL:
        differ &= is_correct[int(correct)] & (is_correct.sum(axis=0) == 1)
    return np.flatnonzero(differ)


def differing_settings(comparison: RunComparison) -> list[tuple[str, ...]]:
    """Return name and each run's value of the settings in which the runs differ."""
    lines = []
    settings = [effective_settings(run.row) for run in comparison.runs]
    for name in Config.model_fields:
        values = [each.get(name, "") for each in settings]
        if name not in ("run_name", "resume", "experiment") and len(set(values)) > 1:
            lines.append((name, *(value or "–" for value in values)))
    return lines


def scores_over_seeds(comparison: RunComparison) -> list[tuple[str, int, float, float]]:
    """Return name, number, and mean and standard deviation (n - 1) of macro-F1 of runs that differ only in seed."""
    groups: dict[tuple[str, ...], list[ComparedRun]] = {}
    others = {"seed", "run_name", "resume", "experiment", "threads", *OF_MACHINES}
    names = [name for name in Config.model_fields if name not in others]
    for run in comparison.runs:
        groups.setdefault(tuple(str(run.row.get(f"params.{name}", "")) for name in names), []).append(run)
    lines = []
    for members in groups.values():
        if len({run.row.get("params.seed") for run in members}) > 1:
            scores = [run.evaluation.macro_f1.value for run in members]
            name = f"{members[0].row.get('params.model', '')} {members[0].row.get('params.mode', '')}"
            lines.append((name, len(members), float(np.mean(scores)), float(np.std(scores, ddof=1))))
    return lines
