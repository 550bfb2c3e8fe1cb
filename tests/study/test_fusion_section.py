"""The section on pictures with texts: nothing is claimed of fusion that its test does not give."""

from dataclasses import replace

import pytest

from tests.study.test_sections import RESULTS, texts
from vlm_core.evaluation.bootstrap import Estimate
from vlm_core.study.fusion_section import fusion
from vlm_core.study.report_contents import cell_texts
from vlm_core.study.results import FusionResults, FusionRow, TextLeakRow
from vlm_core.study.results_json import read_results, to_json


def _row(label, inputs, score, masked=False):
    family, _, way = label.partition(" ")
    estimate = Estimate(score, score - 0.01, score + 0.01)
    missing = {} if inputs == "image" else {"0%": estimate, "100%": Estimate(0.3, 0.2, 0.4)}
    return FusionRow(label, family, inputs, way, masked, 2, 20, estimate, estimate, missing)


def _pair(a, b, difference, p):
    pair = RESULTS.pairs[0]
    test = replace(pair.test, difference=Estimate(difference, difference, difference), p_bootstrap_holm=p)
    return replace(pair, group="fusion", a=a, b=b, test=test, conclusion=f"{a} and {b}")


ROWS = (
    _row("clip picture", "image", 0.7),
    _row("clip text", "text", 0.8),
    _row("clip late", "image+text", 0.9),
    _row("clip own", "image+text", 0.6),
    _row("baseline text", "text", 0.85),
    _row("baseline text (masked)", "text", 0.5, masked=True),
)
PAIRS = (_pair("clip late", "clip text", 0.1, 0.001), _pair("clip own", "clip text", -0.2, 0.001))
FOUND = FusionResults(ROWS, PAIRS, (TextLeakRow("A", 0.5), TextLeakRow("all", 0.25)))


def _section(found=FOUND):
    return fusion(replace(RESULTS, fusion=found))


def test_without_the_part_there_is_no_section():
    assert fusion(RESULTS) is None
    text = to_json(replace(RESULTS, fusion=FOUND))
    assert to_json(read_results(text)) == text


def test_the_leak_and_the_texts_own_score_stand_at_the_top():
    told = " ".join(_section().paragraphs)
    assert "25.0% of them" in told and "0.850" in told and "0.500" in told and "UNMASKED" in told


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (PAIRS, "1 of 2 fusion beats the best of one input alone in macro-F1"),
        (PAIRS[1:], "No fusion beats"),
        ((_pair("clip late", "clip text", 0.1, 0.06),), "No fusion beats"),
    ],
)
def test_a_claim_needs_a_significant_gain_over_the_better_input(pairs, said):
    section = _section(replace(FOUND, pairs=pairs))
    assert said in section.paragraphs[2] and "clip own" not in section.paragraphs[2]
    assert section.conclusions == tuple(pair.conclusion for pair in pairs)


def test_scores_are_marked_and_sorted_and_missing_titles_have_a_table():
    scores, missing, leaks = _section().tables
    rows = texts(scores)
    assert [row[0] for row in rows][:2] == ["clip late", "baseline text"]
    assert {row[0]: row[1] for row in rows}["baseline text (masked)"] == "masked"
    assert rows[0][1] == "UNMASKED" and "+10.0 points against clip text" in rows[0][4]
    assert missing.columns == ("Configuration", "0%", "100%") and len(missing.rows) == 5
    assert cell_texts(leaks.rows[0]) == ("A", "50.0 %")
