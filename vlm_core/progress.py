"""What a command tells the person at its terminal: log messages on stdout, and bars on stderr for long work."""

from __future__ import annotations

import logging
import multiprocessing
import re
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

T = TypeVar("T")

# With these a terminal is told to move, to colour or to rename itself, or to show what follows from right to left
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_logger = logging.getLogger("vlm_core")
_logger.addHandler(logging.NullHandler())  # a library user who configures no logging sees nothing


def printable(text: str) -> str:
    """Return a text for a line of a terminal: control characters, which data may hold, are shown as \\n or \\x1b."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class StdoutHandler(logging.Handler):
    """Prints messages to whatever stdout is now, each at once, also where output is piped."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the bare message, of a warning after its level."""
        own = record.getMessage()
        trace = super().format(record).removeprefix(own).splitlines()  # of an exception, if there is one
        message = "\n".join(map(printable, [own, *trace[1:]]))
        return f"{record.levelname}: {message}" if record.levelno >= logging.WARNING else message

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        sys.stdout.write(f"{self.format(record)}\n")
        sys.stdout.flush()


def log_to_stdout() -> None:
    """Print this package's messages from now on, those of other libraries excepted."""
    if not any(isinstance(handler, StdoutHandler) for handler in _logger.handlers):
        _logger.addHandler(StdoutHandler())
    _logger.setLevel(logging.INFO)
    _logger.propagate = False  # a library that configures the root logger would print every message again


def shows_messages() -> bool:
    """Return whether messages of this package reach anybody, as they do in a command."""
    return _logger.isEnabledFor(logging.INFO)


@contextmanager
def quiet() -> Iterator[None]:
    """Show errors alone inside, and no bars: of a trial or a cell, only how it ended is of interest."""
    level = _logger.level
    _logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        _logger.setLevel(level)


def track(iterable: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Yield the values, with a bar on stderr that shows their rate and the time remaining.

    No bar is shown where stderr is no terminal, outside the main thread of a command, or inside `quiet`. `total` is how
    many values there are, where that is known.
    """
    if not _at_a_terminal():
        yield from iterable
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(label, total=total, rate="")
        for value in iterable:
            yield value
            speed = bars.tasks[0].speed
            bars.update(task, advance=1, rate=f"{speed:,.0f}/s" if speed else "")


def _at_a_terminal() -> bool:
    return (
        sys.stderr.isatty()
        and shows_messages()
        and threading.current_thread() is threading.main_thread()
        and multiprocessing.parent_process() is None
    )
