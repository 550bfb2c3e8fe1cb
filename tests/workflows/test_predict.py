"""Unlabelled images: wherever they are, each gets a prediction or an error of its own, and the file appears whole."""

import os
import shutil
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.catalogue.handovers import PICTURES, PRODUCTS, parquet_parts, saved_datasets
from tests.messages import collected_messages
from tests.models.families import make_categoriser
from vlm_core.catalogue import downloading
from vlm_core.catalogue.downloading import name_of
from vlm_core.errors import UserError
from vlm_core.inference import record_columns
from vlm_core.workflows.predict import find_pictures, predict_batches, write_predictions


@pytest.fixture
def photos(tmp_path):
    """Three pictures and a broken one, as a folder, a zip and a table."""
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for name, colour in (("a.jpg", "red"), ("b.png", "blue"), ("deep/c.webp", "white")):
        Image.new("RGB", (40, 50), colour).save(folder / name)
    (folder / "broken.jpg").write_text("text")
    (folder / "table.csv").write_text("id,photo\n1,a.jpg\n2,deep/c.webp\n3,gone.jpg\n")
    shutil.make_archive(str(tmp_path / "photos"), "zip", folder)
    return folder


def _predict(place, output, **columns):
    model = make_categoriser("git", "sentences")
    pictures = find_pictures(
        [str(place)], columns.get("id_column", "id"), columns.get("picture_column", ""), output.parent
    )
    written = write_predictions(output, ["id", *record_columns(model)], predict_batches(model, pictures))
    table = pd.read_csv(output) if output.suffix == ".csv" else pd.read_parquet(output)
    assert len(table) == written.rows and table["error"].notna().sum() == written.failed
    return table


@pytest.mark.slow
def test_a_folder_and_its_zip_give_the_same_rows(photos, tmp_path):
    table = _predict(photos, tmp_path / "out.csv")
    assert table["id"].tolist() == ["a", "b", "broken", "deep/c"]
    assert table["error"].notna().tolist() == [False, False, True, False]
    assert table["category"].isna().tolist() == [False, False, True, False]
    shares = table.filter(like="p_").dropna().sum(axis=1)
    np.testing.assert_allclose(shares, 1, atol=1e-5)
    assert {"text", "text_category"} <= set(table.columns)
    zipped = _predict(photos.with_suffix(".zip"), tmp_path / "out.parquet")
    pd.testing.assert_series_equal(zipped["confidence"], table["confidence"], atol=1e-6)


def test_a_file_that_is_no_picture_has_an_error_and_costs_no_other(photos, tmp_path):
    os.mkfifo(photos / "fifo.jpg")
    (photos / "device.jpg").symlink_to("/dev/zero")
    (photos / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "outside.jpg").write_bytes((photos / "a.jpg").read_bytes())
    (photos / "outside.jpg").symlink_to(tmp_path / "outside.jpg")
    with (photos / "sparse.jpg").open("wb") as file:
        file.truncate(60 << 30)
    shutil.copy(photos / "a.jpg", os.fsencode(photos) + b"/\xff.jpg")
    (photos / "folder.jpg").mkdir()
    table = _predict(photos, tmp_path / "out.csv").set_index("id")
    wrong = ["broken", "device", "fifo", "loop", "sparse"]
    assert sorted(table.index[table["error"].notna()]) == wrong
    assert sorted(table.index[table["error"].isna()]) == ["\\xff", "a", "b", "deep/c", "outside"]
    assert "50 MB" in table["error"]["sparse"]


