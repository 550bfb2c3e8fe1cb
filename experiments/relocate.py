"""Mend a tracking store whose folder was moved: `python -m experiments.relocate --old <folder> --new <folder>`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.cli import Parser, run_command


def main(arguments: Sequence[str] | None = None) -> None:
    """Have the store's addresses of artifacts begin with the new folder, and print how many do."""
    parser = Parser(
        prog="python -m experiments.relocate",
        description="Mend a tracking store (an SQLite file) whose folder was moved, with its artifacts.",
    )
    parser.add_argument("--old", required=True, help="absolute path of the folder that mlruns/ was in")
    parser.add_argument("--new", default=".", help="folder that mlruns/ is in now")
    options = parser.parse_args(arguments)
    from vlm_core.tracking.relocation import relocate

    new = Path(options.new).expanduser().resolve()
    count = relocate(Path(options.old), new)
    print(f"Changed {count:,} addresses of artifacts, which begin with {new} now.")


if __name__ == "__main__":
    sys.exit(run_command(main))
