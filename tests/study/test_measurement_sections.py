"""Sections on measurements: each number in its place, and a dash where there is none."""

from dataclasses import replace

import pytest

from tests.dashboard.made_study import make_results
from vlm_core.evaluation.bootstrap import Estimate
from vlm_core.study import measurement_sections as sections
from vlm_core.study.report_contents import RunLink, cell_texts
from vlm_core.study.results import Suspect

RESULTS = make_results("s", {"a": "r1", "b": "r2"})


def texts(section, table=0):
    return [cell_texts(row) for row in section.tables[table].rows]


@pytest.mark.parametrize(
    ("make", "field", "empty"),
    [
        (sections.robustness, "robustness", ()),
        (sections.calibration, "calibration", ()),
        (sections.faithfulness, "faithfulness", {}),
        (sections.gaps, "gaps", ()),
        (sections.decoding, "decoding", ()),
        (sections.cost, "cost", ()),
        (sections.label_audit, "label_audit", None),
        (sections.continual, "continual", ()),
    ],
)
def test_what_was_not_measured_has_no_section(make, field, empty):
    assert make(RESULTS) is not None
    assert make(replace(RESULTS, **{field: empty})) is None


def test_robustness_has_a_column_per_corruption():
    section = sections.robustness(RESULTS)
    assert section.tables[0].columns == ("Configuration", "Mean drop", "blur", "noise")
    assert texts(section)[0] == ("clip probe", "5.0% (3.0% to 7.0%)", "10.0%", "-1.0%")
    assert section.tables[0].rows[0][0] == RunLink("clip probe", ("r1", "r2"))
    assert section.plots[0].rows == RESULTS.robustness


def test_calibration_has_a_dash_where_no_product_was_unknown():
    assert texts(sections.calibration(RESULTS))[1] == (
        *("blip probe", "1.200 (1.180 to 1.220)", "0.100 (0.080 to 0.120)", "0.050 (0.030 to 0.070)"),
        *("0.600 (0.580 to 0.620)", "0.500 (0.480 to 0.520)", "0.100 (0.080 to 0.120)", "–", "–", "20"),
    )
    row = replace(RESULTS.calibration[0], auroc_unknown=Estimate(0.9, 0.8, 1.0))
    assert "0.900 (0.800 to 1.000)" in texts(sections.calibration(replace(RESULTS, calibration=(row,))))[0]


def test_faithfulness_has_areas_the_randomisation_check_and_layers():
    section = sections.faithfulness(RESULTS)
    assert section.conclusions == ("clip's raw map is better than <i>",)
    assert texts(section)[0] == ("clip probe", "raw", "0.500 (0.480 to 0.520)", "0.600 (0.580 to 0.620)")
    assert texts(section, 1) == [("clip probe", "raw", "0.100 (0.080 to 0.120)")]
    assert texts(section, 2) == [
        (
            *("clip probe", "vision.block.1", "vision", "3.200", "0.800", "2.500", "0.300", "0.100", "–"),
            *("0.400", "0.200"),
        )
    ]
    assert "64 test products" in section.paragraphs[0]
    assert len(sections.faithfulness(replace(RESULTS, layers={})).tables) == 2


def test_gaps_name_the_best_and_worst_value_and_mark_thin_ones():
    (row,) = RESULTS.gaps
    (gap,) = row.gaps
    assert texts(sections.gaps(RESULTS)) == [("clip probe", "gender", "–", "–", "–", "–")]
    assert texts(sections.gaps(RESULTS), 1) == [
        ("clip probe", "gender", "Men", "90", "90.0% (88.0% to 92.0%)", "0.800"),
        ("clip probe", "gender", "not given*", "9", "50.0% (48.0% to 52.0%)", "0.400"),
    ]
    known = replace(gap, best="Men", worst="Women", accuracy_gap=Estimate(0.1, 0.0, 0.2), p_holm=0.0001)
    assert texts(sections.gaps(replace(RESULTS, gaps=(replace(row, gaps=(known,)),)))) == [
        ("clip probe", "gender", "Men, Women", "10.0% (0.0% to 20.0%)", "< 0.001", "–")
    ]


def test_decoding_has_a_row_per_rule():
    assert texts(sections.decoding(RESULTS)) == [("git writing", "free text", "0.700", "0.800", "100.0%", "0.0%", "–")]


def test_cost_is_joined_with_what_was_trained():
    assert texts(sections.cost(RESULTS)) == [
        ("clip probe", "0.700", "1,000", "645", "1.000", "10.0", "20.0", "90", "12", "12", "yes"),
        ("HOG + colour", "0.700", "1,000", "645", "–", "30.0", "20.0", "90", "12", "12", ""),
    ]
    alone = texts(sections.cost(replace(RESULTS, scores=())))
    assert alone[0][3] == alone[0][9] == "–"


def test_the_label_audit_counts_by_label_and_shows_the_first():
    suspects = tuple(Suspect(str(number), "A" if number < 30 else "B", "C", 0.1, "") for number in range(40))
    audit = replace(RESULTS.label_audit, suspects=suspects)
    section = sections.label_audit(replace(RESULTS, label_audit=audit))
    assert "40 of 100 products" in section.paragraphs[0] and "(macro-F1 0.700)" in section.paragraphs[0]
    assert texts(section) == [("clip probe", "1", "0.780 (0.760 to 0.800)", "0.800 (0.780 to 0.820)")]
    assert texts(section, 1) == [("A", "30"), ("B", "10")]
    assert section.suspects == suspects[:36]
    none = sections.label_audit(replace(RESULTS, label_audit=replace(audit, suspects=())))
    assert len(none.tables) == 1 and none.suspects == ()


def test_the_continual_benchmark_has_scores_and_the_accuracies_step_by_step():
    section = sections.continual(RESULTS)
    assert texts(section)[0] == (
        *("clip naive", "0.800 (0.780 to 0.820)", "0.700 (0.680 to 0.720)", "0.200 (0.180 to 0.220)"),
        *("-0.100 (-0.120 to -0.080)", "+0.000 (+0.000 to +0.000)", "1.50 (1.48 to 1.52)", "12"),
    )
    assert texts(section, 1)[:2] == [
        ("clip naive", "after step 1", "0.900", "–"),
        ("clip naive", "after step 2", "0.500", "0.900"),
    ]
    assert (
        "4 categories are learnt in 2 steps" in section.paragraphs[0] and "3 seeds are too few" in section.paragraphs[2]
    )
