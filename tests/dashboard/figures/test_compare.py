import numpy as np
import pandas as pd

from dashboard.figures.compare import (
    agreement,
    category_bars,
    confusion_difference,
    confusions,
    curves,
    most_different,
    run_styles,
)
from vlm_core.evaluation.evaluation import evaluate
from vlm_core.evaluation.predictions import Predictions


def _evaluation(predicted, labels=(0, 0, 1, 1), categories=2, name="c{}"):
    logs = np.full((len(labels), categories), np.log(0.1 / (categories - 1)))
    logs[np.arange(len(labels)), list(predicted)] = np.log(0.9)
    names = tuple(name.format(number) for number in range(categories))
    predictions = Predictions([str(n) for n in range(len(labels))], np.array(labels), logs, names)
    prior = np.bincount(labels, minlength=categories) / len(labels)
    return evaluate(predictions, pd.DataFrame(index=range(len(labels))), prior, resamples=100, seed=0)


def test_a_family_keeps_its_colour_and_its_second_run_is_dashed_and_hatched():
    styles = run_styles(["a", "b", "c"], ["clip", "clip-large", "git"])
    assert [style.colour for style in styles] == ["#0072B2", "#0072B2", "#009E73"]
    assert [style.dash for style in styles] == ["solid", "dash", "solid"]
    assert [style.pattern for style in styles] == ["", "/", ""]


def test_bars_have_the_evaluations_f1_and_interval():
    evaluation = _evaluation((0, 0, 1, 0))
    bar = category_bars(run_styles(["a"], ["clip"]), [evaluation]).data[0]
    f1 = evaluation.per_category[0].f1
    assert list(bar.x) == ["c0", "c1"] and bar.y[0] == f1.value
    assert bar.error_y.array[0] == f1.high - f1.value and bar.error_y.arrayminus[0] == f1.value - f1.low


def test_names_from_the_store_are_escaped():
    evaluation, styles = _evaluation((0, 0, 1, 0), name="<b>{}"), run_styles(["<i>a"], ["clip"])
    bar, matrix = category_bars(styles, [evaluation]).data[0], confusions(styles, [evaluation]).data[0]
    assert list(bar.x) == list(matrix.x) == list(matrix.y) == ["&lt;b&gt;0", "&lt;b&gt;1"]
    epoch = {"epoch": 1, "validation_summary": {"overall_loss": 1.0, "macro_f1": 0.5}}
    assert bar.name == curves(styles, [[epoch]]).data[0].name == "&lt;i&gt;a"


def test_runs_without_epochs_have_a_sentence_in_place_of_empty_axes():
    figure = curves(run_styles(["a"], ["clip"]), [[]])
    assert "None of these runs" in figure.layout.annotations[0].text and not figure.layout.yaxis.visible


def test_of_many_categories_those_that_differ_most_are_shown():
    labels = np.repeat(np.arange(30), 2)
    one, other = _evaluation(labels, labels, 30), _evaluation(np.where(labels == 7, 8, labels), labels, 30)
    assert most_different([one, other], 2) == ["c7", "c8"]
    assert len(category_bars(run_styles(["a", "b"], ["clip", "git"]), [one, other]).data[0].x) == 20


def test_matrices_share_one_scale_and_their_difference_is_of_row_shares():
    one, other = _evaluation((0, 0, 1, 0)), _evaluation((0, 1, 1, 1))
    figure = confusions(run_styles(["a", "b"], ["clip", "git"]), [one, other])
    assert {(trace.zmin, trace.zmax) for trace in figure.data} == {(0, 1)}
    np.testing.assert_allclose(figure.data[0].z, [[1, 0], [0.5, 0.5]])
    np.testing.assert_allclose(confusion_difference(one, other).data[0].z, [[0.5, -0.5], [0.5, -0.5]])


def test_cells_of_many_categories_are_no_thinner_than_the_gaps_between_them():
    labels = np.arange(60)
    one = _evaluation(labels, labels, 60)
    figures = confusions(run_styles(["a"], ["clip"]), [one]), confusion_difference(one, one)
    assert [(figure.data[0].xgap, figure.layout.xaxis.tickangle) for figure in figures] == [(0, -90)] * 2


def test_four_matrices_stand_two_by_two():
    one = _evaluation((0, 0, 1, 0))
    figure = confusions(run_styles(list("abcd"), ["clip"] * 4), [one] * 4)
    assert len({figure.layout[trace.xaxis.replace("x", "xaxis")].domain for trace in figure.data}) == 2


def test_names_from_the_store_are_no_html_in_figures():
    figure = agreement(["<b>x</b>", "y"], np.array([[1.0, 0.7], [0.7, 1.0]]))
    assert figure.data[0].x[0] == "&lt;b&gt;x&lt;/b&gt;"


def test_curves_of_a_run_without_epochs_are_empty():
    part = {"overall_loss": 1.0, "macro_f1": 0.5}
    figure = curves(run_styles(["a", "b"], ["clip", "git"]), [[{"epoch": 1, "validation_summary": part}], []])
    assert [len(trace.x) for trace in figure.data] == [1, 1, 0, 0]
    assert figure.layout.xaxis.dtick == 1
