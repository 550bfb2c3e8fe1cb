"""What is measured on a cell's model once it is trained: each measurement is files that are added to the cell's run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vlm_core.atomic import write_atomically
from vlm_core.config import Config
from vlm_core.data import Data
from vlm_core.evaluation.predictions import Predictions
from vlm_core.models.categoriser import Categoriser, VisionLanguageCategoriser
from vlm_core.study.results_json import to_json

FOLDER: Final = "study"  # of a run's artifacts
MOST_UNKNOWN: Final = 500  # products of categories that no model was trained on
PICTURES_EXPLAINED: Final = 64


@dataclass(frozen=True)
class Trained:
    """A cell's model and the data that it was trained and tested on."""

    config: Config
    data: Data
    model: Categoriser
    folder: Path  # where measurements are written

    @cached_property
    def test(self) -> NDArray[np.int64]:
        """Catalogue rows (n,) of the test split."""
        return self.data.split.test

    def pictures(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The rows' pictures (n, H, W, 3) on the model's canvas."""
        from vlm_core.pixels.picture_store import fit_pictures

        return fit_pictures(self.data.catalogue.pictures.take(rows), self.model.canvas)

    def answers(self, rows: NDArray[np.int64], log_probabilities: NDArray[np.float32]) -> Predictions:
        """Log-probabilities (n, C) of catalogue rows (n,) as answers."""
        ids = self.data.catalogue.products["product_id"].to_numpy(str)
        return Predictions(ids[rows], self.data.split.labels[rows], log_probabilities, self.data.split.categories)

    def keep(self, name: str, result: Any) -> None:
        """Write a result of plain values as JSON."""
        text = to_json(result)
        write_atomically(self.folder / f"{name}.json", lambda file: file.write(text.encode()))


def measure(names: tuple[str, ...], run_id: str, config: Config, data: Data) -> None:
    """Nothing; what was measured on the run's model is among its artifacts, and its tag names it.

    Raises UserError when the run has no model, or the store does not take the files.
    """
    from vlm_core.models.saved import load_categoriser
    from vlm_core.tracking import tags
    from vlm_core.tracking.additions import add_files
    from vlm_core.tracking.registry import resolve

    model = load_categoriser(resolve(run_id))
    with tempfile.TemporaryDirectory() as temporary:
        trained = Trained(config, data, model, Path(temporary))
        for name in names:
            MEASUREMENTS[name](trained)
        add_files(run_id, trained.folder, FOLDER, {tags.STUDY_PARTS: ",".join(names)})


def _leak(trained: Trained) -> None:
    """How right the answers are with, and without, a near-copy in training."""
    from vlm_core.evaluation.leak import measure_leak

    split, groups = trained.data.split, trained.data.groups
    copied = np.isin(groups[trained.test], groups[split.train])
    answers = trained.answers(trained.test, trained.model.log_probabilities(trained.pictures(trained.test)))
    trained.keep("leak", measure_leak(answers, copied))


def _unknown(trained: Trained) -> None:
    """Answers on products of categories that the model was not trained on."""
    catalogue, split = trained.data.catalogue, trained.data.split
    rows = np.flatnonzero((split.labels < 0) & (catalogue.products[trained.config.label] != "").to_numpy())
    rows = np.random.default_rng(0).permutation(rows)[:MOST_UNKNOWN]
    answers = trained.answers(rows, trained.model.log_probabilities(trained.pictures(rows)))
    answers.write(trained.folder / "unknown.npz")


def _robustness(trained: Trained) -> None:
    from vlm_core.study.robustness import measure_robustness

    pictures, labels = trained.pictures(trained.test), trained.data.split.labels[trained.test]
    categories, seed = trained.data.split.categories, trained.config.seed
    result = measure_robustness(trained.model, pictures, labels, categories, seed=seed)
    trained.keep("robustness", result)


def _attention(trained: Trained) -> None:
    """Faithfulness and statistics of the family's own maps, on test products evenly from all categories."""
    from vlm_core.attention.faithfulness import measure_faithfulness
    from vlm_core.attention.statistics import attention_statistics

    assert isinstance(trained.model, VisionLanguageCategoriser)
    order = np.argsort(trained.data.split.labels[trained.test], kind="stable")
    places = np.linspace(0, len(order) - 1, min(PICTURES_EXPLAINED, len(order))).astype(np.int64)
    pictures = trained.pictures(trained.test[order[places]])
    trained.keep("faithfulness", measure_faithfulness(trained.model, pictures, seed=trained.config.seed))
    trained.keep("mechanism", attention_statistics(trained.model, pictures))


def _rules(trained: Trained) -> None:
    """Ways from a writing model to a category, side by side."""
    from vlm_core.evaluation.decoding_scores import score_decoding
    from vlm_core.models.decoding import decode_categories

    assert isinstance(trained.model, VisionLanguageCategoriser)
    answers = decode_categories(trained.model, trained.pictures(trained.test)).predictions
    labels = trained.data.split.labels[trained.test]
    trained.keep("rules", {name: asdict(score_decoding(labels, given)) for name, given in answers.items()})


def _simple(trained: Trained) -> None:
    """What simple rules make of the frozen features that the probe's head reads."""
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
        answered = fit(training, validation, len(split.categories)).log_probabilities(tested)
        trained.answers(trained.test, answered).write(trained.folder / f"{name}.npz")


MEASUREMENTS: Final[dict[str, Callable[[Trained], None]]] = {
    "leak": _leak,
    "unknown": _unknown,
    "robustness": _robustness,
    "attention": _attention,
    "rules": _rules,
    "simple": _simple,
}
