"""A study's report: one HTML file that opens offline, the same in Markdown, and its results as JSON."""

from __future__ import annotations

import base64
import csv
import io
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from vlm_core.data import Data
from vlm_core.study.formatting import Section
from vlm_core.study.measurement_sections import LABELS
from vlm_core.study.measurements import FOLDER
from vlm_core.study.results import FILE, Results, Suspect
from vlm_core.study.sections import make_sections

if TYPE_CHECKING:
    from vlm_core.tracking.writer import RunWriter

TEMPLATE: Final = Path(__file__).with_name("report.html")
MOST_IN_GALLERY: Final = 36


def write_report(run: RunWriter, results: Results, data: Data) -> None:
    """Nothing; `report.html`, `report.md`, `results.json` and `labels.csv` are in `study` of the run's artifacts."""
    sections = make_sections(results)
    texts = {
        "report.html": render_html(results, sections, data),
        "report.md": render_markdown(results, sections),
        FILE: results.to_json(),
    }
    if results.labels:
        texts["labels.csv"] = _as_csv(results.labels.suspects)
    _keep(run, texts)


def write_results(run: RunWriter, results: Results) -> None:
    """Nothing; `results.json` is in `study` of the run's artifacts, for those who watch the study run."""
    _keep(run, {FILE: results.to_json()})


def _keep(run: RunWriter, texts: Mapping[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, text in texts.items():
            (Path(folder) / name).write_text(text, encoding="utf-8", errors="surrogatepass")
        run.artifact(Path(folder), FOLDER)


def render_html(results: Results, sections: Sequence[Section], data: Data) -> str:
    """The report as one file, with its figures and the pictures of the label audit in it."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        title=_title(results),
        run_id=results.run_id,
        sections=sections,
        gallery_of=LABELS,
        gallery=_gallery(results, data),
    )


def render_markdown(results: Results, sections: Sequence[Section]) -> str:
    """The report's texts and tables."""
    from vlm_core.tracking.card import markdown_table

    parts = [f"# {_title(results)}", f"Run {results.run_id}"]
    for section in sections:
        parts += [f"## {section.title}", *section.says]
        for table in section.tables:
            parts += [f"### {table.title}", markdown_table(table.columns, table.rows)]
    return "\n\n".join(parts) + "\n"


def _title(results: Results) -> str:
    return f"Study {results.study}: {len(results.categories)} categories of {results.catalogue}"


def _gallery(results: Results, data: Data) -> list[dict[str, str]]:
    """The pictures whose label looks most wrong."""
    if results.labels is None:
        return []
    ids = data.catalogue.products["product_id"].to_numpy(str)
    rows = {product: row for row, product in enumerate(ids)}
    return [
        {
            "source": _data_uri(data, rows[suspect.product_id]),
            "says": f"{suspect.product_id}: {suspect.given}, perhaps {suspect.suggested}",
        }
        for suspect in results.labels.suspects[:MOST_IN_GALLERY]
    ]


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
    writer.writerows(asdict(suspect) for suspect in suspects)
    return file.getvalue()
