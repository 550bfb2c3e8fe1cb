"""A catalogue from its table and pictures to a prepared folder: what is kept, counted, reused and left behind."""

import csv
import errno
import io
import json
import os
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.shops import write_shop
from vlm_core.catalogue import catalogue as module
from vlm_core.catalogue.catalogue import joined_catalogue, prepare_catalogue
from vlm_core.catalogue.containers.folder import FolderFiles
from vlm_core.catalogue.containers.zip_files import ZipFiles
from vlm_core.catalogue.reading import Columns
from vlm_core.errors import UserError

OWN = Columns("id", "photo", "", "category", ())
KAGGLE = Columns("id", "", "productDisplayName", "masterCategory", ("gender", "season"))
TABLE = (
    "id,gender,masterCategory,productDisplayName\n"
    "1,Men,Apparel,Blue Shirt\n"
    "2,Women,Footwear,Live, Laugh Flip Flops\n"
    "3,Men\n"
    "4,Men,Apparel,No picture\n"
    "5,Men,Apparel,Cut\n"
    "6,Women,Accessories,Bag\n"
)


def _picture(colour, size=(60, 80)):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


PICTURES = {"1": _picture("red"), "2": _picture("blue", (30, 40)), "5": _picture("red")[:60], "6": _picture("lime")}
FILES = {"styles.csv": TABLE.encode(), **{f"images/{name}.jpg": data for name, data in PICTURES.items()}}


def _folder(folder, files=FILES):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def _zip(path, files=FILES):
    with zipfile.ZipFile(path, "w") as file:
        for name, data in files.items():
            file.writestr(name, data)
    return path


def _prepare(place, root, columns=KAGGLE):
    return prepare_catalogue(str(place), columns, root)


def _refused(*_):
    raise AssertionError("a picture was read although all is prepared")


@pytest.mark.parametrize("make", [_folder, _zip])
def test_every_row_is_kept_or_accounted_for(tmp_path, make):
    catalogue = _prepare(make(tmp_path / "shop"), tmp_path)
    reading = catalogue.reading
    assert (reading.rows_read, reading.rows_repaired, reading.pictures_missing, reading.products) == (6, 1, 1, 3)
    assert [refusal.line for refusal in reading.refused] == [4]
    assert [refusal.line for refusal in reading.pictures_unreadable] == [6]
    assert "truncated" in reading.pictures_unreadable[0].reason
    products = catalogue.products
    assert products["product_id"].tolist() == ["1", "2", "6"]
    assert products["title"].tolist() == ["Blue Shirt", "Live, Laugh Flip Flops", "Bag"]
    assert products["masterCategory"].tolist() == ["Apparel", "Footwear", "Accessories"]
    assert products.index.tolist() == [0, 1, 2] and "season" not in products
    assert products["picture_digest"].str.fullmatch("[0-9a-f]{32}").all() and products["picture_digest"].is_unique
    pixels = catalogue.pictures.take(np.arange(3))
    assert pixels.shape == (3, 80, 60, 3)
    assert pixels[:, 40, 30].tolist() == [[255, 0, 0], [0, 0, 255], [0, 255, 0]]


def test_a_prepared_catalogue_is_taken_as_it_is(tmp_path, monkeypatch):
    place = _zip(tmp_path / "shop.zip")
    first = _prepare(place, tmp_path)
    monkeypatch.setattr(module, "decode_picture", _refused)
    second = _prepare(place, tmp_path)
    assert second.products.equals(first.products) and second.reading == first.reading
    assert second.fingerprint == first.fingerprint
    assert len(list((tmp_path / "data" / "processed").iterdir())) == 1


def test_pictures_are_read_again_where_more_memory_is_allowed(tmp_path, monkeypatch):
    place = _folder(tmp_path / "shop", {**FILES, "images/6.jpg": _picture("lime", (600, 400))})
    for memory, products in (("1", 2), ("2", 3), ("1", 2)):
        monkeypatch.setenv("PICTURE_MEMORY_MB", memory)
        assert _prepare(place, tmp_path).reading.products == products


