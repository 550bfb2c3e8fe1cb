"""The same products as shops, colleagues and hubs hand them over: in every container, dialect and form of path."""

from __future__ import annotations

import csv
import gzip
import io
import json
import unicodedata
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

Row = dict[str, str]
Files = dict[str, bytes]


@dataclass(frozen=True)
class Dialect:
    """How a text table is written."""

    encoding: str = "utf-8"
    delimiter: str = ","
    newline: str = "\n"
    quoting: int = csv.QUOTE_MINIMAL
    above: str = ""  # lines above the column names
    empty: int = 0  # columns at the end


DIALECTS: Final = (
    *(Dialect(delimiter=delimiter) for delimiter in ";\t|"),
    *(Dialect(encoding=encoding) for encoding in ("utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252", "latin-1")),
    *(Dialect(newline=newline) for newline in ("\r\n", "\r")),
    Dialect(quoting=csv.QUOTE_ALL),
    Dialect("utf-8-sig", ";", "\r\n", above="sep=;\r\n"),
    Dialect(above="# exported by hand\n\n", empty=2),
)


def _picture(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 9, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


PRODUCTS: Final[list[Row]] = [
    {"id": str(1001 + n), "masterCategory": "Möbel" if n % 2 else "Schuhe", "title": f'Modell {n}: rot, groß; "neu"'}
    for n in range(28)
]
PICTURES: Final = {row["id"]: _picture(int(row["id"])) for row in PRODUCTS}
# What the table says of a picture, and where it lies
FORMS: Final[dict[str, tuple[Callable[[str], str], Callable[[str], str]]]] = {
    "path": (lambda name: f"pics/{name}.png", lambda name: f"pics/{name}.png"),
    "backslashes": (lambda name: f"pics\\{name}.png", lambda name: f"pics/{name}.png"),
    "dot": (lambda name: f"./pics/{name}.png", lambda name: f"pics/{name}.png"),
    "drive": (lambda name: f"D:\\shop\\pics\\{name}.png", lambda name: f"pics/{name}.png"),
    "elsewhere": (lambda name: f"/srv/shop/pics/{name}.png", lambda name: f"pics/{name}.png"),
    "case": (lambda name: f"Pics/{name}.PNG", lambda name: f"pics/{name}.png"),
    "other ending": (lambda name: f"pics/{name}.jpg", lambda name: f"pics/{name}.PNG"),
    "no ending": (lambda name: f"pics/{name}", lambda name: f"pics/{name}.png"),
    "no folder": (lambda name: f"{name}.png", lambda name: f"images/{name}.png"),
    "name alone": (lambda name: name, lambda name: f"images/more/{name}.png"),
    "fraction": (lambda name: f"{name}.0", lambda name: f"images/{name}.png"),
    "zeros": (lambda name: name, lambda name: f"images/0000{name}.png"),
    "query": (lambda name: f"pics/{name}.png?v=17", lambda name: f"pics/{name}.png"),
    "several": (lambda name: f"pics/{name}.png|pics/again.png", lambda name: f"pics/{name}.png"),
    "decomposed": (
        lambda name: unicodedata.normalize("NFC", f"Möbel/{name}.png"),
        lambda name: unicodedata.normalize("NFD", f"Möbel/{name}.png"),
    ),
}


def table_text(rows: Sequence[Row], dialect: Dialect) -> bytes:
    """Return a text table."""
    text = io.StringIO(newline="")
    empty = [""] * dialect.empty
    writer = csv.writer(
        text, delimiter=dialect.delimiter, lineterminator=dialect.newline, quoting=cast("Any", dialect.quoting)
    )
    writer.writerow([*rows[0], *empty])
    writer.writerows([*(row.get(name, "") for name in rows[0]), *empty] for row in rows)
    return (dialect.above + text.getvalue()).encode(dialect.encoding)


def put_folder(place: Path, files: Mapping[str, bytes]) -> Path:
    """Write files into a folder."""
    for name, data in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    return place


def put_zip(place: Path, files: Mapping[str, bytes]) -> Path:
    """Write files into a zip."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return place


def _file(name: str, pack: Callable[[bytes], bytes]) -> Callable[..., Path]:
    def put(place: Path, rows: Sequence[Row], pictures: Files, dialect: Dialect) -> Path:
        return put_folder(place, {name: pack(table_text(rows, dialect)), **pictures}) / name

    return put


def _folder(place: Path, rows: Sequence[Row], pictures: Files, dialect: Dialect) -> Path:
    return put_folder(place, {"styles.csv": table_text(rows, dialect), **pictures, ".DS_Store": b"x"})


def _zip(place: Path, rows: Sequence[Row], pictures: Files, dialect: Dialect) -> Path:
    return put_zip(
        place.with_suffix(".zip"), {"shop/styles.csv": table_text(rows, dialect), **_below("shop/", pictures)}
    )


def _windows_zip(place: Path, rows: Sequence[Row], pictures: Files, dialect: Dialect) -> Path:
    files = {"shop/products.csv": table_text(rows, dialect), **_below("shop/", pictures)}
    return put_zip(place.with_suffix(".zip"), {name.replace("/", "\\"): data for name, data in files.items()})


def _mac_zip(place: Path, rows: Sequence[Row], pictures: Files, dialect: Dialect) -> Path:
    leftovers = {f"__MACOSX/._{name}": b"\0\5\x16\7" for name in pictures}
    return put_zip(place.with_suffix(".zip"), {"products.csv": table_text(rows, dialect), **pictures, **leftovers})


def _below(top: str, files: Files) -> Files:
    return {top + name: data for name, data in files.items()}


def _json_lines(place: Path, rows: Sequence[Row], pictures: Files, dialect: Dialect) -> Path:
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    return put_folder(place, {"shop.jsonl": lines.encode(), **pictures}) / "shop.jsonl"


def _parquet(place: Path, rows: Sequence[Row], pictures: Files, dialect: Dialect) -> Path:
    put_folder(place, pictures)
    pq.write_table(pa.Table.from_pylist(list(rows)), place / "shop.parquet")
    return place / "shop.parquet"


def _workbook(place: Path, rows: Sequence[Row], pictures: Files, dialect: Dialect) -> Path:
    put_folder(place, pictures)
    book = openpyxl.Workbook()
    book.active.append(list(rows[0]))
    for row in rows:
        book.active.append([int(cell) if name == "id" and cell else cell for name, cell in row.items()])
    book.save(place / "shop.xlsx")
    return place / "shop.xlsx"


CONTAINERS: Final[dict[str, Callable[[Path, Sequence[Row], Files, Dialect], Path]]] = {
    "csv": _file("shop.csv", bytes),
    "txt": _file("shop.txt", bytes),
    "csv.gz": _file("shop.csv.gz", gzip.compress),
    "folder": _folder,
    "zip": _zip,
    "zip of Windows": _windows_zip,
    "zip of a Mac": _mac_zip,
    "json lines": _json_lines,
    "parquet": _parquet,
    "workbook": _workbook,
}


def _with_pictures(rows: Sequence[Row], pictures: Files) -> pa.Table:
    """Return a table that holds the pictures as Hugging Face stores them."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    values: dict[str, Any] = {name: [row[name] for row in rows] for name in rows[0]}
    image = pa.array([{"bytes": pictures[row["id"]], "path": f"{row['id']}.png"} for row in rows], kind)
    return pa.table({**values, "image": image})


def pictures_inside(place: Path, rows: Sequence[Row], pictures: Files = PICTURES) -> Path:
    """Write a Parquet file that holds the pictures."""
    place.mkdir(parents=True, exist_ok=True)
    pq.write_table(_with_pictures(rows, pictures), place / "train.parquet", row_group_size=5)
    return place / "train.parquet"


def in_halves(rows: Sequence[Row]) -> dict[str, Sequence[Row]]:
    """Return the rows for training and those for test."""
    border = len(rows) * 5 // 7
    return {"train": rows[:border], "test": rows[border:]}


def parquet_parts(place: Path, rows: Sequence[Row], pictures: Files = PICTURES) -> Path:
    """Write the Parquet files of two splits, as they lie in a data set's repository."""
    place.mkdir(parents=True, exist_ok=True)
    for split, part in in_halves(rows).items():
        pq.write_table(_with_pictures(part, pictures), place / f"{split}-00000-of-00001.parquet")
    return place


def saved_datasets(place: Path, rows: Sequence[Row], pictures: Files = PICTURES) -> Path:
    """Write what `datasets` saves of two splits."""
    name = "data-00000-of-00001.arrow"
    for split, part in in_halves(rows).items():
        state = json.dumps({"_data_files": [{"filename": name}]})
        folder = put_folder(place / split, {"state.json": state.encode()})
        table = _with_pictures(part, pictures)
        with pa.ipc.new_stream(folder / name, table.schema) as stream:
            stream.write_table(table)
    return place


def imagefolder(place: Path, rows: Sequence[Row], pictures: Files = PICTURES) -> Path:
    """Write Hugging Face's layout: pictures of two splits with a metadata file each."""
    for split, part in in_halves(rows).items():
        listed = [{"file_name": f"{row['id']}.png", **row} for row in part]
        shown = {f"{row['id']}.png": pictures[row["id"]] for row in part}
        put_folder(place / split, {"metadata.csv": table_text(listed, Dialect()), **shown})
    return place


def folders_by_category(place: Path, rows: Sequence[Row], pictures: Files = PICTURES) -> Path:
    """Write a folder of each category."""
    return put_folder(place, {f"{row['masterCategory']}/{row['id']}.png": pictures[row["id"]] for row in rows})


def folders_in_parts(place: Path, rows: Sequence[Row], pictures: Files = PICTURES) -> Path:
    """Write a folder of each category within one for training and one for test."""
    for split, part in in_halves(rows).items():
        folders_by_category(place / split, part, pictures)
    return place


def tables_of_parts(place: Path, rows: Sequence[Row], pictures: Files = PICTURES) -> Path:
    """Write a table for training, one for test, and the pictures of both."""
    told = {
        split: [{**row, "image": f"pics/{row['id']}.png"} for row in part] for split, part in in_halves(rows).items()
    }
    put_folder(place, {f"{split}.csv": table_text(part, Dialect()) for split, part in told.items()})
    return put_folder(place, {f"pics/{name}.png": data for name, data in pictures.items()})


def column_of_parts(place: Path, rows: Sequence[Row], pictures: Files = PICTURES) -> Path:
    """Write a table whose column says what is for training and what for test."""
    halves = in_halves(rows).items()
    told = [{**row, "photo": f"pics/{row['id']}.png", "split": split} for split, part in halves for row in part]
    return CONTAINERS["csv"](place, told, {f"pics/{name}.png": data for name, data in pictures.items()}, Dialect())
