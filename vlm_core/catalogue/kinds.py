"""Kinds of files by the endings of their names: tables that are read, and others with a way to make them readable."""

from __future__ import annotations

import bz2
import gzip
import posixpath
from collections.abc import Callable
from typing import IO, BinaryIO, Final, cast

TEXT: Final = (".csv", ".tsv", ".tab", ".txt")
JSON: Final = (".jsonl", ".ndjson", ".json")
WORKBOOK: Final = (".xlsx", ".xlsm")
OLD_WORKBOOK: Final = ".xls"  # as programs also call text and workbooks of today
PARQUET: Final = (".parquet", ".pq")
ARROW: Final = (".arrow", ".feather")
PACKED: Final[dict[str, Callable[[BinaryIO], IO[bytes]]]] = {
    ".gz": lambda file: cast(IO[bytes], gzip.GzipFile(fileobj=file)),
    ".bz2": bz2.BZ2File,
}
TABLES: Final = (*TEXT, *JSON, *WORKBOOK, *PARQUET)
UNSURE: Final = (".txt", ".json")  # as those of a README or of settings
_FOREIGN: Final = {
    ".xlsb .ods .numbers": "a workbook in a format that is not read: save it as CSV UTF-8",
    ".tar .tgz .7z .rar .xz .zst": "an archive that is not read in place: unpack it, and give the folder",
    ".pkl .pickle .npz .npy .h5 .db .sqlite .sql .mdb .accdb": "not read: save the table as CSV or Parquet",
    ".xml .yaml .yml .html .htm .orc .avro .dta .sav .rds": "not read: save the table as CSV or Parquet",
}


def is_table(path: str) -> bool:
    """Return whether a path has the ending of a table."""
    return endings_of(path)[0] in (*TABLES, *ARROW, OLD_WORKBOOK)


def problem_of(path: str) -> str:
    """Return what is wrong with a file of a kind that is not read, and the way out; "" for any other."""
    stem, ending = posixpath.splitext(posixpath.basename(path).lower())
    if ending in (".xz", ".zst") and is_table(stem):
        return "packed in a way that is not read: unpack it first"
    kinds = (ending, endings_of(path)[0])  # of shop.tar.gz the latter is .tar
    return next((problem for endings, problem in _FOREIGN.items() if {*kinds} & {*endings.split()}), "")


def endings_of(path: str) -> tuple[str, str]:
    """Return the ending of a path in lower case, and before that the ending of what packed it, if anything did."""
    stem, ending = posixpath.splitext(posixpath.basename(path).lower())
    return (posixpath.splitext(stem)[1], ending) if ending in PACKED else (ending, "")