@pytest.mark.parametrize("make", [_folder, _zip])
def test_the_table_is_opened_once(tmp_path, monkeypatch, make):
    opened = []
    for kind in (FolderFiles, ZipFiles):
        monkeypatch.setattr(kind, "open", lambda self, path, open_=kind.open: opened.append(path) or open_(self, path))
    _prepare(make(tmp_path / "shop"), tmp_path)
    assert opened.count("styles.csv") == 1


def test_a_table_in_the_working_directory_is_prepared_once(tmp_path, monkeypatch):
    table = TABLE.replace("id,", "id,picture,", 1)
    table = "".join(line.replace(",", f",{line[0]}.png,", 1) if line[0].isdigit() else line
                    for line in table.splitlines(keepends=True))  # fmt: skip
    _folder(tmp_path, {"mine.csv": table.encode(), **{f"{name}.png": data for name, data in PICTURES.items()}})
    columns = Columns("id", "picture", "productDisplayName", "masterCategory", ())
    assert len(_prepare(tmp_path / "mine.csv", tmp_path, columns).products) == 3
    monkeypatch.setattr(module, "decode_picture", _refused)
    assert len(_prepare(tmp_path / "mine.csv", tmp_path, columns).products) == 3


def test_another_picture_makes_another_catalogue(tmp_path):
    first = _prepare(_zip(tmp_path / "shop.zip"), tmp_path)
    second = _prepare(_zip(tmp_path / "shop.zip", {**FILES, "images/1.jpg": _picture("white")}), tmp_path)
    assert second.fingerprint != first.fingerprint
    assert second.pictures.take(np.array([0]))[0, 40, 30].tolist() == [255, 255, 255]


def test_the_fingerprint_is_of_contents_whatever_their_place_and_order(tmp_path):
    header, *lines = TABLE.splitlines(keepends=True)
    shuffled = {**FILES, "styles.csv": (header + "".join(reversed(lines))).encode()}
    prints = {
        _prepare(_folder(tmp_path / "one"), tmp_path).fingerprint,
        _prepare(_zip(tmp_path / "two.zip"), tmp_path).fingerprint,
        _prepare(_zip(tmp_path / "three.zip", shuffled), tmp_path / "elsewhere").fingerprint,
    }
    assert len(prints) == 1
    assert len(prints.pop()) == 16
    renamed = {**FILES, "styles.csv": TABLE.replace("Apparel", "Clothes").encode()}
    assert _prepare(_zip(tmp_path / "four.zip", renamed), tmp_path, KAGGLE).fingerprint not in prints


@pytest.mark.parametrize(
    ("columns", "setting"),
    [
        (Columns("id", "", "", "category", ()), "label=category"),
        (Columns("sku", "", "", "masterCategory", ()), "id_column=sku"),
        (Columns("id", "photo", "", "masterCategory", ()), "picture_column=photo"),
    ],
)
def test_a_missing_column_is_named_with_those_there_are_before_any_slow_work(tmp_path, monkeypatch, columns, setting):
    monkeypatch.setattr(module, "decode_picture", _refused)
    with pytest.raises(UserError, match=f"{setting} .* id, gender, masterCategory, productDisplayName"):
        _prepare(_zip(tmp_path / "shop.zip"), tmp_path, columns)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "table", [TABLE.splitlines()[0], TABLE.splitlines()[0] + "\n4,Men,Apparel,No picture\n5,M,A,Cut\n"]
)
def test_nothing_usable_is_one_sentence_and_leaves_the_reasons_alone(tmp_path, table):
    with pytest.raises(UserError, match=r"^[^\n]*no usable product[^\n]*$") as error:
        _prepare(_zip(tmp_path / "shop.zip", {**FILES, "styles.csv": table.encode()}), tmp_path)
    left = list((tmp_path / "data" / "processed").iterdir())
    assert [path.name for path in left] == (["shop-left_out.csv"] if "\n" in table else [])
    if left:
        assert str(left[0]) in str(error.value) and "line 2: there is no images/4.jpg in shop.zip" in str(error.value)
        assert list(csv.DictReader(left[0].open()))[1]["reason"].startswith("the picture images/5.jpg: ")


