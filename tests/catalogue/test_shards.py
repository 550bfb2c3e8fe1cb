"""Packed catalogues: the same products as their source, written whole or not at all, and resumed."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest

from tests.catalogue.handovers import (
    CONTAINERS,
    PICTURES,
    PRODUCTS,
    Dialect,
    folders_by_category,
    folders_in_parts,
    imagefolder,
    parquet_parts,
    pictures_inside,
    saved_datasets,
)
from vlm_core.catalogue import shards
from vlm_core.catalogue.catalogue import prepare_catalogue
from vlm_core.catalogue.reading import Columns
from vlm_core.catalogue.shards import Packed, pack
from vlm_core.catalogue.sources import open_source
from vlm_core.errors import UserError

COLUMNS = Columns("id", "", "title", "masterCategory", ())


def _pack(data, output, columns=COLUMNS, rows=5):
    source = open_source(str(data), output.parent)
    return pack(source, columns, output, rows_per_shard=rows, bytes_per_shard=10**6)


def _told(data, root, columns=COLUMNS):
    """What a catalogue is: its fingerprint, the order of its products, their parts and what is left out of it."""
    for by_id in (True, False):
        catalogue = prepare_catalogue(str(data), columns, root, by_id=by_id)
        parts = catalogue.products.get("given_part")
        left_out = [each.reason for each in catalogue.reading.left_out()]
        yield (
            catalogue.fingerprint,
            catalogue.pictures_fingerprint,
            catalogue.products["product_id"].tolist(),
            None if parts is None else parts.tolist(),
            left_out,
        )


MADE = {
    **{
        name: lambda place, rows, make=CONTAINERS[name]: make(place, rows, _beside(rows), Dialect())
        for name in ("csv", "zip", "workbook")
    },
    "pictures inside": pictures_inside,
    "imagefolder": imagefolder,
    "parquet parts": parquet_parts,
    "saved datasets": saved_datasets,
    "folders by category": folders_by_category,
    "folders in parts": folders_in_parts,
}


def _beside(rows):
    return {f"images/{row['id']}.jpg": PICTURES[row["id"]] for row in rows}


@pytest.mark.parametrize("made", MADE)
def test_shards_are_the_catalogue_that_they_were_made_of(tmp_path, made):
    place = MADE[made](tmp_path / "shop", PRODUCTS)
    packed = _pack(place, tmp_path / "shards")
    assert (packed.rows, len(packed.shards), packed.missing) == (28, 6, 0)
    assert list(_told(tmp_path / "shards", tmp_path)) == list(_told(place, tmp_path))


def test_names_that_are_no_utf8_are_the_same_in_shards(tmp_path):
    place = folders_by_category(tmp_path / "shop", PRODUCTS)
    picture = next(path for path in place.rglob("*") if path.is_file())
    picture.rename(os.fsdecode(os.fsencode(picture.parent) + b"/M\xf6bel" + picture.suffix.encode()))
    _pack(place, tmp_path / "shards")
    told = list(_told(place, tmp_path))
    assert "M\\xf6bel" in told[0][2] and list(_told(tmp_path / "shards", tmp_path)) == told


def test_a_catalogue_without_ids_keeps_its_pictures_as_such(tmp_path):
    rows = [{"photo": f"pics/{row['id']}.png", "masterCategory": row["masterCategory"]} for row in PRODUCTS]
    pictures = {f"pics/{name}.png": data for name, data in PICTURES.items()}
    place = CONTAINERS["csv"](tmp_path / "shop", rows, pictures, Dialect())
    columns = Columns("id", "photo", "title", "masterCategory", ())
    _pack(place, tmp_path / "shards", columns)
    assert list(_told(tmp_path / "shards", tmp_path, columns)) == list(_told(place, tmp_path, columns))


def test_rows_of_no_use_are_in_the_shards_with_their_reasons(tmp_path):
    folder = CONTAINERS["folder"](tmp_path / "shop", PRODUCTS[:3], _beside(PRODUCTS[:2]), Dialect())
    (folder / "images" / "1001.jpg").write_bytes(b"no picture")
    with (folder / "styles.csv").open("a") as file:
        file.write("1002,Schuhe,again\n,Schuhe,no id\n\ntorn\n")
    packed = _pack(folder, tmp_path / "shards")
    assert (packed.rows, packed.missing) == (6, 3)
    (told, _), (plain, _) = (_told(tmp_path / name, tmp_path) for name in ("shards", "shop"))
    assert told[:4] == plain[:4] and len(told[4]) == len(plain[4]) == 5
    kinds = [[re.sub(r"\d+|images/|\.jpg|row ", "", reason) for reason in left_out] for left_out in (told[4], plain[4])]
    assert [kind for kind in kinds[1] if kind not in " ".join(kinds[0])] == []


def test_a_packing_that_was_cut_goes_on_and_gives_the_same_files(tmp_path, monkeypatch):
    place = MADE["csv"](tmp_path / "shop", PRODUCTS)
    whole = _pack(place, tmp_path / "whole")
    writes = iter(range(3))
    write = Packed.write
    monkeypatch.setattr(Packed, "write", lambda self, folder: (next(writes), write(self, folder)))
    with pytest.raises(StopIteration):
        _pack(place, tmp_path / "shards")
    assert not (tmp_path / "shards").exists()
    monkeypatch.undo()
    left = tmp_path / ".shards.packing"
    before = {path.name: path.stat().st_ino for path in left.glob("*.parquet")}
    assert sorted(before) == [f"shard-{number:05}.parquet" for number in range(4)]
    damaged = left / "shard-00001.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-9] + b"otherbyte")
    packed = _pack(place, tmp_path / "shards")
    assert packed == whole and not left.exists() and not list(tmp_path.glob(".shards*"))
    kept = {path.name for path in (tmp_path / "shards").iterdir() if before.get(path.name) == path.stat().st_ino}
    assert kept == {"shard-00000.parquet", "shard-00002.parquet"}
    for shard in packed.shards:
        assert (tmp_path / "shards" / shard.file).read_bytes() == (tmp_path / "whole" / shard.file).read_bytes()


def test_a_source_that_changed_meanwhile_is_packed_anew(tmp_path, monkeypatch):
    place = MADE["csv"](tmp_path / "shop", PRODUCTS)
    writes = iter(range(6))
    write = Packed.write
    monkeypatch.setattr(Packed, "write", lambda self, folder: (next(writes), write(self, folder)))
    with pytest.raises(StopIteration):
        _pack(place, tmp_path / "shards")
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "shop")
    place = MADE["csv"](tmp_path / "shop", PRODUCTS[:14])
    (tmp_path / "shop" / "images" / "1008.jpg").write_bytes(PICTURES["1020"])
    packed = _pack(place, tmp_path / "shards")
    assert sorted(path.name for path in (tmp_path / "shards").glob("*.parquet")) == [
        each.file for each in packed.shards
    ]
    assert list(_told(tmp_path / "shards", tmp_path)) == list(_told(place, tmp_path))


def test_what_is_packed_already_is_checked_and_left(tmp_path):
    place = MADE["csv"](tmp_path / "shop", PRODUCTS)
    packed = _pack(place, tmp_path / "shards")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "shards").iterdir()}
    assert _pack(place, tmp_path / "shards") == packed
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "shards").iterdir()} == before
    with place.open("a") as file:
        file.write("1,Schuhe,x\n")
    with pytest.raises(UserError, match="packed from another state"):
        _pack(place, tmp_path / "shards")
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="is there already"):
        _pack(place, tmp_path / "mine")


def test_a_table_without_rows_leaves_nothing(tmp_path):
    (tmp_path / "shop.csv").write_text("id,title\n")
    with pytest.raises(UserError, match="no rows"):
        _pack(tmp_path / "shop.csv", tmp_path / "shards")
    with pytest.raises(UserError, match="id_column=sku is not a column"):
        _pack(tmp_path / "shop.csv", tmp_path / "shards", Columns("sku", "", "", "", ()))
    assert [path.name for path in tmp_path.iterdir()] == ["shop.csv"]


def test_a_shard_is_bounded_in_bytes_and_holds_what_the_files_hold(tmp_path):
    rows = [{"id": str(number), "masterCategory": "Shoes"} for number in range(80)]
    pictures = {f"images/{number}.jpg": bytes([number]) * 50_000 for number in range(80)}
    place = CONTAINERS["csv"](tmp_path / "shop", rows, pictures, Dialect())
    packed = _pack(place, tmp_path / "shards", rows=10_000)
    assert len(packed.shards) > 2 and max(shard.bytes for shard in packed.shards) < 10**6 + 16 * 50_000 + 10_000
    tables = [pq.read_table(tmp_path / "shards" / shard.file) for shard in packed.shards]
    found = [picture for table in tables for picture in table["image"].to_pylist()]
    assert [(each["path"], each["bytes"]) for each in found] == [
        (f"images/{number}.jpg", bytes([number]) * 50_000) for number in range(80)
    ]


@pytest.mark.slow
def test_a_command_that_is_killed_is_repeated(tmp_path):
    rows = [{"id": str(number), "masterCategory": "Shoes"} for number in range(6000)]
    place = CONTAINERS["csv"](
        tmp_path / "shop", rows, {f"images/{number}.jpg": b"bytes" for number in range(6000)}, Dialect()
    )
    command = [sys.executable, "-m", "experiments.shard", "--data", str(place), "--output", str(tmp_path / "shards")]
    process = subprocess.Popen([*command, "--rows", "100"])
    while not list((tmp_path / ".shards.packing").glob("shard-00003.parquet")):
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "shards").exists()
    done = {path.name: path.stat().st_ino for path in (tmp_path / ".shards.packing").glob("*.parquet")}
    subprocess.run([*command, "--rows", "100"], check=True)
    inodes = {path.name: path.stat().st_ino for path in (tmp_path / "shards").glob("*.parquet")}
    assert len(inodes) == 60 and {name: inodes[name] for name in list(done)[:3]} == dict(list(done.items())[:3])
    assert not list(tmp_path.glob(".*"))
    assert shards.Packed.read(tmp_path / "shards").rows == 6000
