"""Commands in forks of this process, which has imported what they need, and their deaths at chosen moments."""

from __future__ import annotations

import atexit
import multiprocessing.util
import os
import random
import signal
import stat
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any, Final

SECONDS_TO_FINISH: Final = 300.0
SECONDS_OF_ORPHANS: Final = 5.0
_SECONDS_BETWEEN_LOOKS: Final = 0.002
_ALL: Final = "all"  # files that were written before that moment (ns) are synchronised
POWER: Final = "POWER"  # in the place of a signal: SIGKILL, and the disk loses what was not synchronised


@dataclass(frozen=True)
class Moment:
    """When a process is killed, and by which signal.

    `kind` is "time" (`seconds` after its start), "file" (`seconds` after a path appeared that matches the pattern
    `what`) or "step" (before the call of number `count` of the function `what`, or after it).
    """

    kind: str
    signal: str
    what: str = ""
    seconds: float = 0.0
    count: int = 1
    after: bool = False

    @property
    def number(self) -> int:
        """The signal's number."""
        return int(getattr(signal, "SIGKILL" if self.signal == POWER else self.signal))

    def __str__(self) -> str:
        if self.kind == "step":
            return f"{'after' if self.after else 'before'} call {self.count} of {self.what.split(':')[1]}"
        return f"{self.seconds:.2f} s after {self.what or 'its start'}"


@dataclass
class Ended:
    """How a command ended."""

    code: int  # negative: the signal that ended it
    seconds: float
    seconds_to_end: float = 0.0  # after the signal that it was sent, 0 where it had ended before
    printed: str = ""
    orphans: list[str] = field(default_factory=list)  # processes that it started and that lived 5 s later
    modules: list[str] = field(default_factory=list)  # that it had imported, where that was asked for


