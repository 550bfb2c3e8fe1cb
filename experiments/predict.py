"""Categorise pictures with a stored model: `python -m experiments.predict --model <run id> --pictures <folder>`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.cli import run_command


def main(arguments: Sequence[str] | None = None) -> None:
    """Write one row a picture: id, category, confidence, p_<category>..., and the text where the model writes."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.predict", description="Categorise a folder, a zip or a CSV of pictures."
    )
    parser.add_argument("--model", required=True, help="run id, or a model such as models:/categoriser-blip@champion")
    parser.add_argument("--pictures", required=True, help="folder, zip or CSV file of pictures")
    parser.add_argument("--output", default="predictions.csv", help="file to write, .csv or .parquet")
    parser.add_argument("--id_column", default="id", help="column of a CSV file that names the product")
    parser.add_argument("--picture_column", default="", help="column with the picture's path (empty: images/<id>.jpg)")
    parser.add_argument("--threads", type=int, default=8, help="PyTorch threads, capped at the machine's cores")
    given = parser.parse_args(arguments)
    from vlm_core.inference import record_columns, set_threads
    from vlm_core.models.saved import load_categoriser
    from vlm_core.tracking.registry import resolve
    from vlm_core.workflows.predict import find_pictures, predict_pictures, write_predictions

    pictures = find_pictures(Path(given.pictures), given.id_column, given.picture_column)
    set_threads(given.threads)
    model = load_categoriser(resolve(given.model))
    output = Path(given.output)
    count = write_predictions(output, ["id", *record_columns(model)], predict_pictures(model, pictures))
    print(f"Wrote {count:,} rows to {output}.")


if __name__ == "__main__":
    sys.exit(run_command(main))
