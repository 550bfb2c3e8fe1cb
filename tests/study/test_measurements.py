"""Measurements of a stub model on a planted catalogue: the brightness of a picture is what the model predicts."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from tests.evaluation.made_predictions import sure
from tests.models.families import make_categoriser
from vlm_core.config import Config
from vlm_core.data import Data
from vlm_core.evaluation.leak import CategoryLeak
from vlm_core.evaluation.predictions import Predictions
from vlm_core.study import measurements
from vlm_core.study.measurements import MEASUREMENTS, TrainedCell, measure
from vlm_core.study.results_json import read_json
from vlm_core.study.robustness import Robustness
from vlm_core.tracking import tags

CATEGORIES = ("A", "B")
PREDICTED = np.array([0, 0, 1, 1, 1, 0, 1, 0])
LABELS = np.array([0, 0, 1, 1, 0, 1, -1, -1])  # the last two are of other categories
GROUPS = np.array([0, 1, 2, 3, 0, 5, 6, 7])  # product 4 is a near-duplicate of product 0


class _Brightness:
    """Predicts category B for a bright picture."""

    categories, canvas = CATEGORIES, (40, 30)

    def log_probabilities(self, pictures):
        return sure((pictures.mean(axis=(1, 2, 3)) > 128).astype(int), 2)


@pytest.fixture
def data():
    names = np.where(LABELS < 0, ["C", ""] * 4, np.array(CATEGORIES)[LABELS])  # product 7 has no category at all
    products = pd.DataFrame({"product_id": np.arange(8).astype(str), "masterCategory": names})
    pixels = (60 + 140 * PREDICTED[:, None, None, None]).repeat(40, 1).repeat(30, 2).repeat(3, 3).astype(np.uint8)
    catalogue = SimpleNamespace(products=products, pictures=SimpleNamespace(take=lambda rows: pixels[rows]))
    split = SimpleNamespace(
        labels=LABELS,
        train=np.array([0, 2, 2]),
        validation=np.array([0, 2]),
        test=np.array([1, 3, 4, 5]),
        categories=CATEGORIES,
    )
    return Data(catalogue, GROUPS, split, evaluable=np.arange(8) != 3)


@pytest.fixture
def trained(data, tmp_path):
    return TrainedCell(Config.build({"label": "masterCategory"}), data, _Brightness(), tmp_path)


def measured(trained, name, kind):
    return read_json(kind, (trained.folder / f"{name}.json").read_text())


def test_the_leak_tells_products_with_a_near_duplicate_in_training_from_others(trained):
    MEASUREMENTS["leak"](trained)
    total = measured(trained, "leak", tuple[CategoryLeak, ...])[-1]
    # Of the four test products, 4 has a copy and is incorrect; of the others 1 and 3 are correct, 5 is not
    assert (total.category, total.support, total.copied) == ("all", 4, 0.25)
    assert (total.accuracy_copied, total.accuracy_others) == (0.0, pytest.approx(2 / 3))


def test_unknown_products_are_those_of_other_categories(trained):
    MEASUREMENTS["unknown"](trained)
    predictions = Predictions.read(trained.folder / "unknown.npz")
    assert predictions.product_ids.tolist() == ["6"]
    assert (predictions.labels.tolist(), predictions.predicted.tolist()) == ([-1], [1])


def test_unknown_products_may_not_have_been_pretrained_on(trained):
    seen = replace(trained, data=replace(trained.data, evaluable=np.arange(8) != 6))
    MEASUREMENTS["unknown"](seen)
    assert len(Predictions.read(trained.folder / "unknown.npz")) == 0


def test_held_out_products_are_all_evaluable_ones_without_a_copy_in_training_or_validation(trained, monkeypatch):
    monkeypatch.setattr(measurements, "PICTURES_AT_ONCE", 1)
    MEASUREMENTS["held_out"](trained)
    predictions = Predictions.read(trained.folder / "held_out.npz")
    assert predictions.product_ids.tolist() == ["1", "5"]  # 3 may have been seen, and 4 is a copy of 0
    assert (predictions.labels.tolist(), predictions.predicted.tolist()) == ([0, 1], [0, 0])


def test_robustness_is_measured_on_the_test_split(trained):
    MEASUREMENTS["robustness"](trained)
    robustness = measured(trained, "robustness", Robustness)
    assert (robustness.n, robustness.accuracy) == (4, 0.5)


def test_simple_baselines_are_fitted_on_each_training_product_once(trained, monkeypatch):
    cell = TrainedCell(trained.config, trained.data, make_categoriser("clip"), trained.folder)
    asked = []

    def features(model, pictures, rows):
        asked.append(rows.tolist())
        return np.eye(2, dtype=np.float32)[PREDICTED[rows]]

    monkeypatch.setattr("vlm_core.models.simple_baselines.frozen_features", features)
    MEASUREMENTS["simple_baselines"](cell)
    assert asked == [[0, 2], [0, 2], [1, 3, 4, 5]]
    nearest = Predictions.read(cell.folder / "nearest class mean.npz")
    assert nearest.predicted.tolist() == PREDICTED[[1, 3, 4, 5]].tolist()
    assert nearest.labels.tolist() == [0, 1, 0, 1]
    assert len(set(Predictions.read(cell.folder / "majority.npz").predicted.tolist())) == 1


def test_maps_are_measured_on_test_products_of_all_categories(trained, monkeypatch):
    cell = TrainedCell(trained.config, trained.data, make_categoriser("clip"), trained.folder)
    explained = []

    def faithfulness(model, pictures, *, seed):
        explained.append(len(pictures))
        return {"seed": seed}

    monkeypatch.setattr(measurements, "PICTURES_EXPLAINED", 2)
    monkeypatch.setattr("vlm_core.attention.faithfulness.measure_faithfulness", faithfulness)
    monkeypatch.setattr("vlm_core.attention.statistics.attention_statistics", lambda model, pictures: [len(pictures)])
    MEASUREMENTS["attention"](cell)
    assert explained == [2]
    assert measured(cell, "faithfulness", dict[str, int]) == {"seed": 0}
    assert measured(cell, "layers", tuple[int, ...]) == (2,)


def test_what_was_measured_is_added_to_the_run(data, monkeypatch):
    added = {}

    def add_files(run_id, folder, name, values):
        added.update(run_id=run_id, name=name, values=values, files=sorted(file.name for file in folder.iterdir()))

    monkeypatch.setattr("vlm_core.tracking.registry.resolve", lambda run_id: f"model of {run_id}")
    monkeypatch.setattr("vlm_core.models.saved.load_categoriser", lambda path: _Brightness())
    monkeypatch.setattr("vlm_core.tracking.additions.add_files", add_files)
    measure(("leak", "unknown"), "run", Config.build({"label": "masterCategory"}), data)
    assert added == {
        "run_id": "run",
        "name": "study",
        "values": {tags.STUDY_PARTS: "leak,unknown"},
        "files": ["leak.json", "unknown.npz"],
    }
