"""The leaderboard's callbacks, called directly over real runs."""

import json
from dataclasses import replace

import pytest
from dash import no_update
from dash.exceptions import PreventUpdate

from dashboard.leaderboard import TestSet
from dashboard.pages import leaderboard
from dashboard.runs import Runs


def _text(component):
    return json.dumps(component, default=lambda part: part.to_plotly_json())


def test_rows_stand_in_bands_and_the_leaking_protocol_carries_its_mark(runs):
    rows, columns, style, warning = leaderboard.update_grid(runs, True, 1, "", "", False, None)
    headings = [row for row in rows if "heading" in row]
    assert [heading["leaks"] for heading in headings] == [False, True]  # leaking runs never top the page
    assert len(rows) - len(headings) == 4
    honest = [row for row in rows if row.get("leaking") == "false"]
    assert sorted(row["rank"] for row in honest) == [1, 2, 3]
    assert [row["mode"] for row in honest if row["model"] == "baseline"] == ["–"]
    assert "1 of 3 test sets may leak" in _text(warning) and "also appear in training (up to" in _text(warning)
    assert "in pretraining" not in _text(warning)  # no weights have seen this shop
    assert "px" in style["height"]
    fields = [column.get("field") for column in columns]
    assert "f1_apparel" in fields and "score" in fields


def test_each_kind_of_leak_has_its_sentence_and_its_share():
    both = TestSet("a", "of the shop", True, 0.1, 0.02, runs=2, categories=())
    before = replace(both, key="b", in_training=0.0, in_pretraining=0.0084)
    text = _text(leaderboard._leak_notice([both, before], ""))
    assert "In 1 of 2 test sets, evaluated products" in text and "also appear in training (up to 10.0%)" in text
    assert (
        "In 2 of 2 test sets, the weights of some runs may have seen" in text and "in pretraining (up to 2.0%)" in text
    )
    assert "also appear in training" not in _text(leaderboard._leak_notice([both, before], "b"))


def test_failed_runs_come_when_asked_and_columns_are_sent_once(runs):
    rows, columns, _, _ = leaderboard.update_grid(runs, True, 1, "", "", True, None)
    assert any(row.get("status") == "FAILED" and row["name"] == "<b>broken</b>" for row in rows)
    assert leaderboard.update_grid(runs, True, 1, "", "", True, columns)[1] is no_update


def test_test_sets_count_the_runs_that_are_shown(runs):
    for everything in (False, True):
        rows, *_ = leaderboard.update_grid(runs, True, 1, "", "", everything, None)
        counts = {}
        for row in rows:
            if "heading" not in row:
                counts[row["set"]] = counts.get(row["set"], 0) + 1
        all_sets, *choices = leaderboard.update_state(runs, 1, "", everything)[2]
        assert all_sets["label"] == f"All test sets ({sum(counts.values())} runs)"
        for choice in choices:
            count = counts.get(choice["value"], 0)
            assert f"({count} run{'s' * (count != 1)}" in choice["label"]
    assert sum(counts.values()) == 5  # a failed run among them


def test_one_honest_test_set_has_no_warning(runs):
    honest = next(row["set"] for row in runs.view().leaderboard.rows if "rank" in row)
    rows, _, _, warning = leaderboard.update_grid(runs, True, 1, honest, "preset", False, None)
    assert warning is None and rows[0]["heading"].endswith("preset demo")


def test_the_scatter_waits_for_the_grid_and_takes_one_test_set_and_a_known_cost(runs):
    figure = leaderboard.update_scatter(runs, True, 1, "", "no such cost").children[0].children.figure
    assert {"CLIP", "BLIP"} <= {trace.name for trace in figure.data}
    weights = leaderboard.update_scatter(runs, True, 1, None, "weights").children[0].children.figure  # older addresses
    assert weights.layout.xaxis.title.text == "trained weights"
    with pytest.raises(PreventUpdate):
        leaderboard.update_scatter(runs, False, 1, "", "train")
    with pytest.raises(PreventUpdate):
        leaderboard.update_grid(runs, False, 1, "", "", False, None)


@pytest.mark.parametrize("selected", [None, [], [{"run_id": "r0"}], [{"run_id": "r0"}, {"heading": "Test set"}]])
def test_a_comparison_needs_two_runs(selected):
    assert leaderboard.update_compare(selected).disabled is True


@pytest.mark.parametrize("selected", [2, 6])
def test_two_to_six_runs_are_compared(selected):
    names = [f"r{number}" for number in range(selected)]
    for rows in ([{"run_id": name} for name in names], {"ids": names}):  # of the grid, and of an address
        link = leaderboard.update_compare(rows)
        assert link.href == "/compare?runs=" + ",".join(names) and link.children == f"Compare {selected} runs"


def test_more_runs_than_fit_are_not_cut_down_without_a_word():
    button = leaderboard.update_compare([{"run_id": f"r{number}"} for number in range(21)])
    assert button.disabled and button.children == "21 runs selected: choose six at most"


def test_the_address_says_which_runs_are_selected(runs):
    page = leaderboard.layout(runs, {"selected": "r1,r2"})
    assert '"selectedRows": {"ids": ["r1", "r2"]}' in _text(page) and "/compare?runs=r1,r2" in _text(page)


def test_the_page_opens_with_what_its_address_says(runs):
    page = _text(leaderboard.layout(runs, {"group": "preset", "cost": "latency", "find": "<i>"}))
    assert '"value": "latency"' in page and '"value": "preset"' in page and '"value": "<i>"' in page


def test_the_address_says_what_the_grid_is_sorted_and_filtered_by_at_first(runs):
    page = _text(leaderboard.layout(runs, {"sort": "latency:asc,name:desc", "filter": '{"mode": {"type": "equals"}}'}))
    assert '"filterModel": {"mode": {"type": "equals"}}' in page
    columns = {
        each.get("field"): each
        for each in leaderboard.update_grid(runs, True, 1, "", "", False, None, "latency:asc")[1]
    }
    assert columns["latency"]["initialSort"] == "asc" and "initialSort" not in columns["score"]
    assert all("sort" not in column for column in columns.values())  # it would undo the reader's choice at every change


@pytest.mark.parametrize("sort", ["", "nonsense", "latency:sideways", None])
def test_a_strange_address_leaves_the_grid_as_it_is(runs, sort):
    columns = leaderboard.update_grid(runs, True, 1, "", "", False, None, sort)[1]
    assert [each["field"] for each in columns if each.get("initialSort")] == ["score"]
    assert '"filterModel": {}' in _text(leaderboard.layout(runs, {"filter": "[" + str(sort)}))


def test_an_empty_and_an_unread_store_have_their_own_pages(store):
    runs = Runs("", store)
    assert "Loading runs" in _text(leaderboard.layout(runs, {}))
    runs.refresh()
    state, hidden, choices = leaderboard.update_state(runs, 1, "")
    assert hidden and "No runs yet" in _text(state) and "make train" in _text(state) and choices[0]["value"] == ""
