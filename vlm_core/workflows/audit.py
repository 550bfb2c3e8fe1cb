"""What looks wrong in a catalogue: labels, duplicates, placeholders and pictures, as one table and one page."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vlm_core.catalogue.corrections import COLUMNS, apply_corrections, read_corrections
from vlm_core.catalogue.labels import normalised
from vlm_core.catalogue.parts import PART
from vlm_core.catalogue.picture_files import tidy
from vlm_core.catalogue.reading import Refusal, id_index
from vlm_core.catalogue.sources import open_source
from vlm_core.config import AuditConfig
from vlm_core.config.lists import split_list
from vlm_core.data import columns_of, corrections_file, load_catalogue
from vlm_core.errors import UserError, require_extra
from vlm_core.evaluation.spreadsheets import spreadsheet_text
from vlm_core.files.addresses import is_address, local_path, shown_address
from vlm_core.files.atomic import write_atomically
from vlm_core.inference import choose_device, set_threads
from vlm_core.workflows.run_corrections import fetch_corrections

if TYPE_CHECKING:
    from vlm_core.catalogue.catalogue import Catalogue

logger = logging.getLogger(__name__)
TEMPLATE: Final = Path(__file__).with_name("audit.html")
TABLE: Final = "audit.csv"
FAMILY: Final = "clip"  # of the frozen features that labels are audited on
SMALLEST_SIDE: Final = 32  # pixels: a shorter side is tiny
FAINTEST: Final = 2.0  # standard deviation of all pixels, of 255 levels: below, a picture is blank
ROWS_PER_BATCH: Final = 1024
MOST_SHOWN: Final = 100  # findings of a kind on the page; the table has all

KINDS: Final = {
    "label": "The picture looks like another category. The first ones are the surest.",
    "spelling": "The category is written in another way than most, or says that there is none.",
    "conflict": "Byte for byte the same picture stands in another category, too.",
    "placeholder": "One picture stands under many products, as if it were none.",
    "duplicate": "The picture is nearly that of the other products of its group.",
    "tiny picture": f"One side of the picture has fewer than {SMALLEST_SIDE} pixels.",
    "blank picture": "The picture has hardly any content.",
    "unreadable picture": "The picture cannot be decoded, so the product is not used.",
    "refused row": "The row cannot be used.",
}


class Finding(NamedTuple):
    """One thing that looks wrong; of a product, or of a row that gave none."""

    kind: str
    id: str = ""
    column: str = ""
    old: str = ""
    suggested: str = ""
    score: float | None = None  # probability of the old category: the lower, the surer
    group: str = ""  # findings of one kind and group are about one picture
    line: int | None = None  # of the table, where there is no product
    details: str = ""
    row: int | None = None  # of the catalogue


@dataclass(frozen=True)
class Audit:
    """All findings of a catalogue."""

    catalogue: Catalogue
    label: str
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]  # what was not audited, and how far the audit can be trusted

    def counts(self) -> dict[str, int]:
        """Return the number of findings of each kind."""
        return {kind: sum(finding.kind == kind for finding in self.findings) for kind in KINDS}

    def table(self) -> pd.DataFrame:
        """Return one row per finding; with its column `new` filled in it is a file of corrections."""
        rows = [
            {
                "finding": finding.kind,
                **dict.fromkeys(COLUMNS, ""),
                **{name: value for name, value in finding._asdict().items() if name not in ("kind", "row")},
            }
            for finding in self.findings
        ]
        order = ["finding", *COLUMNS[:4], "suggested", "score", "group", "line", "details", *COLUMNS[4:]]
        return pd.DataFrame(rows, columns=order).astype({"line": "Int64"})

    def write(self, folder: Path) -> None:
        """Write `audit.csv` and `audit.html` into the folder, each atomically."""
        folder.mkdir(parents=True, exist_ok=True)
        text = self.table().map(spreadsheet_text).to_csv(index=False)
        write_atomically(folder / TABLE, lambda file: file.write(text.encode("utf-8-sig", "backslashreplace")))
        page = self._page()
        write_atomically(folder / "audit.html", lambda file: file.write(page.encode("utf-8", "backslashreplace")))

    def _page(self) -> str:
        from jinja2 import Environment, StrictUndefined

        environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        of_kind = {kind: [finding for finding in self.findings if finding.kind == kind] for kind in KINDS}
        return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
            catalogue=self.catalogue.name,
            products=len(self.catalogue.products),
            label=self.label,
            kinds=[(kind, KINDS[kind], len(found), found[:MOST_SHOWN]) for kind, found in of_kind.items()],
            notes=self.notes,
            picture=self._picture,
            title=lambda row: self.catalogue.products["title"].iloc[row],
        )

    def _picture(self, row: int) -> str:
        """Return the picture of a catalogue's row as a data URI."""
        from PIL import Image

        file = io.BytesIO()
        (picture,) = self.catalogue.pictures.take(np.array([row]))
        Image.fromarray(picture).save(file, "JPEG", quality=85)
        return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def run_audit(config: AuditConfig, root: Path) -> Audit:
    """Audit the catalogue of the settings and write what was found into their output folder. Raises UserError."""
    require_extra("study")
    _check_output(config)
    fetch_corrections(config, root)
    set_threads(config.threads)
    catalogue = load_catalogue(config, root)
    suspects, notes = _label_findings(config, catalogue)
    findings = [*suspects, *_spellings(config, catalogue), *_picture_findings(config, catalogue), *_refusals(catalogue)]
    order = list(KINDS)
    findings.sort(key=lambda finding: order.index(finding.kind))  # stable: the surest stay first
    audit = Audit(catalogue, config.label, tuple(findings), tuple(notes))
    audit.write(Path(config.output))
    if config.corrected:
        _write_corrected(config, root, catalogue.left_out)
    return audit


