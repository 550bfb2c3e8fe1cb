"""Studies on their page: cells while they run, and every section of the report."""

import json
from dataclasses import fields, replace

import pytest
from cachetools import cached
from dash import no_update

from dashboard.figures.attention import faithfulness_curves
from dashboard.figures.study import drops, intervals, leak_dumbbells, make_figure, risk_curves
from dashboard.pages import study as page
from dashboard.pages.study_parts import first_cards, further_cards, progress_card
from dashboard.runs import Runs
from dashboard.studies import StoredStudy, read_study, runs_address, study_choices
from tests.dashboard.made_study import make_results, write_study
from vlm_core.evaluation.bootstrap import Estimate
from vlm_core.study.report_contents import IntervalPlot
from vlm_core.study.results import Results
from vlm_core.study.results_json import read_results
from vlm_core.study.sections import make_sections
from vlm_core.tracking.writer import RunWriter

NAN = float("nan")


def _text(component):
    return json.dumps(component, default=lambda part: part.to_plotly_json(), ensure_ascii=False)


@pytest.fixture(scope="module")
def results():
    return make_results("s", {"a": "r1", "b": "r2"})


@pytest.fixture
def runs(store):
    made = Runs("", store)
    made.refresh()
    return made


def test_a_store_without_a_study_says_how_to_begin_one(runs):
    state, hidden, choices = page.update_state(runs, 1)
    assert (hidden and "make study" in _text(state)) or "make train" in _text(state)
    assert choices == [] and page.update_progress(runs, 1, None) == (None, None)
    assert page.update_body(runs, None, "none") == (None, None)


def test_cells_are_followed_while_they_run_and_lead_to_their_runs(runs, store):
    run_id = write_study(store, finished=False)
    with RunWriter("shop", "blip/probe/classify/holdout/0", folder=store, parent=run_id) as again:
        runs.refresh()
        study = read_study(runs, run_id)
        assert [each["value"] for each in study_choices(runs.table())] == [run_id]
        assert study.seeds == ("0", "1") and study.cells == 8 and study.results is None
        assert study.runs["blip/probe/classify/holdout"]["0"].score == pytest.approx(0.789)  # the finished one speaks
        assert (study.count("FINISHED"), study.count("RUNNING")) == (3, 0)
    text = _text(progress_card(study))
    assert "3 of 8 runs done" in text and text.count("/run?run=") == 3 and again.run_id not in text
    assert "No results yet" in _text(page.update_body(runs, None, run_id))


def test_a_cell_that_runs_or_failed_is_said(runs, store):
    with RunWriter("shop", "study x", folder=store) as parent:
        parent.tags({"kind": "study", "study": "x", "cells": "2"})
        with (
            pytest.raises(RuntimeError),
            RunWriter("shop", "git/full/classify/holdout/0", folder=store, parent=parent.run_id),
        ):
            raise RuntimeError("no")
        with RunWriter("shop", "git/full/classify/holdout/10", folder=store, parent=parent.run_id):
            runs.refresh()
            study = read_study(runs, parent.run_id)
            text = _text(progress_card(study))
    assert "0 of 2 runs done, 1 running, 1 failed" in text and '"failed"' in text and '"…"' in text


def test_a_study_without_runs_of_its_own_has_neither_an_empty_table_nor_a_bar(runs, store):
    with RunWriter("shop", "study fusion", folder=store) as parent:
        parent.tags({"kind": "study", "study": "fusion", "cells": "0"})
        runs.refresh()
        before = _text(page.update_body(runs, None, parent.run_id))
    runs.refresh()
    study = read_study(runs, parent.run_id)
    text = _text(progress_card(study))
    assert "of 1 runs" not in text and "rowData" not in text and '"type": "Progress"' not in text
    assert "finished" in text and "trains no runs of its own" in text
    assert "first seed" not in before and "No results yet" in before


def test_results_of_texts_alone_have_no_tiles_about_runs(results):
    without = replace(results, cells_planned=0, cells_finished=0, scores=(), pairs=())
    (overview,) = (section for section in make_sections(without) if section.key == "overview")
    assert [tile.label for tile in overview.tiles] == ["Seeds", "Categories"]


