"""How long work shows that it moves: one function type, a bar for people and silence for tests."""

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """Passes the values of an iterable through while it shows how far it is."""

    def __call__(self, iterable: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        """The values in their order; `total` is how many there are, where that is known."""


def silent(iterable: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """The values as they are, with nothing shown."""
    yield from iterable


def show(iterable: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """The values, with a bar on stderr that has the rate and the time to come; nothing where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task(label, total=total, rate="")
        for value in iterable:
            yield value
            speed = bars.tasks[0].speed
            bars.update(task, advance=1, rate=f"{speed:,.0f}/s" if speed else "")
