"""Fine-tune one model and evaluate it: `python -m experiments.train --model blip`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.cli import Parser, run_command, show_table
from vlm_core.config import Config


def main(arguments: Sequence[str] | None = None) -> None:
    """Train as the flags say, and print the scores on the test split."""
    parser = Parser(
        prog="python -m experiments.train", description="Fine-tune one model, evaluate it, and log it to MLflow."
    )
    config = Config.from_flags(arguments, parser)
    from experiments.tables import evaluation_rows
    from vlm_core.workflows.train import run_training

    outcome = run_training(config, Path.cwd())
    mark = " (LEAKING protocol)" if outcome.split.leaking else ""
    show_table(
        f"{outcome.config.model} on the test split{mark}",
        ("", "score", "95 % interval"),
        evaluation_rows(outcome.evaluation),
    )
    print(outcome.registered)
    print(f"MLflow run {outcome.run_id}: open it with `mlflow ui`.")


if __name__ == "__main__":
    sys.exit(run_command(main))
