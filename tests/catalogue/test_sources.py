"""Where a catalogue may lie, what is no catalogue, and which changes make it another one."""

import bz2
import gzip
import io
import json
import os
import tracemalloc
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.messages import collected_messages
from vlm_core.catalogue import sources
from vlm_core.catalogue.catalogue import check_columns
from vlm_core.catalogue.containers.files import MOST_PICTURE_BYTES
from vlm_core.catalogue.picture_files import PictureMissing
from vlm_core.catalogue.reading import Columns, Refusal, read_products
from vlm_core.catalogue.sources import open_source
from vlm_core.catalogue.zips import is_workbook, open_zip
from vlm_core.errors import UserError

KAGGLE = Columns("id", "", "title", "masterCategory", ())
TABLE = b"id,title\n1,Shirt\n2,Tie\n"
ROWS = {"1": "Shirt", "2": "Tie"}
FILES = {"styles.csv": TABLE, "images/1.jpg": b"one", "images/2.jpg": b"two"}


def _folder(folder, files=FILES):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def _zip(path, files=FILES):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in files.items():
            file.writestr(name, data)
    return path


def _open(place, root=None):
    return open_source(str(place), root or place.parent)


@pytest.fixture(params=["folder", "zip", "nested folder", "nested zip"])
def source(request, tmp_path):
    files = {f"a/b/{name}": data for name, data in FILES.items()} if "nested" in request.param else FILES
    make = _folder if "folder" in request.param else _zip
    return _open(make(tmp_path / "shop.zip", files))


def _rows(source, columns=KAGGLE):
    with source.open_table(columns) as table:
        return {row.values["id"]: row.values["title"] for row in read_products(table.table, table.columns)}


def _pictures(source, columns=KAGGLE):
    """The picture of each row."""
    with source.open_table(columns) as table:
        rows = [row for row in read_products(table.table, table.columns) if not isinstance(row, Refusal)]
        return {row.values["id"]: table.pictures.read(table.find(row).path) for row in rows}


def test_a_table_and_its_pictures(source):
    assert source.name == "shop.zip"
    assert _rows(source) == ROWS
    assert _pictures(source) == {"1": b"one", "2": b"two"}
    for cell in ("images/3.jpg", "images", ""):
        with pytest.raises(PictureMissing):
            source.pictures.find(cell)


@pytest.mark.parametrize("path", ["../secret.jpg", "images/../../secret.jpg", "/etc/hostname", "x" * 5000, "a\0b"])
def test_no_path_leads_out_of_a_catalogue(tmp_path, path):
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    for source in (_open(_folder(tmp_path / "shop")), _open(_zip(tmp_path / "shop.zip"))):
        with pytest.raises(PictureMissing):
            source.pictures.find(path)


@pytest.mark.parametrize("make", [_folder, _zip])
def test_the_least_nested_table_counts(tmp_path, make):
    nested = {"again/styles.csv": b"id\n9\n", "again/images/9.jpg": b"nine"}
    source = _open(make(tmp_path / "shop", {**nested, **FILES}))
    assert _rows(source) == ROWS
    assert source.pictures.find("images/1.jpg").path == "images/1.jpg"


@pytest.mark.parametrize("make", [_folder, _zip])
def test_the_table_beside_the_pictures_counts(tmp_path, make):
    files = {f"inner/{name}": data for name, data in FILES.items()}
    assert _pictures(_open(make(tmp_path / "shop", {"styles.csv": TABLE, **files}))) == {"1": b"one", "2": b"two"}


def test_a_table_of_the_users_own(tmp_path):
    _folder(tmp_path / "mine", {"shoes.tsv": b"id\tpicture\tkind\n7\ta/1.png\tBoot\n", "a/1.png": b"boot"})
    source = _open(tmp_path / "mine" / "shoes.tsv")
    assert source.name == "shoes.tsv"
    assert _pictures(source, Columns("id", "picture", "", "kind", ())) == {"7": b"boot"}


OBJECTS = [{"id": 1, "title": "Shirt", "more": {"a": [1]}}, {"id": 2.0, "title": "Tie", "other": None}]


