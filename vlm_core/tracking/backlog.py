"""Epochs that a run has yet to log, because its store is locked or away while it trains: training continues."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter, ValidationError

from vlm_core.errors import UserError, redact
from vlm_core.files.atomic import write_atomically
from vlm_core.tracking.patience import waiting_at_most
from vlm_core.tracking.problems import is_away, is_locked
from vlm_core.tracking.store import StoreProblem, short_timeouts, store_errors

NAME: Final = "backlog.json"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoggedEpoch:
    """What is logged of one epoch. To log it twice changes nothing: its metrics keep their moment."""

    epoch: int
    timestamp: int  # of its end, in milliseconds since 1970
    metrics: dict[str, float]
    tags: dict[str, str]
    files: list[tuple[str, str]]  # path below the run's folder, and the artifact folder


_EPOCHS: Final = TypeAdapter(list[LoggedEpoch])


class Backlog:
    """The epochs that are yet to be logged, in order, in memory and in a file that outlives the process."""

    def __init__(self, path: Path, uri: str, log: Callable[[LoggedEpoch], None]) -> None:
        """Take over what an earlier process has left at `path`; `log` writes an epoch to the store at `uri`."""
        self._path, self._uri, self._log = path, uri, log
        try:
            self._epochs = _EPOCHS.validate_json(path.read_bytes()) if path.exists() else []
        except ValidationError:
            self._epochs = []
            _log.warning(
                "%s is damaged: epochs in it that were not logged yet are missing from the run's curves.", path
            )
        self._is_told = False

    def add(self, epoch: LoggedEpoch) -> None:
        """Log an epoch after those before it, or keep it where the store is locked or away.

        Raises UserError for any other problem of the store, and for a file that cannot be written.
        """
        self._epochs.append(epoch)
        try:
            with waiting_at_most(0.0), short_timeouts():
                self.log()
        except StoreProblem as problem:
            if not _will_pass(problem):
                raise
            self._keep()
            self._tell()

    def log(self) -> None:
        """Log all epochs that are kept. Raises StoreProblem when the store was waited for in vain."""
        while self._epochs:
            with store_errors(self._uri):
                self._log(self._epochs[0])
            del self._epochs[0]
        self._path.unlink(missing_ok=True)
        if self._is_told:
            self._is_told = False
            _log.warning("The store %s is back, and has all epochs so far.", redact(self._uri))

    def _keep(self) -> None:
        content = json.dumps([asdict(epoch) for epoch in self._epochs]).encode()
        try:
            write_atomically(self._path, lambda file: file.write(content))
        except OSError as error:
            raise UserError(
                f"{self._path} cannot be written to ({error.strerror or error}): mend that, or free some space there, "
                "then continue the run with resume=."
            ) from error

    def _tell(self) -> None:
        if not self._is_told:
            self._is_told = True
            _log.warning(
                "The store %s is locked or does not answer: training continues, and its epochs are logged when it "
                "is back. Until then they are in %s.",
                redact(self._uri),
                self._path,
            )


def _will_pass(problem: StoreProblem) -> bool:
    cause = problem.__cause__ or problem
    return is_locked(cause) or is_away(cause)