def _check_output(config: AuditConfig) -> None:
    """Raise UserError where a table that somebody has decided on, or the user's own, would be written over."""
    table = local_path("output", config.output) / TABLE
    if table.exists() and any(correction.new for correction in read_corrections(table)[0]):
        raise UserError(f"{table} holds corrections of yours (its column new): name another folder with output=.")
    corrected = local_path("corrected", config.corrected)
    if config.corrected and corrected.suffix.lower() != ".csv":
        raise UserError(f"corrected={corrected} must end in .csv.")
    inputs = [Path(name).expanduser().resolve() for name in (config.data, config.corrections)]
    is_inside = corrected.is_file() and inputs[0] in corrected.resolve().parents  # of the folder of the data
    if config.corrected and (is_inside or corrected.resolve() in inputs):
        raise UserError(f"corrected={corrected} would write over a file that is read: give another name.")


def _write_corrected(config: AuditConfig, root: Path, left_out: Path) -> None:
    """Write every row of the table that can be read, in its order and with its corrections, as CSV, and say so.

    Rows without a usable picture are among them; `left_out` is the file that lists those that cannot be read.
    """
    path, place = Path(config.corrected).expanduser(), corrections_file(config, root)
    rows, ids, unread = _whole_table(config, root)
    corrections = read_corrections(place)[0] if place else []
    fixed = [name for name in (config.id_column, config.picture_column) if name]
    table = apply_corrections(rows, ids, corrections, fixed, "").products
    if config.normalise_labels:
        table[config.label] = normalised(table[config.label])
    changed = int((table.to_numpy() != rows.to_numpy()).any(axis=1).sum())
    text = table.drop(columns=PART, errors="ignore").map(spreadsheet_text).to_csv(index=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(text.encode("utf-8-sig", "backslashreplace")))
    also = f"; {unread:,} more could not be read, as {left_out} lists" if unread else ""
    logger.info(f"Wrote {len(table):,} rows to {path} ({changed:,} corrected){also}.")
    if is_address(config.data):
        logger.info(f"Relative paths of pictures in {path} start from {shown_address(config.data)}: copy it there.")
        return
    data = Path(config.data).expanduser()
    if path.resolve().parent != (data if data.is_dir() else data.parent).resolve():
        logger.info(f"Relative paths of pictures in {path} start from the folder of {config.data}: keep it there.")


def _whole_table(config: AuditConfig, root: Path) -> tuple[pd.DataFrame, list[str], int]:
    """Return all rows of the table that can be read, the id of each one's product, and how many rows cannot."""
    rows, ids, unread = list[list[str]](), list[str](), 0
    with open_source(config.data, root).open_table(columns_of(config)) as table:
        names = list(table.table.names)
        place = id_index(names, table.columns)
        for record in table.table.records(table.columns):
            if isinstance(record, Refusal):
                unread += 1
                continue
            cells = [cell.strip() for cell in record.cells]
            if any(cells):
                rows.append(cells)
                ids.append(cells[place] if names[place] == table.columns.id else tidy(cells[place]))
    return pd.DataFrame(rows, columns=names), ids, unread


def _label_findings(config: AuditConfig, catalogue: Catalogue) -> tuple[list[Finding], list[str]]:
    """Return the suspicious labels, and notes on what was audited. Variants of a category count as one."""
    from vlm_core.catalogue.duplicates import near_duplicate_groups
    from vlm_core.catalogue.splitting import choose_categories
    from vlm_core.evaluation.label_audit import audit_labels

    groups = near_duplicate_groups(catalogue.products, catalogue.pictures)
    column = normalised(catalogue.products[config.label])
    notes = list[str]()
    try:
        names, removed = choose_categories(column, groups, split_list(config.categories), config.min_products)
        labels = column.map({name: number for number, name in enumerate(names)}).fillna(-1).to_numpy().astype(np.int64)
        rows = np.flatnonzero(labels >= 0)
        if removed:
            notes.append(f"The labels of {len(removed):,} categories, too small or not chosen, were not audited.")
        if len(rows) > config.audited:
            rows = np.sort(np.random.default_rng(config.seed).permutation(rows)[: config.audited])
            notes.append(f"A random sample of {len(rows):,} labels was audited (audited=).")
        features = _features(config, catalogue, names, rows)
        audit = audit_labels(features, labels[rows], groups[rows], names, seed=config.seed)
    except UserError as error:
        return [], [*notes, f"Labels were not audited. {error}"]
    notes.append(
        f"{audit.audited:,} labels were audited by models with a macro-F1 of {audit.macro_f1:.2f} on products that "
        "they were not fitted on: the lower that is, the less a suspicion means."
    )
    ids = catalogue.products["product_id"]
    cells = catalogue.products[config.label]
    found = zip(rows[list(audit.rows)].tolist(), audit.given, audit.suggested, audit.scores, strict=True)
    return [
        Finding("label", ids.iloc[row], config.label, cells.iloc[row], suggested, round(score, 4), row=row)
        for row, given, suggested, score in found
        if suggested != given
    ], notes


