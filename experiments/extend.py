"""Teach a finished run more categories: `python -m experiments.extend --run <id> --data new.csv`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.cli import Parser, run_command, say, show_table
from vlm_core.config import ExtensionConfig


def main(arguments: Sequence[str] | None = None) -> None:
    """Extend the run as the flags say, and print what it learnt and what it forgot."""
    parser = Parser(
        prog="python -m experiments.extend",
        description="Teach a finished run more categories, or more products of those it has, as a new version.",
    )
    config = ExtensionConfig.from_flags(arguments, parser)
    from experiments.tables import evaluation_rows
    from vlm_core.workflows.extend import forgetting_rows, run_extension

    outcome = run_extension(config, Path.cwd())
    mark = " (LEAKING)" if outcome.split.leaking else ""
    show_table(
        f"All categories on the test split{mark}", ("", "score", "95 % interval"), evaluation_rows(outcome.evaluation)
    )
    if outcome.forgetting:
        title = f"Old categories on their {outcome.forgetting.products:,} old test products"
        show_table(title, ("", "before", "after", "lost", "95 % interval", "p"), forgetting_rows(outcome.forgetting))
    else:
        say(outcome.unmeasured)
    print(f"Learnt in {outcome.seconds:.1f} s; the model keeps {outcome.memory_bytes:,} bytes of features.")
    print(outcome.registered)
    print(f"MLflow run {outcome.run_id}, a child of {outcome.config.run}.")


if __name__ == "__main__":
    sys.exit(run_command(main))
