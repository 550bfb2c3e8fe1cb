"""Train small models of all families on the sample catalogue and compare them: `python -m experiments.demo`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.cli import Parser, run_command, show_table
from vlm_core.config import Config

MODELS = ("baseline", "clip", "blip", "git")
SMALL = {"data": "sample", "train_per_category": 240}  # half the default: all four train in minutes


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the baseline, CLIP, BLIP and GIT with preset `demo`, and print the leaderboard."""
    parser = Parser(
        prog="python -m experiments.demo", description="Train a small model of each family and print the leaderboard."
    )
    Config.add_flags(parser, ("data", "epochs", "per_category", "train_per_category", "seed", "protocol", "experiment"))
    flags = vars(parser.parse_args(arguments))
    from experiments.tables import LEADERBOARD_COLUMNS, leaderboard_rows
    from vlm_core.tracking.reader import RunReader
    from vlm_core.workflows.train import run_training

    run_ids = []
    for model in MODELS:
        print(f"\n{model}", flush=True)
        config = Config.build({**SMALL, **flags, "preset": "demo", "model": model})
        run_ids.append(run_training(config, Path.cwd()).run_id)
    leaderboard = RunReader().leaderboard()
    rows = leaderboard_rows(leaderboard[leaderboard["run_id"].isin(run_ids)])
    show_table("Leaderboard", LEADERBOARD_COLUMNS, rows)
    print("Open the runs with `mlflow ui`.")


if __name__ == "__main__":
    sys.exit(run_command(main))
