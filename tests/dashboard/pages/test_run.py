"""The callbacks of a run's page, called directly over real runs."""

import json
from dataclasses import replace

import numpy as np
import pytest
from flask import Flask

from dashboard.app import create_app
from dashboard.comparison import compare_runs
from dashboard.pages import compare
from dashboard.pages import run as page
from dashboard.pages.run_tables import long_tail_card, subsets_card
from vlm_core.evaluation.bootstrap import Estimate
from vlm_core.evaluation.long_tail import TailPart
from vlm_core.evaluation.subsets import SubsetScore


@pytest.fixture
def clip(runs):
    table = runs.table()
    return table[(table["params.model"] == "clip") & (table["params.mode"] == "lp-ft")]["run_id"].item()


@pytest.fixture(autouse=True)
def _server():
    server = Flask("test")
    server.config["MLFLOW_UI"] = "http://mlflow.example/"
    with server.app_context():
        yield


def _text(component):
    return json.dumps(component, default=lambda part: part.to_plotly_json())


def test_a_link_to_mlflow_holds_no_password(runs, clip):
    app = create_app(runs, mlflow_ui="http://seeker:hunter2@mlflow.example/")
    with app.server.app_context():
        shown = _text(page.update_head(runs, 1, clip)[0])
    assert "http://mlflow.example/#/experiments" in shown
    assert "hunter2" not in shown and "seeker" not in shown


def test_the_head_names_the_run_and_links_to_mlflow(runs, clip):
    head, hidden = page.update_head(runs, 1, clip)
    experiment = runs.row(clip)["experiment_id"]
    assert not hidden and f"http://mlflow.example/#/experiments/{experiment}/runs/{clip}" in _text(head)


def test_a_baseline_has_neither_mode_nor_weights(runs, clip):
    table = runs.table()
    baseline = table[table["params.model"] == "baseline"]["run_id"].item()
    assert '"children": "lp-ft"' in _text(page.update_head(runs, 1, clip)[0])
    shown = _text(page.update_head(runs, 1, baseline)[0])
    assert '"children": "full"' not in shown and '"children": "none"' not in shown


def test_an_unknown_run_is_not_found(runs):
    head, hidden = page.update_head(runs, 1, "none")
    assert hidden and "Run not found" in _text(head)
    assert page.update_details(runs, "none", None) == (None, None)


def test_curves_and_the_slider_cover_all_epochs_and_the_test_split(runs, clip):
    figure, last, place, marks = page.update_curves(runs, 1, clip, None, None)
    assert len(figure.data[0].x) == 3 and (last, place) == (4, 4)
    assert [mark["label"] for mark in marks] == ["1", "2", "3", "test"]
    assert page.update_curves(runs, 1, clip, 2, 4)[2] == 2  # a chosen epoch stays


@pytest.mark.parametrize(("text", "epoch"), [("2", 2), ("4", 4), ("99", 4), ("", 4), ("-1", 4), ("x", 4)])
def test_the_address_names_an_epoch_and_without_one_the_last_is_shown(runs, clip, text, epoch):
    slider = next(
        each for each in page.layout(runs, {"run": clip, "epoch": text})._traverse_ids() if each.id == "run-epoch"
    )
    assert page.update_curves(runs, 1, clip, slider.value, slider.max)[2] == epoch


def test_each_epochs_matrix_is_that_of_the_log_and_the_last_one_is_of_the_test_split(runs, clip):
    entries = runs.epochs(clip)
    second = page.epoch_matrix(runs, clip, 2)
    np.testing.assert_array_equal(second.matrix, entries[1]["validation_summary"]["confusion_matrix"])
    np.testing.assert_array_equal(second.before, entries[0]["validation_summary"]["confusion_matrix"])
    assert page.epoch_matrix(runs, clip, 1).before is None
    np.testing.assert_array_equal(page.epoch_matrix(runs, clip, 4).matrix, runs.evaluation(clip).confusion)
    figure, note, *_ = page.update_confusion(runs, 4, "counts", 1, clip)
    assert note.startswith("Test split") and int(np.sum(figure.data[0].z)) == runs.evaluation(clip).n


