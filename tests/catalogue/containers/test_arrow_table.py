"""Tables of Arrow batches: Parquet files and what `datasets` saves, with the pictures or their paths in them."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.catalogue.test_sources import KAGGLE, _folder, _open, _parquet, _pictures, _rows, _zip
from vlm_core.catalogue.picture_files import PictureMissing
from vlm_core.catalogue.reading import Columns, read_products
from vlm_core.errors import UserError

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SCHEMA = pa.schema([("id", pa.int64()), ("image", IMAGE), ("label", pa.int64()), ("title", pa.string())]).with_metadata(
    {"huggingface": json.dumps({"info": {"features": {"label": {"names": ["Bag", "Shoe"], "_type": "ClassLabel"}}}})}
)
EMBEDDED = [
    {"id": 1, "image": {"bytes": b"one", "path": "1.jpg"}, "label": 0, "title": "Shirt"},
    {"id": 2, "image": {"bytes": b"two", "path": "1.jpg"}, "label": 1, "title": "Tie"},
]


@pytest.mark.parametrize("place", ["file", "folder", "zip"])
def test_parquet_that_holds_the_pictures(tmp_path, place):
    files = {
        "data/train-00000-of-00002.parquet": _parquet(EMBEDDED[:1], schema=SCHEMA),
        "data/train-00001-of-00002.parquet": _parquet(EMBEDDED[1:], schema=SCHEMA),
    }
    expected = {"1": b"one", "2": b"two"}
    if place == "file":
        (tmp_path / "shop.parquet").write_bytes(_parquet(EMBEDDED, schema=SCHEMA))
        source = _open(tmp_path / "shop.parquet")
    else:
        source = _open((_zip if place == "zip" else _folder)(tmp_path / "shop", files))
    assert _pictures(source) == expected
    with source.open_table(KAGGLE) as table:
        assert [row.values["masterCategory"] for row in read_products(table.table, table.columns)] == ["Bag", "Shoe"]
        assert "column label is the category" in table.table.notes


def test_pictures_as_plain_bytes_and_rows_without_one(tmp_path):
    rows = [{"id": 1, "photo": b"one"}, {"id": 2, "photo": None}]
    (tmp_path / "shop.parquet").write_bytes(_parquet(rows))
    with _open(tmp_path / "shop.parquet").open_table(KAGGLE) as table:
        first, second = read_products(table.table, table.columns)
        assert table.pictures.read(table.find(first).path) == b"one"
        with pytest.raises(PictureMissing, match="row 2 has no picture"):
            table.pictures.read(table.find(second).path)


@pytest.mark.parametrize("kind", [pa.list_, pa.large_list])
def test_of_a_list_of_pictures_the_first_is_used(tmp_path, kind):
    rows = [
        {"id": 1, "images": [{"bytes": b"one", "path": "1.jpg"}, {"bytes": b"more", "path": "2.jpg"}]},
        {"id": 2, "images": []},
    ]
    schema = pa.schema([("id", pa.int64()), ("images", kind(IMAGE)), ("extra", kind(IMAGE))])
    (tmp_path / "shop.parquet").write_bytes(_parquet([{**row, "extra": row["images"]} for row in rows], schema=schema))
    with _open(tmp_path / "shop.parquet").open_table(KAGGLE) as table:
        first, second = read_products(table.table, table.columns)
        assert table.pictures.read(table.find(first).path) == b"one"
        assert "b'" not in first.values["extra"] and "3 bytes" in first.values["extra"]
        with pytest.raises(PictureMissing, match="row 2 has no picture"):
            table.pictures.read(table.find(second).path)
        assert table.table.notes == ["the first of several images in a row of column images is used"]


@pytest.mark.parametrize("first", ["bytes", "path"])
@pytest.mark.parametrize("kind", [lambda image: image, pa.list_])
@pytest.mark.parametrize("place", ["file", "folder", "zip"])
def test_bytes_of_some_rows_and_paths_of_others(tmp_path, first, kind, place):
    def cell(image):
        return image if kind(IMAGE) == IMAGE else [image]

    bytes_first = [{"bytes": b"%d" % number, "path": "1.jpg"} for number in range(70)]
    paths = [{"bytes": None, "path": f"images/{number}.JPG"} for number in range(70, 140)]
    images = bytes_first + paths if first == "bytes" else paths + bytes_first
    rows = [{"id": number, "image": cell(image)} for number, image in enumerate([*images, None], start=1)]
    rows[-1]["image"] = cell({"bytes": None, "path": "images/gone.jpg"})
    schema = pa.schema([("id", pa.int64()), ("image", kind(IMAGE))])
    files = {f"images/{number}.jpg": b"%d" % number for number in range(70, 140)}
    files["shop.parquet"] = _parquet(rows, schema=schema)
    source = _open(
        (_zip if place == "zip" else _folder)(tmp_path / "shop", files) / ("shop.parquet" * (place == "file"))
    )
    expected = [image["bytes"] or image["path"][7:-4].encode() for image in images]
    with source.open_table(KAGGLE) as table:
        *found, last = read_products(table.table, table.columns)
        assert [table.pictures.read(table.find(row).path) for row in found] == expected
        assert all(table.pictures.state(table.find(row).path) for row in found)
        with pytest.raises(PictureMissing, match=r"there is no images/gone\.jpg in"):
            table.find(last)
    with source.open_table(KAGGLE) as table:
        *pictures, last = [picture for _, picture in table.rows()]
        assert [picture.read() for picture in pictures] == expected and all(picture.state() for picture in pictures)
        assert "there is no images/gone.jpg in" in last.problem


def test_paths_in_place_of_bytes_and_texts_stored_as_bytes(tmp_path):
    rows = [{"id": b"1", "title": b"Shirt", "image": {"bytes": None, "path": "images/1.JPG"}}]
    schema = pa.schema([("id", pa.binary()), ("title", pa.binary()), ("image", IMAGE)])
    _folder(tmp_path, {"shop.parquet": _parquet(rows, schema=schema), "images/1.jpg": b"one"})
    assert _pictures(_open(tmp_path / "shop.parquet")) == {"1": b"one"}
    (tmp_path / "shop.parquet").write_bytes(_parquet([{"id": b"1", "title": b"Shirt"}]))
    source = _open(tmp_path / "shop.parquet")
    assert _rows(source) == {"1": "Shirt"} and _pictures(source) == {"1": b"one"}


@pytest.mark.parametrize("make", [_folder, _zip])
def test_what_folders_of_parquet_files_say_is_a_column(tmp_path, make):
    names = {"1": "Home%20%26%20Garden", "2": "__HIVE_DEFAULT_PARTITION__"}
    files = {f"shop/masterCategory={name}/part-0.parquet": _parquet([{"id": row}]) for row, name in names.items()}
    source = _open(make(tmp_path / "partitioned", {**files, "shop/_SUCCESS": b""}))
    with source.open_table(KAGGLE) as table:
        rows = [row.values for row in read_products(table.table, table.columns)]
    assert {row["id"]: row["masterCategory"] for row in rows} == {"1": "Home & Garden", "2": ""}


@pytest.mark.parametrize("split", [True, False])
def test_what_datasets_saves_to_disk(tmp_path, split):
    for folder, rows in (("shop/train", EMBEDDED[:1]), ("shop/test", EMBEDDED[1:])) if split else (("shop", EMBEDDED),):
        _folder(tmp_path / folder, {"state.json": json.dumps({"_data_files": [{"filename": "data-0.arrow"}]}).encode()})
        table = pa.Table.from_pylist(rows, schema=SCHEMA)
        with pa.ipc.new_stream(tmp_path / folder / "data-0.arrow", table.schema) as stream:
            stream.write_table(table)
    assert _pictures(_open(tmp_path / "shop")) == {"1": b"one", "2": b"two"}
    shutil.make_archive(str(tmp_path / "shop"), "zip", tmp_path / "shop")
    assert _pictures(_open(tmp_path / "shop.zip")) == {"1": b"one", "2": b"two"}


@pytest.mark.parametrize("make", [_folder, _zip])
def test_parquet_files_of_different_columns_are_one_table(tmp_path, make):
    parts = [
        [{"id": 1, "title": "Shirt", "image": {"bytes": b"one", "path": ""}}],
        [{"id": "2", "colour": "red", "image": {"path": "", "bytes": b"two"}}],
        [{"title": "Tie", "id": 3.0}],
    ]
    source = _open(make(tmp_path / "shop", {f"{n}.parquet": _parquet(rows) for n, rows in enumerate(parts)}))
    with source.open_table(Columns("id", "", "", "", ())) as table:
        *rows, last = read_products(table.table, table.columns)
        assert [table.pictures.read(table.find(row).path) for row in rows] == [b"one", b"two"]
        assert [row.values[name] for row in rows for name in ("id", "title", "colour")] == [
            "1",
            "Shirt",
            "",
            "2",
            "",
            "red",
        ]
        with pytest.raises(PictureMissing, match="row 3 has no picture"):
            table.pictures.read(table.find(last).path)
    with source.open_table(Columns("id", "", "", "", ())) as table:
        pictures = [picture for _, picture in table.rows()]
        assert [picture.read() for picture in pictures[:2]] == [b"one", b"two"]
        with pytest.raises(PictureMissing, match="row 3 has no picture"):
            pictures[2].read()


@pytest.mark.parametrize("name", ["shop.arrow", "shop.feather"])
@pytest.mark.parametrize("kind", [pa.ipc.new_file, pa.ipc.new_stream])
def test_arrow_files_and_streams(tmp_path, name, kind):
    table = pa.Table.from_pylist(EMBEDDED, schema=SCHEMA)
    with pa.OSFile(str(tmp_path / name), "wb") as file, kind(file, SCHEMA) as writer:
        writer.write_table(table, max_chunksize=1)
    assert _pictures(_open(tmp_path / name)) == {"1": b"one", "2": b"two"}
    assert _rows(_open(tmp_path / name)) == {"1": "Shirt", "2": "Tie"}


def test_a_column_that_stands_twice_is_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array(["1"]), pa.array(["a"]), pa.array(["b"])], names=["id", "kind", "kind"])
    pq.write_table(table, tmp_path / "shop.parquet")
    with pytest.raises(UserError, match="shop.parquet has more than one column called kind: rename all but one"):
        _open(tmp_path / "shop.parquet")
