"""Matrices of few and of many categories."""

import numpy as np
import pytest

from dashboard.figures.compare import agreement, confusion_difference, confusions, run_styles
from dashboard.figures.matrix import size_of
from dashboard.figures.run import confusion
from tests.dashboard.figures.test_compare import _evaluation

NAMES = [f"category {number}" for number in range(116)]


def test_rows_and_columns_of_many_categories_are_named_alike_and_have_room():
    matrix = np.eye(116, dtype=int)
    figure = confusion(matrix, NAMES, "counts", None)
    across, down = figure.layout.xaxis, figure.layout.yaxis
    assert across.ticktext == down.ticktext and across.tickvals == down.tickvals and len(across.ticktext) == 58
    size = size_of(116, 20, 930)
    assert size.cell * size.step >= 12 and size.width - size.cell * 116 >= 150 and size.height - size.cell * 116 >= 150
    labels = np.arange(60)
    one = _evaluation(labels, labels, 60)
    for figure in (confusions(run_styles(["a"], ["clip"]), [one]), confusion_difference(one, one)):
        assert figure.layout.xaxis.ticktext == figure.layout.yaxis.ticktext


@pytest.mark.parametrize("count", [13, 21, 60, 116, 600, 5000])
def test_no_matrix_is_wider_than_the_page_has_room_for_unless_its_cells_are_two_pixels(count):
    size = size_of(count, 12, 930)
    assert size.cell == 2 or size.cell * count <= 930
    assert size.cell * size.step >= 12 and size.cell >= 2


def test_a_single_product_in_a_matrix_of_many_categories_is_seen():
    matrix = np.zeros((116, 116), dtype=int)
    matrix[0, 0], matrix[5, 7] = 400, 1
    scale = dict(confusion(matrix, NAMES, "counts", None).data[0].colorscale)
    assert {place for place in scale if 0 < place < 1 / 400}  # its colour is not that of nothing
    before = np.zeros((116, 116), dtype=int)
    scale = dict(confusion(matrix, NAMES, "difference", before).data[0].colorscale)
    assert {place for place in scale if 0.5 < place < 0.5 + 1 / 800} and {
        place for place in scale if 0.499 < place < 0.5
    }


def test_long_names_are_cut_off_in_the_middle_and_whole_where_the_pointer_is():
    names = ["a" * 250 + str(number) for number in range(3)]
    figure = agreement(names, np.eye(3))
    assert list(figure.data[0].y) == names and max(map(len, figure.layout.yaxis.ticktext)) == 28
    assert len(set(figure.layout.xaxis.ticktext)) == 3
    style = run_styles(["b" * 250], ["clip"])[0]
    assert len(style.label) == 28 and "…" in style.label and len(style.name) == 250