@pytest.mark.parametrize("make", [_folder, _zip])
def test_all_that_is_left_out_is_listed_with_line_and_reason(tmp_path, make):
    table = TABLE + "7,Men,,No category\n1,Men,Apparel,Once more\n"
    catalogue = _prepare(
        make(tmp_path / "shop", {**FILES, "styles.csv": table.encode(), "images/7.jpg": PICTURES["1"]}), tmp_path
    )
    rows = [(row["table"], int(row["line"]), row["reason"]) for row in csv.DictReader(catalogue.left_out.open())]
    assert [line for _, line, _ in rows] == [4, 5, 6, 8, 9]
    assert {table for table, _, _ in rows} == {"shop"}
    assert rows[1][2].startswith("there is no images/4.jpg in ") and rows[1][2].endswith("which has images/1.jpg")
    assert rows[3][2] == "no category: the column masterCategory is empty"
    assert catalogue.reading.first_reasons().endswith("; and 2 more.")
    assert "1 product without a category" in catalogue.reading.summary()


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("a.png", r"The column file seems to name the pictures: give picture_column=file\.$"),
        (
            "http://a.example/1.png",
            r"The column file holds web addresses: give picture_column=file and download=true\.$",
        ),
        ("no such", r"lists all\.$"),
    ],
)
def test_a_column_that_seems_to_name_the_pictures_is_proposed(tmp_path, cell, message):
    files = {"mine.csv": f"id,kind,file\nx,Bag,{cell}\ny,Bag,b.png\n".encode(), "pics/a.png": PICTURES["1"]}
    with pytest.raises(UserError, match=message):
        _prepare(_folder(tmp_path / "shop", files) / "mine.csv", tmp_path, Columns("id", "", "", "kind", ()))


def test_where_all_is_of_use_there_is_no_list(tmp_path):
    catalogue = _prepare(
        _zip(tmp_path / "shop.zip", {**FILES, "styles.csv": "".join(TABLE.splitlines(True)[:3]).encode()}), tmp_path
    )
    assert not catalogue.left_out.exists() and catalogue.reading.first_reasons() == ""


def test_further_pictures_of_a_product_are_counted(tmp_path):
    table = "id,photo,kind\n1,1.png|2.png,Bag\n2,2.png,Bag\n2,6.png,Bag\n2,2.png,Bag\n"
    _folder(tmp_path, {"mine.csv": table.encode(), **{f"{name}.png": data for name, data in PICTURES.items()}})
    reading = _prepare(tmp_path / "mine.csv", tmp_path, Columns("id", "photo", "", "kind", ())).reading
    assert (reading.products, reading.further_pictures, len(reading.refused)) == (2, 2, 2)
    assert "2 further pictures of a product not used" in reading.summary()


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pandas.DataFrame.to_parquet", full)
    with pytest.raises(UserError, match="is full"):
        _prepare(_zip(tmp_path / "shop.zip"), tmp_path)
    assert list((tmp_path / "data" / "processed").iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_pictures_that_find_no_room_are_an_error_and_no_crash(tmp_path, monkeypatch):
    opened = Path.open
    monkeypatch.setattr(
        Path,
        "open",
        lambda path, *how, **named: opened(Path("/dev/full") if path.suffix == ".npy" else path, *how, **named),
    )
    with pytest.raises(UserError, match="is full"):
        _prepare(_zip(tmp_path / "shop.zip"), tmp_path)


def test_an_interruption_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(iterable, label, total=None):
        yield next(iter(iterable))
        raise KeyboardInterrupt

    monkeypatch.setattr("vlm_core.catalogue.catalogue.track", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _prepare(_zip(tmp_path / "shop.zip"), tmp_path)
    assert list((tmp_path / "data" / "processed").iterdir()) == []


def test_two_who_prepare_the_same_at_once_get_the_same(tmp_path):
    place = _zip(tmp_path / "shop.zip")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: _prepare(place, tmp_path), range(4)))
    assert len({catalogue.fingerprint for catalogue in found}) == 1
    assert len(list((tmp_path / "data" / "processed").iterdir())) == 1


