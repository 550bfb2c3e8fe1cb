"""Runs that learn more: by each method, chained, killed and resumed, without the old catalogue, and refused."""

import os
import shutil

import numpy as np
import pandas as pd
import pytest

from tests.messages import collected_messages
from tests.models.test_fusion import make_reader
from tests.shops import write_shop
from tests.stub_training import Killed, kill_on_entry
from vlm_core.config import Config, ExtensionConfig
from vlm_core.errors import UserError
from vlm_core.models.saved import load_categoriser
from vlm_core.tracking import registry
from vlm_core.tracking.reader import RunReader
from vlm_core.tracking.registry import resolve, run_of
from vlm_core.tracking.store import connect
from vlm_core.tracking.writer import RunWriter
from vlm_core.training.continual import Memory
from vlm_core.workflows.extend import run_extension
from vlm_core.workflows.resuming import resumed_config
from vlm_core.workflows.train import run_training

pytestmark = pytest.mark.slow
COLUMNS = {"label": "category", "picture_column": "photo", "title_column": "", "attributes": ""}
CHAMPION = "models:/categoriser-clip@champion"


@pytest.fixture
def here(filled_store, filled_copy):
    """The working directory: a store with trained runs, their catalogue, and a table of products of two categories."""
    shutil.copytree(filled_store / "data", filled_copy / "data", copy_function=os.link)
    write_shop(filled_copy, {"Hats": 12, "Belts": 12})
    return filled_copy


def _extend(here, **settings):
    given = {"run": CHAMPION, "data": str(here / "shop.csv"), **COLUMNS, "resamples": 100, "threads": 1}
    with collected_messages() as lines:
        return run_extension(ExtensionConfig.build({**given, **settings}), here), "\n".join(lines)


def _versions():
    found = connect().search_model_versions("name = 'categoriser-clip'")
    return {int(version.version): version.run_id for version in found}


def test_a_served_model_learns_two_categories_and_becomes_champion_if_it_forgets_little(here):
    old = run_of(CHAMPION)
    outcome, said = _extend(here, max_forgetting=1.0)
    assert outcome.new_categories == ("Belts", "Hats") and "new categories: Belts, Hats" in said
    assert "in the place of version" in outcome.registered and run_of(CHAMPION) == outcome.run_id
    reader = RunReader()
    tags, metrics, params = (read(outcome.run_id) for read in (reader.tags, reader.metrics, reader.params))
    assert tags["extends"] == tags["mlflow.parentRunId"] == params["run"] == old
    assert len(tags["new_fingerprint"]) == 16 and tags["leaking"] == "false"
    assert (params["model"], params["method"], params["label"]) == ("clip", "prototypes", "category")
    assert metrics["forgetting"] == pytest.approx(metrics["old_macro_f1_before"] - metrics["old_macro_f1_after"])
    assert metrics["old_macro_f1_before"] == pytest.approx(reader.metrics(old)["test_macro_f1"])
    assert metrics["new_macro_f1"] > 0.3 and metrics["memory_bytes"] == outcome.memory_bytes
    folder = resolve(CHAMPION)
    model = load_categoriser(folder)
    assert model.categories == (*reader.predictions(old).categories, "Belts", "Hats")
    probabilities = np.exp(model.log_probabilities(np.zeros((1, *model.canvas, 3), np.uint8)))
    assert probabilities.shape == (1, len(model.categories)) and probabilities.sum() == pytest.approx(1, abs=1e-5)
    memory = Memory.read(folder)
    assert np.bincount(memory.exemplars.labels).max() <= 20 and len(memory.means) == len(model.categories)
    assert "## What it learnt and forgot" in (folder / "README.md").read_text()
    old_test, test = (set(reader.split_part(run, "test").products) for run in (old, outcome.run_id))
    assert old_test < test
    rows = {name: set(getattr(outcome.split, name)) for name in ("train", "validation", "test")}
    assert not rows["train"] & rows["test"] and not rows["validation"] & rows["test"]
    # what the run has learnt is known to the next one, and so is the run before it
    with pytest.raises(UserError, match="leaves no new product to learn"):
        _extend(here)


def test_naive_forgets_and_the_champion_stays(here):
    old = run_of(CHAMPION)
    outcome, _ = _extend(here, method="naive")
    assert outcome.forgetting.test.difference.value > 0.1
    assert "cannot be champion, because it forgets" in outcome.registered and run_of(CHAMPION) == old


def test_without_the_old_catalogue_exemplars_are_replayed_and_nothing_is_promoted(here):
    shutil.move(here / "data", here / "away")
    with pytest.raises(UserError, match="name the catalogue with old_data="):
        _extend(here)
    shutil.move(here / "away", here / "data")
    first, _ = _extend(here, method="head", memory=4, max_forgetting=1.0)
    shutil.rmtree(here / "data")
    other = write_shop(here / "other", {"Gloves": 12}, kind=7)
    with pytest.raises(UserError, match="needs all of its products"):
        _extend(here, run=first.run_id, data=str(other), method="joint")
    second, _ = _extend(here, run=first.run_id, data=str(other), method="distil", memory=4)
    assert second.forgetting is None and "could not be measured" in second.unmeasured
    assert "could not be measured" in second.registered and run_of(CHAMPION) == first.run_id
    assert second.split.categories == (*first.split.categories, "Gloves")
    assert "forgetting" not in RunReader().metrics(second.run_id)


