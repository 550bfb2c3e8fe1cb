"""Tasks for engines: they import nothing heavy, and any process can be given them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from vlm_core.errors import MissingExtra


def double(number: int) -> int:
    return 2 * number


def fail_at_two(number: int) -> int:
    if number == 2:
        raise MissingExtra("two", "three")  # which does not survive being pickled
    return number


def say_where(name: str) -> tuple[str, str]:
    return str(Path.cwd()), os.environ.get(name, "")


def die_once(mark: Path) -> str:
    """Kill the process the first time, as a kernel does that lacks memory."""
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def always_die(name: str) -> str:
    if name == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    return name


def work_until_stopped(mark: Path) -> None:
    """Say in `mark` what ended it."""
    mark.with_suffix(".began").touch()
    try:
        while True:  # Ray's way of an interruption reaches Python alone, not a call that waits
            time.sleep(0.05)
    except KeyboardInterrupt:
        mark.write_text("stopped")
        raise


def same(task: object) -> object:
    return task


def meet(folder: Path, place: object) -> list[str]:
    """As one of several processes, return what all of them have to say, once one of them was killed."""
    import torch
    from torch import distributed

    rank = distributed.get_rank()
    told = [f"{rank}: {Path.cwd().name} with {torch.get_num_threads()} of {place}"] * distributed.get_world_size()
    if rank:
        die_once(folder / "died")
    distributed.all_gather_object(told, told[0])
    return told


def refuse_in_second(folder: Path, place: object) -> None:
    """Raise an error that does not survive being pickled, where the others wait."""
    from torch import distributed

    if distributed.get_rank():
        raise MissingExtra("two", "three")
    distributed.barrier()


def work_together_until_stopped(folder: Path, place: object) -> None:
    """Say who works, and work."""
    from torch import distributed

    (folder / f"{distributed.get_rank()}.began").write_text(str(os.getpid()))
    time.sleep(600)


class DiesWhereItArrives:
    """A task that kills the second of several workers as it is handed over, the first time."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __setstate__(self, state: dict[str, Path]) -> None:
        from torch import distributed

        self.__dict__.update(state)
        if distributed.is_initialized() and distributed.get_rank():
            die_once(self.mark)


def say_that_it_arrived(task: DiesWhereItArrives, place: object) -> str:
    return task.mark.name
