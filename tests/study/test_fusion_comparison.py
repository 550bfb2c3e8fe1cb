"""The part on pictures with texts: what is compared, missing titles, and a whole part on the small shop."""

import numpy as np
import pytest

from tests.study.made_cells import FAIR, GOOD, make_predictions
from vlm_core.config import StudyConfig
from vlm_core.errors import UserError
from vlm_core.study import fusion_comparison
from vlm_core.study.fusion_comparison import MISSING, ReaderPredictions, _headline, _pairs
from vlm_core.study.readers import Reader
from vlm_core.study.running import run_study
from vlm_core.tracking.reader import RunReader

POOR = ((4, 6), (6, 4))


def test_more_titles_are_missing_with_a_larger_share_and_the_others_stay():
    tested = ReaderPredictions(make_predictions(GOOD), make_predictions(FAIR))
    right = [(each.predicted == each.labels).sum() for each in (tested.missing(share, 0) for share in MISSING)]
    assert right[0] == 20 and right[-1] == 14 and right == sorted(right, reverse=True)
    quarter, half = (
        (tested.missing(share, 0).log_probabilities == tested.without_text.log_probabilities).all(axis=1)
        for share in (0.25, 0.5)
    )
    assert half[quarter].all() and half.sum() >= quarter.sum()
    np.testing.assert_array_equal(tested.missing(0, 1).log_probabilities, tested.complete.log_probabilities)


@pytest.mark.parametrize(("withheld", "best"), [(GOOD, "clip both, concat, texts withheld"), (POOR, "clip picture")])
def test_a_fusion_that_is_as_good_without_an_input_has_that_for_its_control(withheld, best):
    picture, text, both = Reader("clip", "image"), Reader("clip", "text"), Reader("clip", "image+text", "concat")
    good, fair, poor = (make_predictions(each) for each in (GOOD, FAIR, POOR))
    tested = {
        picture: [ReaderPredictions(fair, fair)],
        text: [ReaderPredictions(poor, poor)],
        both: [ReaderPredictions(good, make_predictions(withheld), poor)],
    }
    (pair,) = _pairs(tested, frozenset({"A", "B"}))
    assert (pair.a, pair.b) == ("clip both, concat", best)


def test_thin_categories_are_no_headline_unless_all_are():
    tested = ReaderPredictions(make_predictions(GOOD), make_predictions(GOOD))
    assert _headline([tested]) == {"A", "B"}  # ten products each: all are thin


@pytest.mark.slow
def test_the_part_is_a_study_of_cells_of_which_the_failed_ones_are_repeated(shop, stocked, monkeypatch):
    monkeypatch.setattr("vlm_core.study.report.plot_svg", lambda plot: "<svg></svg>")
    some = [
        Reader("baseline", "text"),
        Reader("clip", "image"),
        Reader("clip", "text"),
        Reader("clip", "image+text", "late"),
    ]
    monkeypatch.setattr("vlm_core.study.plan.readers", lambda families: some)
    given = {"preset": "demo", "parts": "fusion", "families": "clip", "seeds": 1, "threads": 1, "data": str(shop)}
    small = {"per_category": 20, "train_per_category": 12, "epochs": 2, "resamples": 100}
    with pytest.raises(UserError, match="text_columns=brand is not a column"):
        run_study(StudyConfig.build({**given, **small, "text_columns": "brand"}), stocked)
    fit = fusion_comparison._fit_probe

    def fit_all_but_one(config, *rest):
        if config.inputs == "image+text" and config.fusion == "late":
            raise UserError("no room")
        return fit(config, *rest)

    monkeypatch.setattr(fusion_comparison, "_fit_probe", fit_all_but_one)
    with pytest.raises(UserError, match="1 of 4 cells failed, the first with: UserError: no room"):
        run_study(StudyConfig.build({**given, **small}), stocked)
    monkeypatch.setattr(fusion_comparison, "_fit_probe", fit)
    results = run_study(StudyConfig.build({**given, **small}), stocked).results
    assert results.cells_finished == results.cells_planned == 4
    children = RunReader().children(results.run_id)
    assert sorted(children["status"]) == ["FAILED"] + ["FINISHED"] * 4
    found = results.fusion
    assert found is not None
    assert [row.label for row in found.rows] == [reader.label for reader in some]
    (pair,) = found.pairs
    withheld = {f"clip both, late, {what} withheld" for what in ("texts", "pictures")}
    assert pair.a == "clip both, late" and pair.b in {"clip picture", "clip text", *withheld}
    scores = {row.label: row for row in found.rows}
    assert scores["clip picture"].missing == {}
    text = scores["baseline text"]
    assert list(text.missing) == ["0%", "25%", "50%", "100%"]
    assert text.missing["0%"].value == text.headline_macro_f1.value > text.missing["100%"].value
    assert found.leaks[-1].category == "all" and 0.1 < found.leaks[-1].share <= 1
