"""What a folder holds after a command: metrics to the last digit, runs and models by status, and what is left over."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

# Metrics of the clock and of the machine, which differ between any two runs.
_OF_THE_CLOCK: Final = ("seconds", "system/", "megabytes_per_second", "cost")
# What no command may leave: unfinished files, by pattern.
_UNFINISHED: Final = (
    "**/*.part",
    "data/processed/.*",
    "pretrained/.*",
    ".mlflow.db.new*",
    ".packed.*",
    ".predicted.*",
    "tmp/*",
)

Metrics = dict[str, dict[str, float]]


def query(folder: Path, text: str, *values: Any) -> list[tuple[Any, ...]]:
    """Return the rows of a query to the folder's store, [] where there is none yet."""
    path = folder / "mlflow.db"
    if not path.exists():
        return []
    with closing(sqlite3.connect(path, timeout=30)) as database:
        return database.execute(text, values).fetchall()


def runs(folder: Path) -> list[tuple[str, str, str, str]]:
    """Return id, name, status and parent ("" without one) of each run that is not deleted, oldest first."""
    return query(
        folder,
        "SELECT run_uuid, name, status, coalesce((SELECT value FROM tags WHERE tags.run_uuid = runs.run_uuid AND key ="
        " 'mlflow.parentRunId'), '') FROM runs WHERE lifecycle_stage = 'active' ORDER BY start_time",
    )


def has_settings(folder: Path, run_id: str) -> bool:
    """Return whether the run's settings were logged; without them it is repeated, not resumed."""
    return bool(query(folder, "SELECT 1 FROM params WHERE run_uuid = ? LIMIT 1", run_id))


def metrics(folder: Path) -> Metrics:
    """Return the metrics of each finished run and step by the run's name, without those of the clock.

    A run of a search is named after its settings, because its number says little. The search's own run counts trials,
    those that were killed as well, and is left out.
    """
    found: Metrics = {}
    for run_id, name, status, _ in runs(folder):
        is_search = query(folder, "SELECT 1 FROM params WHERE run_uuid = ? AND key = 'trials'", run_id)
        if status != "FINISHED" or is_search:
            continue
        rows = query(folder, "SELECT key, step, value, is_nan FROM metrics WHERE run_uuid = ?", run_id)
        of_run = {
            f"{key} at {step}": float("nan") if is_nan else float(value)
            for key, step, value, is_nan in rows
            if not any(word in key for word in _OF_THE_CLOCK)
        }
        found[_searched_name(folder, run_id, name)] = of_run
    return found


def prepared_metrics(folder: Path) -> Metrics:
    """Return the numbers of a prepared catalogue as a finished run's."""
    path = folder / "data" / "processed" / "dataset_info.json"
    text = json.dumps(json.loads(path.read_text()), sort_keys=True) if path.exists() else ""
    return {"dataset_info.json": {text: 1.0}} if text else {}


def checksums(folder: Path) -> Metrics:
    """Return the checksum of each file of a folder as the metrics of a finished run of that name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    of_files = {f"{path.relative_to(folder)} {sha256(path.read_bytes()).hexdigest()}": 1.0 for path in files}
    return {folder.name: of_files} if of_files else {}


def _searched_name(folder: Path, run_id: str, name: str) -> str:
    """Return the name of a run; that of a trial or a winner has the setting that was searched over."""
    start, _, end = name.rpartition("-")
    parents = query(folder, "SELECT value FROM tags WHERE run_uuid = ? AND key = 'mlflow.parentRunId'", run_id)
    if not parents or not (end.isdigit() or end == "winner") or "/" in name:
        return name
    blocks = query(folder, "SELECT value FROM params WHERE run_uuid = ? AND key = 'blocks'", run_id)
    return f"{start}-{'winner' if end == 'winner' else 'trial'} with blocks={blocks[0][0] if blocks else '?'}"


def failures(folder: Path, found: Metrics, expected: Metrics, *, is_open: bool) -> Iterator[tuple[str, str]]:
    """Yield kind and detail of all that is wrong in the folder after the last command.

    `expected` are the metrics of the same runs without a kill. With `is_open` runs may be unfinished, because the
    command only ended early.
    """
    for name, of_run in found.items():
        if name not in expected:
            continue
        wrong = [key for key in {**expected[name], **of_run} if not _same(expected[name].get(key), of_run.get(key))]
        if wrong:
            key = wrong[0]
            detail = f"{name}: {len(wrong)} differ, first {key}: {of_run.get(key)} for {expected[name].get(key)}"
            yield "other metrics", detail
    if not is_open:
        for name in expected.keys() - found.keys():
            yield "not finished", f"no finished run {name}"
    for run_id, name, status, _ in runs(folder):
        if status in ("RUNNING", "SCHEDULED"):
            yield "RUNNING", f"run {run_id} ({name})"
    text = (
        "SELECT run_uuid, logged_models.status FROM runs JOIN logged_models ON source_run_id = run_uuid"
        " WHERE runs.status = 'FINISHED' AND logged_models.lifecycle_stage = 'active' AND logged_models.status != 2"
    )
    for run_id, status in query(folder, text):
        yield "model not whole", f"finished run {run_id}: a logged model has status {status}"
    yield from _twice(folder)
    yield from _left_over(folder)


def _same(one: float | None, other: float | None) -> bool:
    return one == other or (one is not None and other is not None and one != one and other != other)


def _twice(folder: Path) -> Iterator[tuple[str, str]]:
    text = (
        "SELECT run_uuid, key, step, count(*) FROM metrics WHERE key NOT LIKE 'system/%' AND key NOT LIKE '%seconds%'"
        " AND key NOT LIKE 'trials_%' AND key NOT LIKE 'onnx_%' GROUP BY run_uuid, key, step HAVING count(*) > 1"
    )
    for run_id, key, step, count in query(folder, text)[:1]:
        yield "logged twice", f"run {run_id}: {key} at step {step}, {count} times"
    text = "SELECT source_run_id, count(*), max(status) FROM logged_models WHERE lifecycle_stage = 'active' GROUP BY 1"
    for run_id, count, status in query(folder, text):
        if count > 1:
            yield "logged twice", f"run {run_id}: {count} logged models, statuses up to {status}"
    text = "SELECT run_id, count(*) FROM model_versions WHERE current_stage != 'Deleted_Internal' GROUP BY 1"
    for run_id, count in query(folder, text):
        if count > 1:
            yield "logged twice", f"run {run_id}: {count} versions"


def _left_over(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted({path for pattern in _UNFINISHED for path in folder.glob(pattern)}):
        size = sum(each.lstat().st_size for each in (path, *path.rglob("*")))
        yield "left behind", f"{path.relative_to(folder)} ({size:,} bytes)"
    for path in folder.glob("checkpoints/*"):
        statuses = [status for run_id, _, status, _ in runs(folder) if run_id == path.name]
        yield "left behind", f"checkpoints of {path.name}, whose run is {statuses or 'unknown'}"