@pytest.mark.parametrize(("size", "canvas"), [((60, 80), (80, 60)), ((900, 1200), (256, 192)), ((4000, 1), (1, 256))])
def test_the_canvas_is_the_median_size_bounded(tmp_path, size, canvas):
    files = {**FILES, **{f"images/{name}.jpg": _picture("red", size) for name in "126"}, "images/5.jpg": b"no picture"}
    catalogue = _prepare(_zip(tmp_path / "shop.zip", files), tmp_path)
    assert catalogue.pictures.canvas == canvas


@pytest.mark.parametrize("size", [(4000, 1), (1, 4000), (1, 1)])
def test_a_picture_of_an_odd_shape_costs_no_other(tmp_path, size):
    files = {**FILES, "images/5.jpg": _picture("black", size)}
    catalogue = _prepare(_zip(tmp_path / "shop.zip", files), tmp_path)
    assert catalogue.products["product_id"].tolist()[:2] == ["1", "2"]
    assert catalogue.reading.products + len(catalogue.reading.pictures_unreadable) == 4


def test_the_report_lies_beside_the_pictures_as_json(tmp_path):
    _prepare(_zip(tmp_path / "shop.zip"), tmp_path)
    (folder,) = (tmp_path / "data" / "processed").iterdir()
    assert folder.name.startswith("shop-")
    assert json.loads((folder / "reading.json").read_text())["report"]["rows_read"] == 6
    shutil.rmtree(folder)
    assert len(_prepare(tmp_path / "shop.zip", tmp_path).products) == 3


def test_names_that_are_no_utf8_are_shown_with_what_they_hold(tmp_path):
    for category in ("Shoes", "Bags"):
        (tmp_path / "shop" / category).mkdir(parents=True)
        Image.new("RGB", (6, 8), "red").save(tmp_path / "shop" / category / "whole.jpg")
    picture = (tmp_path / "shop" / "Bags" / "whole.jpg").read_bytes()
    Path(os.fsdecode(os.fsencode(tmp_path / "shop" / "Bags") + b"/M\xf6bel.jpg")).write_bytes(picture)
    catalogue = prepare_catalogue(str(tmp_path / "shop"), Columns("id", "", "", "masterCategory", ()), tmp_path)
    assert "M\\xf6bel" in set(catalogue.products["id"])


def test_joined_rows_keep_their_order_and_canvas_whatever_was_joined_before(tmp_path):
    old = prepare_catalogue(str(write_shop(tmp_path / "old", {"A": 3}, kind=1)), OWN, tmp_path)
    new = prepare_catalogue(str(write_shop(tmp_path / "new", {"B": 2}, kind=2)), OWN, tmp_path)
    joined = {}
    for canvas in ((80, 60), (40, 30)):
        for order in ((0, 1, 2), (2, 0, 1)):
            joined[canvas, order] = joined_catalogue(old, np.array(order), new, new.products, canvas, tmp_path)
    for (canvas, order), catalogue in joined.items():
        assert catalogue.fingerprint == joined[(80, 60), (0, 1, 2)].fingerprint
        assert list(catalogue.products["product_id"][:3]) == [f"p{row + 1}" for row in order]
        assert catalogue.pictures.canvas == canvas
    first, second = joined[(80, 60), (0, 1, 2)], joined[(80, 60), (2, 0, 1)]
    np.testing.assert_array_equal(first.pictures.take(np.array([2, 0, 1, 3, 4])), second.pictures.take(np.arange(5)))
