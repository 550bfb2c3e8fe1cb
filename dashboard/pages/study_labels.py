"""The label audit of a study: products whose label looks wrong, as pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import dash_mantine_components as dmc
from dash import html
from dash.development.base_component import Component

from dashboard.components import card, table
from dashboard.evidence import Evidence, shown
from dashboard.pictures import has_pictures, picture_address
from dashboard.runs import Runs

MOST_SHOWN: Final = 32


def labels_card(runs: Runs, found: Evidence) -> Component | None:
    """What the audit flagged, and what macro-F1 is without it; None where no labels were audited."""
    audit = found.results.get("labels")
    if not audit:
        return None
    fingerprint = _fingerprint(runs, found)
    here = has_pictures(runs.root, fingerprint)
    flagged, products = audit["flagged"], audit["products"]
    categories = ", ".join(f"{name} {count:,}" for name, count in audit["by_category"].items())
    said = f"{flagged:,} of {products:,} products ({flagged / max(1, products):.1%}) are flagged: {categories}."
    body = [[name, shown(whole), shown(without)] for name, (whole, without) in audit["without"].items()]
    shown_rows = [_figure(row, fingerprint if here else "") for row in audit["rows"][:MOST_SHOWN]]
    missing = "The catalogue's pictures are not on this machine: prepare it here to see them."
    return card(
        "Labels that look wrong",
        dmc.Text(said, size="sm", mb="md"),
        table(["", "Macro-F1", "Without the flagged"], body, "Macro-F1 without the flagged") if body else None,
        None if here else dmc.Text(missing, size="sm", c="dimmed", mb="sm"),
        html.Div(shown_rows, className="gallery"),
        note="Confident learning on out-of-fold probabilities, the worst first. It suggests; people decide.",
    )


def _fingerprint(runs: Runs, found: Evidence) -> str:
    """The catalogue of the study's cells."""
    ids = [run.run_id for seeds in found.runs.values() for run in seeds.values()]
    marks = [(runs.row(run_id) or {}).get("tags.fingerprint") for run_id in ids]
    return str(next(filter(None, marks), ""))


def _figure(row: Mapping[str, Any], fingerprint: str) -> Component:
    product = str(row["product_id"])
    picture = html.Img(src=picture_address(fingerprint, product), alt=f"Product {product}, labelled {row['given']}")
    lines = [
        html.Div(["label ", html.B(row["given"], className="wrong")]),
        html.Div(["looks like ", html.B(row["suggested"])]),
        html.Div(str(row.get("title", ""))),
        html.Div(product, className="figures"),
    ]
    return html.Figure([picture if fingerprint else None, html.Figcaption(lines)])
