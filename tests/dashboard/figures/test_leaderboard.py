import pytest
from hypothesis import given
from hypothesis import strategies as st

from dashboard.figures.leaderboard import pareto_front, score_against_cost

_ROWS = st.lists(
    st.fixed_dictionaries({"score": st.none() | st.floats(0, 1), "train": st.none() | st.floats(0.001, 1e6)}),
    max_size=20,
)


@pytest.mark.slow
@given(_ROWS)
def test_the_front_holds_exactly_what_no_row_beats(rows):
    usable = [row for row in rows if row["score"] is not None and row["train"] is not None]

    def beaten(row):
        return any(
            other["score"] >= row["score"]
            and other["train"] <= row["train"]
            and (other["score"], -other["train"]) != (row["score"], -row["train"])
            for other in usable
        )

    front = {(row["train"], row["score"]) for row in pareto_front(rows, "train")}
    assert front == {(row["train"], row["score"]) for row in usable if not beaten(row)}


def test_each_family_has_its_colour_and_its_interval():
    row = {"run_id": "r", "name": "n", "mode": "probe", "score": 0.5, "low": 0.4, "high": 0.7, "train": 3.0}
    figure = score_against_cost([{**row, "family": "git"}, {**row, "family": "clip", "train": None}], "train")
    (trace,) = figure.data
    assert trace.name == "GIT" and trace.marker.color == "#009E73" and trace.marker.symbol == ("diamond",)
    assert round(trace.error_y.array[0], 6) == 0.2 and round(trace.error_y.arrayminus[0], 6) == 0.1
    assert "training time, s: %{x" in trace.hovertemplate


def test_a_run_whose_time_is_known_in_part_is_hollow_and_not_on_the_front():
    row = {"run_id": "r", "name": "n", "mode": "probe", "family": "clip", "score": 0.5, "train": 3.0}
    rows = [row, {**row, "train": 1.0, "train_partial": True}, {**row, "train": 9.0, "score": 0.6}]
    assert [each["train"] for each in pareto_front(rows, "train")] == [3.0, 9.0]
    assert score_against_cost(rows, "train").data[1].marker.symbol == ("diamond", "diamond-open", "diamond")


def test_without_a_cost_there_is_a_sentence_and_no_axes():
    figure = score_against_cost([], "latency")
    assert figure.layout.annotations[0].text == "No tested run has this cost yet" and not figure.layout.xaxis.visible