class RunningCommand:
    """A command that runs in a fork of this process, in a session of its own, so that all it starts can be found."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        folder: Path,
        moment: Moment | None = None,
        modules: Path | None = None,
    ) -> None:
        self.folder, self.log = folder, folder / f".printed-{time.monotonic_ns()}"
        self._before = _paths(folder, moment.what) if moment and moment.kind == "file" else set[Path]()
        self.moment, self._started, self._since = moment, time.monotonic(), time.time_ns()
        self.pid = os.fork()
        if not self.pid:
            _work(module, arguments, folder, self.log, moment, modules)

    def wait(self) -> Ended:
        """Send the signal at its moment, wait for the end, and look for what is left of the command."""
        sent = 0.0
        while (code := self._code()) is None:
            now = time.monotonic()
            if not sent and self.moment and self._is_time(now):
                os.kill(self.pid, self.moment.number)
                sent = time.monotonic()
            if now - self._started > SECONDS_TO_FINISH:
                os.killpg(self.pid, signal.SIGKILL)
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        now = time.monotonic()
        orphans = _await_orphans(self.pid)
        if self.moment and self.moment.signal == POWER:
            lose_power(self.folder, _syncs(self.log), self._since)
        printed = self.log.read_text(errors="replace") if self.log.exists() else ""
        self.log.unlink(missing_ok=True)
        return Ended(code, now - self._started, now - sent if sent else 0.0, printed, orphans)

    def _code(self) -> int | None:
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None

    def _is_time(self, now: float) -> bool:
        moment = self.moment
        assert moment
        if moment.kind == "time":
            return now - self._started >= moment.seconds
        if moment.kind == "step" or not _paths(self.folder, moment.what) - self._before:
            return False
        time.sleep(moment.seconds)
        return True


def _paths(folder: Path, pattern: str) -> set[Path]:
    with suppress(OSError):  # a folder went while it was read
        return set(folder.glob(pattern))
    return set()


def _syncs(log: Path) -> Path:
    return log.with_name(f"{log.name}.syncs")


def _note_syncs(path: Path) -> None:
    """Note in a file at `path` what each file is like that this process has synchronised, and when it did so to all."""
    from vlm_core.files import atomic

    synchronise, notes = os.fsync, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    synchronise_all = atomic.synchronise

    def noted(file: Any) -> None:
        synchronise(file)
        found = os.fstat(file if isinstance(file, int) else file.fileno())
        os.write(notes, f"{_state(found)}\n".encode())

    def noted_all(folder: Path) -> None:
        began = time.time_ns()
        synchronise_all(folder)
        os.write(notes, f"{_ALL} {began}\n".encode())

    os.fsync, atomic.synchronise = noted, noted_all


def _state(found: os.stat_result) -> str:
    return f"{found.st_ino} {found.st_mtime_ns} {found.st_size}"


def lose_power(folder: Path, syncs: Path, since: int) -> list[Path]:
    """Empty the files that were written since that moment (ns) and not synchronised afterwards, and return them.

    That is what a loss of power may do to them. Databases stay: SQLite synchronises them by itself. So do names.
    """
    kept = {*syncs.read_text().splitlines()} if syncs.exists() else set[str]()
    since = max([since, *(int(line.split()[1]) for line in kept if line.startswith(_ALL))])
    syncs.unlink(missing_ok=True)
    lost = []
    for path in folder.rglob("*"):
        found = path.lstat()
        is_new = stat.S_ISREG(found.st_mode) and found.st_ctime_ns >= since and found.st_size
        if is_new and _state(found) not in kept and ".db" not in path.name and not path.name.startswith(".printed"):
            os.truncate(path, 0)
            lost.append(path)
    return lost


def _await_orphans(session: int) -> list[str]:
    """Return the command lines of the session's processes that are alive after 5 s, which are then ended."""
    import psutil

    end = time.monotonic() + SECONDS_OF_ORPHANS
    while True:
        alive = []
        for pid in psutil.pids():
            with suppress(OSError, psutil.Error):
                process = psutil.Process(pid)
                if os.getsid(pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                    alive.append((pid, " ".join(process.cmdline())[:200]))
        if not alive or time.monotonic() > end:
            break
        time.sleep(0.1)
    for pid, _ in alive:
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    return [line for _, line in alive]


def _work(
    module: str, arguments: Sequence[str], folder: Path, log: Path, moment: Moment | None, modules: Path | None
) -> None:
    """Run the command in this process, a fork, and end the process as Python would."""
    code = 70
    try:
        os.setsid()
        os.chdir(folder)
        atexit._clear()  # what this process' parent wants done at its end, as the removal of its folders
        weakref.finalize._registry.clear()  # type: ignore[attr-defined]
        weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for number in (1, 2):
            os.dup2(output, number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a job of a shell's background
        temporary = folder / "tmp"
        temporary.mkdir(exist_ok=True)
        os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
        if moment and moment.signal == POWER:
            _note_syncs(_syncs(log))
        if moment and moment.kind == "step":
            _die_at(moment)
        code = _run(module, arguments)
        if modules:
            modules.write_text("\n".join(sys.modules))
        with suppress(BaseException):
            threading._shutdown()  # type: ignore[attr-defined]
            multiprocessing.util._exit_function()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    finally:
        os._exit(code)


def _run(module: str, arguments: Sequence[str]) -> int:
    from experiments.cli import run_command

    command: Callable[..., None] = import_module(module).main
    return run_command(lambda: command(arguments))


def _die_at(moment: Moment) -> None:
    """Have this process send itself the signal around the call of that number."""
    name, _, path = moment.what.partition(":")
    owner: Any = import_module(name)
    *owners, attribute = path.split(".")
    for each in owners:
        owner = getattr(owner, each)
    function, calls = getattr(owner, attribute), [0]

    def kill() -> None:
        os.kill(os.getpid(), moment.number)

    @wraps(function)
    def called(*arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == moment.count and not moment.after:
            kill()
        result = function(*arguments, **named)
        if calls[0] == moment.count and moment.after:
            kill()
        return result

    setattr(owner, attribute, called)


def choose_moment(
    chance: random.Random, seconds: float, files: Sequence[str], steps: Sequence[str], signals: Sequence[str]
) -> Moment:
    """Return a random moment within `seconds`, or one right after a file appears, or one beside a step."""
    name = chance.choice(signals)
    kind = chance.choice([*["time"] * 2, *["file"] * bool(files) * 2, *["step"] * bool(steps) * 2])
    if kind == "file":
        return Moment(kind, name, chance.choice(files), seconds=chance.choice((0.0, 0.0, 0.01, 0.05)))
    if kind == "step":
        what = chance.choice(steps)
        return Moment(kind, name, what, count=chance.choice((1, 1, 1, 2, 3)), after=chance.random() < 0.5)
    return Moment(kind, name, seconds=chance.uniform(0.0, seconds))
