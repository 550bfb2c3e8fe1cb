"""What several runs' stored evaluations say about each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dashboard.figures.compare import RunStyle, run_styles
from dashboard.leaderboard import COMPARABLE
from dashboard.runs import Runs
from vlm_core.config import FINE_TUNING
from vlm_core.evaluation.evaluation import Evaluation
from vlm_core.evaluation.paired import PairedTest, match_rows, paired_tests

ALL: Final = "all"
NOBODY: Final = "nobody"


@dataclass(frozen=True)
class ComparedRun:
    """One of the runs."""

    run_id: str
    row: dict[str, Any]
    look: RunStyle
    evaluation: Evaluation
    epochs: list[dict[str, Any]]


@dataclass(frozen=True)
class RunComparison:
    """The runs that have an evaluation, and what they were tested for in groups of the same products."""

    runs: tuple[ComparedRun, ...]
    groups: tuple[tuple[int, ...], ...]  # indices of runs that were tested on the same products
    tests: dict[tuple[int, int], PairedTest]  # of indices within one group


def compare_runs(runs: Runs, names: Sequence[str]) -> RunComparison:
    """The comparison of the runs of those ids; those without an evaluation are left out."""
    found = [(name, runs.row(name), runs.evaluation(name)) for name in dict.fromkeys(names)]
    whole = [(name, row, evaluation) for name, row, evaluation in found if row and evaluation]
    labels = _unique([str(row.get("name", name)) for name, row, _ in whole])
    looks = run_styles(labels, [str(row.get("params.model", "")) for _, row, _ in whole])
    compared = tuple(
        ComparedRun(name, row, look, evaluation, runs.epochs(name))
        for (name, row, evaluation), look in zip(whole, looks, strict=True)
    )
    keys = [tuple(str(each.row.get(key, "")) for key in COMPARABLE) for each in compared]
    groups = tuple(tuple(place for place, other in enumerate(keys) if other == key) for key in dict.fromkeys(keys))
    tests: dict[tuple[int, int], PairedTest] = {}
    for group in groups:
        found_tests = paired_tests([compared[place].evaluation.predictions for place in group])
        tests |= {(group[i], group[j]): test for (i, j), test in found_tests.items()}
    return RunComparison(compared, groups, tests)


def describe_paired_test(a: str, b: str, test: PairedTest) -> str:
    """One sentence: who beats whom, by how much, and how sure that is after Holm's correction."""
    points = abs(test.difference.value) * 100
    low, high = sorted((test.difference.low * 100, test.difference.high * 100))
    if test.difference.value < 0:
        a, b, low, high = b, a, -high, -low
    interval = f"95 % interval {low:.1f} to {high:.1f}"
    p = f"p = {test.p_holm:.3f}" if test.p_holm >= 0.001 else "p < 0.001"
    if test.p_holm < 0.05:
        return f"{a} beats {b} by {points:.1f} points of macro-F1, {interval}, {p}."
    return f"No difference can be shown between {a} and {b}: {points:.1f} points of macro-F1, {interval}, {p}."


def answers_of(comparison: RunComparison, group: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """True categories (n,) and each run's answers (R, n), in the product order of the group's first run."""
    first = comparison.runs[group[0]].evaluation.predictions
    rows = [comparison.runs[place].evaluation.predictions for place in group]
    return first.labels, np.stack([each.predicted[match_rows(first, each)] for each in rows])


def disagreements(labels: NDArray[np.int64], answers: NDArray[np.int64], who: str) -> NDArray[np.int64]:
    """Rows of the labelled products that the runs (R, n) answer differently.

    `who` is "all", "nobody" (of them right), or the index of a run that alone is right.
    """
    differ = (answers != answers[0]).any(axis=0) & (labels >= 0)
    right = answers == labels
    if who == NOBODY:
        differ &= ~right.any(axis=0)
    elif who != ALL:
        differ &= right[int(who)] & (right.sum(axis=0) == 1)
    return np.flatnonzero(differ)


def differing_settings(comparison: RunComparison) -> list[tuple[str, ...]]:
    """Name and each run's value of the settings in which the runs differ."""
    lines = []
    for name in FINE_TUNING:
        values = [str(each.row.get(f"params.{name}", "")) for each in comparison.runs]
        if name not in ("run_name", "resume", "experiment") and len(set(values)) > 1:
            lines.append((name, *(value or "–" for value in values)))
    return lines


def seeds_of_one(comparison: RunComparison) -> list[tuple[str, int, float, float]]:
    """Name, number of seeds, mean and standard deviation (n - 1) of macro-F1, of runs that differ in the seed alone."""
    groups: dict[tuple[str, ...], list[ComparedRun]] = {}
    for each in comparison.runs:
        names = [name for name in FINE_TUNING if name not in ("seed", "run_name", "resume", "experiment", "threads")]
        groups.setdefault(tuple(str(each.row.get(f"params.{name}", "")) for name in names), []).append(each)
    found = []
    for members in groups.values():
        if len({each.row.get("params.seed") for each in members}) > 1:
            scores = [each.evaluation.macro_f1.value for each in members]
            name = f"{members[0].row.get('params.model', '')} {members[0].row.get('params.mode', '')}"
            found.append((name, len(members), float(np.mean(scores)), float(np.std(scores, ddof=1))))
    return found


def _unique(names: Sequence[str]) -> list[str]:
    """The names, numbered where several are the same."""
    return [
        name if names.count(name) == 1 else f"{name} ({names[:place].count(name) + 1})"
        for place, name in enumerate(names)
    ]
