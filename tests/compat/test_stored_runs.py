"""Runs, searches and studies of the code before settings and metrics were renamed: read, compared, resumed, served.

How the archive was made is told in the README beside it.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest

from tests.stores import hurry
from vlm_core.config import Config, SearchConfig, StudyConfig
from vlm_core.errors import UserError
from vlm_core.tracking.reader import RunReader

ARCHIVE = Path(__file__).with_name("runs-of-df4ef88.tar.xz")
PLACE = "/old-store"  # stands for the folder of the store in the archive
COLUMNS = {
    "runs": "artifact_uri",
    "experiments": "artifact_location",
    "logged_models": "artifact_location",
    "model_versions": "storage_location",
    "tags": "value",
}
SMALL = {
    **{"preset": "demo", "data": "shop", "threads": 1, "resamples": 100, "min_products": 20},
    **{"per_category": 30, "train_per_category": 20},
}
SEARCH = {"model": "clip", "epochs": 2, "trials": 3, "search": "learning_rate,weight_decay"}
STUDY = {
    **{"preset": "original", "weights": "tiny", "families": "clip", "modes": "probe", "parts": "families"},
    **{"objectives": "classify", "epochs": 2, "seeds": 1, "views": 0},
}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store as the archive holds it, not to be changed."""
    folder = tmp_path_factory.mktemp("archive")
    with tarfile.open(ARCHIVE) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.4 and later
        archive.extractall(folder)
    return folder


@pytest.fixture
def old_store(unpacked: Path, prepared: Path, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a store of the test's own and the catalogue that its runs used."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    hurry(monkeypatch)
    shutil.copytree(unpacked, tmp_path, dirs_exist_ok=True)
    shutil.copytree(prepared / "data", tmp_path / "data")
    (tmp_path / "shop").symlink_to(shop, target_is_directory=True)
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        for table, column in COLUMNS.items():
            database.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (PLACE, str(tmp_path)))
        database.commit()
    return tmp_path


@pytest.fixture
def runs(old_store: Path) -> pd.DataFrame:
    return RunReader().runs()


def _id(runs: pd.DataFrame, name: str) -> str:
    return str(runs.loc[runs["name"] == name, "run_id"].iloc[0])


@pytest.mark.slow
def test_old_runs_are_listed_under_the_names_of_today(runs: pd.DataFrame) -> None:
    assert len(runs) == 35
    row = runs[runs["name"] == "clip-leaking"].iloc[0]
    assert (row["params.protocol"], row["tags.protocol"], row["params.augmentation"]) == (
        *("original", "original"),
        "standard",
    )
    assert row["metrics.seconds_per_image"] > 0 and str(row["tags.training_log"]).startswith("clip_training_log_")
    row = runs[runs["name"] == "blip-finished"].iloc[0]
    assert row["metrics.onnx_fp32_seconds_per_image_batch_32"] > 0
    assert row["metrics.onnx_fp32_equal_predictions"] == 1
    row = runs[runs["name"] == "unfinished-search"].iloc[0]
    assert (row["params.search_name"], row["params.search_objectives"]) == ("unfinished-search", "score")
    assert row["tags.search_name"] == "unfinished-search" and pd.isna(row["tags.study"])
    row = runs[runs["name"] == "study study"].iloc[0]
    assert (row["params.preset"], row["params.objectives"]) == ("original", "classify")
    assert row["params.protocols"] == "holdout,original" and row["tags.study"] == "study"
    cells = runs[runs["name"].str.count("/") == 4]
    assert set(cells["name"].str.split("/").str[3]) == {"holdout", "original"}
    assert not any("a_picture" in column or "study_log" in column for column in runs)


@pytest.mark.slow
def test_the_reader_gives_one_old_run_under_the_names_of_today(runs: pd.DataFrame) -> None:
    reader, run_id = RunReader(), _id(runs, "clip-leaking")
    assert reader.params(run_id)["protocol"] == reader.tags(run_id)["protocol"] == "original"
    assert list(reader.history(run_id, "seconds_per_image")["value"]) == [reader.metrics(run_id)["seconds_per_image"]]
    assert Config.from_params(reader.params(run_id)).protocol == "original"


@pytest.mark.slow
def test_old_runs_rank_and_new_ones_would_join_their_test_sets(runs: pd.DataFrame, old_store: Path) -> None:
    from vlm_core.data import load_data

    leaderboard = RunReader().leaderboard().set_index("name")
    assert leaderboard.loc["clip-leaking", "leaking"] and pd.isna(leaderboard.loc["clip-leaking", "rank"])
    for name in ("clip-leaking", "blip-finished"):
        data = load_data(Config.from_params(RunReader().params(_id(runs, name))), old_store)
        assert data.split.fingerprint == leaderboard.loc[name, "split"]
        assert data.catalogue.fingerprint == leaderboard.loc[name, "fingerprint"]


@pytest.mark.slow
def test_old_runs_are_compared_by_the_dashboard(runs: pd.DataFrame, old_store: Path) -> None:
    from dashboard.comparison import compare_runs, differing_settings
    from dashboard.runs import Runs

    stored = Runs("", old_store)
    stored.refresh()
    names = ["blip-finished", "baseline-finished", "clip-leaking"]
    comparison = compare_runs(stored, [_id(runs, name) for name in names])
    assert [len(group) for group in comparison.groups] == [2, 1]
    assert {tuple(sorted(pair)) for pair in comparison.tests} == {(0, 1)}
    assert [len(run.epochs) for run in comparison.runs] == [2, 0, 2]
    assert ("protocol", "holdout", "holdout", "original") in differing_settings(comparison)


