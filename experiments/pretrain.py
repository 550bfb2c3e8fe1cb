"""Pretrain a model on a catalogue's images, titles and attributes: `python -m experiments.pretrain --model clip`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.cli import Parser, run_command, show_table
from vlm_core.config import PretrainingConfig


def main(arguments: Sequence[str] | None = None) -> None:
    """Pretrain as the flags say, and print the metrics of the stored weights."""
    parser = Parser(
        prog="python -m experiments.pretrain",
        description="Pretrain CLIP, BLIP or GIT on images and their titles; write weights for checkpoint=.",
    )
    config = PretrainingConfig.from_flags(arguments, parser)
    from vlm_core.workflows.pretrain import run_pretraining

    outcome = run_pretraining(config, Path.cwd())
    rows = [(name, f"{value:.4f}") for name, value in outcome.metrics.items()]
    show_table("On validation products, before any fine-tuning", ("metric", "value"), rows)
    print(f"Weights: {outcome.folder}. Fine-tune them with checkpoint={outcome.folder} weights=auto.")
    print(f"MLflow run {outcome.run_id}: open it with `mlflow ui`.")


if __name__ == "__main__":
    sys.exit(run_command(main))
