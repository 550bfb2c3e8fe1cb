"""Learning step by step on made-up features: what each method keeps, and what it forgets."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.messages import collected_messages
from vlm_core.config import StudyConfig
from vlm_core.errors import UserError
from vlm_core.study import continual_benchmark
from vlm_core.study.continual_benchmark import METHODS, STEPS, Order, _row, learn_in_steps
from vlm_core.study.running import run_study
from vlm_core.tracking.reader import RunReader

PER_CATEGORY, CATEGORIES = 12, 10


class Points:
    """Clouds on a circle, one a category."""

    def __init__(self, labels):
        angle = 2 * np.pi * labels / CATEGORIES
        noise = np.random.default_rng(0).normal(0, 0.3, size=(len(labels), 2))
        self.values = (5 * np.stack([np.cos(angle), np.sin(angle)], axis=1) + noise).astype(np.float32)

    def take(self, rows):
        return (torch.from_numpy(self.values[rows]),)


@pytest.fixture(scope="module")
def sequences():
    labels = np.repeat(np.arange(CATEGORIES), PER_CATEGORY)
    part = np.arange(len(labels)) % 3
    rows = {name: np.flatnonzero(part == place) for place, name in enumerate(("train", "validation", "test"))}
    ranks = np.random.default_rng(1).permutation(CATEGORIES)
    order = Order(SimpleNamespace(labels=labels, **rows), ranks, (2, 4, 6, 8, 10))
    return {method: learn_in_steps(order, Points(labels), method) for method in METHODS}


def test_nothing_is_predicted_before_it_is_learnt(sequences):
    for method in METHODS:
        assert np.triu(sequences[method].accuracies, k=1).max() == 0
        assert sequences[method].scores.forward_transfer == 0
        assert sequences[method].accuracies[0, 0] == 1


def test_naive_forgets_every_earlier_step_and_the_others_none(sequences):
    naive = sequences["naive"]
    np.testing.assert_allclose(naive.accuracies[-1], [0, 0, 0, 0, 1])
    assert naive.scores.forgetting == 1 and naive.scores.backward_transfer == -1
    for method in ("prototypes", "head", "distil", "joint"):
        assert sequences[method].scores.final_accuracy > 0.9, method


def test_memory_is_that_of_means_exemplars_or_all_products(sequences):
    products = CATEGORIES * PER_CATEGORY // 3
    example = 2 * 4 + 8
    assert sequences["naive"].memory_bytes == 0
    assert sequences["joint"].memory_bytes == sequences["head"].memory_bytes == products * example  # fewer than 20 each
    assert sequences["prototypes"].memory_bytes == CATEGORIES * (2 * 8 + 8) + 2 * 8


def test_a_row_has_the_means_over_orders(sequences):
    row = _row("clip", "naive", CATEGORIES, [sequences["naive"], sequences["joint"]])
    assert row.label == "clip naive" and row.orders == 2 and len(row.accuracies) == STEPS
    assert row.final_accuracy.value == pytest.approx(
        (sequences["naive"].scores.final_accuracy + sequences["joint"].scores.final_accuracy) / 2
    )
    assert row.accuracies[-1][-1] == pytest.approx(
        (sequences["naive"].accuracies[-1, -1] + sequences["joint"].accuracies[-1, -1]) / 2
    )


@pytest.mark.slow
def test_the_part_alone_makes_a_study_with_a_report(shop, stocked, monkeypatch):
    given = {"preset": "demo", "parts": "continual", "families": "clip", "seeds": 1, "threads": 1, "data": str(shop)}
    with pytest.raises(UserError, match="parts=continual needs 10 categories of 10 different products"):
        run_study(StudyConfig.build({**given, "caption_columns": "gender"}), stocked)
    with pytest.raises(UserError, match="which the catalogue .* does not have"):
        run_study(StudyConfig.build({**given, "study": "other", "caption_columns": "colour"}), stocked)
    monkeypatch.setattr(continual_benchmark, "FEWEST_PRODUCTS", 5)
    monkeypatch.setattr("vlm_core.study.report.plot_svg", lambda plot: "<svg></svg>")
    with collected_messages():
        outcome = run_study(StudyConfig.build({**given, "study": "third", "min_products": 5}), stocked)
    assert [row.label for row in outcome.results.continual] == [f"clip {method}" for method in METHODS]
    assert all(row.categories >= 10 and row.orders == 1 for row in outcome.results.continual)
    best = {row.method: row.average_accuracy.value for row in outcome.results.continual}
    assert best["naive"] < min(best["joint"], best["distil"], best["prototypes"])
    report = RunReader().text(outcome.run_id, "study/report.md")
    assert "## Categories that come later" in report and "clip prototypes" in report