def test_every_section_of_the_report_has_its_card_and_names_are_text(runs, store):
    run_id = write_study(store)
    runs.refresh()
    body = _text([page.update_body(runs, None, run_id), page.update_rest(runs, None, run_id)])
    sections = make_sections(read_study(runs, run_id).results)
    assert [section.title for section in sections if section.title not in body] == []
    assert len(sections) == 15 and "Some runs failed" in body
    assert "clip probe beats blip probe by 4.0 points of macro-F1." in body
    assert "/compare?runs=" in body and "&lt;i&gt;Items" in body  # what Plotly would read as HTML is escaped
    assert "NaN" not in body and "None" not in body
    names = [props["aria-label"] for props in _regions(json.loads(body))]
    assert len(names) > 13 and len(names) == len(set(names))


def _regions(part):
    """The properties of each region, at whatever depth."""
    if isinstance(part, list):
        return [found for each in part for found in _regions(each)]
    if not isinstance(part, dict):
        return []
    return [part] * (part.get("role") == "region") + [found for each in part.values() for found in _regions(each)]


def test_the_body_is_rendered_again_only_when_the_results_change(runs, store):
    run_id = write_study(store)
    runs.refresh()
    _, known = page.update_progress(runs, 1, run_id)
    assert known == [run_id, 6, "FINISHED"] and page.update_progress(runs, 2, run_id, known)[1] is no_update


@pytest.fixture(scope="module")
def drawn_once():
    """Equal plots are drawn once, in all results that hold them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dashboard.pages.study_parts.make_figure", cached({}, key=repr)(make_figure))
        yield


@pytest.mark.usefixtures("drawn_once")
@pytest.mark.parametrize("missing", [field.name for field in fields(Results)])
def test_results_that_lack_a_part_leave_its_card_out(results, missing, runs):
    study = StoredStudy("s", "made", "RUNNING", 8, (), {}, None)
    lacking = read_results(json.dumps({"study": "s"}))
    content = replace(results, **{missing: getattr(lacking, missing)})
    assert "Seeds" in _text([first_cards(runs, study, content), further_cards(runs, study, content)])


def test_results_that_are_half_written_are_none_yet(runs, store):
    run_id = write_study(store, finished=False)
    with RunWriter("shop", "study y", folder=store) as study:
        study.tags({"kind": "study", "study": "y"})
        (store / "results.json").write_text('{"rows": [')
        study.artifact(store / "results.json", "study")
    runs.refresh()
    assert read_study(runs, study.run_id).results is None and read_study(runs, "none") is None
    assert read_study(runs, run_id).name == "made"


def test_several_runs_are_shown_side_by_side():
    assert runs_address(["a"]) == "/run?run=a"
    assert runs_address(list("abcdefgh")) == "/compare?runs=a,b,c,d,e,f"


@pytest.mark.slow
def test_figures_show_what_the_results_hold(results):
    estimate, other = Estimate(0.5, NAN, NAN), Estimate(0.1, 0.0, 0.3)
    forest = intervals(IntervalPlot("", "f", (("clip probe", estimate), ("x <b>", other)), differences=True))
    assert list(forest.data[0].error_x.array) == pytest.approx([0, 0.2])
    assert list(forest.data[0].y) == ["clip probe", "x &lt;b&gt;"] and len(forest.layout.shapes) == 1
    coloured = intervals(IntervalPlot("", "f", tuple((label, estimate) for label in ("git", "other", "git probe"))))
    assert [list(trace.y) for trace in coloured.data] == [["git", "git probe"], ["other"]]
    assert list(coloured.layout.yaxis.categoryarray) == ["git", "other", "git probe"]
    leak = leak_dumbbells(results.leak)
    assert [list(trace.x) for trace in leak.data if trace.name == "original (leaks)"] == [[0.8] * 4] * 2
    heat = drops(results.robustness).data[0]
    assert heat.z.tolist() == [[0.1, -0.01]] * 2 and heat.zmin == -0.01
    assert [list(trace.x) for trace in risk_curves(results.calibration).data] == [[0.5, 1.0]] * 2
    lines = faithfulness_curves(results.faithfulness).data
    assert len(lines) == 6 and list(lines[0].y) == [0.9, 0.2]
    assert {trace.line.color for trace in lines if trace.name == "random"} == {"#8A8F98"}


@pytest.mark.slow
def test_every_plot_of_the_report_is_a_figure(results):
    plots = [plot for section in make_sections(results) for plot in section.plots]
    assert len(plots) == 11 and all(len(make_figure(plot).data) for plot in plots)