def test_ids_are_unique_whatever_the_files_are_called(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.jpg")
    for name in ("a.png", "a.jpg.png", "b.jpg"):
        shutil.copy(tmp_path / "a.jpg", tmp_path / name)
    assert [picture.id for picture in find_pictures([str(tmp_path)], "id", "", tmp_path)] == [
        "a.jpg",
        "a.jpg (2)",
        "a.png",
        "b",
    ]
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "twins.zip", "w") as archive:
        warnings.simplefilter("ignore")
        for data in (b"one", b"two"):
            archive.writestr("x.jpg", data)
    twins = find_pictures([str(tmp_path / "twins.zip")], "id", "", tmp_path)
    assert [(picture.id, picture.read()) for picture in twins] == [("x.jpg", b"one"), ("x.jpg (2)", b"two")]


def test_ids_from_a_zip_of_windows_have_slashes(tmp_path):
    with zipfile.ZipFile(tmp_path / "shop.zip", "w") as archive:
        for name in ("shop\\", "shop\\pics\\1.jpg"):
            archive.writestr(name, b"bytes")
    assert _ids(tmp_path / "shop.zip") == (["shop/pics/1"], [])


def test_a_zip_with_broken_names_is_read(photos, tmp_path):
    place = photos.with_suffix(".zip")
    place.write_bytes(place.read_bytes().replace(b"b.png", b"b\0png").replace(b"a.jpg", b"\xff.jpg"))
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        for name in ("../é.jpg", "/x.jpg", ".jpg", "..jpg"):
            archive.writestr(name, b"bytes")
    more = tmp_path / "more.zip"
    more.write_bytes(more.read_bytes().replace("é".encode(), b"\xff\xfe"))
    assert len(find_pictures([str(place)], "id", "", tmp_path)) == 3
    assert [picture.read() for picture in find_pictures([str(more)], "id", "", tmp_path)] == [b"bytes"] * 4


def test_no_cell_of_a_csv_is_a_formula(tmp_path):
    rows = [{"id": "=cmd|calc", "category": "@x", "error": "-1\udcff"}, {"id": "a=b", "category": "Shoes"}]
    for name, id_, error in (("out.csv", "'=cmd|calc", "'-1\\xff"), ("out.parquet", "=cmd|calc", "-1\\xff")):
        write_predictions(tmp_path / name, ["id", "category", "error"], iter([rows]))
        table = pd.read_csv(tmp_path / name) if name.endswith("csv") else pd.read_parquet(tmp_path / name)
        assert table["id"].tolist() == [id_, "a=b"]
        assert table["error"][0] == error


def test_every_row_of_a_table_gives_one_row(photos, tmp_path):
    (photos / "table.csv").write_text(
        "id,photo,note\n1,a.jpg,x\n1,b.png,x\n\n2\n,b.png,x\n5,none.jpg,x\n6,deep/c.webp,x,y,z\n7,a.jpg\n"
    )
    with collected_messages() as messages:
        table = _predict(photos / "table.csv", tmp_path / "out.csv", picture_column="photo")
    assert table["id"].astype(str).tolist() == ["1", "1", "line 5", "line 6", "5", "line 8", "7"]
    assert table["error"].notna().tolist() == [False, False, True, False, True, True, False]
    assert "1 field where the header has 3" in table["error"][2] and "no none.jpg" in table["error"][4]
    assert "1 id of table.csv stands in several rows: what is written is in the table's order." in messages


def test_a_table_names_its_pictures(photos, tmp_path):
    table = _predict(photos / "table.csv", tmp_path / "out.csv", picture_column="photo")
    assert table["id"].tolist() == [1, 2, 3]
    assert table["error"].notna().tolist() == [False, False, True]


