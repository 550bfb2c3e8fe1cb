"""Two states of the project side by side: `python -m tests.campaigns.start_time <folder before> <folder after>`.

Each folder is a clone in which `make setup` has run. Printed are the size of its environment and of its code, and what
`experiments.train` takes in turns of the two: to show its help, and to train on a small
generated catalogue in an empty folder.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

TRAIN: Final = (
    *("--preset", "demo", "--data", "shop", "--model", "clip", "--mode", "probe", "--epochs", "2", "--views", "1"),
    *("--per_category", "24", "--train_per_category", "12", "--resamples", "100", "--threads", "1"),
)
COMMANDS: Final = {"help": ("--help",), "train": TRAIN}
CODE: Final = ("vlm_core", "experiments")


class Taken(NamedTuple):
    """What a command took."""

    cpu_seconds: float
    seconds: float
    seconds_to_first_line: float
    mib: float  # of memory, at most

    def __str__(self) -> str:
        seconds = (
            f"{self.cpu_seconds:.2f} s of CPU, {self.seconds:.2f} s, first line at {self.seconds_to_first_line:.2f} s"
        )
        return f"{seconds}, {self.mib:.1f} MiB"


def measure(project: Path, words: Sequence[str]) -> Taken:
    """Run a training's command of a project in a folder of its own. Raises RuntimeError if it fails."""
    from vlm_core.catalogue.sample import draw_sample

    with tempfile.TemporaryDirectory(prefix="start-") as folder:
        draw_sample(Path(folder) / "shop", products=160)
        began = time.perf_counter()
        command = subprocess.Popen(
            [project / ".venv" / "bin" / "python", "-m", "experiments.train", *words],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(project)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert command.stdout
        printed = command.stdout.readline()
        first = time.perf_counter() - began
        printed += command.stdout.read()
        _, status, usage = os.wait4(command.pid, 0)
        if status:
            raise RuntimeError(printed.decode()[-1000:])
        return Taken(usage.ru_utime + usage.ru_stime, time.perf_counter() - began, first, usage.ru_maxrss / 1024)


def megabytes(*folders: Path) -> float:
    """Return what the files of folders take of the disk, in MB; `make setup` has compiled none of them."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return sum(path.stat().st_blocks for path in files if path.suffix != ".pyc") * 512 / 1e6


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.start_time", description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args(arguments)
    projects = {"before": options.before.resolve(), "after": options.after.resolve()}
    for which, project in projects.items():
        code = megabytes(*(project / name for name in CODE))
        print(f"{which}: {megabytes(project / '.venv'):,.1f} MB of environment, {code:.2f} MB of code", flush=True)
    taken = defaultdict(list)
    for pair in range(options.pairs + 1):  # the first compiles what it imports
        for name, words in COMMANDS.items():
            for which, project in projects.items():
                one = measure(project, words)
                print(f"{pair} {name} {which}: {one} (load {os.getloadavg()[0]:.1f})", flush=True)
                if pair:
                    taken[name, which].append(one)
    for (name, which), each in taken.items():
        middle, lowest = (Taken(*map(of, zip(*each, strict=True))) for of in (statistics.median, min))
        print(f"{name}, {which}: median {middle}; least {lowest}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
