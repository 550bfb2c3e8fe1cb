"""Train all three families small on the sample catalogue and compare them: `python -m experiments.demo`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.cli import run_command, show_table
from vlm_core.config import add_flags, build_config

MODELS = ("baseline", "clip", "blip", "git")
SMALL = {"data": "sample", "train_per_category": 240}  # half of the study's rows: all four in minutes


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the baseline, CLIP, BLIP and GIT with preset `demo`, and print the leaderboard."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.demo", description="Train all families small and print the leaderboard."
    )
    add_flags(parser, ("data", "epochs", "per_category", "train_per_category", "seed", "protocol", "experiment"))
    given = vars(parser.parse_args(arguments))
    from experiments.tables import LEADERBOARD_COLUMNS, leaderboard_rows
    from vlm_core.tracking.reader import RunReader
    from vlm_core.workflows.train import run_training

    run_ids = []
    for model in MODELS:
        print(f"\n{model}", flush=True)
        config = build_config({**SMALL, **given, "preset": "demo", "model": model})
        run_ids.append(run_training(config, Path.cwd()).run_id)
    board = RunReader().leaderboard()
    show_table("Leaderboard", LEADERBOARD_COLUMNS, leaderboard_rows(board[board["run_id"].isin(run_ids)]))
    print("See the runs with `mlflow ui`.")


if __name__ == "__main__":
    sys.exit(run_command(main))
