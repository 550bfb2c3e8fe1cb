"""Categorise images with a stored model: `python -m experiments.predict --model <run id> --pictures <folder>`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.cli import Parser, run_command, say
from vlm_core.config import EngineSettings
from vlm_core.errors import UserError
from vlm_core.files.addresses import local_path

if TYPE_CHECKING:
    from vlm_core.workflows.predict import Written


def main(arguments: Sequence[str] | None = None) -> None:
    """Write one row per image: id, category, confidence, p_<category>..., and the generated text if there is one."""
    parser = Parser(
        prog="python -m experiments.predict",
        description="Categorise images: single ones, or those of folders, zips, tables and packed catalogues.",
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
        help="images, folders (with those below), zips, patterns in quotes such as 'photos/*.jpg', or tables of "
        "images; or one address such as s3://bucket/folder",
    )
    parser.add_argument(
        "--output",
        default="predictions.csv",
        help="file to write, .csv or .parquet; without an ending, a folder of Parquet files that a repeated command "
        "completes (default: predictions.csv)",
    )
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
    parser.add_argument(
        "--threads",
        type=int,
        default=0,
        help="PyTorch threads, at most one per core (default: 8; 1 per actor with engine=ray)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        help="engine=ray: actors that predict (default: one for every --threads cores)",
    )
    EngineSettings.add_flags(parser, ("engine", "address"))
    options = parser.parse_args(arguments)
    if options.threads < 0 or options.workers < 0:
        raise UserError("threads and workers are numbers from 1 on.")
    given = {name: text for name, text in vars(options).items() if name in ("engine", "address")}
    engine, output = EngineSettings.build(given), local_path("output", options.output)
    if engine.engine == "ray" or not output.suffix:
        _predict_into_folder(engine, options, output)
        return
    from vlm_core.inference import record_columns, set_threads
    from vlm_core.models.saved import load_categoriser
    from vlm_core.tracking.registry import resolve
    from vlm_core.workflows.predict import find_pictures, predict_batches, text_columns, write_predictions

    place = resolve(options.model)
    set_threads(options.threads or 8)
    model = load_categoriser(place)
    pictures = find_pictures(
        options.pictures,
        options.id_column,
        options.picture_column,
        Path.cwd(),
        download=options.download == "true",
        text_columns=text_columns(model, options.title_column),
    )
    batches = predict_batches(model, pictures, len(pictures))
    _report(write_predictions(output, ["id", *record_columns(model)], batches), output)


def _predict_into_folder(engine: EngineSettings, options: argparse.Namespace, output: Path) -> None:
    """Predict into a folder of Parquet files."""
    from vlm_core.catalogue.reading import Columns
    from vlm_core.workflows.predict_parts import predict_into_folder

    if output.suffix:
        raise UserError(f"output={output} must be a folder's name, without an ending: engine=ray writes many files.")
    written = predict_into_folder(
        engine,
        options.model,
        options.pictures,
        Columns(options.id_column, options.picture_column, "", "", ()),
        output,
        root=Path.cwd(),
        title_column=options.title_column,
        workers=options.workers,
        threads=options.threads or (8 if engine.engine == "local" else 1),
        download=options.download == "true",
    )
    _report(written, output)


def _report(written: Written, output: Path) -> None:
    """Print what was written."""
    say(f"Wrote {written.rows:,} {'row' if written.rows == 1 else 'rows'} to {output}.")
    if written.without_image:
        say(
            f"{written.without_image:,} of them were predicted from their text alone, because their image could not be "
            "read: the column error says why."
        )
    if written.failed:
        say(
            f"{written.failed:,} of them could not be categorised: the column error says why. The first: "
            + "; ".join(written.errors)
        )


if __name__ == "__main__":
    sys.exit(run_command(main))
