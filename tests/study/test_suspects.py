"""The label audit of a study, on planted features: one product has the features of the other category."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from tests.evaluation.made_predictions import sure
from vlm_core.config import StudyConfig
from vlm_core.evaluation.predictions import Predictions
from vlm_core.study import suspects
from vlm_core.study.results import Suspect
from vlm_core.study.suspects import find_suspects

N, WRONG = 80, 5
CATEGORIES = ("A", "B")
LOOKS = np.arange(N) % 2
LABELS = np.where(np.arange(N) == WRONG, 1 - LOOKS, LOOKS)
CONFIG = StudyConfig.build({"seed": 0})


@pytest.fixture
def data(monkeypatch):
    noise = np.random.default_rng(0).normal(scale=0.1, size=(N, 2))
    features = (np.eye(2)[LOOKS] + noise).astype(np.float32)
    monkeypatch.setattr(suspects, "_features", lambda rows, data, config: features[rows])
    products = pd.DataFrame({"product_id": np.arange(N).astype(str), "title": [f"title {row}" for row in range(N)]})
    split = SimpleNamespace(
        labels=np.where(np.arange(N) == N - 1, -1, LABELS),  # the last one belongs to no category
        train=np.arange(20).repeat(2),
        validation=np.arange(20, 30),
        test=np.arange(30),
        categories=CATEGORIES,
    )
    return SimpleNamespace(catalogue=SimpleNamespace(products=products), groups=np.arange(N), split=split)


@pytest.mark.slow
def test_the_mislabelled_product_is_the_suspect_and_scores_are_given_without_it(data):
    ids = np.arange(30).astype(str)
    predictions = Predictions(ids, LABELS[:30], sure(LOOKS[:30], 2), CATEGORIES)  # by looks: one error, the suspect
    audit = find_suspects({"clip full": predictions}, data, CONFIG)
    (suspect,) = audit.suspects
    assert isinstance(suspect, Suspect) and suspect.score < 0.5
    assert (suspect.product_id, suspect.label, suspect.suggested) == ("5", CATEGORIES[LABELS[5]], CATEGORIES[LOOKS[5]])
    assert suspect.title == "title 5"
    assert (audit.encoder, audit.audited) == ("clip", N - 1)
    without = audit.without["clip full"]
    assert (without.left_out, without.after.value) == (1, 1.0) and without.before.value < 1.0


def test_products_of_the_split_are_always_audited(data, monkeypatch):
    monkeypatch.setattr(suspects, "MOST_AUDITED", 50)
    assert find_suspects({}, data, CONFIG).audited == 50
    rows = suspects._rows(data, seed=0)
    assert set(range(30)) <= set(rows.tolist()) and len(set(rows.tolist())) == 50
    assert rows.tolist() == suspects._rows(data, seed=0).tolist() != suspects._rows(data, seed=1).tolist()
    monkeypatch.setattr(suspects, "MOST_AUDITED", 10)
    assert suspects._rows(data, seed=0).tolist() == list(range(30))
