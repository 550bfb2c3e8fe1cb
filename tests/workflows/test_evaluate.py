"""Evaluating on another catalogue: its spellings are matched, the rest is listed, and nothing that was seen counts."""

import pandas as pd
import pytest

from tests.messages import collected_messages
from tests.shops import write_shop
from vlm_core.config import Config
from vlm_core.errors import UserError
from vlm_core.tracking.reader import RunReader
from vlm_core.workflows.evaluate import _labels, run_evaluation
from vlm_core.workflows.train import run_training

COLUMNS = {"label": "category", "picture_column": "photo", "title_column": "", "attributes": ""}


def _matched(*names, categories=("Bags", "Shoes")):
    with collected_messages() as messages:
        found = _labels(pd.Series(names, name="category"), categories, "other.csv")
    return found.tolist(), "\n".join(messages)


def test_other_spellings_are_matched_and_said():
    labels, said = _matched("shoes", "Bags", "SHOES ", "")
    assert labels == [1, 0, 1, -1]
    assert "matched to the model's: shoes to Shoes, SHOES  to Shoes" in said


def test_what_the_model_does_not_know_is_listed_with_its_size():
    labels, said = _matched("Hats", "Shoes", "Hats", "Caps")
    assert labels == [-1, 1, -1, -1]
    assert "are left out: Hats (2), Caps (1)" in said and "the model's categories Bags" in said


def test_without_any_match_the_column_is_shown():
    with pytest.raises(UserError, match=r"none of the model's categories \(Bags, Shoes\). It has Hats \(2\), Caps"):
        _matched("Hats", "Hats", "Caps")


@pytest.mark.slow
def test_a_corrected_copy_of_the_training_data_is_not_taken_for_new(store):
    shop = write_shop(store, {"Shoes": 16, "Bags": 16})
    settings = {"data": str(shop), **COLUMNS, "resamples": 100, "threads": 1}
    outcome = run_training(Config.build({"model": "baseline", **settings}), store)
    fixed = store / "fixed.csv"
    fixed.write_text(shop.read_text().replace("Shoes", "shoes"))
    evaluation = run_evaluation(outcome.run_id, Config.build({**settings, "data": str(fixed)}), store)[1]
    assert evaluation.n == len(outcome.split.test)
    child, again = run_evaluation(
        f"runs:/{outcome.run_id}/model", Config.build({**settings, "data": str(fixed)}), store
    )
    assert again.n == evaluation.n and RunReader().tags(child)["mlflow.parentRunId"] == outcome.run_id
    with pytest.raises(UserError, match="Hats"):
        other = write_shop(store / "other", {"Hats": 3}, kind=5)
        run_evaluation(outcome.run_id, Config.build({**settings, "data": str(other)}), store)


@pytest.mark.slow
def test_a_run_keeps_its_corrections_for_the_next(store):
    shop = write_shop(store, {"Shoes": 16, "Bags": 16})
    (store / "mine.csv").write_text("id,column,old,new\np1,category,Shoes,Bags\n")
    settings = {"data": str(shop), **COLUMNS, "resamples": 100, "threads": 1, "model": "baseline"}
    first = run_training(Config.build({**settings, "corrections": "mine.csv"}), store)
    assert len(RunReader().tags(first.run_id)["corrections"]) == 16
    (store / "mine.csv").unlink()
    again = run_training(Config.build({**settings, "corrections": f"runs:/{first.run_id}"}), store)
    assert again.split.fingerprint == first.split.fingerprint
    assert RunReader().tags(again.run_id)["fingerprint"] == RunReader().tags(first.run_id)["fingerprint"]
    with pytest.raises(UserError, match=r"holds no other\.csv"):
        run_training(Config.build({**settings, "corrections": f"runs:/{first.run_id}/other.csv"}), store)
    without = run_training(Config.build(settings), store).run_id
    with pytest.raises(UserError, match=f"corrections=runs:/{without}/: run {without} was made without corrections"):
        run_training(Config.build({**settings, "corrections": f"runs:/{without}/"}), store)