@pytest.mark.slow
def test_an_old_search_is_shown_by_the_dashboard(runs: pd.DataFrame) -> None:
    from dashboard.searches import read_search, search_choices

    found = read_search(runs, _id(runs, "search"))
    assert found is not None and (found.name, found.two_objectives) == ("search", False)
    assert [trial.state for trial in found.trials] == ["complete"] * 3
    assert all(trial.seconds for trial in found.trials)
    assert [choice["label"].split(" · ")[0] for choice in search_choices(runs)] == ["unfinished-search", "search"]


@pytest.mark.slow
def test_an_old_model_is_loaded_and_predicts_what_it_predicted(runs: pd.DataFrame, old_store: Path) -> None:
    from vlm_core.data import load_catalogue
    from vlm_core.models.saved import load_categoriser
    from vlm_core.pixels.picture_store import fit_pictures
    from vlm_core.tracking.registry import resolve

    reader, run_id = RunReader(), _id(runs, "blip-finished")
    assert resolve("models:/categoriser-blip@champion") == resolve(run_id)
    model, stored = load_categoriser(resolve(run_id)), reader.predictions(run_id)
    catalogue = load_catalogue(Config.from_params(reader.params(run_id)), old_store)
    places = pd.Series(np.arange(len(catalogue.products)), index=catalogue.products["product_id"].astype(str))
    pictures = catalogue.pictures.take(places[stored.product_ids].to_numpy())
    predicted = model.log_probabilities(fit_pictures(pictures, model.canvas))
    assert np.allclose(predicted, stored.log_probabilities, atol=1e-4)


@pytest.mark.slow
def test_an_old_training_is_resumed_to_the_scores_of_one_that_never_stopped(
    runs: pd.DataFrame, old_store: Path
) -> None:
    from vlm_core.workflows.train import run_training

    reader, run_id = RunReader(), _id(runs, "clip-unfinished")
    resumed = run_training(Config.build({"resume": run_id}), old_store)
    assert resumed.run_id == run_id
    assert list(reader.history(run_id, "validation_macro_f1")["step"]) == [1, 2, 3, 4]
    log = json.loads((old_store / "logs" / reader.tags(run_id)["training_log"]).read_text())
    assert [entry["epoch"] for entry in log["epochs"]] == [1, 2, 3, 4]
    assert not any(name.startswith("setting.") for name in reader.tags(run_id))
    whole = run_training(Config.from_params(reader.params(run_id)), old_store)
    assert whole.run_id != run_id
    resumed_rows, whole_rows = (reader.predictions(each).log_probabilities for each in (run_id, whole.run_id))
    # Equal but for rounding: the stored half was trained on another processor, whose kernels add in another order.
    np.testing.assert_allclose(resumed_rows, whole_rows, atol=1e-3)


@pytest.mark.slow
def test_an_old_search_is_resumed_and_a_finished_one_is_known_as_such(runs: pd.DataFrame, old_store: Path) -> None:
    from vlm_core.workflows.tune import count_states, run_search

    with pytest.raises(UserError, match="has all of its 3 trials"):
        run_search(SearchConfig.build({**SMALL, **SEARCH, "search_name": "search"}), old_store)
    outcome = run_search(SearchConfig.build({**SMALL, **SEARCH, "study": "unfinished-search"}), old_store)
    assert outcome.run_id == _id(runs, "unfinished-search")
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(old_store / "optuna.log")))
    states = count_states(optuna.load_study(study_name="unfinished-search", storage=storage))
    assert states["fail"] == 1 and states["complete"] + states.get("pruned", 0) == 3
    below = RunReader().children(outcome.run_id)
    assert (below["status"] == "KILLED").sum() == 1 and set(below["status"]) == {"FINISHED", "KILLED"}


@pytest.mark.slow
def test_an_old_study_is_resumed_under_its_presets_name_of_today(
    runs: pd.DataFrame, old_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vlm_core.study.running import run_study

    monkeypatch.setattr("vlm_core.study.report.plot_svg", lambda plot: "<svg></svg>")
    run_id = _id(runs, "study study")
    before = RunReader().children(run_id)
    outcome = run_study(StudyConfig.build({**SMALL, **STUDY}), old_store)
    assert outcome.run_id == run_id
    after = RunReader().children(run_id)
    assert set(before["run_id"]) < set(after["run_id"]) and len(after) == 4
    assert set(after["name"]) >= {"clip/probe/classify/original/0", "baseline/full/classify/original/0"}
    assert RunReader().params(run_id)["preset"] == "original"


@pytest.mark.slow
def test_an_old_study_is_shown_and_reported(runs: pd.DataFrame, old_store: Path) -> None:
    from dashboard.pages import study as page
    from dashboard.runs import Runs
    from dashboard.studies import read_study
    from vlm_core.study.sections import make_sections

    stored, run_id = Runs("", old_store), _id(runs, "study whole")
    stored.refresh()
    study = read_study(stored, run_id)
    assert study is not None and (study.name, study.cells, study.count("FINISHED")) == ("whole", 18, 18)
    assert "clip/probe/classify/original" in study.runs and study.results is not None
    results = study.results
    assert results.cells_finished == 18 and results.settings["protocols"] == "holdout,original"
    assert {row.protocol for row in results.scores} == {"holdout", "original"}
    assert not any("study" in row.configuration.split("/") for row in results.scores)
    leak = {row.label: row for row in results.leak}["clip probe"]
    assert 0 <= leak.scores[-1].original.value <= 1 and leak.leaks
    assert all((results.robustness, results.calibration, results.gaps, results.decoding, results.cost, results.pairs))
    assert results.label_audit is not None and results.faithfulness and results.layers
    shown = [page.update_body(stored, None, run_id), page.update_rest(stored, None, run_id)]
    text = json.dumps(shown, default=lambda part: part.to_plotly_json())
    assert [section.title for section in make_sections(results) if section.title not in text] == []
