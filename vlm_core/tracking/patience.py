"""A store that is locked or away in the middle of work: waited for, for minutes, with a sentence.

Nothing that was to be logged is lost meanwhile: the call that waits is repeated when the store is back.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, TypeVar

from vlm_core.errors import UserError, redact
from vlm_core.tracking.problems import is_away, is_locked, refuses_login

T = TypeVar("T")
SETTING: Final = "STORE_WAIT_MINUTES"
DEFAULT_MINUTES: Final = 15.0
SECONDS_LOCKED: Final = 20.0  # that a store is waited for which this process does not write to
SECONDS_SILENT: Final = 3.0  # before the sentence
SECONDS_BETWEEN: Final = 1.0
_log = logging.getLogger(__name__)
_log.setLevel(logging.WARNING)  # also in cells and trials, whose other messages are left out
_written: set[str] = set()  # addresses that are right, because they have answered: there, waiting is of use
_ends: list[float] = []  # moments at which no store is waited for any more, by `time.monotonic`


class Patient:
    """A client of the store at `uri`, MLflow's or another, whose calls are repeated while it is locked or away."""

    def __init__(self, client: object, uri: str) -> None:
        self._client = client
        self._uri = uri

    def __getattr__(self, name: str) -> Any:
        """Return what the client has under that name; a method is called patiently."""
        attribute = getattr(self._client, name)
        return partial(patiently, self._uri, attribute) if callable(attribute) else attribute


def minutes() -> float:
    """Return how long a store that runs are written to is waited for. Raises UserError for what is no number."""
    text = os.environ.get(SETTING, "")
    try:
        return float(text or DEFAULT_MINUTES)
    except ValueError:
        raise UserError(f"{SETTING}={text} is not a number of minutes: correct or unset that variable.") from None


def expect(uri: str) -> None:
    """Wait for minutes whenever the store at `uri`, which has just taken a write, is locked or away from now on."""
    minutes()
    _written.add(uri)


@contextmanager
def waiting_at_most(seconds: float) -> Iterator[None]:
    """Wait for stores no longer than that inside the block, for all calls together."""
    _ends.append(time.monotonic() + seconds)
    try:
        yield
    finally:
        _ends.pop()


def patiently(uri: str, work: Callable[..., T], *given: Any, **named: Any) -> T:
    """Return what `work` returns, which is called again while the store at `uri` is locked or away.

    The wait takes minutes for a store that this process writes to (`expect`), else some seconds if it is locked and
    none if it is away. Raises what `work` raises last; a store that was waited for in vain is not waited for again.
    """
    began = time.monotonic()
    logged = False
    while True:
        try:
            result = work(*given, **named)
        except Exception as error:
            now = time.monotonic()
            waited = now - began
            if waited >= _patience(uri, error) or now >= min(_ends, default=math.inf):
                if logged:
                    _written.discard(uri)
                raise
            if waited >= SECONDS_SILENT and not logged:
                logged = True
                _tell(uri, _problem(error))
        else:
            if logged:
                _log.warning("The store %s is back.", redact(uri))
            return result
        time.sleep(SECONDS_BETWEEN)


def _patience(uri: str, error: Exception) -> float:
    """Return for how many seconds the store is waited for after that error."""
    if is_locked(error):
        return minutes() * 60 if uri in _written else SECONDS_LOCKED
    # MLflow's server refuses every login while the database of its users is away.
    return minutes() * 60 if uri in _written and (is_away(error) or refuses_login(error)) else 0.0


def _problem(error: Exception) -> str:
    if is_locked(error):
        return "is locked by another process"
    if refuses_login(error):
        return "refuses the login that it took before, as it does while the database of its users is away"
    return "does not answer"


def _tell(uri: str, problem: str) -> None:
    _log.warning(
        "The store %s %s: waiting for it, for up to %g minutes (%s). Nothing is lost meanwhile.",
        redact(uri),
        problem,
        minutes(),
        SETTING,
    )
