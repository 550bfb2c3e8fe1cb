"""Run the whole comparative study and write its report: `python -m experiments.study --preset demo`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.cli import Parser, run_command, say, show_table
from vlm_core.config import StudyConfig
from vlm_core.errors import require_extra


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study as the flags say, print scores and conclusions, and say where the report is."""
    parser = Parser(
        prog="python -m experiments.study",
        description="Compare models, modes and mechanisms over several seeds, and write a report that links every "
        "number to its runs. Repeat the command to resume a study that was stopped or killed.",
    )
    config = StudyConfig.from_flags(arguments, parser)
    require_extra("study")
    from experiments.tables import fusion_rows, score_rows
    from vlm_core.study.collecting import HELD_OUT
    from vlm_core.study.running import run_study

    outcome = run_study(config, Path.cwd())
    results = outcome.results
    if results.scores or not results.fusion:
        show_table("Test macro-F1 over seeds", ("", "protocol", "macro-F1", "95 % interval"), score_rows(results))
    if results.fusion:
        show_table(
            "Pictures with texts, test macro-F1 over seeds",
            ("", "texts", "macro-F1", "95 % interval"),
            fusion_rows(results.fusion),
        )
    for pair in (*results.pairs, *(results.fusion.pairs if results.fusion else ())):
        say(f"{'On all held-out products: ' if pair.group == HELD_OUT else ''}{pair.conclusion}")
    print(f"Report: study/report.html in the artifacts of run {outcome.run_id}; open it with `mlflow ui`.")


if __name__ == "__main__":
    sys.exit(run_command(main))