def _features(
    config: AuditConfig, catalogue: Catalogue, categories: Sequence[str], rows: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return fused features (n, D) of the encoder before any fine-tuning."""
    from vlm_core.models.categoriser import Description, VisionLanguageCategoriser
    from vlm_core.models.loading import load_weights
    from vlm_core.models.simple_baselines import frozen_features

    weights = load_weights(
        FAMILY,
        checkpoint=config.checkpoint,
        weights=config.weights,
        image_size=config.image_size,
        texts=(),
        seed=config.seed,
    )
    description = Description(FAMILY, tuple(categories), catalogue.pictures.canvas, "linear", "fused", {})
    model = VisionLanguageCategoriser(weights.hf, weights.tokenizer, description).to(choose_device(config.device))
    return frozen_features(model, catalogue.pictures, rows)


def _spellings(config: AuditConfig, catalogue: Catalogue) -> Iterator[Finding]:
    from vlm_core.catalogue.corrections import NOTHING
    from vlm_core.catalogue.labels import label_variants, missing_texts

    column = catalogue.products[config.label]
    suggested = {name: names[0] for names in label_variants(column) for name in names[1:]}
    suggested |= dict.fromkeys(missing_texts(column), NOTHING)
    for row in np.flatnonzero(column.isin(suggested).to_numpy()).tolist():
        name = column.iloc[row]
        yield Finding(
            "spelling", catalogue.products["product_id"].iloc[row], config.label, name, suggested[name], row=row
        )


def _picture_findings(config: AuditConfig, catalogue: Catalogue) -> Iterator[Finding]:
    from vlm_core.catalogue.duplicates import find_placeholders, label_conflicts, near_duplicate_groups

    products = catalogue.products
    groups = near_duplicate_groups(products, catalogue.pictures)
    place = {identity: row for row, identity in enumerate(products["product_id"])}

    def finding(kind: str, row: int, group: int, details: str) -> Finding:
        identity, label = products["product_id"].iloc[row], products[config.label].iloc[row]
        return Finding(kind, identity, config.label, label, group=str(group), row=row, details=details)

    for conflict in label_conflicts(products, groups, config.label):
        for identity in conflict.product_ids:
            yield finding("conflict", place[identity], conflict.group, ", ".join(conflict.categories))
    placeholders = find_placeholders(products, config.label)
    for placeholder in placeholders:
        rows = [place[identity] for identity in placeholder.product_ids]
        for row in rows:
            yield finding("placeholder", row, int(groups[row]), f"one picture of {len(rows):,} products")
    of_placeholders = {each.digest for each in placeholders}
    sizes = pd.Series(groups).groupby(groups).transform("size").to_numpy()
    is_placeholder = products["picture_digest"].isin(of_placeholders).to_numpy()
    for row in sorted(np.flatnonzero((sizes > 1) & ~is_placeholder).tolist(), key=lambda row: (groups[row], row)):
        yield finding("duplicate", row, int(groups[row]), f"{sizes[row]:,} products with nearly this picture")
    height_and_width = catalogue.picture_sizes()
    for row in np.flatnonzero(height_and_width.min(axis=1) < SMALLEST_SIDE).tolist():
        height, width = height_and_width[row]
        yield finding("tiny picture", row, int(groups[row]), f"{width} x {height} pixels")
    for row in _blank(catalogue):
        yield finding("blank picture", row, int(groups[row]), "")


def _blank(catalogue: Catalogue) -> Iterator[int]:
    for start in range(0, len(catalogue.products), ROWS_PER_BATCH):
        rows = np.arange(start, min(start + ROWS_PER_BATCH, len(catalogue.products)))
        deviations = catalogue.pictures.take(rows).reshape(len(rows), -1).std(axis=1)
        yield from rows[deviations < FAINTEST].tolist()


def _refusals(catalogue: Catalogue) -> Iterator[Finding]:
    reading = catalogue.reading
    for refusal in reading.pictures_unreadable:
        yield Finding("unreadable picture", line=refusal.line, details=_reason(refusal))
    for refusal in reading.refused:
        yield Finding("refused row", line=refusal.line, details=_reason(refusal))


def _reason(refusal: Refusal) -> str:
    return f"sheet {refusal.sheet}: {refusal.reason}" if refusal.sheet else refusal.reason
