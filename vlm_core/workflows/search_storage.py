"""Where a search is stored: a journal file of one machine, or a database, in which the living say that they are.

A process of this machine is known to be dead by its number. One of another machine is known by its silence: it says in
the database, every few seconds, that its trial is alive (Optuna's heartbeat).
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import optuna
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, Trial, TrialState

from vlm_core.tracking.opening import end_orphans
from vlm_core.tracking.patience import patiently
from vlm_core.tracking.tags import FAILURE

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_BEATS: Final = 10
SECONDS_SILENT: Final = 120  # after which somebody is taken for dead; a database may be away for as long
MOST_REPEATS: Final = 3  # of a trial, which may be what kills its processes
# User attributes of a search or a trial.
RUN: Final = "mlflow_run"
REPEATS: Final = "repeats"  # number of the trial that died and is repeated by this one
TIMES: Final = "times_repeated"
_QUEUED_SETTINGS: Final = "fixed_params"  # Optuna's name among a trial's system attributes


def open_journal(path: Path) -> optuna.storages.JournalStorage:
    """Open the journal at `path`, mended if a process was killed that was writing it."""
    _mend_journal(path)
    return optuna.storages.JournalStorage(JournalFileBackend(str(path)))


def open_database(address: str, root: Path) -> Any:
    """Open the database at `address`, in which the dead are noticed; checkpoints of their trials are below `root`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.storages.get_storage(
            optuna.storages.RDBStorage(
                address,
                heartbeat_interval=SECONDS_BETWEEN_BEATS,
                grace_period=SECONDS_SILENT,
                heartbeat_stale_trial_callback=partial(repeat_trial, root=root),
            )
        )


def _mend_journal(path: Path) -> None:
    """Drop what a killed process has left of the journal's last line, behind which Optuna would write the next one."""
    if not path.exists() or _whole_bytes(path) == path.stat().st_size:
        return
    lock = JournalFileSymlinkLock(str(path))
    lock.acquire()  # a living process may have been writing that line
    try:
        whole = _whole_bytes(path)
        if whole < path.stat().st_size:
            os.truncate(path, whole)
            logger.warning(
                f"The last line of {path} was cut when its process was killed: the search continues without it."
            )
    finally:
        lock.release()


def _whole_bytes(path: Path) -> int:
    """Return the size of the journal up to the end of its last whole line."""
    content = path.read_bytes()
    while content:
        start = content.rstrip(b"\n").rfind(b"\n") + 1
        try:
            if content.endswith(b"\n") and isinstance(json.loads(content[start:]), dict):
                break
        except ValueError:
            pass
        content = content[:start]
    return len(content)


def queue_again(search: optuna.Study, trial: FrozenTrial) -> bool:
    """Queue the settings of a trial that did not end, unless that was done often enough; return whether it was."""
    times = int(trial.user_attrs.get(TIMES, 0)) + 1
    if times <= MOST_REPEATS:
        # A trial that was queued itself has taken none of its settings yet where it died at once.
        settings = {**trial.system_attrs.get(_QUEUED_SETTINGS, {}), **trial.params}
        search.enqueue_trial(settings, user_attrs={REPEATS: trial.number, TIMES: times})
    return times <= MOST_REPEATS


def repeat_trial(search: optuna.Study, trial: FrozenTrial, root: Path) -> None:
    """Queue the settings of a trial that died, and remove its checkpoints; `end_failed_runs` ends its run.

    It does nothing slow: where several processes notice deaths, the others see at once that this one is repeated.
    """
    is_queued = queue_again(search, trial)
    if run_id := trial.user_attrs.get(RUN):
        shutil.rmtree(root / "checkpoints" / str(run_id), ignore_errors=True)
    if is_queued:
        logger.info(f"Trial {trial.number} died with its process and is repeated.")


def repeat_forgotten(search: optuna.Study, root: Path) -> None:
    """Repeat the trials that failed and are not repeated yet, but for those whose losses diverged.

    An error may be mended by now, and who notices that a trial died may be killed before it queues the trial again.
    """
    trials = search.get_trials(deepcopy=False)
    repeated = {trial.user_attrs.get(REPEATS) for trial in trials}
    for trial in trials:
        if trial.state == TrialState.FAIL and trial.number not in repeated and FAILURE not in trial.user_attrs:
            repeat_trial(search, trial, root)


def end_failed_runs(search: optuna.Study) -> None:
    """Mark the runs of trials that failed as KILLED that are RUNNING: nobody is left who ends them.

    Raises UserError where the runs' store does not answer.
    """
    failed = search.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    if names := [run_name(search, trial) for trial in failed]:
        end_orphans(str(search.user_attrs[RUN]), names)


def run_name(search: optuna.Study, trial: FrozenTrial | Trial) -> str:
    """Return the name of a trial's run."""
    return f"{search.study_name}-{trial.number}"


@contextmanager
def heartbeat(alive: Callable[[], object], address: str) -> Iterator[None]:
    """Call `alive` now and every few seconds within the context, also while the database at `address` is away."""
    ended = threading.Event()

    def send_heartbeats() -> None:
        seconds: float = SECONDS_BETWEEN_BEATS
        while not ended.wait(seconds):
            try:
                alive()
                seconds = SECONDS_BETWEEN_BEATS
            except Exception:  # whatever it is, it is told where the trial itself fails
                seconds = 1.0

    patiently(address, alive)
    threading.Thread(target=send_heartbeats, name="alive", daemon=True).start()
    try:
        yield
    finally:
        ended.set()