def _parquet(rows, **columns):
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, **columns), file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("shop.csv.gz", gzip.compress(TABLE, mtime=0)),
        ("shop.csv.bz2", bz2.compress(TABLE)),
        ("shop.TXT", TABLE),
        ("shop.jsonl", "\n".join(json.dumps(row) for row in OBJECTS).encode()),
        ("shop.ndjson", b"\xef\xbb\xbf" + b"\n\n".join(json.dumps(row).encode() for row in OBJECTS)),
        ("shop.json", json.dumps(OBJECTS, indent=1).encode()),
        ("shop.parquet", _parquet([{"id": 1, "title": "Shirt"}, {"id": 2, "title": "Tie"}])),
        ("shop.parquet", _parquet([{"id": 1.0, "title": "Shirt"}, {"id": 2.0, "title": "Tie"}])),
    ],
)
@pytest.mark.parametrize("place", ["file", "folder", "zip"])
def test_tables_of_every_kind(tmp_path, name, content, place):
    files = {name: content, "images/1.jpg": b"one", "images/2.jpg": b"two", "README.md": b"hello", ".DS_Store": b"x"}
    if place == "zip":
        source = _open(_zip(tmp_path / "shop.zip", {f"shop/{name}": data for name, data in files.items()}))
    else:
        folder = _folder(tmp_path / "shop", files)
        source = _open(folder / name if place == "file" else folder)
    assert _rows(source) == ROWS
    assert _pictures(source) == {"1": b"one", "2": b"two"}


@pytest.mark.parametrize("in_parts", [True, False])
@pytest.mark.parametrize("make", [_folder, _zip])
def test_annotations_of_coco_beside_folders_of_pictures(tmp_path, make, in_parts):
    def annotations(names):
        return {
            "images": [{"id": name, "file_name": f"{name}.jpg"} for name in names],
            "annotations": [{"image_id": name, "category_id": 1} for name in names],
            "categories": [{"id": 1, "name": "Shirt"}],
        }

    listed = {"train": ["1"], "val": ["2"]} if in_parts else {"": ["1", "2"]}
    files = {f"annotations/instances_{part}2017.json": json.dumps(annotations(ids)) for part, ids in listed.items()}
    pictures = {"train2017/1.jpg": b"one", "val2017/2.jpg": b"two"}
    source = _open(make(tmp_path / "coco", {name: text.encode() for name, text in files.items()} | pictures))
    assert _pictures(source, KAGGLE) == {"1": b"one", "2": b"two"}
    with source.open_table(KAGGLE) as table:
        assert [row.values["masterCategory"] for row in read_products(table.table, table.columns)] == ["Shirt"] * 2


