import numpy as np
import pytest

from dashboard.figures.run import confusion, learning_curves, reliability, subgroups
from vlm_core.evaluation.bootstrap import Estimate
from vlm_core.evaluation.calibration import ReliabilityBin
from vlm_core.evaluation.subgroups import Subgroup

MATRIX = np.array([[3, 1], [0, 0]])


@pytest.mark.parametrize(
    ("kind", "before", "values"),
    [
        ("counts", None, [[3, 1], [0, 0]]),
        ("share", None, [[0.75, 0.25], [0, 0]]),
        ("difference", np.array([[1, 1], [2, 0]]), [[2, 0], [-2, 0]]),
        ("difference", None, [[0, 0], [0, 0]]),
    ],
)
def test_a_matrix_shows_counts_shares_of_the_row_or_what_an_epoch_changed(kind, before, values):
    trace = confusion(MATRIX, ("a", "b"), kind, before).data[0]
    np.testing.assert_allclose(trace.z, values)
    assert trace.zmin == -trace.zmax if kind == "difference" else trace.zmin == 0


def test_names_of_categories_are_escaped():
    trace = confusion(MATRIX, ("<b>a", "b"), "counts", None).data[0]
    assert list(trace.x) == list(trace.y) == ["&lt;b&gt;a", "b"]


def test_many_categories_have_a_scale_in_place_of_numbers():
    names = [str(number) for number in range(69)]
    trace = confusion(np.eye(69, dtype=np.int64), names, "counts", None).data[0]
    assert trace.showscale and trace.texttemplate == ""
    assert trace.xgap == trace.ygap == 0  # a gap of two pixels hides cells of one


def test_curves_hold_every_epoch_of_both_splits():
    part = {"overall_loss": 1.0, "macro_f1": 0.5}
    epochs = [
        {"epoch": n, "training_summary": part, "validation_summary": {**part, "overall_loss": n}} for n in (1, 2, 3)
    ]
    figure = learning_curves(epochs, "#000000")
    assert [trace.name for trace in figure.data] == ["training", "validation"] * 2
    assert list(figure.data[1].x) == [1, 2, 3] and list(figure.data[1].y) == [1, 2, 3]
    assert figure.layout.xaxis.dtick == figure.layout.xaxis2.dtick == 1  # Plotly would name 1.5 "2"


def test_empty_bins_are_no_points_of_the_calibration_curve():
    curve = [ReliabilityBin(0.0, 0.5, 0, 0.0, 0.0), ReliabilityBin(0.5, 1.0, 4, 0.8, 0.75)]
    figure = reliability(curve, "#000000")
    assert list(figure.data[1].x) == [0.8] and list(figure.data[1].y) == [0.75] and list(figure.data[2].y) == [0, 4]


def test_small_subgroups_are_hollow():
    groups = [Subgroup("gender", name, n, Estimate(0.5, 0.4, 0.7), 0.5, 2, ()) for name, n in (("", 19), ("Men", 20))]
    trace = subgroups(groups, "#000000", 0.5).data[0]
    assert list(trace.y) == ["unknown  (n 19)", "Men  (n 20)"]
    assert list(trace.marker.symbol) == ["circle-open", "circle"]