def test_pictures_at_web_addresses_are_those_that_were_downloaded(photos, tmp_path, monkeypatch):
    def fetch(addresses, folder):
        for address in addresses:
            (folder / name_of(address)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(photos / "a.jpg", folder / name_of(address))
            yield address, ""

    monkeypatch.setattr(downloading, "_fetch_all", fetch)
    (tmp_path / "shop.csv").write_text("id,photo\n1,https://shop.example/1\n2,photos/b.png\n")

    def read(**options):
        pictures = find_pictures([str(tmp_path / "shop.csv")], "id", "photo", tmp_path, **options)
        with suppress(OSError):
            return [picture.read() for picture in pictures]

    expected = [(photos / name).read_bytes() for name in ("a.jpg", "b.png")]
    assert read() is None
    assert read(download=True) == expected == read()


def test_a_linked_folder_is_followed_as_in_training(photos, tmp_path):
    (tmp_path / "more").mkdir()
    shutil.copy(photos / "a.jpg", tmp_path / "more" / "d.jpg")
    (photos / "linked").symlink_to(tmp_path / "more")
    (photos / "deep" / "again").symlink_to(photos)
    assert _ids(photos)[0] == ["a", "b", "broken", "deep/c", "linked/d"]


@pytest.mark.parametrize("make", [parquet_parts, saved_datasets])
def test_a_folder_without_images_may_hold_a_table_that_has_them(tmp_path, make):
    pictures = find_pictures([str(make(tmp_path / "shop", PRODUCTS))], "id", "", tmp_path)
    assert {picture.id: picture.read() for picture in pictures} == PICTURES


def test_a_workbook_is_a_table_whatever_it_is_called(tmp_path):
    import openpyxl

    book = openpyxl.Workbook()
    book.active.append(("id", "photo"))
    book.active.append((7, "7.png"))
    book.save(tmp_path / "shop.xls")
    (tmp_path / "7.png").write_bytes(b"seven")
    found = find_pictures([str(tmp_path / "shop.xls")], "id", "photo", tmp_path)
    assert [(picture.id, picture.read()) for picture in found] == [("7", b"seven")]


def test_a_stop_leaves_no_file(photos, tmp_path):
    def broken():
        yield [{"id": "a"}]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_predictions(tmp_path / "out.csv", ["id", "category"], broken())
    assert not list(tmp_path.glob("*out*"))


def test_what_cannot_be_read_or_written_is_refused(photos, tmp_path):
    (tmp_path / "none").mkdir()
    (tmp_path / "torn.zip").write_bytes(photos.with_suffix(".zip").read_bytes()[:300])
    for place, message in [
        ("none", "contains no images"),
        ("torn.zip", "is a damaged zip"),
        ("gone", "does not exist"),
        ("photos/*.bmp", "does not exist"),
    ]:
        with pytest.raises(UserError, match=message):
            find_pictures([str(tmp_path / place)], "id", "", tmp_path)
    with pytest.raises(UserError, match="picture_column=file is not a column"):
        find_pictures([str(photos / "table.csv")], "id", "file", tmp_path)
    with pytest.raises(UserError, match=r"must end in .csv or .parquet"):
        write_predictions(tmp_path / "out.txt", ["id"], iter([]))


def _ids(*places, id_column="id", picture_column=""):
    with collected_messages() as messages:
        pictures = find_pictures([str(place) for place in places], id_column, picture_column, Path())
    return [picture.id for picture in pictures], messages


def test_single_images_patterns_folders_and_zips_are_taken_together(photos, tmp_path, monkeypatch):
    assert _ids(photos / "a.jpg") == (["a"], [])
    assert _ids(photos / "a.jpg", photos / "b.png", photos / "a.jpg")[0] == ["a", "b"]
    assert _ids(f"{photos}/**/*.webp")[0] == ["c"]
    assert _ids(f"{photos}/**/*.[jpw]*")[0] == ["a", "b", "broken", "deep/c"]
    assert _ids(photos / "deep", photos.with_suffix(".zip"))[0] == [
        "photos/deep/c", "photos.zip/a", "photos.zip/b", "photos.zip/broken", "photos.zip/deep/c",
    ]  # fmt: skip
    monkeypatch.chdir(photos)
    assert _ids("a.jpg", "deep")[0] == ["a", "deep/c"]


def test_twins_in_different_folders_keep_their_folder(photos):
    shutil.copy(photos / "a.jpg", photos / "deep" / "a.jpg")
    assert _ids(photos / "a.jpg", photos / "deep" / "a.jpg")[0] == ["a", "deep/a"]
    assert _ids(photos)[0] == ["a", "b", "broken", "deep/a", "deep/c"]


def test_what_is_no_image_is_counted_and_a_macs_own_files_are_among_it(photos, tmp_path):
    for name in ("._a.jpg", ".DS_Store", "notes.pdf"):
        (photos / name).write_bytes(b"x")
    ids, messages = _ids(photos)
    assert ids == ["a", "b", "broken", "deep/c"]
    assert messages == [
        "Passed over 4 files that are no images: .DS_Store, ._a.jpg, notes.pdf, table.csv. "
        "To predict the rows of table.csv, name its columns: id_column=, picture_column=."
    ]
    with zipfile.ZipFile(tmp_path / "mac.zip", "w") as archive:
        for name in ("photos/0.jpg", "__MACOSX/photos/._0.jpg", "photos/.DS_Store"):
            archive.writestr(name, b"x")
    assert _ids(tmp_path / "mac.zip") == (
        ["photos/0"],
        ["Passed over 2 files that are no images: __MACOSX/photos/._0.jpg, photos/.DS_Store."],
    )


@pytest.mark.parametrize("place", ["photos", "photos.zip"])
def test_the_table_of_a_folder_or_zip_is_predicted_where_its_columns_are_named(photos, tmp_path, place):
    (photos / "again.jpg").write_bytes((photos / "a.jpg").read_bytes())
    pictures = find_pictures([str(tmp_path / place)], "id", "photo", tmp_path)
    assert [picture.id for picture in pictures] == ["1", "2", "3"]
    pictures = find_pictures([str(tmp_path / place)], "sku", "image", tmp_path)  # as one of several places
    assert "deep/c" in [picture.id for picture in pictures]


def test_text_that_is_called_a_workbook_is_a_table(photos):
    (photos / "export.xls").write_text((photos / "table.csv").read_text().replace(",", "\t"))
    pictures = find_pictures([str(photos / "export.xls")], "id", "photo", photos)
    assert [picture.id for picture in pictures] == ["1", "2", "3"]


def test_a_zip_within_a_zip_is_named(photos, tmp_path):
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as archive:
        archive.write(photos.with_suffix(".zip"), "photos.zip")
    with pytest.raises(UserError, match=r"no images but another zip, photos.zip: unpack it"):
        find_pictures([str(tmp_path / "outer.zip")], "id", "", tmp_path)


def test_a_web_address_in_the_place_of_a_file_is_said_to_be_one(tmp_path):
    with pytest.raises(UserError, match="is a web address: download"):
        find_pictures(["https://shop.example/1.jpg"], "id", "", tmp_path)


def test_what_is_assumed_of_a_table_and_not_used_of_its_cells_is_said(photos):
    rows = ["1,00;a.jpg|b.png", "4,00638E+12;b.png", "Möbel;a.jpg, b.png, deep/c.webp"]
    (photos / "shop.csv").write_bytes("\n".join(["id;photo", *rows]).encode("cp1252"))
    with collected_messages() as messages:
        pictures = find_pictures([str(photos / "shop.csv")], "id", "photo", photos)
    assert [picture.id for picture in pictures] == ["1", "4,00638E+12", "Möbel"]
    told = " ".join(messages)
    assert "semicolon" in told and "cp1252" in told and "3 further pictures in cells" in told
    assert "ids such as 4,00638E+12, which a spreadsheet has shortened" in told


def test_the_column_that_names_the_pictures_is_proposed(photos):
    with collected_messages() as messages:
        find_pictures([str(photos / "table.csv")], "id", "", photos)
    assert messages == ["The column photo seems to name the pictures: give picture_column=photo."]


def test_a_file_of_any_name_is_tried_and_a_link_that_is_named_is_followed(photos, tmp_path):
    shutil.copy(photos / "a.jpg", tmp_path / "picture")
    (photos / "out.jpg").symlink_to(tmp_path / "picture")
    for place in (tmp_path / "picture", photos / "out.jpg"):
        (picture,) = find_pictures([str(place)], "id", "", tmp_path)
        assert picture.read() == (photos / "a.jpg").read_bytes()


@pytest.fixture
def titled(photos):
    """A table with titles, in which a title, a picture, or both are missing."""
    rows = ["1,a.jpg,Blue Jacket,Men", "2,deep/c.webp,,", "3,gone.jpg,Blue Jacket,", "4,,Blue Jacket,Men", "5,,,"]
    (photos / "titled.csv").write_text("id,photo,name,sex\n" + "\n".join(rows) + "\n")
    return photos / "titled.csv"


def test_a_model_that_reads_texts_predicts_from_what_each_row_has(titled, tmp_path):
    from tests.models.test_fusion import make_reader

    model = make_reader("clip", fusion="concat")
    pictures = find_pictures([str(titled)], "id", "photo", tmp_path, text_columns=["name", "sex"])
    output = tmp_path / "out.csv"
    written = write_predictions(output, ["id", *record_columns(model)], predict_batches(model, pictures))
    table = pd.read_csv(output, dtype=str)
    assert table["read"].fillna("").tolist() == ["image+text", "image", "text", "text", ""]
    assert table["category"].notna().tolist() == [True, True, True, True, False]
    assert table["error"].notna().tolist() == [False, False, True, False, True]
    assert (written.rows, written.failed, written.without_image) == (5, 1, 1)
    assert written.errors == ("5: The product has neither an image nor a text.",)


def test_a_column_of_texts_that_a_table_lacks_is_said(titled, tmp_path):
    with collected_messages() as messages:
        found = find_pictures([str(titled)], "id", "photo", tmp_path, text_columns=["name", "brand"])
    assert next(iter(found)).text == "Blue Jacket"
    assert any("has no column brand" in message for message in messages)


def test_a_table_without_any_picture_is_enough_for_a_model_of_texts(tmp_path):
    from tests.models.test_fusion import make_reader

    (tmp_path / "titles.csv").write_text("id,name\n1,Blue Jacket\n2,\n")
    pictures = find_pictures([str(tmp_path / "titles.csv")], "id", "", tmp_path, text_columns=["name"])
    ((first, second),) = predict_batches(make_reader("git", "text"), pictures)
    assert first["id"] == "1" and first["read"] == "text" and "error" not in first
    assert "no text" in second["error"]


def test_a_fifo_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fifo.jpg")
    for place in (tmp_path / "fifo.jpg", tmp_path / "*.jpg"):
        with pytest.raises(UserError, match="neither a folder nor a regular file"):
            find_pictures([str(place)], "id", "", tmp_path)


@pytest.mark.parametrize(("name", "said"), [("shop.tar.gz", "unpack it"), ("shop.sqlite", "save the table as CSV")])
def test_a_file_of_a_kind_that_is_not_read_names_the_way_out(tmp_path, name, said):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=f"pictures={tmp_path / name} is .*{said}"):
        find_pictures([str(tmp_path / name)], "id", "", tmp_path)


@pytest.mark.parametrize("name", ["shop.arrow", "shop.feather"])
def test_the_rows_of_an_arrow_file_are_predicted(tmp_path, name):
    (tmp_path / "a.jpg").write_bytes(b"one")
    pd.DataFrame({"id": ["7", "8"], "photo": ["a.jpg", "b.jpg"]}).to_feather(tmp_path / name)
    first, second = find_pictures([str(tmp_path / name)], "id", "photo", tmp_path)
    assert (first.id, first.read(), second.id) == ("7", b"one", "8")
    with pytest.raises(OSError, match="there is no b.jpg"):
        second.read()
