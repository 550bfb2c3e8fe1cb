"""Evaluate a model on another labelled catalogue: `python -m experiments.evaluate --run <id> --data shop.csv`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.cli import Parser, run_command, say, show_table
from vlm_core.config import Config
from vlm_core.errors import redact

FLAGS = (
    *("data", "label", "normalise_labels", "corrections", "id_column", "picture_column", "title_column", "attributes"),
    "download",
    *("resamples", "seed", "threads", "experiment"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluate on every product of the catalogue that the model was not trained on, and log a child run."""
    parser = Parser(
        prog="python -m experiments.evaluate",
        description="Evaluate a stored run's model on another labelled catalogue.",
    )
    parser.add_argument("--run", required=True, help="id of a finished run, or models:/categoriser-clip@champion")
    Config.add_flags(parser, FLAGS)
    flags = vars(parser.parse_args(arguments))
    reference = flags.pop("run")
    config = Config.build(flags)
    from experiments.tables import evaluation_rows
    from vlm_core.workflows.evaluate import run_evaluation

    child, evaluation = run_evaluation(reference, config, Path.cwd())
    name = reference if ":" in reference else f"Run {reference[:8]}"
    show_table(f"{name} on {redact(config.data)}", ("", "score", "95 % interval"), evaluation_rows(evaluation))
    say(f"MLflow run {child}, a child of the run of {reference}.")


if __name__ == "__main__":
    sys.exit(run_command(main))
