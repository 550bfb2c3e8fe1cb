"""Studies as the tracking store holds them: a parent run, a child run per cell, and the results so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import pandas as pd

from dashboard.leaderboard import SCORE
from dashboard.live import LIVE, LOST
from dashboard.runs import Runs

if TYPE_CHECKING:
    from vlm_core.study.results import Results

RESULTS: Final = "study/results.json"  # among the artifacts of the study's run
MOST_COMPARED: Final = 6  # runs side by side
_PARENT: Final = "tags.mlflow.parentRunId"
_BEST_FIRST: Final = ("FINISHED", "RUNNING")  # of several runs of one cell


@dataclass(frozen=True)
class CellRun:
    """The run of one cell."""

    run_id: str
    status: str
    score: float | None  # test macro-F1
    lost: bool = False  # it is running by its status, but shows no sign of life
    live: str = ""


@dataclass(frozen=True)
class StoredStudy:
    """One study as it stands now."""

    run_id: str
    name: str
    status: str
    cells: int  # planned
    seeds: tuple[str, ...]
    runs: dict[str, dict[str, CellRun]]  # configuration -> seed -> run
    results: Results | None  # None before the first seed has finished
    lost: bool = False  # of the study's own run, as of its cells'
    live: str = ""

    def count(self, *statuses: str) -> int:
        """Return the number of cells whose run has one of these statuses; a lost run has the status LOST."""
        return sum(
            ("LOST" if run.lost else run.status) in statuses for seeds in self.runs.values() for run in seeds.values()
        )


def study_choices(table: pd.DataFrame) -> list[dict[str, str]]:
    """Return the studies to choose from, newest first, as value and label."""
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
    """Return the study whose parent run has this id, or None if there is none."""
    row = runs.row(run_id)
    if row is None or row.get("tags.kind") != "study":
        return None
    table = runs.table()
    children = table[table[_PARENT] == run_id] if _PARENT in table else table.iloc[:0]
    cells = _cell_runs(children)
    seeds = sorted({seed for by_seed in cells.values() for seed in by_seed}, key=lambda seed: (len(seed), seed))
    planned = str(row.get("tags.cells", ""))
    return StoredStudy(
        run_id=run_id,
        name=str(row.get("tags.study", row["name"])),
        status=str(row["status"]),
        lost=bool(row.get(LOST)),
        live=str(row.get(LIVE, "")),
        cells=int(planned) if planned.isdecimal() else 0,
        seeds=tuple(seeds),
        runs=cells,
        results=_parse(runs.text(run_id, RESULTS)),
    )


def runs_address(run_ids: Sequence[str]) -> str:
    """Return the address of the runs behind a number: one by itself, several side by side."""
    return f"/run?run={run_ids[0]}" if len(run_ids) == 1 else "/compare?runs=" + ",".join(run_ids[:MOST_COMPARED])


def _cell_runs(children: pd.DataFrame) -> dict[str, dict[str, CellRun]]:
    """Return configuration -> seed -> the run that stands for the cell."""
    cells: dict[str, dict[str, CellRun]] = {}
    for row in sorted(children.to_dict("records"), key=_precedence, reverse=True):
        configuration, _, seed = str(row["name"]).rpartition("/")
        if configuration.count("/") == 3:
            score = row.get(SCORE)
            run = CellRun(
                str(row["run_id"]),
                str(row["status"]),
                None if pd.isna(score) else float(score),
                bool(row.get(LOST)),
                str(row.get(LIVE) or ""),
            )
            cells.setdefault(configuration, {})[seed] = run
    return dict(sorted(cells.items()))


def _precedence(row: Mapping[Any, Any]) -> tuple[int, float]:
    """Return the sort key by which a cell's run comes first: finished, else running, else the newest."""
    status = str(row["status"])
    place = _BEST_FIRST.index(status) if status in _BEST_FIRST else len(_BEST_FIRST)
    return place, -row["started"].timestamp()


@lru_cache(maxsize=8)
def _parse(text: str) -> Results | None:
    from vlm_core.study.results_json import read_results

    try:
        return read_results(text)
    except ValueError:  # there is none yet, or it is being written just now
        return None
