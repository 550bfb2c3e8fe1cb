"""Searches in the tracking store: a run that leads, and a run below it for each trial."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from dashboard.leaderboard import SCORE

BEST = "metrics.best_validation_macro_f1"
STATES = ("complete", "pruned", "running", "failed")


@dataclass(frozen=True)
class Trial:
    """One trial of a search."""

    number: int  # in the order they began, from 0
    run_id: str
    state: str  # one of STATES
    score: float | None  # validation macro-F1: of its best epoch or, pruned, of its last
    seconds: float | None  # per image
    settings: dict[str, float | str]  # those that were searched


@dataclass(frozen=True)
class Winner:
    """The run that was trained with the best trial's settings."""

    run_id: str
    name: str
    status: str
    score: float | None  # test macro-F1, with its interval
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Search:
    """A search and its trials."""

    run_id: str
    name: str
    model: str
    searched: tuple[str, ...]
    two_objectives: bool  # whether seconds per image are an objective too
    trials: tuple[Trial, ...]
    winner: Winner | None = None  # the model retrained with the best settings, which alone reads the test split

    @property
    def best(self) -> Trial | None:
        """Return the complete trial with the best score; None before the first one."""
        complete = [trial for trial in self.trials if trial.state == "complete" and trial.score is not None]
        return max(complete, key=lambda trial: trial.score or 0.0, default=None)


def search_choices(table: pd.DataFrame) -> list[dict[str, str]]:
    """Return the searches as value and label, newest first."""
    if "tags.kind" not in table:
        return []
    return [
        {
            "value": str(row["run_id"]),
            "label": f"{row.get('tags.search_name', row['name'])} · {row['started']:%Y-%m-%d %H:%M}",
        }
        for row in table[table["tags.kind"] == "search"].to_dict("records")
    ]


def read_search(table: pd.DataFrame, run_id: str) -> Search | None:
    """Return the search that the run led; None if there is none of that id."""
    if "tags.kind" not in table:
        return None
    leaders = table[(table["run_id"] == run_id) & (table["tags.kind"] == "search")]
    if leaders.empty:
        return None
    row = leaders.iloc[0]
    searched = tuple(name.strip() for name in str(row.get("params.search", "")).split(",") if name.strip())
    below = table.get("tags.mlflow.parentRunId", pd.Series("", index=table.index)) == run_id
    rows = table[below & (table["tags.kind"] == "trial")].sort_values("started")
    retrained = table[below & (table["tags.kind"] != "trial")].sort_values("started").to_dict("records")
    trials = tuple(_trial(number, each, searched) for number, each in enumerate(rows.to_dict("records")))
    two_objectives = str(row.get("params.search_objectives", "")) == "score,seconds"
    return Search(
        run_id,
        str(row.get("tags.search_name", row["name"])),
        str(row.get("params.model", "")),
        searched,
        two_objectives,
        trials,
        _winner(retrained[-1]) if retrained else None,
    )


def _winner(row: dict[Any, Any]) -> Winner:
    score, low, high = (_number(row.get(f"{SCORE}{end}")) for end in ("", "_low", "_high"))
    return Winner(str(row["run_id"]), str(row["name"]), str(row["status"]), score, low, high)


def _trial(number: int, row: dict[Any, Any], searched: tuple[str, ...]) -> Trial:
    state = (
        "pruned"
        if row.get("tags.pruned") == "true"
        else {"FINISHED": "complete", "RUNNING": "running"}.get(row["status"], "failed")
    )
    score = _number(row.get(BEST)) if state == "complete" else _number(row.get("metrics.validation_macro_f1"))
    settings = {
        name: _value(str(row[f"params.{name}"])) for name in searched if isinstance(row.get(f"params.{name}"), str)
    }
    return Trial(number, str(row["run_id"]), state, score, _number(row.get("metrics.seconds_per_image")), settings)


def _number(value: Any) -> float | None:
    return None if value is None or value != value else float(value)


def _value(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
