"""Hostile tables: `python -m tests.campaigns.tables --tables 10000 --seed 0`.

Tables of 28 products, in every container and dialect of `tests.catalogue.handovers`, are mutated: bytes, cut, doubled,
delimiters, quotes and line ends among the text, entries of zips. Each is read to its end, and each picture looked for.
Allowed are products, refused rows, missing pictures and a UserError of one sentence; anything else is a failure, and so
are ten seconds for one table.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.campaigns.hostile import isolated, table
from tests.campaigns.hostile_server import Memory, Outcome
from tests.catalogue.handovers import CONTAINERS, FORMS, PICTURES, PRODUCTS, Dialect, imagefolder, pictures_inside
from vlm_core.catalogue.picture_files import PictureMissing
from vlm_core.catalogue.reading import Columns, Refusal, read_products
from vlm_core.catalogue.sources import open_place
from vlm_core.errors import UserError

MOST_SECONDS: Final = 10.0
PLACES: Final = 60  # undamaged tables, of which each try damages one
COLUMNS: Final = Columns("id", "photo", "title", "masterCategory", ())
ENCODINGS: Final = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252")
PIECES: Final = (
    *(b'"', b'""', b'"\n', b"\\", b"'", b",", b";", b"\t", b"|", b"\n", b"\r", b"\r\n", b"\0", b"\xff\xfe", b"\x80"),
    *(
        b"#",
        b"sep=;\n",
        b"../",
        b"//",
        b"http://a/",
        b"[",
        b"{",
        b"}",
        b"PK\3\4",
        b"\x1f\x8b",
        b"=1+1",
        b"\xef\xbb\xbf",
    ),
    *(b"9" * 5000, b"a/" * 2000, b"[" * 3000, b'"' * 1000, b"," * 3000, "Ö\u0308".encode()),
)


def write_table(place: Path, chance: random.Random) -> Path:
    """Write a table with its pictures, undamaged, and return its path."""
    kind = chance.choice([*CONTAINERS, "pictures inside", "imagefolder"])
    if kind == "pictures inside":
        return pictures_inside(place, PRODUCTS)
    if kind == "imagefolder":
        return imagefolder(place, PRODUCTS)
    cell, file = FORMS[chance.choice(list(FORMS))]
    rows = [{**row, "photo": cell(row["id"])} for row in PRODUCTS]
    dialect = Dialect(
        chance.choice(ENCODINGS), chance.choice(",;\t|"), chance.choice(("\n", "\r\n", "\r")), chance.choice((0, 1))
    )
    return CONTAINERS[kind](place, rows, {file(name): b"picture" for name in PICTURES}, dialect)


def mutate(data: bytes, chance: random.Random) -> bytes:
    """Return bytes that are changed in one to six places."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        start = chance.randrange(len(changed) + 1)
        stop = min(len(changed), start + int(chance.expovariate(1 / 20)))
        how = chance.randrange(6)
        if how == 0:
            changed[start:start] = chance.choice(PIECES)
        elif how == 1:
            del changed[start:stop]
        elif how == 2:
            changed[start:stop] = chance.randbytes(stop - start)
        elif how == 3:
            changed[start:start] = changed[start:stop] * chance.choice((1, 2, 500))
        elif how == 4 and chance.random() < 0.2:
            del changed[start:]
        else:
            old, new = chance.choice(PIECES[:16]), chance.choice(PIECES[:16])
            changed = changed.replace(old, new, chance.choice((1, -1)))
    return bytes(changed)


def files_of(place: Path) -> list[Path]:
    """Return the files that can be damaged: the table, or those of a folder."""
    return [place] if place.is_file() else [path for path in sorted(place.rglob("*")) if path.suffix == ".csv"]


def read_all(place: Path) -> str:
    """Read a table and look for its pictures; return what came of it."""
    columns = (
        COLUMNS if place.is_file() and place.name != "train.parquet" else Columns("id", "", "", "masterCategory", ())
    )
    try:
        source = open_place(place)
        with source.open_table(columns) as opened:
            products = 0
            for row in read_products(opened.table, opened.columns):
                if isinstance(row, Refusal):
                    continue
                if not {opened.columns.picture, "id"} & set(row.values):
                    return "no column"
                try:
                    if opened.columns.picture in row.values:
                        opened.pictures.read(opened.find(row).path)
                    products += 1
                except (PictureMissing, OSError):
                    continue
            opened.key([])
            return "all products" if products == len(PRODUCTS) else "some products" if products else "no product"
    except UserError as error:
        if "\n" in str(error).strip():
            raise AssertionError(f"more than one line: {error}") from None
        return "one sentence"


def attack_tables(target: str, tables: int, seed: int, seconds: float) -> Outcome:
    """Read hostile tables."""
    chance, outcome, answers, durations = random.Random(seed), Outcome(target), Counter[str](), list[float]()
    memory, started = Memory(os.getpid()), time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="tables-"))
    places = [write_table(folder / f"{number}" / "shop", chance) for number in range(min(PLACES, tables))]
    while outcome.tried < tables and time.monotonic() - started < seconds:
        outcome.tried += 1
        place = chance.choice(places)
        changed = chance.choice(files_of(place))
        whole = changed.read_bytes()
        changed.write_bytes(mutate(whole, chance))
        began = time.perf_counter()
        try:
            answers[read_all(place)] += 1
        except Exception as error:
            outcome.fail(f"table {outcome.tried}: {type(error).__name__}: {error}")
        durations.append(time.perf_counter() - began)
        if durations[-1] > MOST_SECONDS:
            outcome.fail(f"table {outcome.tried}: {durations[-1]:.0f} seconds")
        changed.write_bytes(whole)
    shutil.rmtree(folder)
    outcome.finish(started, durations, answers)
    outcome.memory_mib = memory.stop()
    return outcome


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.tables", description=__doc__.splitlines()[0])
    parser.add_argument("--tables", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=3600)
    options = parser.parse_args(arguments)
    outcome = isolated(attack_tables, "tables", options.tables, options.seed, options.seconds)
    print(table([outcome]))
    return int(bool(outcome.failed))


if __name__ == "__main__":
    sys.exit(main())
