"""What every command shares: how its words are read, how it logs, how it ends, and how it prints a table."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Final

from vlm_core.errors import UserError, naming_extras
from vlm_core.files.atomic import own_temporary_folder
from vlm_core.progress import log_to_stdout, printable
from vlm_core.tracking.signals import STOPPED, catching

_MAKE_ROOM: Final = "Free some space there, then start again."
_MAKE_WRITABLE: Final = "Make its folder writable, or choose another place."
_CHOOSE: Final = "Choose another place."
_WAYS_OUT: Final = {
    errno.ENOSPC: _MAKE_ROOM,
    errno.EDQUOT: _MAKE_ROOM,
    errno.EACCES: _MAKE_WRITABLE,
    errno.EROFS: _MAKE_WRITABLE,
    errno.ENOTDIR: _CHOOSE,
    errno.ENAMETOOLONG: _CHOOSE,
}


class Parser(argparse.ArgumentParser):
    """A command line whose settings may also be written as messages write them: label=kind is --label kind."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Read the words as argparse does."""
        words = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args([self._flag(*pair) for pair in pairwise(["", *words])], namespace)

    def _flag(self, before: str, word: str) -> str:
        """Return a word as a flag if it is a setting and not the value of the flag before it."""
        name, is_pair, _ = word.partition("=")
        is_value = before.startswith("-") and "=" not in before
        return f"--{word}" if is_pair and not is_value and f"--{name}" in self._option_string_actions else word


def run_command(main: Callable[[], None], *, sweep: bool = True) -> int:
    """Run a command and return its exit code; an error that the user can fix is one sentence on stderr.

    With `sweep`, temporary folders of killed commands are removed first.
    """
    log_to_stdout()
    with catching():
        return _exit_code(main, sweep)


def _exit_code(main: Callable[[], None], sweep: bool) -> int:
    try:
        with naming_extras(), own_temporary_folder(sweep=sweep):
            main()
    except UserError as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. Everything logged so far is kept; resume=<run id> continues a training.", file=sys.stderr)
        return STOPPED
    except OSError as error:
        if error.errno not in _WAYS_OUT:
            raise
        place, reason = error.filename or "A file", os.strerror(error.errno)
        print(printable(f"error: {place} cannot be written: {reason}. {_WAYS_OUT[error.errno]}"), file=sys.stderr)
        return 1
    return 0


def say(text: str) -> None:
    """Print a sentence, which may hold texts from data."""
    print(printable(text))


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, all of whose texts are shown as they are; the first column is text, the others are numbers."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=printable(title), title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(printable(column), justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*map(printable, row))
    # Piped into a file there is no terminal to ask for its width: wide enough that no number is cut.
    Console(width=None if sys.stdout.isatty() else 140, markup=False, emoji=False).print(table)
