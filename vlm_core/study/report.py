"""A study's report: one HTML file that opens offline, the same in Markdown, and its results as JSON."""

from __future__ import annotations

import base64
import csv
import io
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from vlm_core.data import Data
from vlm_core.evaluation.spreadsheets import spreadsheet_text
from vlm_core.study.measurements import FOLDER
from vlm_core.study.report_contents import Section, cell_texts
from vlm_core.study.results import FILE, Results, Suspect
from vlm_core.study.results_json import results_to_json
from vlm_core.study.sections import make_sections
from vlm_core.study.svg_plots import plot_svg

if TYPE_CHECKING:
    from vlm_core.tracking.writer import RunWriter

TEMPLATE: Final = Path(__file__).with_name("report.html")


def write_report(run: RunWriter, results: Results, data: Data) -> None:
    """Write `report.html`, `report.md`, `results.json` and `labels.csv` into `study` of the run's artifacts."""
    sections = make_sections(results)
    texts = {
        "report.html": render_html(results, sections, data),
        "report.md": render_markdown(results, sections),
        FILE: results_to_json(results),
    }
    if results.label_audit:
        texts["labels.csv"] = _as_csv(results.label_audit.suspects)
    _write(run, texts)


def write_interim_results(run: RunWriter, results: Results) -> None:
    """Write `results.json` alone, for those who watch the study run."""
    _write(run, {FILE: results_to_json(results)})


def _write(run: RunWriter, texts: Mapping[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, text in texts.items():
            (Path(folder) / name).write_text(text, encoding="utf-8", errors="surrogatepass")
        run.artifact(Path(folder), FOLDER)


def render_html(results: Results, sections: Sequence[Section], data: Data) -> str:
    """Return the report as one file, with its plots and the suspects' pictures embedded."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        title=_title(results),
        run_id=results.run_id,
        sections=sections,
        svg=plot_svg,
        texts=cell_texts,
        picture=_picture_source(results, data),
    )


def render_markdown(results: Results, sections: Sequence[Section]) -> str:
    """Return the report's texts and tables as Markdown."""
    from vlm_core.tracking.card import markdown_table, markdown_text

    def escape(texts: Iterable[str]) -> list[str]:
        return [markdown_text(text) for text in texts]

    parts = [f"# {markdown_text(_title(results))}", f"Run {results.run_id}"]
    for section in sections:
        parts += [f"## {markdown_text(section.title)}", *escape(section.paragraphs)]
        if section.tiles:
            tiles = [escape((tile.label, tile.value, tile.note)) for tile in section.tiles]
            parts.append(markdown_table(("", "", ""), tiles))
        if section.failures:
            parts.append("Some runs failed and are left out:")
        parts += [_list(escape(lines)) for lines in (section.failures, section.conclusions) if lines]
        for table in section.tables:
            rows = [escape(cell_texts(row)) for row in table.rows]
            parts += [f"### {markdown_text(table.title)}", markdown_table(escape(table.columns), rows)]
    return "\n\n".join(parts) + "\n"


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _title(results: Results) -> str:
    return f"Study {results.study}: {len(results.categories)} categories of {results.catalogue}"


def _picture_source(results: Results, data: Data) -> Callable[[Suspect], str]:
    """Return what gives the picture of a suspect as a data URI."""
    products = data.catalogue.products["product_id"] if results.label_audit else ()
    rows = {str(product): row for row, product in enumerate(products)}
    return lambda suspect: _data_uri(data, rows[suspect.product_id])


def _data_uri(data: Data, row: int) -> str:
    from PIL import Image

    file = io.BytesIO()
    (picture,) = data.catalogue.pictures.take(np.array([row]))
    Image.fromarray(picture).save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _as_csv(suspects: Sequence[Suspect]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, [field.name for field in fields(Suspect)])
    writer.writeheader()
    writer.writerows({name: spreadsheet_text(value) for name, value in asdict(suspect).items()} for suspect in suspects)
    return file.getvalue()
