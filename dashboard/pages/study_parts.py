"""The cards of the Study page: each cell's run, and each section of the study's report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import dash_mantine_components as dmc
from dash import dcc, html
from dash.development.base_component import Component

from dashboard.components import (
    aria,
    card,
    cell_link,
    graph,
    leak_badge,
    notice,
    number_tile,
    status_badge,
    table,
    wide,
)
from dashboard.figures.study import WIDE_PLOTS, height_of, make_figure, width_of
from dashboard.picture_server import has_pictures, picture_address
from dashboard.runs import Runs
from dashboard.studies import CellRun, StoredStudy, runs_address

if TYPE_CHECKING:
    from vlm_core.study.report_contents import Section, Table, TableCell
    from vlm_core.study.results import Results, Suspect

FIRST_KEYS: Final = ("overview", "scores", "pairs")  # of the sections that come before the rest
TABLE_PIXELS: Final = 420  # a longer table scrolls
_MARKS: Final = {"FINISHED": "✓", "RUNNING": "…"}


def progress_card(study: StoredStudy) -> Component:
    """Return how far the study is, and the run of each cell, if it has any."""
    badge = status_badge(study.status, lost=study.lost)
    silent = dmc.Text(f"{study.live[:1].upper()}{study.live[1:]}.", size="sm") if study.lost else None
    if not study.cells and not study.runs:
        text = dmc.Text("This study trains no runs of its own; all of its results stand below.", size="sm")
        return card("Progress", dmc.Group([badge, text, silent], gap="sm"), mb="lg")
    done, running = study.count("FINISHED"), study.count("RUNNING")
    failed, lost = study.count("FAILED", "KILLED"), study.count("LOST")
    total = max(study.cells, done + running + failed + lost, 1)
    bar = dmc.Progress(value=100 * done / total, size="lg", **aria(label=f"{done} of {total} runs are done"))
    counts = f"{done} of {total} runs done, {running} running, {failed} failed"
    counts += f", {lost} without a sign of life" if lost else ""
    head = dmc.Group([badge, dmc.Text(counts, size="sm", className="numbers"), silent], gap="sm")
    body = [
        [configuration, *(_cell(seeds.get(seed)) for seed in study.seeds)]
        for configuration, seeds in study.runs.items()
    ]
    title = "Runs by configuration and seed"
    cells = table(["Configuration", *(f"seed {seed}" for seed in study.seeds)], body, title, most_pixels=360)
    return card(title, head, bar, cells, note="Test macro-F1, with a link to the run.", mb="lg")


def _cell(run: CellRun | None) -> Any:
    if run is None:
        return "–"
    mark = "no sign of life" if run.lost else _MARKS.get(run.status, "failed")
    text = mark if run.score is None else f"{run.score:.3f}"
    return cell_link(text, f"/run?run={run.run_id}", run.live or run.status.lower())


def first_cards(runs: Runs, study: StoredStudy, results: Results) -> Component:
    """Return the cards of the sections that the report begins with."""
    return _section_cards(runs, study, results, first=True)


def further_cards(runs: Runs, study: StoredStudy, results: Results) -> Component:
    """Return the cards of the other sections."""
    return _section_cards(runs, study, results, first=False)


def _section_cards(runs: Runs, study: StoredStudy, results: Results, *, first: bool) -> Component:
    from vlm_core.study.sections import make_sections

    sections = [section for section in make_sections(results) if (section.key in FIRST_KEYS) == first]
    return dmc.Stack([_section_card(runs, study, section) for section in sections], gap="lg")


def _section_card(runs: Runs, study: StoredStudy, section: Section) -> Component:
    """Return a section of the report, in the report's order."""
    parts: list[Any] = [html.Div("\n".join(section.paragraphs), className="lines section-text")]
    if section.tiles:
        tiles = [number_tile(tile.label, tile.value, tile.note) for tile in section.tiles]
        parts.append(dmc.SimpleGrid(tiles, cols={"base": 2, "sm": 3, "lg": 5}, spacing="md"))
    if section.failures:
        failures = html.Div("\n".join(section.failures), className="lines")
        parts.append(notice("Some runs failed and are left out", failures, "warning"))
    if section.conclusions:
        conclusions = "\n".join(f"• {conclusion}" for conclusion in section.conclusions)
        parts.append(html.Div(conclusions, className="conclusions scrolled", tabIndex=0))
    parts += _graphs(section)
    parts += [_table(section.title, each) for each in section.tables]
    if section.key == "faithfulness":
        parts.append(html.P(dcc.Link("See the maps over images", href="/attention", className="cell-link")))
    if section.suspects:
        parts += _gallery(runs, study, section.suspects)
    return card(section.title, *parts, actions=[leak_badge()] if section.key == "leak" else [])


def _graphs(section: Section) -> list[Component]:
    graphs = []
    for number, plot in enumerate(section.plots):
        label = f"{section.title}: {plot.caption}"
        figure = graph(f"study-{section.key}-{number}", make_figure(plot), label, height_of(plot))
        graphs.append(wide(figure, label, width_of(plot)) if isinstance(plot, WIDE_PLOTS) else figure)
    return graphs


def _table(section: str, contents: Table) -> Component:
    body = [[_linked(cell) for cell in row] for row in contents.rows]
    title = dmc.Text(contents.title, size="sm", fw=600, mb=4)
    label = f"{section}: {contents.title}"
    return html.Div([title, table(contents.columns, body, label, most_pixels=TABLE_PIXELS)])


def _linked(cell: TableCell) -> Any:
    if isinstance(cell, str):
        return cell
    return cell_link(cell.text, runs_address(cell.run_ids), "the runs behind this row") if cell.run_ids else cell.text


def _gallery(runs: Runs, study: StoredStudy, suspects: Sequence[Suspect]) -> list[Component]:
    """Return the suspects as pictures, or as text where the catalogue is not on this machine."""
    fingerprint = _fingerprint(runs, study)
    is_here = has_pictures(runs.root, fingerprint)
    missing = "The catalogue's images are not on this machine: prepare it here to see them."
    figures = html.Div([_suspect(suspect, fingerprint if is_here else "") for suspect in suspects], className="gallery")
    return [figures] if is_here else [dmc.Text(missing, size="sm", c="dimmed"), figures]


def _fingerprint(runs: Runs, study: StoredStudy) -> str:
    """Return the fingerprint of the catalogue of the study's cells."""
    ids = (run.run_id for seeds in study.runs.values() for run in seeds.values())
    fingerprints = ((runs.row(run_id) or {}).get("tags.fingerprint") for run_id in ids)
    return str(next(filter(None, fingerprints), ""))


def _suspect(suspect: Suspect, fingerprint: str) -> Component:
    product = suspect.product_id
    picture = html.Img(src=picture_address(fingerprint, product), alt=f"Product {product}, labelled {suspect.label}")
    lines = (
        f"label {suspect.label}",
        f"looks like {suspect.suggested}",
        suspect.title,
        f"{suspect.score:.1%} for its label · {product}",
    )
    return html.Figure([picture if fingerprint else None, html.Figcaption("\n".join(lines), className="lines")])
