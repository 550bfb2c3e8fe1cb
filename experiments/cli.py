"""What every command shares: how it logs, how it ends, and how it prints a table."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from typing import Final

from vlm_core.atomic import own_temporary_folder
from vlm_core.errors import UserError, naming_extras
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
        print("Stopped. Everything logged so far is kept; resume a training with resume=<run id>.", file=sys.stderr)
        return STOPPED
    except OSError as error:
        if error.errno not in _WAYS_OUT:
            raise
        place, reason = error.filename or "A file", os.strerror(error.errno)
        print(printable(f"error: {place} cannot be written: {reason}. {_WAYS_OUT[error.errno]}"), file=sys.stderr)
        return 1
    return 0


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