@pytest.mark.parametrize("make", [_folder, _zip])
@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("split", [True, False])
def test_hugging_faces_imagefolder(tmp_path, make, form, split):
    def metadata(*rows):
        if form == "csv":
            lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
            return "\n".join(lines).encode()
        return _parquet(list(rows)) if form == "parquet" else "\n".join(map(json.dumps, rows)).encode()

    one = {"file_name": "a.png", "id": 1, "label": "Bag", "title": "x"}
    two = {"file_name": "sub/b.png", "id": 2, "label": "Shoe", "title": "y"}
    if split:
        files = {f"train/metadata.{form}": metadata(one), f"test/metadata.{form}": metadata(two)}
        files |= {"train/a.png": b"one", "test/sub/b.png": b"two"}
    else:
        files = {f"metadata.{form}": metadata(one, two), "a.png": b"one", "sub/b.png": b"two"}
    assert _pictures(_open(make(tmp_path / "shop", files))) == {"1": b"one", "2": b"two"}


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("gone.zip", None, r"does not exist: .*Looked for /.*gone\.zip"),
        (
            "text.zip",
            b"no zip at all",
            "a broken or incomplete zip.*copy or download it again, and if it came in parts",
        ),
        ("text.bin", b"no zip at all", "neither a folder, a zip nor a table"),
        ("shop.csv.xz", b"x", r"shop\.csv\.xz is packed in a way that is not read: unpack it first"),
        ("shop.xml", b"<x/>", "shop.xml is not read: save the table as CSV or Parquet"),
        (
            "feed.zip",
            {"pics/1.jpg": b"1", "pics/shop.xml": b"<x/>"},
            "only one category, pics: .* pics/shop.xml is not read: save",
        ),
        ("web.zip", {"train-0.tar": b"1"}, "train-0.tar is an archive that is not read in place: unpack it"),
        (
            "lock.xlsx",
            b"\xd0\xcf\x11\xe0" + bytes(99),
            "lock.xlsx has a password, or is a workbook of before 2007: save",
        ),
        (
            "lines.csv",
            b"7,pics/7.jpg,Shoe\n",
            "Its first line seems to be a product: put a line above it that names the columns",
        ),
        ("long.csv", b"x" * 5000 + b",b\n", r"which has: x{80}\.\.\., b\."),
        ("old.xls", b"\xd0\xcf\x11\xe0", "before 2007.*save the table as CSV UTF-8"),
        ("page.xls", b"<html><table>", "a web page.*save the table as CSV UTF-8"),
        ("new.xlsb", b"x", "save it as CSV UTF-8"),
        ("shop.tar.gz", b"x", "unpack it"),
        ("empty.zip", {}, r"holds no styles\.csv, because it is empty"),
        ("other.zip", {"a.md": b"1", "b.md": b"2"}, r"holds no styles\.csv and no other table, but 2 files with \.md"),
        ("inner.zip", {"shop.zip": b"1"}, r"but another zip, shop\.zip: unpack inner\.zip, and give data=shop\.zip"),
        ("readme.zip", {"a.zip": b"1", "readme.txt": b"Hello, you"}, "but another zip, a\\.zip: unpack readme\\.zip"),
        ("pictures.zip", {"1.jpg": b"1", "2.jpg": b"2"}, "but 2 pictures that are not in folders by category"),
        ("one.zip", {"Chairs/1.jpg": b"1"}, "but 1 picture of only one category, Chairs"),
        ("cut.zip", b"PK\3\4 and no end", "broken or incomplete zip, whose end is missing: copy or download it again"),
        ("two.zip", {"a.csv": b"1", "b.csv": b"2"}, r"several tables \(a\.csv, b\.csv\)"),
        ("empty", {}, r"holds no styles\.csv"),
    ],
)
def test_what_is_no_catalogue_is_said_so_in_one_sentence(tmp_path, name, data, message):
    place = tmp_path / name
    if name == "empty":
        place.mkdir()
    elif isinstance(data, dict):
        _zip(place, data)
    elif data is not None:
        place.write_bytes(data)
    with pytest.raises(UserError, match=message) as error, _open(place).open_table(KAGGLE) as table:
        check_columns(name, table)
    assert "\n" not in str(error.value)


def test_a_zip_with_a_password_is_said_to_have_one(tmp_path):
    data = bytearray(_zip(tmp_path / "shop.zip").read_bytes())
    for start, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = -1
        while (at := data.find(start, at + 1)) >= 0:
            data[at + place] |= 1
    (tmp_path / "shop.zip").write_bytes(data)
    with pytest.raises(UserError, match=r"shop\.zip has a password: unpack it, and give the folder\.$"):
        _open(tmp_path / "shop.zip")


def test_a_workbook_called_xls_is_read_as_what_it_is(tmp_path):
    import openpyxl

    book = openpyxl.Workbook()
    for row in (("id", "title"), (1, "Shirt"), (2, "Tie")):
        book.active.append(row)
    book.save(tmp_path / "shop.xlsx")
    assert _rows(_open((tmp_path / "shop.xlsx").rename(tmp_path / "shop.xls"))) == ROWS
    (tmp_path / "text.xls").write_bytes(TABLE.replace(b",", b"\t"))
    assert _rows(_open(tmp_path / "text.xls")) == ROWS


def test_a_zip_that_is_cut_short_or_damaged(tmp_path):
    whole = _zip(tmp_path / "whole.zip", {**FILES, "styles.csv": os.urandom(3000)}).read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError):
        _open(tmp_path / "cut.zip")
    (tmp_path / "damaged.zip").write_bytes(whole[:1000] + b"????" + whole[1004:])
    with pytest.raises(UserError, match=r"styles\.csv of damaged\.zip cannot be read"):
        _rows(_open(tmp_path / "damaged.zip"))


