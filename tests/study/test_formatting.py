"""Numbers as text."""

from math import nan

import pytest

from vlm_core.evaluation.bootstrap import Estimate
from vlm_core.study.formatting import format_count, format_estimate, format_number, p_value


@pytest.mark.parametrize(
    ("estimate", "form", "text"),
    [
        (Estimate(0.5, 0.4, 0.6), ".2f", "0.50 (0.40 to 0.60)"),
        (Estimate(-0.01, nan, nan), "+.1%", "-1.0%"),
        (Estimate(0.04, 0.02, 0.06), "+.3f", "+0.040 (+0.020 to +0.060)"),
        (Estimate(nan, nan, nan), ".3f", "–"),
        (None, ".3f", "–"),
    ],
)
def test_an_estimate_with_and_without_interval(estimate, form, text):
    assert format_estimate(estimate, form) == text


@pytest.mark.parametrize(
    ("value", "form", "text"), [(0.1234, ".3f", "0.123"), (0.5, ".1%", "50.0%"), (nan, ".3f", "–"), (None, ".3f", "–")]
)
def test_a_number(value, form, text):
    assert format_number(value, form) == text


def test_a_count():
    assert (format_count(12345), format_count(0)) == ("12,345", "–")


@pytest.mark.parametrize(("p", "text"), [(0.0004, "< 0.001"), (0.04, "0.040"), (1.0, "1.000"), (None, "–"), (nan, "–")])
def test_a_p_value(p, text):
    assert p_value(p) == text
