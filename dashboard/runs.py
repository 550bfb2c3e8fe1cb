"""The runs of the tracking store, read by a background thread, so that no page waits for it."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
import pandas as pd
from cachetools import LRUCache

from dashboard.leaderboard import Leaderboard, make_leaderboard
from dashboard.leaks import mark_unmasked
from dashboard.live import add_live
from vlm_core.errors import UserError
from vlm_core.tracking.filters import quoted

if TYPE_CHECKING:
    from vlm_core.evaluation.evaluation import Evaluation
    from vlm_core.evaluation.predictions import Predictions
    from vlm_core.tracking.reader import RunReader

T = TypeVar("T")
SECONDS_BETWEEN: Final = 3.0  # readings of what changes
SECONDS_UNTIL_WHOLE: Final = 120.0  # after which everything is read again, for deleted runs and changed tags
SECONDS_OF_INTEREST: Final = 60.0  # without a visitor, after which the store is left alone
SECONDS_SILENT: Final = 6.0  # that one answer may take before the store counts as away
SECONDS_TO_OPEN: Final = 15.0  # and the first one, for which libraries are loaded
MOST_FILES: Final = 64  # of runs, in memory: evaluations, predictions, logs and texts
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoreSnapshot:
    """The store as last seen. `state` is "loading" (nothing read yet), "ready" or "away" (`problem` says why)."""

    table: pd.DataFrame  # as RunReader.runs gives it, with the columns of `dashboard.live`
    state: str
    problem: str
    version: int  # grows whenever the table or the state changes
    whole: bool  # False until the first reading is complete
    read: str = ""  # when it was away: the time (UTC) of the last reading; "" if there was none

    @cached_property
    def leaderboard(self) -> Leaderboard:
        """Return the leaderboard, computed once: this takes a quarter of a second for 2,000 runs."""
        return make_leaderboard(self.table)


class Runs:
    """The store at `uri` (empty: the default one), read by a thread of its own from `start` on."""

    def __init__(self, uri: str = "", root: Path | None = None) -> None:
        self.uri = uri
        self.root = root or Path.cwd()
        self._reader: RunReader | None = None
        # no two processes count versions alike: a page that outlives a restart must notice
        self.first_version: Final = int(time.time())
        self._view = StoreSnapshot(pd.DataFrame(), "loading", "", self.first_version, whole=False)
        self._files: LRUCache[tuple[str, ...], Any] = LRUCache(MOST_FILES)
        self._lock = threading.Lock()
        self._publishing = threading.Lock()
        self._opening = threading.RLock()
        self._file: tuple[int, int] | None = None  # device and inode of an SQLite store
        self._asked: float | None = None  # when the question was asked that the store has not answered yet
        self._read_at = ""
        self._last_visit = time.monotonic()
        self._read_whole = float("-inf")
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start reading in the background; the thread ends with the process.

        A file that is there now was there, if it is removed before it is read: to know the default one takes seconds.
        """
        if self._thread is None:
            path = self._path() if self.uri else None
            self._file = None if path is None else _file_of(path)
            self._thread = threading.Thread(target=self._watch, name="runs", daemon=True)
            self._thread.start()

    def view(self) -> StoreSnapshot:
        """Return the store as last seen, without waiting; one that does not answer for long counts as away."""
        self._last_visit = time.monotonic()
        asked, seconds = self._asked, SECONDS_SILENT if self._view.state == "ready" else SECONDS_TO_OPEN
        if asked is not None and self._view.state != "away" and time.monotonic() - asked > seconds:
            problem = f"The tracking store has not answered for {seconds:.0f} seconds."
            self._publish(self._view.table, "away", problem, whole=False)
        return self._view

    def table(self) -> pd.DataFrame:
        """Return all runs as last seen, newest first."""
        return self.view().table

    def row(self, run_id: str) -> dict[str, Any] | None:
        """Return one run's row without its empty cells; None if the store was not seen to hold it."""
        table = self.table()
        places = np.flatnonzero(table["run_id"].to_numpy() == run_id) if "run_id" in table else np.array([])
        if not places.size:
            return None
        row = table.iloc[int(places[0])]  # a selection of rows would copy each of hundreds of columns
        return {str(name): value for name, value in row.items() if not _is_missing(value)}

    def evaluation(self, run_id: str, name: str = "test") -> Evaluation | None:
        """Return the run's stored evaluation; None if it has none. Raises StoreProblem where that is not known."""
        return self._cached(("evaluation", run_id, name), lambda: self.reader().evaluation(run_id, name))

    def predictions(self, run_id: str, name: str) -> Predictions | None:
        """Return the run's stored predictions on a split; None if it has none. Raises StoreProblem likewise."""
        return self._cached(("predictions", run_id, name), lambda: self.reader().predictions(run_id, name))

    def epochs(self, run_id: str) -> list[dict[str, Any]]:
        """Return the entries of the run's training log, one per epoch (see tracking.training_log); [] without one."""
        name = (self.row(run_id) or {}).get("tags.training_log")
        if not name:
            return []

        def read() -> list[dict[str, Any]]:
            entries: list[dict[str, Any]] = json.loads(self.reader().text(run_id, f"logs/{name}"))["epochs"]
            return entries

        return self._cached(("epochs", run_id, self._stamp(run_id)), read) or []

    def text(self, run_id: str, path: str) -> str:
        """Return the text of a file of the run; "" if it has none. Raises StoreProblem likewise."""
        return self._cached(("text", run_id, path, self._stamp(run_id)), lambda: self.reader().text(run_id, path)) or ""

    def _stamp(self, run_id: str) -> str:
        """Return a part of the cache key that changes with the table while the run is running."""
        running = (self.row(run_id) or {}).get("status") == "RUNNING"
        return str(self._view.version) if running else ""

    def reader(self) -> RunReader:
        """Return the open store, which is never made here. Raises StoreProblem when it is away or was removed."""
        with self._opening:
            self._check_file()
            if self._reader is None:
                from vlm_core.tracking.reader import RunReader

                self._reader = RunReader(self.uri)
            return self._reader

    def refresh(self, *, whole: bool = False) -> None:
        """Read what has changed, or everything; a store that is away sets the snapshot's state."""
        from vlm_core.tracking.patience import waiting_at_most
        from vlm_core.tracking.store import open_mlflow, short_timeouts

        open_mlflow()  # whose import takes seconds, in which no store is asked
        self._asked = time.monotonic()
        try:
            with short_timeouts(), waiting_at_most(SECONDS_SILENT):
                if self._is_unmade():
                    self._publish(pd.DataFrame(), "ready", "", whole=True)
                elif whole or not self._view.whole or time.monotonic() - self._read_whole > SECONDS_UNTIL_WHOLE:
                    self._read_all()
                else:
                    self._read_changes()
        except UserError as error:
            self._reader = None
            self._publish(self._view.table, "away", str(error), whole=False)
        finally:
            self._asked = None

    def _path(self) -> Path | None:
        """Return the file of an SQLite store; None for other stores."""
        from vlm_core.tracking.database_file import sqlite_path
        from vlm_core.tracking.store import store_uri

        return sqlite_path(self.uri or store_uri())

    def _is_unmade(self) -> bool:
        """Return whether no command has made the store yet, in a folder that is there: it holds no runs then."""
        path = self._path()
        return path is not None and self._file is None and path.parent.is_dir() and _file_of(path) is None

    def _check_file(self) -> None:
        """Open an SQLite store anew whose file was replaced. Raises StoreProblem where one that was there is gone.

        The open file would still answer, with what it held before; and whoever opens a missing one makes it.
        """
        from vlm_core.tracking.store import StoreProblem, forget_connections, store_uri

        path = self._path()
        if path is None:
            return
        file = _file_of(path)
        if file is None:
            if self._file is None and not path.parent.is_dir():
                return  # opening it says what is wrong
            forget_connections(self.uri or store_uri())
            self._reader = None
            raise StoreProblem(f"The tracking store {path} was removed: put it back, or start again with --store.")
        if self._file not in (None, file) or self._view.state == "away":
            forget_connections(self.uri or store_uri())
            self._reader = None
        if self._file not in (None, file):
            self._forget()
        self._file = file

    def _forget(self) -> None:
        """Forget what was read of a store that is another one now."""
        with self._lock:
            self._files.clear()
        self._publish(self._view.table, self._view.state, self._view.problem, whole=False)

    def _watch(self) -> None:
        while True:
            if time.monotonic() - self._last_visit < SECONDS_OF_INTEREST or not self._view.whole:
                try:
                    self.refresh()
                except Exception:  # the thread must outlive whatever one reading meets
                    _log.exception("the tracking store could not be read")
                    self._reader = None
                    self._publish(self._view.table, "away", "The tracking store could not be read.", whole=False)
            time.sleep(SECONDS_BETWEEN)

    def _read_all(self) -> None:
        """Read all runs, page by page; publish the first ones while the others are still read."""
        started = time.monotonic()
        parts: list[pd.DataFrame] = []
        first = not self._view.whole and self._view.table.empty
        for part in self.reader().pages():
            self._asked = time.monotonic()
            parts.append(part)
            if first:
                self._publish(_live(_concatenate(parts)), "ready", "", whole=False)
        self._publish(_live(_concatenate(parts)), "ready", "", whole=True)
        self._read_whole = started

    def _read_changes(self) -> None:
        """Read runs that are new, running, or were running when last seen; all, if the newest known one is gone."""
        table = self._view.table
        reader = self.reader()
        if table.empty:
            self._publish(_live(reader.runs()), "ready", "", whole=True)
            return
        newest = int(table["started"].max().timestamp() * 1000)
        parts = [reader.runs(f"attributes.start_time >= {newest}"), reader.runs("attributes.status = 'RUNNING'")]
        if table["run_id"].iloc[0] not in set(parts[0]["run_id"]):  # deleted, or the store is another one
            self._forget()
            self._read_all()
            return
        ran = table.loc[table["status"] == "RUNNING", "run_id"]
        ended = sorted(set(ran) - set(pd.concat(parts)["run_id"]))
        if ended:
            parts.append(reader.runs("attributes.run_id IN (" + ", ".join(map(quoted, ended)) + ")"))
        fresh = _concatenate([part for part in parts if not part.empty]).drop_duplicates("run_id")
        unchanged = table[~table["run_id"].isin([*fresh["run_id"], *ended])]
        merged = _concatenate([_live(fresh), unchanged]).sort_values(
            "started", ascending=False, kind="stable", ignore_index=True
        )
        self._publish(table if merged.equals(table) else merged, "ready", "", whole=True)

    def _publish(self, table: pd.DataFrame, state: str, problem: str, *, whole: bool) -> None:
        with self._publishing:
            if state == "ready":
                self._read_at = f"{pd.Timestamp.now('UTC'):%Y-%m-%d %H:%M:%S}"
            old = self._view
            if (state, problem, whole) == (old.state, old.problem, old.whole) and table.equals(old.table):
                return
            self._view = StoreSnapshot(table, state, problem, old.version + 1, whole, self._read_at)

    def _cached(self, key: tuple[str, ...], read: Callable[[], T]) -> T | None:
        """Return what `read` returns, cached; None, which is not cached, where the run has no such file.

        Raises StoreProblem while the store is away: whether the run has the file is not known then.
        """
        from vlm_core.tracking.store import StoreProblem, short_timeouts

        with self._lock:
            if key in self._files:
                cached: T = self._files[key]
                return cached
        if self._view.state == "away":
            raise StoreProblem(self._view.problem)
        try:
            with short_timeouts():
                content = read()
        except StoreProblem:
            raise
        except (UserError, OSError, ValueError, KeyError):
            return None
        with self._lock:
            self._files[key] = content
        return content


def _file_of(path: Path) -> tuple[int, int] | None:
    """Return device and inode of a database file; None without one, and for an empty one, as SQLite makes of none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return (status.st_dev, status.st_ino) if status.st_size else None


def _live(table: pd.DataFrame) -> pd.DataFrame:
    return add_live(mark_unmasked(table), pd.Timestamp.now("UTC"))


def _concatenate(parts: list[pd.DataFrame]) -> pd.DataFrame:
    filled = [part for part in parts if not part.empty]
    return pd.concat(filled, ignore_index=True) if filled else (parts[0] if parts else pd.DataFrame())


def _is_missing(value: object) -> bool:
    return value is None or value is pd.NaT or (isinstance(value, float) and value != value)
