"""Studies as the tracking store holds them: a run that leads, a run below it for every cell, and the results so far."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import pandas as pd

from dashboard.leaderboard import SCORE
from dashboard.runs import Runs

RESULTS: Final = "study/results.json"  # of vlm_core.study.results.Results, among the artifacts of the leading run
_PARENT: Final = "tags.mlflow.parentRunId"
_BEST_FIRST: Final = ("FINISHED", "RUNNING")  # of several runs of one cell


@dataclass(frozen=True)
class CellRun:
    """The run of one cell."""

    run_id: str
    status: str
    score: float | None  # test macro-F1


@dataclass(frozen=True)
class StoredStudy:
    """One study as it stands now."""

    run_id: str
    name: str
    status: str
    cells: int  # planned
    seeds: tuple[str, ...]
    runs: dict[str, dict[str, CellRun]]  # configuration -> seed -> run
    results: Mapping[str, Any]  # vlm_core.study.results.Results as JSON; {} before the first seed has ended

    def count(self, *statuses: str) -> int:
        """Cells whose run stands so."""
        return sum(run.status in statuses for seeds in self.runs.values() for run in seeds.values())

    def part(self, name: str) -> list[dict[str, Any]]:
        """A list of the results; [] where there is none."""
        return list(self.results.get(name) or [])


def study_choices(table: pd.DataFrame) -> list[dict[str, str]]:
    """Studies to choose from, newest first, as value and label."""
    if "tags.kind" not in table:
        return []
    return [
        {
            "value": str(row["run_id"]),
            "label": f"{row.get('tags.study', row['name'])} · {row['started']:%Y-%m-%d %H:%M}",
        }
        for row in table[table["tags.kind"] == "study"].to_dict("records")
    ]


def read_study(runs: Runs, run_id: str) -> StoredStudy | None:
    """The study that the run leads; None if there is none of that id."""
    row = runs.row(run_id)
    if row is None or row.get("tags.kind") != "study":
        return None
    table = runs.table()
    below = table[table[_PARENT] == run_id] if _PARENT in table else table.iloc[:0]
    found: dict[str, dict[str, CellRun]] = {}
    for each in sorted(below.to_dict("records"), key=_order, reverse=True):
        configuration, _, seed = str(each["name"]).rpartition("/")
        if configuration.count("/") == 3:
            score = each.get(SCORE)
            run = CellRun(str(each["run_id"]), str(each["status"]), None if pd.isna(score) else float(score))
            found.setdefault(configuration, {})[seed] = run
    seeds = sorted({seed for by_seed in found.values() for seed in by_seed}, key=lambda seed: (len(seed), seed))
    cells = str(row.get("tags.cells", ""))
    return StoredStudy(
        run_id=run_id,
        name=str(row.get("tags.study", row["name"])),
        status=str(row["status"]),
        cells=int(cells) if cells.isdecimal() else 0,
        seeds=tuple(seeds),
        runs=dict(sorted(found.items())),
        results=_parsed(runs.text(run_id, RESULTS)),
    )


def runs_address(run_ids: list[str]) -> str:
    """Where the runs behind a figure are shown: one by itself, several side by side."""
    return f"/run?run={run_ids[0]}" if len(run_ids) == 1 else "/compare?runs=" + ",".join(run_ids[:6])


def shown(estimate: Mapping[str, float | None] | None, form: str = ".3f") -> str:
    """A figure and its interval as text; without interval where there is none, a dash where there is no figure."""
    if not estimate or estimate.get("value") is None:
        return "–"
    value, low, high = (estimate.get(name) for name in ("value", "low", "high"))
    return f"{value:{form}}" if low is None or high is None else f"{value:{form}} ({low:{form}} to {high:{form}})"


def _order(row: Mapping[Any, Any]) -> tuple[int, float]:
    """The run that speaks for its cell comes last: a finished one, else one that runs, else the newest."""
    status = str(row["status"])
    place = _BEST_FIRST.index(status) if status in _BEST_FIRST else len(_BEST_FIRST)
    return place, -row["started"].timestamp()


@lru_cache(maxsize=8)
def _parsed(text: str) -> Mapping[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError:  # it is being written just now
        return {}
    return found if isinstance(found, dict) else {}
