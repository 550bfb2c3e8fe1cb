"""Runs that learnt more from another one: what a page says of it."""

from __future__ import annotations

from collections.abc import Mapping
from math import nan
from typing import Any

_FORGETTING = ("old_macro_f1_before", "old_macro_f1_after", "forgetting", "forgetting_low", "forgetting_high")


def extension_of_run(row: Mapping[str, Any]) -> str:
    """Return what a row of `RunReader.runs` learnt from which run and what it forgot; "" for any other run."""
    parent = row.get("tags.extends")
    if not isinstance(parent, str) or not parent:
        return ""
    names = row.get("tags.new_categories")
    learnt = names if isinstance(names, str) and names else "more products of its categories"
    method = row.get("params.method", "an unknown method")
    before, after, lost, low, high = (float(row.get(f"metrics.{name}", nan)) for name in _FORGETTING)
    measured = (
        "What it forgot of the old categories could not be measured."
        if lost != lost
        else f"Macro-F1 of the old categories on their old test products: {before:.3f} before, {after:.3f} after; lost "
        f"{lost:+.3f} ({low:+.3f} to {high:+.3f})."
    )
    return f"By {method} from run {parent[:8]}: {learnt}. {measured}"
