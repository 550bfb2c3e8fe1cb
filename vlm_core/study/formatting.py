"""Numbers as a report writes them; a dash stands for what is not known."""

from __future__ import annotations

from math import isnan
from typing import Final

from vlm_core.evaluation.bootstrap import Estimate

UNKNOWN: Final = "–"


def format_number(value: float | None, form: str = ".3f") -> str:
    """Return the number in a format of Python's."""
    return UNKNOWN if value is None or isnan(value) else f"{value:{form}}"


def format_estimate(estimate: Estimate | None, form: str = ".3f") -> str:
    """Return the value and its interval, or the value alone where there is no interval."""
    if estimate is None or isnan(estimate.value):
        return UNKNOWN
    if isnan(estimate.low) or isnan(estimate.high):
        return f"{estimate.value:{form}}"
    return f"{estimate.value:{form}} ({estimate.low:{form}} to {estimate.high:{form}})"


def format_count(count: int) -> str:
    """Return the count with separators; 0 stands for one that is not known or does not apply."""
    return f"{count:,}" if count else UNKNOWN


def p_value(p: float | None) -> str:
    """Return a p-value as text, a dash where nothing was tested."""
    return UNKNOWN if p is None or isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"
