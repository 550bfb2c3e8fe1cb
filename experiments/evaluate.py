"""Evaluate a model on another labelled catalogue: `python -m experiments.evaluate --run <id> --data shop.csv`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.cli import run_command, show_table
from vlm_core.config import Config

FLAGS = (
    *("data", "label", "normalise_labels", "corrections", "id_column", "picture_column", "title_column", "attributes"),
    "download",
    *("resamples", "seed", "threads", "experiment"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluate on every product of the catalogue that the model was not trained on, and log a child run."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.evaluate",
        description="Evaluate a stored run's model on another labelled catalogue.",
    )
    parser.add_argument("--run", required=True, help="id of the finished run whose model is evaluated")
    Config.add_flags(parser, FLAGS)
    flags = vars(parser.parse_args(arguments))
    run_id = flags.pop("run")
    config = Config.build(flags)
    from experiments.tables import evaluation_rows
    from vlm_core.workflows.evaluate import run_evaluation

    child, evaluation = run_evaluation(run_id, config, Path.cwd())
    show_table(f"Run {run_id[:8]} on {config.data}", ("", "score", "95 % interval"), evaluation_rows(evaluation))
    print(f"MLflow run {child}, below {run_id}.")


if __name__ == "__main__":
    sys.exit(run_command(main))
