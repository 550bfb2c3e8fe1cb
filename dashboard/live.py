"""What is known of runs in progress: how far they are, when they may end, and which show no sign of life any more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import pandas as pd

from vlm_core.tracking import tags

SECONDS_SILENT: Final = 120.0  # without a metric, where the process cannot be asked; runs log their load every 10 s
LIVE: Final = "live"  # column: what to say of a run in progress; "" for others
LOST: Final = "lost"  # column: whether it shows no sign of life


def add_live(table: pd.DataFrame, now: pd.Timestamp) -> pd.DataFrame:
    """Return a table of `RunReader.runs` with the columns LIVE and LOST."""
    texts, lost = [""] * len(table), [False] * len(table)
    if len(table):
        for place in (table["status"] == "RUNNING").to_numpy().nonzero()[0]:
            row = table.iloc[int(place)].to_dict()
            lost[place] = _is_lost(row, now)
            texts[place] = _last_sign(row) if lost[place] else describe_progress(row)
    live = table.copy()
    live[LIVE], live[LOST] = texts, lost
    return live


def describe_progress(row: Mapping[Any, Any]) -> str:
    """Return the epoch that a run has finished and how long the others take at most; "" before the first."""
    epoch, planned, seconds = (_number(row.get(name)) for name in ("epoch", "params.epochs", "metrics.seconds"))
    if not epoch:
        return ""
    if not planned:
        return f"epoch {epoch:.0f}"
    left = f", at most {duration(seconds * (planned - epoch))} left" if seconds and planned > epoch else ""
    return f"epoch {epoch:.0f} of {planned:.0f}{left}"


def duration(seconds: float) -> str:
    """Return seconds in the unit that suits them."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _is_lost(row: Mapping[Any, Any], now: pd.Timestamp) -> bool:
    """Return whether the run's process has ended or, where it cannot be asked, has logged nothing for long."""
    process = row.get(f"tags.{tags.PROCESS}")
    if isinstance(process, str) and process:
        if tags.process_is_alive(process):
            return False
        if tags.process_is_dead(process):
            return True
    seen = row.get("seen")
    return not isinstance(seen, pd.Timestamp) or (now - seen).total_seconds() > SECONDS_SILENT


def _last_sign(row: Mapping[Any, Any]) -> str:
    seen = row.get("seen")
    progress = describe_progress({**row, "metrics.seconds": None})
    since = f"no sign of life since {seen:%Y-%m-%d %H:%M} UTC" if isinstance(seen, pd.Timestamp) else "no sign of life"
    return f"{since}, {progress}" if progress else since


def _number(value: Any) -> float:
    """Return the number, 0 where there is none."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return 0.0
    return number if number == number else 0.0
