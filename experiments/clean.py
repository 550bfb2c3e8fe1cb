"""List what killed commands left behind, and remove it when told to: `python -m experiments.clean --remove`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.cli import Parser, run_command, say, show_table
from vlm_core.errors import UserError


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what nobody needs any more, with sizes, and remove it with `--remove`."""
    parser = Parser(
        prog="python -m experiments.clean",
        description="List what killed commands left in this folder, its store and the temporary folder, and features "
        "that no run uses; remove it with --remove. Runs, models and data stay.",
    )
    parser.add_argument(
        "--remove", nargs="?", const="yes", default="no", choices=("yes", "no"), help="remove what is listed"
    )
    parser.add_argument(
        "--idle_days", type=float, default=30, help="features that no run has used for so many days are listed, too"
    )
    options = parser.parse_args(arguments)
    from experiments.tables import leftover_rows, size_text
    from vlm_core.workflows.clean import bytes_on_disk, find_leftovers

    to_remove = options.remove == "yes"
    found = find_leftovers(Path.cwd(), idle_days=options.idle_days, to_remove=to_remove)
    if found.leftovers:
        show_table("Nobody needs", ("place", "what it is", "size"), leftover_rows(found.leftovers))
    if found.resumable.folders:
        print(f"Kept to resume runs from: {size_text(found.resumable.bytes)} in checkpoints/.")
    if found.unknown.folders:
        say(
            f"Kept for runs that this store does not have: {size_text(found.unknown.bytes)} in checkpoints/. Set "
            "MLFLOW_TRACKING_URI to their store, or remove these folders yourself."
        )
    for folder in found.begun.folders:
        say(
            f"Kept to be completed: {size_text(bytes_on_disk(folder))} in {folder.name}. Repeat the command that began "
            "it, or remove this folder yourself."
        )
    total = size_text(sum(leftover.bytes for leftover in found.leftovers))
    if not found.leftovers:
        print("Nothing is left behind.")
    elif not to_remove:
        print(f"{total} could be removed: repeat the command with --remove.")
    else:
        stayed = [leftover.place for leftover in found.leftovers if not leftover.is_removed()]
        if stayed:
            raise UserError(
                f"{len(stayed)} of {len(found.leftovers)} could not be removed, the first {stayed[0]}: end the "
                "process that uses it, or make its folder writable, then start again."
            )
        print(f"Removed {total}.")


if __name__ == "__main__":
    sys.exit(run_command(main, sweep=False))