def test_a_matrix_of_many_categories_has_the_page_for_itself(runs, clip, monkeypatch):
    assert page.update_confusion(runs, 4, "counts", 1, clip)[2:] == (
        {"height": "420px", "minWidth": "0px"},
        page.SIDE_BY_SIDE,
    )
    many = page.EpochMatrix("Test split", tuple(f"c{number}" for number in range(116)), np.eye(116, dtype=int), None)
    monkeypatch.setattr(page, "epoch_matrix", lambda *names: many)
    _, _, style, columns = page.update_confusion(runs, 4, "counts", 1, clip)
    assert columns == 1 and int(style["height"].removesuffix("px")) > 1000


def test_details_show_scores_mistakes_settings_and_the_card(runs, clip):
    tiles, details = page.update_details(runs, clip, "")
    text = _text(details)
    assert f"{runs.evaluation(clip).macro_f1.value:.3f}" in _text(tiles)
    assert "/picture/" in text and "By gender" in text and "Model card" in text and "lp-ft" in text


def test_frequent_and_rare_categories_are_shown_apart_where_there_are_both(runs, clip):
    evaluation = runs.evaluation(clip)
    assert evaluation.long_tail == () and long_tail_card(evaluation) == []
    tail = (TailPart("frequent", 2, 40, evaluation.macro_f1), TailPart("rare", 1, 3, Estimate(0.25, 0.1, 0.4)))
    text = _text(long_tail_card(replace(evaluation, long_tail=tail)))
    assert "fewer than 20" in text and "0.250 (0.100 to 0.400)" in text


def test_products_that_are_new_to_the_model_are_scored_apart_where_others_were_tested(runs, clip):
    evaluation = runs.evaluation(clip)
    assert subsets_card(evaluation) == []
    score = SubsetScore(7, Estimate(0.5, 0.2, 0.8), Estimate(0.25, 0.1, 0.4))
    text = _text(subsets_card(replace(evaluation, subsets={"unseen": score})))
    assert "no weights known here were pretrained on" in text and "0.500 (0.200 to 0.800)" in text


def test_a_failed_run_shows_why_as_text(runs):
    table = runs.table()
    failed = table[table["status"] == "FAILED"]["run_id"].item()
    head, _ = page.update_head(runs, 1, failed)
    assert "RuntimeError: <script>alert(1)</script>" in _text(head)
    waiting, _ = page.update_details(runs, failed, "")
    assert "ended before its test split was evaluated" in _text(waiting)


def test_while_a_run_trains_the_sliders_end_is_its_last_epoch_and_not_the_test_split(runs, clip, monkeypatch):
    row = {name: value for name, value in runs.row(clip).items() if name != "metrics.test_macro_f1"}
    monkeypatch.setattr(runs, "row", lambda run_id: {**row, "status": "RUNNING"})
    _, last, place, marks = page.update_curves(runs, 1, clip, None, None)
    assert (last, place) == (3, 3) and [mark["label"] for mark in marks] == ["1", "2", "3"]
    assert page.update_confusion(runs, 3, "counts", 1, clip)[1] == "Validation after epoch 3"


def test_before_the_first_epoch_there_is_a_sentence_and_no_axes(runs, clip, monkeypatch):
    row = {name: value for name, value in runs.row(clip).items() if name != "metrics.test_macro_f1"}
    monkeypatch.setattr(runs, "row", lambda run_id: {**row, "status": "RUNNING"})
    monkeypatch.setattr(runs, "epochs", lambda run_id: [])
    monkeypatch.setattr(runs, "evaluation", lambda run_id: None)
    for figure in (
        page.update_curves(runs, 1, clip, None, None)[0],
        page.update_confusion(runs, 1, "counts", 1, clip)[0],
    ):
        assert (
            "has not finished yet" in figure.layout.annotations[0].text
            or "No epoch" in figure.layout.annotations[0].text
        )
        assert figure.layout.xaxis.visible is False


def test_a_run_without_a_sign_of_life_says_since_when(runs, clip, monkeypatch):
    row = {**runs.row(clip), "status": "RUNNING", "lost": True, "live": "no sign of life since 2026-01-01 11:50 UTC"}
    monkeypatch.setattr(runs, "row", lambda run_id: row)
    assert "no sign of life since 2026-01-01 11:50 UTC" in _text(page.update_head(runs, 1, clip)[0])


@pytest.mark.parametrize(("status", "lost"), [("RUNNING", True), ("KILLED", False), ("FAILED", False)])
def test_a_run_that_ended_early_names_the_command_that_continues_it(status, lost):
    assert "experiments.train --resume abc" in _text(page._untested({"run_id": "abc", "status": status, "lost": lost}))
    assert "--resume" not in _text(page._untested({"run_id": "abc", "status": "RUNNING", "lost": False}))


