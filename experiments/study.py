"""Carry out the whole comparative study and write its report: `python -m experiments.study --preset demo`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.cli import run_command, show_table
from vlm_core.config import STUDY, from_flags


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the flags ask for, print the scores and what the pairs say, and name the report."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.study",
        description="Compare families, modes and mechanisms over several seeds: one report, each figure with its runs. "
        "The same command goes on with a study that was stopped or killed.",
    )
    config = from_flags(arguments, parser, STUDY)
    from experiments.tables import score_rows
    from vlm_core.study.running import run_study

    outcome = run_study(config, Path.cwd())
    show_table("Test macro-F1 over seeds", ("", "protocol", "macro-F1", "95 % interval"), score_rows(outcome.results))
    for pair in outcome.results.pairs:
        print(pair.conclusion)
    print(f"The report is in the artifacts of run {outcome.run_id}: study/report.html; see it with `mlflow ui`.")


if __name__ == "__main__":
    sys.exit(run_command(main))
