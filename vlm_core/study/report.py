"""A study's report: one HTML file that opens offline, the same in Markdown, and its results as JSON."""

from __future__ import annotations

import base64
import csv
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vlm_core.data import Data
from vlm_core.storing import write_whole
from vlm_core.study.measuring import FOLDER
from vlm_core.study.results import FILE, Results
from vlm_core.study.sections import LABELS, Section, make_sections

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
        texts["labels.csv"] = _as_csv(results.labels.rows)
    with tempfile.TemporaryDirectory() as folder:
        for name, text in texts.items():
            content = text.encode("utf-8", "surrogatepass")
            write_whole(Path(folder) / name, lambda file, content=content: file.write(content))
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
    shown = [entry for entry in results.labels.rows if entry["product_id"] in rows][:MOST_IN_GALLERY]
    return [
        {
            "source": _data_uri(data, rows[entry["product_id"]]),
            "says": f"{entry['product_id']}: {entry['given']}, perhaps {entry['suggested']}",
        }
        for entry in shown
    ]


def _data_uri(data: Data, row: int) -> str:
    from PIL import Image

    file = io.BytesIO()
    (picture,) = data.catalogue.pictures.take([row])
    Image.fromarray(picture).save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _as_csv(rows: Sequence[dict[str, str]]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, ["product_id", "given", "suggested", "score", "title"])
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()