def test_the_model_card_is_read_wherever_the_dashboard_was_started(runs, clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/another.db")
    assert "macro-F1" in _text(page._model_card(runs, clip))


def test_an_extension_has_no_epochs_to_be_missed(runs, clip, monkeypatch):
    row = {**runs.row(clip), "tags.extends": "0123456789abcdef"}
    monkeypatch.setattr(runs, "row", lambda run_id: row)
    monkeypatch.setattr(runs, "epochs", lambda run_id: [])
    assert "was not trained in epochs" in _text(page.update_curves(runs, 1, clip, None, None)[0])


def test_files_that_are_gone_are_not_taken_for_a_test_that_never_was(runs, clip, monkeypatch):
    monkeypatch.setattr(runs, "evaluation", lambda *names: None)
    monkeypatch.setattr(runs, "epochs", lambda run_id: [])
    monkeypatch.setattr(page, "epoch_matrix", lambda *names: None)
    scores, _ = page.update_details(runs, clip, "")
    score = runs.row(clip)["metrics.test_macro_f1"]
    assert f"holds a macro-F1 of {score:.4f}" in _text(scores) and "experiments.relocate" in _text(scores)
    assert "files of this run were not found" in _text(page.update_curves(runs, 1, clip, None, None)[0])
    assert "files of this run were not found" in _text(page.update_confusion(runs, 1, "counts", 1, clip)[0])


def test_a_trial_says_that_only_the_winner_is_tested(runs, clip, monkeypatch):
    row = {name: value for name, value in runs.row(clip).items() if not name.startswith("metrics.test")}
    monkeypatch.setattr(runs, "row", lambda run_id: {**row, "tags.kind": "trial"})
    monkeypatch.setattr(runs, "evaluation", lambda *names: None)
    monkeypatch.setattr(runs, "epochs", lambda run_id: [])
    scores, _ = page.update_details(runs, clip, "")
    assert "only the winner of a search is tested" in _text(scores)
    assert "A trial keeps no files" in _text(page.update_curves(runs, 1, clip, None, None)[0])


def test_a_score_that_may_be_memorised_says_by_what(runs):
    table = runs.table()
    leaking = table[table["tags.protocol"] == "original"]["run_id"].iloc[0]
    head = _text(page.update_head(runs, 1, leaking)[0])
    assert "This score may be memorised" in head and "also appear in training" in head


def test_a_run_without_a_score_says_that_its_test_set_leaks_and_nothing_of_a_score(runs):
    leaking = runs.table()[runs.table()["tags.protocol"] == "original"].to_dict("records")[0]
    untested = {name: value for name, value in leaking.items() if not name.startswith("metrics.test_")}
    head = _text(page._leak_notice(untested))
    assert "This test set leaks" in head and "This score" not in head and "also appear in training" in head


def test_figures_that_are_still_empty_have_no_axes(runs, clip):
    layouts = (page.layout(runs, {"run": clip}), compare._largest_group_cards(compare_runs(runs, _tested(runs)), {}))
    figures = [part.figure for each in layouts for part in _parts(each) if hasattr(part, "figure")]
    assert len(figures) == 4
    for figure in figures:
        axes = figure.to_plotly_json()["layout"]
        assert figure.data or (axes["xaxis"]["visible"], axes["yaxis"]["visible"]) == (False, False)


def _tested(runs):
    table = runs.table()
    return table[table["metrics.test_macro_f1"].notna()]["run_id"].tolist()


def _parts(component):
    return (part for each in (component if isinstance(component, list) else [component]) for part in each._traverse())


def test_all_settings_that_had_an_effect_are_listed(runs, clip):
    card = _text(page._settings_card(runs.row(clip)))
    assert "settings that this run used" in card and "weight_decay" in card and "lora_rank" not in card


def test_settings_that_differ_from_the_preset_are_found(runs, clip):
    differing = {name: (ours, preset) for name, ours, preset in page.differing_params(runs.row(clip))}
    assert differing["mode"] == ("lp-ft", "probe") and differing["train_per_category"] == ("20", "480")
    assert "preset" not in differing and "weights" not in differing
    assert page.differing_params({"params.preset": "unheard of"}) == []
