"""Predict a whole catalogue into a folder of Parquet files, one for each group of its rows, here or on a Ray cluster.

The pictures lie in shards (`catalogue/shards.py`); what is not packed is packed first. A part is written whole or not
at all, so that one that is there is done: a prediction that was killed resumes with the others. Nothing of it depends
on who predicts a part, or how often that was tried.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from vlm_core.catalogue.containers.arrow_table import RowPicture
from vlm_core.catalogue.reading import Columns, number_of
from vlm_core.catalogue.shards import Packed, ShardRow, ShardRows, alone, pack_rows
from vlm_core.catalogue.sources import open_group
from vlm_core.config import EngineSettings
from vlm_core.errors import UserError
from vlm_core.files import atomic
from vlm_core.files.atomic import write_atomically
from vlm_core.models.checksums import digest_of
from vlm_core.progress import track
from vlm_core.workflows.predict import (
    MOST_NAMED,
    UnlabelledPicture,
    Written,
    check_table,
    find_pictures,
    pictures_in,
    predict_batches,
    text_columns,
    write_predictions,
)

logger = logging.getLogger(__name__)
PLAN: Final = "_predictions.json"  # Arrow and Spark pass over such names
ROWS_PER_SHARD: Final = 10_240
BYTES_PER_SHARD: Final = 256_000_000
TEXT: Final = "text"  # the column of shards that are made on the way
TRIES: Final = 8  # of a part whose process dies


@dataclass(frozen=True)
class Part:
    """A group of rows of a shard, of which so many rows of the catalogue come before, and the file of its rows."""

    name: str
    shard: str
    group: int
    before: int
    rows: int


@dataclass(frozen=True)
class Job:
    """What is predicted by which model, and where to; every process that works on it gets the same."""

    model: str  # its address
    fingerprint: str  # of its files
    shards: Path
    columns: Columns
    texts: Sequence[str]  # columns that the model reads
    folder: Path
    threads: int


class Predictor:
    """Predicts parts of a job, with one model in memory."""

    def __init__(self, job: Job) -> None:
        """Load the model. Raises UserError if it is not the one that the job began with."""
        from vlm_core.inference import record_columns, set_threads
        from vlm_core.models.saved import load_categoriser
        from vlm_core.tracking.registry import resolve

        place = resolve(job.model)
        if fingerprint(place) != job.fingerprint:
            raise UserError(f"model={job.model} is not the model that the prediction began with: give its run's id.")
        set_threads(job.threads)
        self._job, self._model = job, load_categoriser(place)
        self._columns = ["id", *record_columns(self._model)]

    def __call__(self, part: Part) -> dict[str, Any]:
        """Write the file of a part, and return what was written as `Written` has it."""
        job = self._job
        tries = job.folder / f".{part.name}.tries"
        with tries.open("ab") as file:
            file.write(b"x")
        if tries.stat().st_size > TRIES:
            raise UserError(
                f"Group {part.group} of {part.shard} was tried {TRIES} times, and its process was killed each time: is "
                "there too little memory? Give fewer workers."
            )
        with open_group(job.shards / part.shard, part.group, part.before, job.columns) as table:
            batches = predict_batches(self._model, pictures_in(table, job.texts))
            written = write_predictions(job.folder / part.name, self._columns, batches)
        tries.unlink(missing_ok=True)
        return asdict(written)


def fingerprint(folder: Path) -> str:
    """Return 16 hex digits of all files of a model."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    content = "\n".join(f"{path.relative_to(folder).as_posix()} {digest_of(path)}" for path in files)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def predict_into_folder(
    engine: EngineSettings,
    model: str,
    places: Sequence[str],
    columns: Columns,
    output: Path,
    *,
    root: Path,
    title_column: str = "",
    workers: int = 0,
    threads: int = 1,
    download: bool = False,
) -> Written:
    """Predict all images of the places into the folder `output`, which appears when it is whole.

    One row for each image, in the order of the images if files are read by their names. What a killed call predicted
    stays if model and images are the same. Models that read texts find the title in `title_column`. On a cluster
    `workers` actors (0: as many as it has cores for) of so many `threads` each predict. Raises UserError when there is
    nothing to predict, or `output` holds something else.
    """
    from vlm_core.models.saved import load_categoriser
    from vlm_core.tracking.registry import resolve

    output, place = output.absolute(), resolve(model)
    identity, texts = fingerprint(place), text_columns(load_categoriser(place), title_column)
    packed_here = output.with_name(f".{output.name}.pictures")
    shards, packed = _packed(places, columns, texts, packed_here, root, download)
    if shards == packed_here:
        columns, texts = Columns("id", "", "", "", ()), [TEXT][: len(texts)]
    parts = _parts(shards, packed, columns, texts)
    plan = {"model": identity, "pictures": _content(packed), "texts": texts, "parts": len(parts), "schema": 1}
    if output.exists():
        if _read_plan(output) != plan:
            atomic.remove(packed_here)
            raise UserError(f"output={output} is there already and holds something else: give a new folder.")
        logger.info(f"{output} is whole already.")
        with alone(output, output):  # whose lock a killed process may have left
            pass
    else:
        folder = output.with_name(f".{output.name}.predicting")
        with alone(folder, output):
            if _read_plan(folder) not in (None, plan):
                raise UserError(
                    f"{folder} holds an unfinished prediction by another model or of other images: remove it, or give "
                    "another output."
                )
            write_atomically(folder / PLAN, lambda file: file.write(json.dumps(plan, indent=1).encode()))
            _remove_unfinished(folder)
            left = [part for part in parts if not _is_done(folder, part)]
            if done := len(parts) - len(left):
                logger.info(f"{done:,} of {number_of(len(parts), 'part')} are done already.")
            job = Job(model, identity, shards, columns, texts, folder, threads)
            for _ in track(_predict(engine, job, left, workers), "predicting parts", len(left)):
                pass
            _remove_unfinished(folder)
            atomic.replace(folder, output)
    atomic.remove(packed_here)
    return _written(output, parts)


