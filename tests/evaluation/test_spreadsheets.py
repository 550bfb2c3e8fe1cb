"""Texts in CSV files, as spreadsheets read them."""

import pytest

from vlm_core.evaluation.spreadsheets import spreadsheet_text


@pytest.mark.parametrize("text", ["=cmd|calc", "+1", "-1", "@sum", "\t=1", "\r=1", "\n=1", "\uff1d1+1"])
def test_a_text_that_a_spreadsheet_would_evaluate_is_led_by_an_apostrophe(text):
    assert spreadsheet_text(text) == f"'{text}"


@pytest.mark.parametrize("value", ["", "a=b", "1", "'=1", 1.5, -1, None])
def test_other_values_stay_as_they_are(value):
    assert spreadsheet_text(value) is value