def test_more_products_of_known_categories_are_learnt_under_their_own_spelling(here):
    first, _ = _extend(here, max_forgetting=1.0)
    more = write_shop(here / "more", {"HATS": 9}, kind=3)
    second, said = _extend(here, data=str(more))
    assert second.new_categories == () and "HATS to Hats" in said
    assert second.split.categories == first.split.categories
    assert second.evaluation.n == first.evaluation.n + 2  # of nine new products, two are tested on and one selected on


def test_an_extension_killed_between_any_two_steps_leaves_the_old_version_and_is_resumed(here, monkeypatch):
    old = run_of(CHAMPION)
    whole, _ = _extend(here, run=old, method="head", max_forgetting=1.0)
    connect(to_write=True).set_registered_model_alias("categoriser-clip", "champion", min(_versions()))
    monkeypatch.setattr("vlm_core.tracking.tags.process_is_alive", lambda tag: False)
    killed = {"method": "head", "max_forgetting": 1.0}
    steps = (
        (RunWriter, "model"), (registry, "_new_version"), (registry, "_update_champion")
    )  # fmt: skip
    for owner, name in steps:
        with monkeypatch.context() as patch, pytest.raises(Killed):
            kill_on_entry(patch, owner, name)
            _extend(here, **killed)
        assert run_of(CHAMPION) == old
        killed = {"resume": RunReader().runs("attributes.status = 'RUNNING'")["run_id"].item()}
    with pytest.raises(UserError, match=r"experiments\.extend --resume"):
        resumed_config(Config(resume=killed["resume"]))
    resumed, _ = _extend(here, **killed)
    np.testing.assert_array_equal(
        resumed.evaluation.predictions.log_probabilities, whole.evaluation.predictions.log_probabilities
    )
    assert run_of(CHAMPION) == resumed.run_id
    assert list(_versions().values()).count(resumed.run_id) == 1


REFUSED = (
    ({"run": ""}, "run= is missing"),
    ({"run": "0" * 32}, "is not a model of this tracking store"),
    ({"run": "models:/categoriser-none@champion"}, "is not a model of this tracking store"),
    ({"run": "models:/categoriser-baseline@champion"}, "is the baseline"),
    ({"data": "nowhere.csv"}, "nowhere.csv does not exist"),
    ({"label": "colour"}, "label=colour is not a column"),
    ({"categories": "Gloves"}, "categories=Gloves is not in the column"),
    ({"old_data": "shop.csv"}, "label=masterCategory is not a column"),
    ({"resume": "0" * 32}, "no such run"),
    ({"label": "kind", "data": "kinds.csv"}, "label=kind is another column than that of run"),
    ({"categories": "Caps", "data": "few/shop.csv"}, r"too small: Caps \(2\)"),
)


def test_what_cannot_be_done_is_refused_in_one_sentence_and_leaves_no_run(here):
    table = pd.read_csv(here / "shop.csv")
    table.assign(kind=table["category"], masterCategory="Apparel").to_csv(here / "kinds.csv", index=False)
    write_shop(here / "few", {"Hats": 12, "Caps": 2})
    before = len(RunReader().runs())
    for settings, message in REFUSED:
        with pytest.raises(UserError, match=message) as error:
            _extend(here, **settings)
        assert "\n" not in str(error.value)
    assert len(RunReader().runs()) == before


def test_a_model_that_reads_titles_learns_categories_whose_words_it_then_masks_too(here, shop):
    given = {"preset": "demo", "model": "clip", "inputs": "image+text", "fusion": "own", "mask_label_words": "true"}
    small = {"epochs": 1, "train_per_category": 12, "per_category": 20, "threads": 1, "resamples": 100}
    old = run_training(Config.build({**given, **small, "data": str(shop)}), here)
    table = here / "shop.csv"
    products = pd.read_csv(table)
    products["name"] = [f"{name} with a {'brim' if name == 'Hats' else 'buckle'}" for name in products["category"]]
    products.to_csv(table, index=False)
    outcome, said = _extend(here, run=old.run_id, title_column="name", max_forgetting=1.0)
    assert outcome.new_categories == ("Belts", "Hats") and "The texts are masked. 0.0% of" in said
    assert outcome.registered.startswith("Registered categoriser-clip-image-text version 2")
    folder = resolve(outcome.run_id)
    model = load_categoriser(folder)
    assert {"hat", "belt", "shirt"} <= set(model.reads.masked) and model.reads.clean(
        "a hat with a brim"
    ) == "a with a brim"
    assert "## Texts" in (folder / "README.md").read_text()


def test_a_model_whose_fusion_head_cannot_be_extended_is_refused(here):
    make_reader("clip", fusion="late").save(here / "late")
    with RunWriter("product-categorisation", "late") as late:
        late.model(here / "late")
    with pytest.raises(UserError, match="fusion=late, whose head cannot be extended: train one with fusion=own"):
        _extend(here, run=late.run_id)
