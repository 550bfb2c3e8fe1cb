"""What is measured on a trained cell's model: each measurement adds files to the cell's run."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vlm_core.config import Config
from vlm_core.data import Data
from vlm_core.evaluation.predictions import Predictions
from vlm_core.files.atomic import write_atomically
from vlm_core.models.categoriser import Categoriser, VisionLanguageCategoriser
from vlm_core.study.results_json import to_json

logger = logging.getLogger(__name__)

FOLDER: Final = "study"  # of a run's artifacts
MOST_UNKNOWN: Final = 500  # products of other categories
PICTURES_AT_ONCE: Final = 2048  # whose predictions are computed together: memory does not grow with the catalogue
PICTURES_EXPLAINED: Final = 64
ADDED_LATER: Final = frozenset({"held_out"})  # not asked of cells that an earlier version has measured
FORMER_NAMES: Final = {"decoding": "rules", "layers": "mechanism", "simple_baselines": "simple"}  # of files and in tags
CURRENT_NAMES: Final = {former: name for name, former in FORMER_NAMES.items()}


@dataclass(frozen=True)
class TrainedCell:
    """A cell's model, and the data that it was trained and tested on."""

    config: Config
    data: Data
    model: Categoriser
    folder: Path  # where measurements are written

    @cached_property
    def test(self) -> NDArray[np.int64]:
        """Catalogue rows (n,) of the test split."""
        return self.data.split.test

    def pictures(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the rows' pictures (n, H, W, 3) on the model's canvas."""
        from vlm_core.pixels.picture_store import fit_pictures

        return fit_pictures(self.data.catalogue.pictures.take(rows), self.model.canvas)

    def predictions(self, rows: NDArray[np.int64], log_probabilities: NDArray[np.float32]) -> Predictions:
        """Return the predictions for catalogue rows (n,) with these log-probabilities (n, C)."""
        ids = self.data.catalogue.products["product_id"].to_numpy(str)
        return Predictions(ids[rows], self.data.split.labels[rows], log_probabilities, self.data.split.categories)

    def predict(self, rows: NDArray[np.int64]) -> Predictions:
        """Return the model's predictions for catalogue rows (n,)."""
        parts = [rows[start : start + PICTURES_AT_ONCE] for start in range(0, max(len(rows), 1), PICTURES_AT_ONCE)]
        log_probabilities = [self.model.log_probabilities(self.pictures(part)) for part in parts]
        return self.predictions(rows, np.concatenate(log_probabilities))

    def write(self, name: str, measurement: Any) -> None:
        """Write a measurement as `<name>.json`."""
        text = to_json(measurement)
        write_atomically(self.folder / f"{name}.json", lambda file: file.write(text.encode()))


def measure(names: tuple[str, ...], run_id: str, config: Config, data: Data) -> None:
    """Make these measurements on the run's model, and add their files and a tag with their names to the run.

    Raises UserError when the run has no model, or the store does not take the files.
    """
    from vlm_core.models.saved import load_categoriser
    from vlm_core.tracking import tags
    from vlm_core.tracking.additions import add_files
    from vlm_core.tracking.registry import resolve

    model = load_categoriser(resolve(run_id))
    with tempfile.TemporaryDirectory() as temporary:
        trained = TrainedCell(config, data, model, Path(temporary))
        for name in names:
            MEASUREMENTS[name](trained)
        add_files(run_id, trained.folder, FOLDER, {tags.STUDY_PARTS: ",".join(names)})


def _leak(trained: TrainedCell) -> None:
    """Measure accuracy on test products with and without a near-duplicate in training."""
    from vlm_core.evaluation.leak import measure_leak

    split, groups = trained.data.split, trained.data.groups
    copied = np.isin(groups[trained.test], groups[split.train])
    trained.write("leak", measure_leak(trained.predict(trained.test), copied))


def _unknown(trained: TrainedCell) -> None:
    """Predict products of other categories than the model's, of those that no weights known here saw in pretraining."""
    data = trained.data
    named = (data.catalogue.products[trained.config.label] != "").to_numpy()
    rows = np.flatnonzero((data.split.labels < 0) & named & data.evaluable)
    rows = np.random.default_rng(0).permutation(rows)[:MOST_UNKNOWN]
    trained.predict(rows).write(trained.folder / "unknown.npz")


def _held_out(trained: TrainedCell) -> None:
    """Predict every product that may be evaluated and that neither training nor validation has."""
    trained.predict(trained.data.held_out).write(trained.folder / "held_out.npz")


def _robustness(trained: TrainedCell) -> None:
    """Score the test pictures under each corruption."""
    from vlm_core.study.robustness import measure_robustness

    pictures, labels = trained.pictures(trained.test), trained.data.split.labels[trained.test]
    categories, seed = trained.data.split.categories, trained.config.seed
    result = measure_robustness(trained.model, pictures, labels, categories, seed=seed)
    trained.write("robustness", result)


def _attention(trained: TrainedCell) -> None:
    """Measure faithfulness of the attention maps, and each layer's attention, on test products of all categories."""
    from vlm_core.attention.faithfulness import measure_faithfulness
    from vlm_core.attention.statistics import attention_statistics

    assert isinstance(trained.model, VisionLanguageCategoriser)
    if not trained.model.adapter.has_attention:
        logger.info(f"{trained.config.model} is a convolutional network, which has no attention to measure.")
        return
    order = np.argsort(trained.data.split.labels[trained.test], kind="stable")
    places = np.linspace(0, len(order) - 1, min(PICTURES_EXPLAINED, len(order))).astype(np.int64)
    pictures = trained.pictures(trained.test[order[places]])
    trained.write("faithfulness", measure_faithfulness(trained.model, pictures, seed=trained.config.seed))
    trained.write("layers", attention_statistics(trained.model, pictures))


def _decoding(trained: TrainedCell) -> None:
    """Score a generative model's test predictions by each decoding rule."""
    from vlm_core.evaluation.decoding_scores import score_decoding
    from vlm_core.models.decoding import decode_categories

    assert isinstance(trained.model, VisionLanguageCategoriser)
    decoded = decode_categories(trained.model, trained.pictures(trained.test)).predictions
    labels = trained.data.split.labels[trained.test]
    trained.write("decoding", {rule: score_decoding(labels, predicted) for rule, predicted in decoded.items()})


def _simple_baselines(trained: TrainedCell) -> None:
    """Predict by simple baselines on the frozen features that the probe's head reads."""
    from vlm_core.models.simple_baselines import SIMPLE_BASELINES, LabelledFeatures, frozen_features

    model, split, pictures = trained.model, trained.data.split, trained.data.catalogue.pictures
    assert isinstance(model, VisionLanguageCategoriser)

    def features(rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return frozen_features(model, pictures, rows)

    training, validation = (
        LabelledFeatures(features(rows), split.labels[rows]) for rows in (np.unique(split.train), split.validation)
    )
    tested = features(trained.test)
    for name, fit in SIMPLE_BASELINES.items():
        log_probabilities = fit(training, validation, len(split.categories)).log_probabilities(tested)
        trained.predictions(trained.test, log_probabilities).write(trained.folder / f"{name}.npz")


MEASUREMENTS: Final[dict[str, Callable[[TrainedCell], None]]] = {
    "leak": _leak,
    "unknown": _unknown,
    "held_out": _held_out,
    "robustness": _robustness,
    "attention": _attention,
    "decoding": _decoding,
    "simple_baselines": _simple_baselines,
}