@pytest.mark.parametrize(
    "name", ["shop.csv.gz", "shop.csv.bz2", "shop.parquet", "shop.jsonl", "shop.json", "data.arrow"]
)
def test_a_table_that_is_cut_short_or_something_else(tmp_path, name):
    whole = {
        ".gz": gzip.compress(os.urandom(5000)),
        ".bz2": bz2.compress(os.urandom(5000)),
        ".parquet": _parquet(OBJECTS[:1]),
    }.get(os.path.splitext(name)[1], b'["a",')  # noqa: PTH122
    for content in (whole[: len(whole) // 2], b"", b"no such thing"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name) as error:
            _rows(_open(tmp_path / name))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["fifo", "device", "folder"])
def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path, kind):
    folder = _folder(tmp_path / "shop")
    for path in (folder / "styles.csv", folder / "images" / "1.jpg", tmp_path / "table.csv"):
        path.unlink(missing_ok=True)
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "device":
            path.symlink_to("/dev/zero")
        else:
            path.mkdir()
    with pytest.raises(UserError, match=r"holds no styles\.csv"):
        _open(folder)
    _folder(tmp_path / "shop", {"other.csv": TABLE})
    with pytest.raises(PictureMissing):
        _open(folder).pictures.find("images/1.jpg")
    with pytest.raises(UserError, match=r"neither a folder nor a regular file|holds no styles"):
        _open(tmp_path / "table.csv")


def test_a_fifo_that_takes_a_files_place_is_not_waited_for(tmp_path, monkeypatch):
    source = _open(_folder(tmp_path / "shop"))
    (tmp_path / "shop" / "images" / "1.jpg").unlink()
    os.mkfifo(tmp_path / "shop" / "images" / "1.jpg")
    monkeypatch.setattr(type(tmp_path), "is_file", lambda path: True)
    with pytest.raises(OSError, match="not a regular file"):
        source.pictures.read("images/1.jpg")


@pytest.mark.parametrize("make", [_folder, _zip])
def test_a_table_is_bounded_as_it_is_unpacked(tmp_path, monkeypatch, make):
    monkeypatch.setattr(sources, "MOST_TABLE_BYTES", 1_000_000)
    source = _open(make(tmp_path / "shop", {**FILES, "styles.csv": TABLE + b"\n" * 3_000_000}))
    tracemalloc.start()
    with pytest.raises(UserError, match=r"styles\.csv.* is larger than 1 MB"):
        _rows(source)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6_000_000


def test_a_name_in_a_zip_that_is_no_utf8_costs_no_other(tmp_path):
    made = _zip(tmp_path / "a.zip", {**FILES, "images/é.jpg": b"three", "images/ü.jpg": b"four" * 99})
    made.write_bytes(made.read_bytes().replace("é".encode(), b"\xff\xfe"))
    source = _open(made)
    assert _rows(source) == ROWS
    for name, data in (("1", b"one"), ("2", b"two"), ("ü", b"four" * 99), (b"\xff\xfe".decode("cp437"), b"three")):
        assert source.pictures.read(source.pictures.find(f"images/{name}.jpg").path) == data


def test_a_damaged_picture_is_an_error_of_its_own(tmp_path):
    noise = os.urandom(3000)
    data = bytearray(_zip(tmp_path / "a.zip", {**FILES, "images/1.jpg": noise}).read_bytes())
    data[data.index(noise[:50]) + 100] ^= 1
    (tmp_path / "a.zip").write_bytes(data)
    source = _open(tmp_path / "a.zip")
    with pytest.raises(OSError, match="broken"):
        source.pictures.read("images/1.jpg")
    assert source.pictures.read("images/2.jpg") == b"two"


@pytest.mark.slow
def test_an_entry_that_unpacks_without_end_is_cut(tmp_path):
    source = _open(_zip(tmp_path / "bomb.zip", {**FILES, "images/1.jpg": bytes(MOST_PICTURE_BYTES + 10)}))
    assert len(source.pictures.read("images/1.jpg")) <= MOST_PICTURE_BYTES


def test_auto_takes_the_real_catalogue_and_else_the_sample(tmp_path, monkeypatch):
    drawn = _folder(tmp_path / "drawn")
    monkeypatch.setattr("vlm_core.catalogue.sample.draw_sample", lambda folder, **_: drawn)
    assert open_source("auto", tmp_path).name == "sample"
    _folder(tmp_path / "data" / "raw" / "myntra_fashion_products")
    assert open_source("auto", tmp_path).name == "myntra_fashion_products"
    assert open_source("sample", tmp_path).name == "sample"


