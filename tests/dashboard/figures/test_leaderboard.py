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