def _packed(
    places: Sequence[str], columns: Columns, texts: Sequence[str], here: Path, root: Path, download: bool
) -> tuple[Path, Packed]:
    """Return the folder of the images' shards: the only place if it is one, else `here`, after packing them."""
    if len(places) == 1 and (packed := Packed.read(Path(places[0]).expanduser())) and packed.whole:
        return Path(places[0]).expanduser().absolute(), packed
    pictures = find_pictures(places, columns.id, columns.picture, root, download=download, text_columns=texts)
    rows = ShardRows("pictures", ("id", TEXT), "image", map(_row, pictures))
    return here, pack_rows(rows, here, rows_per_shard=ROWS_PER_SHARD, bytes_per_shard=BYTES_PER_SHARD)


def _row(picture: UnlabelledPicture) -> ShardRow:
    if picture.read is None:
        return ShardRow((picture.id, picture.text), "", RowPicture(problem="the row names no image"))
    return ShardRow((picture.id, picture.text), picture.id, RowPicture("", source=picture.read, state=picture.state))


def _parts(shards: Path, packed: Packed, columns: Columns, texts: Sequence[str]) -> list[Part]:
    """Return the parts of a catalogue. Raises UserError when a column is missing, or a shard cannot be read."""
    from pyarrow import parquet

    from vlm_core.catalogue.containers.arrow_table import naming

    parts: list[Part] = []
    before = 0
    for shard in packed.shards:
        with naming(shards / shard.file):
            found = parquet.read_metadata(shards / shard.file)
        for group in range(found.num_row_groups):
            rows = found.row_group(group).num_rows
            parts.append(Part(f"part-{len(parts):06}.parquet", shard.file, group, before, rows))
            before += rows
    with open_group(shards / parts[0].shard, 0, 0, columns) as table:
        check_table(shards.name, table, texts)
    return parts


def _content(packed: Packed) -> str:
    return hashlib.sha256("".join(shard.checksum for shard in packed.shards).encode()).hexdigest()[:16]


def _read_plan(folder: Path) -> object:
    with suppress(OSError, ValueError):
        return json.loads((folder / PLAN).read_text())
    return None


def _remove_unfinished(folder: Path) -> None:
    """Remove what processes that died were writing, and how often parts were tried."""
    for path in folder.glob(".*"):
        atomic.remove(path)


def _is_done(folder: Path, part: Part) -> bool:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return bool(parquet.read_metadata(folder / part.name).num_rows == part.rows)
    except (OSError, pa.ArrowException):
        return False


def _predict(engine: EngineSettings, job: Job, parts: Sequence[Part], workers: int) -> Iterator[object]:
    """Yield something for each part that is done."""
    make = partial(Predictor, job)
    if not parts:
        return
    if engine.engine == "local":
        yield from map(make(), parts)
        return
    from vlm_core.engine.cluster import connected
    from vlm_core.engine.streaming import through_actors

    with connected(engine.address):
        yield from through_actors(make, parts, workers=workers, cpus=job.threads)


def _written(folder: Path, parts: Iterable[Part]) -> Written:
    """Return what all parts hold."""
    from pyarrow import parquet

    rows = failed = without_image = 0
    first: list[str] = []
    for part in parts:
        table = parquet.read_table(folder / part.name, columns=["id", "category", "error"])
        rows += table.num_rows
        wrong = table.filter(table["error"].is_valid())
        uncategorised = wrong.filter(wrong["category"].is_null())
        failed += uncategorised.num_rows
        without_image += wrong.num_rows - uncategorised.num_rows
        some = uncategorised.slice(0, MOST_NAMED - len(first)).to_pylist()
        first += [f"{row['id']}: {row['error']}" for row in some]
    return Written(rows, failed, tuple(first), without_image)
