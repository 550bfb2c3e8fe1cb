"""Export a stored run's model to ONNX: `python -m experiments.export --run <id> --precision both`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.cli import Parser, run_command, show_table
from vlm_core.errors import require_extra

PRECISIONS = {"fp32": ("fp32",), "int8": ("int8",), "both": ("fp32", "int8")}
COLUMNS = (
    *("", "MB", "largest difference", "same category", "effect of the batch"),
    *("s per image, batch 1", "s per image, batch 32"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Log the model in ONNX to its run, and print how it compares with PyTorch."""
    parser = Parser(
        prog="python -m experiments.export",
        description="Export a stored run's model to ONNX and compare it with PyTorch.",
    )
    parser.add_argument("--run", required=True, help="id of the finished run whose model is exported")
    parser.add_argument("--precision", choices=tuple(PRECISIONS), default="both", help="precision of the linear layers")
    parser.add_argument("--pictures", type=int, default=64, help="number of test images to compare on")
    parser.add_argument("--threads", type=int, default=8, help="threads of both engines, at most one per core")
    options = parser.parse_args(arguments)
    require_extra("export")
    from experiments.tables import export_rows
    from vlm_core.workflows.export import run_export

    export = run_export(options.run, PRECISIONS[options.precision], options.pictures, options.threads, Path.cwd())
    show_table(f"Run {options.run[:8]} on {export.images} images", COLUMNS, export_rows(export.comparisons))
    for address in export.addresses:
        print(f"Serve it with: mlflow models serve -m {address} --env-manager local --port 5001")


if __name__ == "__main__":
    sys.exit(run_command(main))
