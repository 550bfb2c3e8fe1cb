"""The label audit of a study: products whose label looks wrong, as pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import dash_mantine_components as dmc
from dash import html
from dash.development.base_component import Component

from dashboard.components import card, table
from dashboard.pictures import has_pictures, picture_address
from dashboard.runs import Runs
from dashboard.studies import StoredStudy, shown

MOST_SHOWN: Final = 32


def labels_card(runs: Runs, found: StoredStudy) -> Component | None:
    """What the audit flagged, and what macro-F1 is without it; None where no labels were audited."""
    audit = found.results.get("labels")
    if not audit:
        return None
    fingerprint = _fingerprint(runs, found)
    here = has_pictures(runs.root, fingerprint)
    suspects = audit["suspects"]
    counts = Counter(suspect["given"] for suspect in suspects).most_common()
    categories = ", ".join(f"{name} {count:,}" for name, count in counts)
    said = f"{len(suspects):,} of {audit['audited']:,} products have a label that looks wrong: {categories}."
    body = [
        [name, f"{each['left_out']:,}", shown(each["before"]), shown(each["after"])]
        for name, each in audit["without"].items()
    ]
    shown_rows = [_figure(suspect, fingerprint if here else "") for suspect in suspects[:MOST_SHOWN]]
    missing = "The catalogue's pictures are not on this machine: prepare it here to see them."
    return card(
        "Labels that look wrong",
        dmc.Text(said, size="sm"),
        table(["", "Left out", "Macro-F1", "Without those"], body, "Macro-F1 without suspects") if body else None,
        None if here else dmc.Text(missing, size="sm", c="dimmed"),
        html.Div(shown_rows, className="gallery"),
        note="Confident learning on out-of-fold probabilities, the worst first: candidates, not errors. What is hard "
        "looks wrong too, so macro-F1 rises without them even where all labels are right.",
    )


def _fingerprint(runs: Runs, found: StoredStudy) -> str:
    """The catalogue of the study's cells."""
    ids = (run.run_id for seeds in found.runs.values() for run in seeds.values())
    marks = ((runs.row(run_id) or {}).get("tags.fingerprint") for run_id in ids)
    return str(next(filter(None, marks), ""))


def _figure(row: Mapping[str, Any], fingerprint: str) -> Component:
    product = str(row["product_id"])
    picture = html.Img(src=picture_address(fingerprint, product), alt=f"Product {product}, labelled {row['given']}")
    lines = (
        f"label {row['given']}",
        f"looks like {row['suggested']}",
        row["title"],
        f"{row['score']:.1%} for its label · {product}",
    )
    return html.Figure([picture if fingerprint else None, html.Figcaption("\n".join(lines), className="lines")])
