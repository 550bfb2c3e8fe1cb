"""Where a catalogue may lie, what is no catalogue, and which changes make it another one."""

import io
import os
import tracemalloc
import zipfile

import pytest

from vlm_core.catalogue import sources
from vlm_core.catalogue.sources import MOST_PICTURE_BYTES, HashedTable, open_source
from vlm_core.errors import UserError

TABLE = b"id,title\n1,Shirt\n2,Tie\n"
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


def _table(source):
    with source.open_table() as table:
        return table.read()


def test_a_table_and_its_pictures(source):
    assert source.name == "shop.zip"
    assert _table(source) == TABLE
    assert source.has_picture("images/1.jpg") and source.read_picture("images/2.jpg") == b"two"
    assert not source.has_picture("images/3.jpg") and not source.has_picture("images") and not source.has_picture("")
    with pytest.raises(OSError, match=r"."):
        source.read_picture("images/3.jpg")


@pytest.mark.parametrize("path", ["../secret.jpg", "images/../../secret.jpg", "/etc/hostname", "x" * 5000, "a\0b"])
def test_no_path_leads_out_of_a_catalogue(tmp_path, path):
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    for source in (_open(_folder(tmp_path / "shop")), _open(_zip(tmp_path / "shop.zip"))):
        assert not source.has_picture(path)
        with pytest.raises(OSError, match=r"."):
            source.read_picture(path)


@pytest.mark.parametrize("make", [_folder, _zip])
def test_the_least_nested_table_counts(tmp_path, make):
    nested = {"again/styles.csv": b"id\n9\n", "again/images/9.jpg": b"nine"}
    source = _open(make(tmp_path / "shop", {**nested, **FILES}))
    assert _table(source) == TABLE
    assert source.has_picture("images/1.jpg") and not source.has_picture("images/9.jpg")


def test_a_table_of_the_users_own(tmp_path):
    _folder(tmp_path / "mine", {"shoes.tsv": b"picture\tkind\na/1.png\tBoot\n", "a/1.png": b"boot"})
    source = _open(tmp_path / "mine" / "shoes.tsv")
    assert source.name == "shoes.tsv" and _table(source).startswith(b"picture")
    assert source.read_picture("a/1.png") == b"boot"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("gone.zip", None, "does not exist"),
        ("text.zip", b"no zip at all", "neither a folder, a zip nor a CSV"),
        ("empty.zip", {}, r"holds no styles\.csv"),
        ("other.zip", {"a.txt": b"1"}, r"holds no styles\.csv"),
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
    with pytest.raises(UserError, match=message) as error:
        _open(place)
    assert "\n" not in str(error.value)


def test_a_zip_that_is_cut_short_or_damaged(tmp_path):
    whole = _zip(tmp_path / "whole.zip", {**FILES, "styles.csv": os.urandom(3000)}).read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError):
        _open(tmp_path / "cut.zip")
    (tmp_path / "damaged.zip").write_bytes(whole[:1000] + b"????" + whole[1004:])
    with pytest.raises(UserError, match=r"styles\.csv of damaged\.zip cannot be read"):
        _table(_open(tmp_path / "damaged.zip"))


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
    source = _open(folder)
    with pytest.raises(UserError, match=r"^styles\.csv cannot be read .*regular file"):
        source.open_table()
    assert not source.has_picture("images/1.jpg")
    with pytest.raises(OSError, match="not a"):
        source.read_picture("images/1.jpg")
    with pytest.raises(UserError, match=r"neither a folder nor a regular file|holds no styles"):
        _open(tmp_path / "table.csv")


def test_a_fifo_that_takes_a_files_place_is_not_waited_for(tmp_path, monkeypatch):
    source = _open(_folder(tmp_path / "shop"))
    (tmp_path / "shop" / "images" / "1.jpg").unlink()
    os.mkfifo(tmp_path / "shop" / "images" / "1.jpg")
    monkeypatch.setattr(type(tmp_path), "is_file", lambda path: True)
    with pytest.raises(OSError, match="not a regular file"):
        source.read_picture("images/1.jpg")


def test_links_stay_inside_and_end(tmp_path):
    folder = _folder(tmp_path / "shop")
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (folder / "images" / "3.jpg").symlink_to(tmp_path / "secret.jpg")
    (folder / "images" / "4.jpg").symlink_to("4.jpg")
    (folder / "images" / "5.jpg").symlink_to("1.jpg")
    source = _open(folder)
    assert [source.has_picture(f"images/{name}.jpg") for name in "12345"] == [True, True, False, False, True]


@pytest.mark.parametrize("make", [_folder, _zip])
def test_a_table_is_bounded_as_it_is_unpacked(tmp_path, monkeypatch, make):
    monkeypatch.setattr(sources, "MOST_TABLE_BYTES", 1_000_000)
    source = _open(make(tmp_path / "shop", {**FILES, "styles.csv": TABLE + b"\n" * 3_000_000}))
    tracemalloc.start()
    with source.open_table() as table, pytest.raises(UserError, match=r"styles\.csv.* is larger than 1 MB"):
        while table.read(1000):
            pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 500_000


def test_a_name_in_a_zip_that_is_no_utf8_costs_no_other(tmp_path):
    made = _zip(tmp_path / "a.zip", {**FILES, "images/é.jpg": b"three", "images/ü.jpg": b"four" * 99})
    made.write_bytes(made.read_bytes().replace("é".encode(), b"\xff\xfe"))
    source = _open(made)
    assert _table(source) == TABLE
    for name, data in (("1", b"one"), ("2", b"two"), ("ü", b"four" * 99), (b"\xff\xfe".decode("cp437"), b"three")):
        assert source.read_picture(f"images/{name}.jpg") == data


def test_a_damaged_picture_is_an_error_of_its_own(tmp_path):
    noise = os.urandom(3000)
    data = bytearray(_zip(tmp_path / "a.zip", {**FILES, "images/1.jpg": noise}).read_bytes())
    data[data.index(noise[:50]) + 100] ^= 1
    (tmp_path / "a.zip").write_bytes(data)
    source = _open(tmp_path / "a.zip")
    with pytest.raises(OSError, match="broken"):
        source.read_picture("images/1.jpg")
    assert source.read_picture("images/2.jpg") == b"two"


@pytest.mark.slow
def test_an_entry_that_unpacks_without_end_is_cut(tmp_path):
    source = _open(_zip(tmp_path / "bomb.zip", {**FILES, "images/1.jpg": bytes(MOST_PICTURE_BYTES + 10)}))
    assert len(source.read_picture("images/1.jpg")) <= MOST_PICTURE_BYTES


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
    assert _table(open_source(name, tmp_path)) == TABLE
    assert asked == [tmp_path]


PATHS = ("images/1.jpg", "images/2.jpg")


def _key(place):
    source = _open(place)
    with source.open_table() as table:
        return HashedTable(table).key(source.picture_states(PATHS))


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
        _open(tmp_path / "lies.zip").read_picture("images/1.jpg")
