"""Categorise images with a stored model: `python -m experiments.predict --model <run id> --pictures <folder>`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.cli import run_command


def main(arguments: Sequence[str] | None = None) -> None:
    """Write one row per image: id, category, confidence, p_<category>..., and the generated text if there is one."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.predict",
        description="Categorise images: single ones, or those of folders, zips and tables.",
    )
    parser.add_argument(
        "--model",
        required=True,
        help="run id, a model such as models:/categoriser-blip@champion, or the folder of a saved one",
    )
    parser.add_argument(
        "--pictures",
        required=True,
        nargs="+",
        help="images, folders (with those below), zips, patterns in quotes such as 'photos/*.jpg', or tables of images",
    )
    parser.add_argument("--output", default="predictions.csv", help="file to write, .csv or .parquet")
    parser.add_argument("--id_column", default="id", help="column of the table with the product's id")
    parser.add_argument("--picture_column", default="", help="column with the image's path (empty: images/<id>.jpg)")
    parser.add_argument(
        "--title_column",
        default="productDisplayName",
        help="column of the table with the product's title, for models that read texts",
    )
    parser.add_argument(
        "--download", choices=("true", "false"), default="false", help="download a table's images at web addresses"
    )
    parser.add_argument("--threads", type=int, default=8, help="PyTorch threads, at most one per core")
    options = parser.parse_args(arguments)
    from vlm_core.evaluation.product_texts import TITLE
    from vlm_core.inference import record_columns, set_threads
    from vlm_core.models.saved import load_categoriser
    from vlm_core.tracking.registry import resolve
    from vlm_core.workflows.predict import find_pictures, predict_batches, write_predictions

    place = resolve(options.model)
    set_threads(options.threads)
    model = load_categoriser(place)
    named = {TITLE: options.title_column}
    pictures = find_pictures(
        options.pictures,
        options.id_column,
        options.picture_column,
        Path.cwd(),
        download=options.download == "true",
        text_columns=[named.get(name, name) for name in model.reads.columns] if model.reads else (),
    )
    output = Path(options.output)
    written = write_predictions(output, ["id", *record_columns(model)], predict_batches(model, pictures))
    print(f"Wrote {written.rows:,} {'row' if written.rows == 1 else 'rows'} to {output}.")
    if written.without_image:
        print(
            f"{written.without_image:,} of them were predicted from their text alone, because their image could not be "
            "read: the column error says why."
        )
    if written.failed:
        print(
            f"{written.failed:,} of them could not be categorised: the column error says why. The first: "
            + "; ".join(written.errors)
        )


if __name__ == "__main__":
    sys.exit(run_command(main))