@pytest.mark.parametrize("name", ["kaggle", "hf"])
def test_public_catalogues_are_fetched_first(tmp_path, monkeypatch, name):
    asked = []

    def fetch(root, *_):
        asked.append(root)
        return _folder(tmp_path / f"fetched-{name}")

    monkeypatch.setattr(f"vlm_core.catalogue.fetching.fetch_{name}", fetch)
    assert _rows(open_source(name, tmp_path)) == ROWS
    assert asked == [tmp_path]


PATHS = ("images/1.jpg", "images/2.jpg")


def _key(place):
    with _open(place).open_table(KAGGLE) as table:
        return table.key(PATHS)


@pytest.mark.parametrize("make", [_folder, _zip])
@pytest.mark.parametrize(
    "change", [{"styles.csv": TABLE + b"3,Cap\n"}, {"images/1.jpg": b"ONE!"}, {"images/2.jpg": b"TWO"}]
)
def test_the_key_follows_the_contents(tmp_path, make, change):
    before = _key(make(tmp_path / "shop"))
    assert before == _key(tmp_path / "shop")
    make(tmp_path / "shop", {**FILES, **change})
    for name in change:
        if make is _folder:
            os.utime(tmp_path / "shop" / name, ns=(1, 1))  # another time than a moment ago, whatever the clock's tick
    assert _key(tmp_path / "shop") != before


def test_the_key_is_blind_to_what_else_lies_beside_a_table(tmp_path):
    _folder(tmp_path, {"mine.csv": TABLE, "images/1.jpg": b"one", "images/2.jpg": b"two"})
    before = _key(tmp_path / "mine.csv")
    _folder(tmp_path, {"mlflow.db": b"of a run", "data/processed/mine/pictures.npy": b"prepared"})
    assert _key(tmp_path / "mine.csv") == before


def test_a_zip_that_lies_about_its_sizes_is_bounded(tmp_path):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("styles.csv", TABLE)
        archive.writestr("images/1.jpg", bytes(100_000))
    data = file.getvalue().replace((100_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    (tmp_path / "lies.zip").write_bytes(data)
    with pytest.raises(OSError, match="broken"):
        _open(tmp_path / "lies.zip").pictures.read("images/1.jpg")


def test_an_entry_without_a_name_hides_no_other(tmp_path):
    path = tmp_path / "shop.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo(""), b"lost")
        archive.writestr("styles.csv", "id,masterCategory\n1,Shoes\n")
    with open_zip(path) as opened:
        assert opened.namelist() == ["", "styles.csv"]
    assert not is_workbook(tmp_path / "shop.zip")


def test_a_zip_that_has_a_name_twice_says_so(tmp_path):
    with zipfile.ZipFile(tmp_path / "shop.zip", "w") as archive:
        for name in ("S/a.jpg", "T/b.jpg", "T/c.jpg"):
            archive.writestr(name, name)
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("S/a.jpg", "another")
    with collected_messages() as lines:
        open_source(str(tmp_path / "shop.zip"), tmp_path)
    assert any("has 1 of its files twice, such as S/a.jpg: the last one is read" in line for line in lines)


@pytest.mark.parametrize("top", ["/", "C:\\shop\\", "c:/", "//server/share/", "./"])
def test_paths_of_a_whole_disk_in_a_zip_are_read_below_it(tmp_path, top):
    source = _open(_zip(tmp_path / "shop.zip", {f"{top}{name}": data for name, data in FILES.items()}))
    assert _rows(source) == ROWS and _pictures(source) == {"1": b"one", "2": b"two"}


def test_a_zip_that_is_packed_in_an_unknown_way_says_so(tmp_path):
    path = _zip(tmp_path / "shop.zip")
    data = bytearray(path.read_bytes())
    methods = {"styles.csv": 9, "images/1.jpg": 9, "images/2.jpg": 8}  # 9: what Windows takes above two gigabytes
    with zipfile.ZipFile(path) as archive:
        for name, method in methods.items():
            data[archive.getinfo(name).header_offset + 8] = method
            data[data.rindex(name.encode()) - 46 + 10] = method
    path.write_bytes(data)
    with pytest.raises(UserError, match="is packed in a way that is not read .*: unpack the zip, and give its folder"):
        _rows(_open(path))
    with pytest.raises(OSError, match="it is packed in a way that is not read: unpack the zip, and give its folder"):
        _open(path).pictures.read("images/1.jpg")
