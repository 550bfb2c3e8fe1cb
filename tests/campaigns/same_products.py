"""The same real products in every form: `python -m tests.campaigns.same_products --data catalogue.zip --products 200`.

Products of a catalogue in Kaggle's layout, or of the sample, are written in every container, dialect and form of path
of `tests.catalogue.handovers`, and with their rows shuffled. In all of them they must have one fingerprint and one
split, and a model that is trained on the first must give each product one prediction and one score.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple

import numpy as np

from tests.catalogue.handovers import (
    CONTAINERS,
    DIALECTS,
    FORMS,
    Dialect,
    Files,
    Row,
    folders_by_category,
    folders_in_parts,
    imagefolder,
    parquet_parts,
    pictures_inside,
    saved_datasets,
    tables_of_parts,
)
from vlm_core.catalogue.picture_files import PictureMissing
from vlm_core.catalogue.reading import TableRow, read_products
from vlm_core.catalogue.sources import open_source
from vlm_core.config import Config
from vlm_core.data import columns_of, load_data
from vlm_core.models.saved import load_categoriser
from vlm_core.tracking.reader import RunReader
from vlm_core.tracking.registry import resolve
from vlm_core.workflows.evaluate import run_evaluation
from vlm_core.workflows.predict import find_pictures, predict_batches
from vlm_core.workflows.train import run_training

COLUMNS: Final = {"id": "id", "masterCategory": "masterCategory", "title": "productDisplayName"}
SETTINGS: Final = {
    "preset": "demo",
    "model": "clip",
    "epochs": 2,
    "resamples": 100,
    "title_column": "title",
    "attributes": "",
}
TOLERANCE: Final = 1e-5  # between probabilities: their last digits depend on the images beside one in a batch


class Form(NamedTuple):
    """One way to hand the products over."""

    name: str
    write: Callable[[Path], Path]  # into a folder; returns what data= and pictures= name
    picture_column: str = ""
    has_titles: bool = True


def choose_products(data: str, count: int, root: Path) -> tuple[list[Row], Files]:
    """Return so many products, spread over a catalogue, whose texts can be written in every encoding; and pictures."""
    rows: list[Row] = []
    pictures: Files = {}
    with open_source(data, root).open_table(columns_of(Config(data=data))) as table:
        found = [row for row in read_products(table.table, table.columns) if isinstance(row, TableRow)]
        for each in found[:: max(1, len(found) * 9 // (10 * count))]:
            row = {name: each.values[column] for name, column in COLUMNS.items()}
            try:
                "".join(row.values()).encode("latin-1")
                pictures[row["id"]] = table.pictures.read(table.find(each).path)
            except (UnicodeEncodeError, PictureMissing):
                continue
            rows.append(row)
    return rows[:count], {row["id"]: pictures[row["id"]] for row in rows[:count]}


def list_forms(rows: Sequence[Row], pictures: Files) -> Iterator[Form]:
    """Yield every form of the products."""

    def table(name: str, container: str, path: str = "path", dialect: Dialect | None = None, order: Any = rows) -> Form:
        cell, file = FORMS[path]
        told = [{**row, "photo": cell(row["id"])} for row in order]
        files = {file(name): data for name, data in pictures.items()}
        return Form(name, lambda place: CONTAINERS[container](place, told, files, dialect or Dialect()), "photo")

    shuffled = random.Random(0).sample(list(rows), len(rows))
    for container in CONTAINERS:
        yield table(container, container)
        yield table(f"{container}, shuffled", container, order=shuffled)
    for dialect in DIALECTS:
        yield table(f"csv, {dialect}", "csv", dialect=dialect)
    for path in FORMS:
        yield table(f"csv, {path}", "csv", path)
    for make in (pictures_inside, parquet_parts, saved_datasets, imagefolder, tables_of_parts):
        yield Form(make.__name__, lambda place, make=make: make(place, rows, pictures))  # type: ignore[misc]
    for make in (folders_by_category, folders_in_parts):
        yield Form(make.__name__, lambda place, make=make: make(place, rows, pictures), has_titles=False)  # type: ignore[misc]


class Comparison:
    """What each form gives, against what the first gave."""

    def __init__(self, root: Path) -> None:
        self.faults: list[str] = []
        self.tried = 0
        self._root = root
        self._expected: dict[str, Any] = {}
        self._run = ""

    def add(self, form: Form) -> None:
        """Write a form, compare it, and remove it."""
        self.tried += 1
        place = self._root / "forms" / str(self.tried)
        try:
            for what, found in self._results(form, form.write(place / "shop")):
                expected = self._expected.setdefault(what, found)
                if not _are_same(found, expected):
                    self.faults.append(f"{form.name}: {what}: {str(found)[:150]}, not {str(expected)[:150]}")
        except Exception as error:
            self.faults.append(f"{form.name}: {type(error).__name__}: {error}")
        shutil.rmtree(place, ignore_errors=True)
        shutil.rmtree(self._root / "data" / "processed", ignore_errors=True)

    def _results(self, form: Form, place: Path) -> Iterator[tuple[str, Any]]:
        config = Config.build({**SETTINGS, "data": str(place), "picture_column": form.picture_column})
        data = load_data(config, self._root)
        yield "fingerprint" if form.has_titles else "fingerprint without titles", data.catalogue.fingerprint
        ids, split = data.catalogue.products["product_id"], data.split
        yield "split", [split.fingerprint, *(ids.iloc[rows].tolist() for rows in (split.train, split.test))]
        self._run = self._run or run_training(config, self._root).run_id
        yield "predictions", self._predict(place, form.picture_column)
        yield "scores", self._evaluate(config)

    def _predict(self, place: Path, picture_column: str) -> dict[str, list[float]]:
        """Return the probabilities of each product, whose id is in its picture's name outside of tables."""
        model = load_categoriser(resolve(self._run))
        pictures = find_pictures([str(place)], "id", picture_column, self._root)
        rows = [row for batch in predict_batches(model, pictures) for row in batch]
        columns = [f"p_{name}" for name in model.categories]
        return {PurePosixPath(row["id"]).name.lstrip("0"): [row[name] for name in columns] for row in rows}

    def _evaluate(self, config: Config) -> dict[str, float]:
        run_id, _ = run_evaluation(self._run, config, self._root)
        metrics = RunReader().metrics(run_id)
        return {name: value for name, value in metrics.items() if name.startswith("external")}


def _are_same(found: Any, expected: Any) -> bool:
    if not isinstance(found, Mapping):
        return bool(found == expected)
    return found.keys() == expected.keys() and all(
        np.allclose(found[name], expected[name], rtol=0, atol=TOLERANCE, equal_nan=True) for name in expected
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.campaigns.same_products", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--data", default="sample", help="catalogue in Kaggle's layout")
    parser.add_argument("--products", type=int, default=200)
    options = parser.parse_args(arguments)
    data = options.data if options.data == "sample" else str(Path(options.data).absolute())
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # the store and the prepared catalogues lie there
        rows, pictures = choose_products(data, options.products, Path(folder))
        comparison = Comparison(Path(folder))
        for form in list_forms(rows, pictures):
            comparison.add(form)
        os.chdir("/")
    print(f"{len(rows)} products in {comparison.tried} forms: {len(comparison.faults)} differ.")
    print("\n".join(comparison.faults))
    return int(bool(comparison.faults))


if __name__ == "__main__":
    sys.exit(main())
