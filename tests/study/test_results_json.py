"""Results as JSON: read back as they were, from files of the schema before too."""

import json
from dataclasses import replace
from math import isnan
from pathlib import Path

import pytest

from tests.dashboard.made_study import make_results
from vlm_core.evaluation.bootstrap import Estimate
from vlm_core.study.results_json import read_json, read_results, results_to_json, to_json
from vlm_core.study.robustness import CorruptedScore, Robustness

SCHEMA_1 = Path(__file__).with_name("results_schema_1.json")
RESULTS = make_results("s", {"a": "r1", "b": "r2"})


def test_results_are_read_as_they_were_written():
    text = results_to_json(RESULTS)
    assert repr(read_results(text)) == repr(RESULTS)
    assert json.loads(text)["schema"] == 2 and "NaN" not in text


def test_results_of_schema_1_are_read():
    old = json.loads(SCHEMA_1.read_text())
    assert (old["schema"], old["done"], old["rows"][0]["macro_f1"]["value"]) == (1, 6, 0.78)
    pairs = tuple(pair for pair in RESULTS.pairs if pair.group != "held_out")
    before = replace(RESULTS, held_out=(), continual=(), pairs=pairs)
    assert repr(read_results(SCHEMA_1.read_text())) == repr(before)  # whose only headline was of all categories


def test_what_a_file_lacks_is_empty_or_not_a_number():
    results = read_results('{"study": "x", "rows": [{"label": "a", "macro_f1": {"value": 0.5}}], "rules": null}')
    (row,) = results.scores
    assert (row.label, row.seeds, row.per_category, row.macro_f1.value) == ("a", (), {}, 0.5)
    assert isnan(row.macro_f1.low) and isnan(row.accuracy.value)
    assert (results.decoding, results.label_audit, results.failed, results.cells_planned) == ((), None, {}, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"),
        ('{"rows": [', "Expecting value"),
        ("[]", "is no"),
        ('{"rows": 3}', "scores"),
        ('{"rows": [{"macro_f1": "high"}]}', "is no"),
        ('{"rows": [{"macro_f1": {"value": "high"}}]}', "valid number"),
    ],
)
def test_what_is_no_results_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        read_results(text)


def test_a_measurement_is_read_as_its_type():
    score = CorruptedScore("blur", 1, 0.5, 0.9, 0.8, 0.1)
    robustness = Robustness(4, 0, 1.0, 0.9, (score,), {"blur": 0.1}, float("nan"))
    assert json.loads(to_json(robustness))["mean_drop"] is None
    assert repr(read_json(Robustness, to_json(robustness))) == repr(robustness)
    assert read_json(dict[str, Estimate], '{"a": {"value": 1, "low": 0, "high": 2}}') == {"a": Estimate(1.0, 0.0, 2.0)}
    assert read_json(tuple[Estimate, ...], "[]") == ()
    assert read_json(dict[str, float], '{"likelihood a token": 0.5}') == {"likelihood per token": 0.5}
