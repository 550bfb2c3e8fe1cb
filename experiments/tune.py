"""Search for a model's best settings and retrain it: `python -m experiments.tune --model clip --trials 30`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.cli import Parser, run_command, show_table
from vlm_core.config import SearchConfig
from vlm_core.errors import require_extra


def main(arguments: Sequence[str] | None = None) -> None:
    """Search as the flags say, and print the best trials and the final model's test scores."""
    parser = Parser(
        prog="python -m experiments.tune",
        description="Search for a model's best settings with Optuna, retrain it with them, and test it.",
    )
    config = SearchConfig.from_flags(arguments, parser)
    require_extra("search")  # its plots come at the end
    from experiments.tables import evaluation_rows
    from vlm_core.workflows.tune import count_states, run_search

    outcome = run_search(config, Path.cwd())
    show_table("Best trials", ("trial", "validation macro-F1", "settings"), outcome.best_rows())
    print("Trials: " + ", ".join(f"{count} {state}" for state, count in count_states(outcome.search).items()) + ".")
    if outcome.winner:
        columns = ("", "score", "95 % interval")
        show_table(
            "Retrained with the best settings, on the test split", columns, evaluation_rows(outcome.winner.evaluation)
        )
        print(outcome.winner.registered)
    print(f"MLflow run {outcome.run_id}: open it with `mlflow ui`.")


if __name__ == "__main__":
    sys.exit(run_command(main))
