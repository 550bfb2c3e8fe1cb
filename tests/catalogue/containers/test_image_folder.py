"""Folders by category, with what else may lie beside them."""

import os

import pytest

from tests.catalogue.test_sources import KAGGLE, _folder, _open, _zip
from vlm_core.catalogue.catalogue import check_columns
from vlm_core.catalogue.reading import Columns, Refusal, read_products
from vlm_core.errors import UserError

FOLDERS = {"Bags/9.jpg": b"nine", "Bags/10.JPG": b"ten", "Shoes/boots/11.png": b"eleven", "Shoes/.DS_Store": b"x"}


@pytest.mark.parametrize("make", [_folder, _zip])
@pytest.mark.parametrize("top", ["", "my shop/", "a/b/"])
@pytest.mark.parametrize("split", ["", "train/"])
def test_a_folder_a_category(tmp_path, make, top, split):
    files = {f"{top}{split}{name}": data for name, data in FOLDERS.items()}
    files |= {f"{top}val/Bags/12.jpg": b"twelve", f"{top}val/Shoes/9.jpg": b"other"} if split else {}
    with _open(make(tmp_path / "shop", files)).open_table(KAGGLE) as table:
        rows = list(read_products(table.table, table.columns))
        found = {
            row.values["id"]: (row.values["masterCategory"], table.pictures.read(table.find(row).path)) for row in rows
        }
    expected = {"10": ("Bags", b"ten"), "11": ("Shoes", b"eleven")}
    if split:
        expected |= {
            "train/Bags/9.jpg": ("Bags", b"nine"),
            "val/Shoes/9.jpg": ("Shoes", b"other"),
            "12": ("Bags", b"twelve"),
        }
    else:
        expected |= {"9": ("Bags", b"nine")}
    assert found == expected


def _categories(source, columns=KAGGLE):
    """The category of each picture that is read, the reasons for the others, and what was assumed."""
    with source.open_table(columns) as table:
        check_columns(source.name, table)
        rows = list(read_products(table.table, table.columns))
        used = [row for row in rows if not isinstance(row, Refusal)]
        assert all(table.pictures.read(table.find(row).path) for row in used)
        found = {row.values["id"]: row.values["masterCategory"] for row in used}
        return found, [row.reason for row in rows if isinstance(row, Refusal)], " ".join(table.table.notes)


SORTED = {"9": "Bags", "10": "Bags", "11": "Shoes"}


@pytest.mark.parametrize("make", [_folder, _zip])
@pytest.mark.parametrize("top", ["", "my shop/"])
@pytest.mark.parametrize("stray", [("notes.csv",), ("notes.csv", "more.csv"), ("readme.txt", "loose.jpg")])
def test_a_stray_table_beside_folders_by_category_is_passed_over(tmp_path, make, top, stray):
    files = {**FOLDERS, **dict.fromkeys(stray, b"a,b\n1,2\n")}
    source = _open(make(tmp_path / "shop", {f"{top}{name}": data for name, data in files.items()}))
    found, _, notes = _categories(source)
    assert found == SORTED
    assert f"{stray[0]} passed over, without a column masterCategory" in notes or "more.csv" in notes


@pytest.mark.parametrize("table", [b"id,kind\n9,Bag\n", b"sku,kind,photo\n7,Bag,Bags/9.jpg\n"])
def test_a_table_of_products_beside_folders_is_not_passed_over(tmp_path, table):
    with pytest.raises(UserError, match="label=masterCategory is not a column of shop, which has: .*kind"):
        _categories(_open(_folder(tmp_path / "shop", {**FOLDERS, "shop.csv": table})))
    columns = Columns("id", "", "title", "kind", ())
    with pytest.raises(UserError, match="label=kind is not a column of other, which has: a, b"):
        _categories(_open(_folder(tmp_path / "other", {**FOLDERS, "notes.csv": b"a,b\n1,2\n"})), columns)


@pytest.mark.parametrize("make", [_folder, _zip])
def test_loose_pictures_beside_folders_by_category_are_left_out(tmp_path, make):
    found, refused, notes = _categories(_open(make(tmp_path / "shop", {**FOLDERS, "a.jpg": b"a", "b.jpg": b"b"})))
    assert found == SORTED
    assert refused == [f"the picture {name} is in no category's folder" for name in ("a.jpg", "b.jpg")]
    assert notes == "each folder is a category: Bags, Shoes"


@pytest.mark.parametrize("make", [_folder, _zip])
def test_files_that_are_no_pictures_are_counted_and_named(tmp_path, make):
    strays = [f"Bags/{number}.mp4" for number in range(5)] + ["Shoes/sizes.csv", "notes.txt"]
    found, refused, notes = _categories(_open(make(tmp_path / "shop", {**FOLDERS, **dict.fromkeys(strays, b"x")})))
    assert found == SORTED and not refused
    assert "files that are no pictures passed over: Bags/0.mp4, Bags/1.mp4, Bags/2.mp4, Bags/3.mp4, Bags/4.mp4" in notes
    assert "6 files" in notes or "7 files" in notes


def test_what_cannot_be_read_is_counted_and_named(tmp_path, monkeypatch):
    place = _folder(tmp_path / "shop", {**FOLDERS, "Hats/13.jpg": b"hat", "Shoes/.hidden": b"x"})
    (place / "Bags" / "dead.jpg").symlink_to(tmp_path / "gone.jpg")
    (place / "Shoes" / "self.png").symlink_to("self.png")
    (place / "Shoes" / "gone").symlink_to(tmp_path / "gone")
    os.mkfifo(place / "Shoes" / "pipe.jpg")
    (place / "Bags" / "link.jpg").symlink_to(place / "Hats" / "13.jpg")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("Hats"):
            raise PermissionError("no")
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuse)
    found, refused, notes = _categories(_open(place))
    assert found == {**SORTED, "link": "Bags"}
    assert refused == [
        f"the picture {path} is a link to nothing, or no regular file"
        for path in ("Bags/dead.jpg", "Shoes/pipe.jpg", "Shoes/self.png")
    ]
    assert "2 files that are no pictures passed over: Hats/, Shoes/gone" in notes
