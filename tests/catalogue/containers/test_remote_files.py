"""Catalogues at addresses are those on the disk, and no request is made twice."""

import pytest

from tests.catalogue.handovers import (
    CONTAINERS,
    PICTURES,
    PRODUCTS,
    Dialect,
    folders_by_category,
    imagefolder,
    parquet_parts,
    pictures_inside,
    put_folder,
    saved_datasets,
    table_text,
)
from tests.object_store import MemoryStore, object_store
from vlm_core.catalogue.catalogue import prepare_catalogue
from vlm_core.catalogue.containers import remote_files
from vlm_core.catalogue.containers.folder import FolderFiles
from vlm_core.catalogue.containers.remote_files import find_remote
from vlm_core.catalogue.reading import Columns
from vlm_core.catalogue.shards import Packed, pack
from vlm_core.catalogue.sources import open_source
from vlm_core.errors import UserError

COLUMNS = Columns("id", "", "title", "masterCategory", ())
BY_PATH = Columns("id", "photo", "title", "masterCategory", ())


def _pack(data, output, columns=COLUMNS, rows=5):
    source = open_source(str(data), output.parent)
    return pack(source, columns, output, rows_per_shard=rows, bytes_per_shard=10**6)


def _shards(place, rows):
    _pack(pictures_inside(place / "whole", rows), place / "shards")
    return place / "shards"


MADE = {
    **{
        name: lambda place, rows, make=make: make(
            place, rows, {f"images/{row['id']}.jpg": PICTURES[row["id"]] for row in rows}, Dialect()
        )
        for name, make in CONTAINERS.items()
    },
    "pictures inside": pictures_inside,
    "imagefolder": imagefolder,
    "parquet parts": parquet_parts,
    "saved datasets": saved_datasets,
    "folders by category": folders_by_category,
    "shards": _shards,
}
IN_S3 = ("csv", "folder", "zip", "parquet", "pictures inside", "saved datasets", "folders by category", "shards")


@pytest.fixture(scope="module")
def patch():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def s3(patch):
    with object_store(patch) as store:
        yield store


@pytest.fixture
def memory(tmp_path):
    return MemoryStore(tmp_path.as_posix().strip("/"))


def _told(data, root, columns=COLUMNS):
    for by_id in (True, False):
        catalogue = prepare_catalogue(str(data), columns, root, by_id=by_id)
        yield (
            catalogue.name,
            catalogue.fingerprint,
            catalogue.pictures_fingerprint,
            catalogue.products.to_dict("list"),
            [each.reason for each in catalogue.reading.left_out()],
            catalogue.reading.notes,
        )


def _is_the_same_in(store, made, tmp_path):
    place = MADE[made](tmp_path / "shop", PRODUCTS)
    top = place.parent if place.is_file() and place.parent != tmp_path else place
    address = f"{store.put_all(top)}/{place.relative_to(top).as_posix()}".removesuffix("/.")
    assert list(_told(address, tmp_path / "far")) == list(_told(place, tmp_path / "near"))


@pytest.mark.parametrize("made", MADE)
def test_a_catalogue_at_an_address_is_the_one_on_the_disk(memory, tmp_path, made):
    _is_the_same_in(memory, made, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("made", IN_S3)
def test_a_catalogue_in_s3_is_the_one_on_the_disk(s3, tmp_path, made):
    _is_the_same_in(s3, made, tmp_path / made)


def _shop(tmp_path, names, products=PRODUCTS):
    """A table whose pictures are called so, by their ids."""
    rows = [{**row, "photo": names(row["id"])} for row in products]
    files = {row["photo"]: PICTURES[row["id"]] for row in rows}
    return put_folder(tmp_path / "shop", {"shop.csv": table_text(rows, Dialect()), **files})


@pytest.mark.slow
def test_a_picture_in_s3_is_asked_for_once_and_its_folder_is_listed_once(s3, tmp_path):
    address = s3.put_all(_shop(tmp_path, "more/pics/{}.png".format))
    s3.requests.clear()
    _pack(f"{address}/shop.csv", tmp_path / "packed", BY_PATH)
    assert s3.count("GET", ".png") == s3.count("HEAD", ".png") == len(PRODUCTS)
    assert s3.count("GET", "list-type") == 1  # of pics


@pytest.mark.slow
def test_cells_may_be_addresses_in_the_bucket_of_their_table(s3, tmp_path):
    shop = _shop(tmp_path, "pics/{}.png".format, PRODUCTS[:6])
    address = s3.put_all(shop)
    pictures = [f"{address}/pics/1001.png", f"{address}/pics/9.png", "s3://other/pics/1002.png", "http://x/1.png"]
    rows = [{**row, "photo": picture} for row, picture in zip(PRODUCTS, pictures, strict=False)]
    s3.put(f"{tmp_path.name}/more/shop.csv", table_text(rows, Dialect()))
    packed = _pack(f"{address.removesuffix('shop')}more/shop.csv", tmp_path / "shards", BY_PATH)
    assert (packed.rows, packed.missing) == (4, 3)
    assert all("a web address that is not downloaded" in reason for reason in packed.reasons)
    s3.put(f"{tmp_path.name}/folder/shop.csv", table_text(rows, Dialect()))
    assert _pack(f"{address.removesuffix('shop')}folder", tmp_path / "inside", BY_PATH).missing == 4


@pytest.mark.slow
def test_a_packing_that_loses_its_store_goes_on_later(tmp_path, monkeypatch):
    with object_store(monkeypatch) as store:
        address = f"{store.put_all(_shop(tmp_path, 'pics/{}.png'.format))}/shop.csv"
        whole = _pack(address, tmp_path / "whole", BY_PATH)
        calls = iter(range(2))
        write = Packed.write
        monkeypatch.setattr(Packed, "write", lambda self, folder: (next(calls), write(self, folder)))
        with pytest.raises(StopIteration):
            _pack(address, tmp_path / "shards", BY_PATH)
        monkeypatch.setattr(Packed, "write", write)
        store.requests.clear()
        assert _pack(address, tmp_path / "shards", BY_PATH) == whole
        assert store.count("GET", ".png") == len(PRODUCTS) - 10  # two shards of five were whole


def test_folders_of_one_folder_are_listed_together_once_there_are_many(memory, tmp_path, monkeypatch):
    address = memory.put_all(_shop(tmp_path, "pics/{}/front.png".format))
    listed = []
    entries = remote_files._entries
    monkeypatch.setattr(remote_files, "LISTED_APART", 3)
    monkeypatch.setattr(remote_files, "_entries", lambda *found: (listed.append(found[1:]), entries(*found))[1])
    packed = _pack(f"{address}/shop.csv", tmp_path / "packed", BY_PATH)
    assert (packed.rows, packed.missing) == (28, 0)
    assert [(folder.rpartition("/shop/")[2], wholly) for folder, wholly in listed] == [
        *((f"pics/{name}", False) for name in (1001, 1002, 1003)),
        ("pics", True),
    ]


def test_a_store_that_goes_away_ends_the_packing_and_no_row_is_lost(memory, tmp_path, monkeypatch):
    address = f"{memory.put_all(_shop(tmp_path, 'pics/{}.png'.format))}/shop.csv"
    whole = _pack(address, tmp_path / "whole", BY_PATH)
    read, left = remote_files.RemoteFiles._read, iter(range(12))

    def lose(self, where):
        if next(left, None) is None:
            monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.info", _away)
            _away()
        return read(self, where)

    with monkeypatch.context() as patch:
        patch.setattr(remote_files.RemoteFiles, "_read", lose)
        with pytest.raises(
            UserError, match=r"memory://.*/shop cannot be read \(no route\): check the address, the netw"
        ):
            _pack(address, tmp_path / "shards", BY_PATH)
    monkeypatch.undo()
    assert not (tmp_path / "shards").exists()
    assert _pack(address, tmp_path / "shards", BY_PATH) == whole


def _away(*_, **__):
    raise TimeoutError("no route")


def test_a_single_picture_that_cannot_be_read_is_a_row_that_says_why(memory, tmp_path, monkeypatch):
    shop = _shop(tmp_path, "pics/{}.png".format)
    (shop / "pics" / "1001.png").unlink()
    address = f"{memory.put_all(shop)}/shop.csv"
    read = remote_files.RemoteFiles._read

    def refuse(self, where):
        if where.endswith("1002.png"):
            raise PermissionError("not yours")
        return read(self, where)

    monkeypatch.setattr(remote_files.RemoteFiles, "_read", refuse)
    packed = _pack(address, tmp_path / "shards", BY_PATH)
    missing, refused = packed.reasons
    assert packed.missing == 2 and refused.startswith("pics/1002.png cannot be read from memory://")
    assert missing == f"there is no pics/1001.png in {address.removesuffix('/shop.csv')}, which has pics/1002.png"


def test_a_picture_that_changes_is_packed_anew(memory, tmp_path):
    shop = _shop(tmp_path, "pics/{}.png".format)
    address = f"{memory.put_all(shop)}/shop.csv"
    _pack(address, tmp_path / "shards", BY_PATH)
    first = find_remote(address)[0].state("pics/1001.png")
    memory.put(f"{tmp_path.name}/shop/pics/1001.png", PICTURES["1001"])
    assert find_remote(address)[0].state("pics/1001.png") != first
    with pytest.raises(UserError, match="was packed from another state of shop.csv"):
        _pack(address, tmp_path / "shards", BY_PATH)


def test_files_are_walked_as_those_of_a_folder(memory, tmp_path):
    names = ("b.jpg", "a/2.jpg", "a/1.jpg", "a/.hidden", "a/c/3.jpg", "__MACOSX/x", "Z.jpg", "ä b/c%20d?e=f#.jpg")
    shop = put_folder(tmp_path / "shop", dict.fromkeys(names, b"x"))
    near, (far, _) = FolderFiles(shop), find_remote(memory.put_all(shop))
    assert list(far.walk()) == list(near.walk()) and list(far.walk("a")) == list(near.walk("a"))
    assert sorted(far.walk(everything=True)) == sorted(near.walk(everything=True))
    for path in (*names, "a", "nothing", "a/../b.jpg", "/etc/passwd", "../shop/b.jpg", "b.jpg/x", "\ud800", "\0"):
        assert far.contains(path) == near.contains(path) or path == "/etc/passwd"
    assert far.folder("a") == near.folder("a") == (["c"], ["1.jpg", "2.jpg"])
    assert far.folder("nothing") == near.folder("nothing") == ([], [])


def test_no_path_leads_out_of_a_bucket(tmp_path):
    store = MemoryStore(f"{tmp_path.name}-1")
    store.put("shop/shop.csv", b"id")
    MemoryStore(f"{tmp_path.name}-2").put("1.jpg", b"x")
    store.put("1.jpg", b"x")
    files, _ = find_remote(f"{store.top}/shop/shop.csv")
    assert files.contains("../1.jpg")
    assert not files.contains(f"../../{tmp_path.name}-2/1.jpg")


def test_beside_a_table_nothing_is_listed_but_what_it_names(memory, tmp_path, monkeypatch):
    shop = _shop(tmp_path, "pics/{}.png".format)
    put_folder(shop / "other", {f"{number}/1.txt": b"x" for number in range(50)})
    address = f"{memory.put_all(shop)}/shop.csv"
    listed = []
    entries = remote_files._entries
    monkeypatch.setattr(
        remote_files,
        "_entries",
        lambda files, folder, wholly: (listed.append(folder), entries(files, folder, wholly))[1],
    )
    prepare_catalogue(address, BY_PATH, tmp_path)
    assert [folder.rpartition("/shop/")[2] for folder in listed] == ["pics"]


def test_a_zip_is_copied_once_and_again_when_it_changes(memory, tmp_path):
    place = MADE["zip"](tmp_path / "shop", PRODUCTS)
    address = memory.put_all(place)
    first = list(_told(address, tmp_path))
    (copy,) = (tmp_path / "data" / "downloads").rglob("*.zip")
    before = copy.stat().st_mtime_ns
    assert list(_told(address, tmp_path)) == first and copy.stat().st_mtime_ns == before
    memory.put_all(MADE["zip"](tmp_path / "shop", PRODUCTS[:20]))
    assert len(next(_told(address, tmp_path))[3]["id"]) == 20
    assert len(list((tmp_path / "data" / "downloads").rglob("*.zip"))) == 1


def test_a_zip_for_which_there_is_no_room_is_refused(memory, tmp_path, monkeypatch):
    address = memory.put_all(MADE["zip"](tmp_path / "shop", PRODUCTS))
    monkeypatch.setattr(remote_files.shutil, "disk_usage", lambda place: type("Usage", (), {"free": 1000}))
    with pytest.raises(
        UserError, match=r"shop.zip is copied to .*, where its 0 MB do not fit into the 0 MB that are free"
    ):
        open_source(address, tmp_path)
    assert not list((tmp_path / "data").rglob("*.zip"))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nothing", "is not there: check the names of the bucket and of what is in it."),
        ("shop.tar.gz", "is an archive that is not read in place: unpack it, and give the folder."),
        ("notes.md", "is neither a folder, a zip nor a table: give a folder, a zip, or a table"),
        ("empty", "holds no styles.csv and no other table, but 1 file with .md"),
        ("broken.zip", "is a broken or incomplete zip, whose end is missing"),
        ("broken.parquet", "cannot be read (Parquet magic bytes not found in footer."),
        ("zipped", "is a broken or incomplete zip, whose end is missing"),
    ],
)
def test_what_is_no_catalogue_is_refused(memory, tmp_path, name, sentence):
    for path in ("shop.tar.gz", "notes.md", "empty/notes.md", "broken.zip", "broken.parquet"):
        memory.put(path, b"of no use")
    memory.put("zipped", b"PK\3\4 and no end")
    with pytest.raises(UserError) as caught:
        prepare_catalogue(f"{memory.top}/{name}", COLUMNS, tmp_path)
    assert name in str(caught.value) and sentence in str(caught.value)


def test_a_parquet_file_whose_store_goes_away_names_it(memory, tmp_path, monkeypatch):
    place = pictures_inside(tmp_path / "shop", PRODUCTS)
    address = f"{memory.put_all(place.parent)}/{place.name}"
    source = open_source(address, tmp_path)
    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem._open", _away)
    with pytest.raises(UserError, match=r"memory://.*train.parquet cannot be read \(no route\): check the address"):
        list(source.open_table(COLUMNS).rows())


def test_a_table_whose_store_goes_away_names_it(memory, tmp_path, monkeypatch):
    address = f"{memory.put_all(_shop(tmp_path, 'pics/{}.png'.format))}/shop.csv"
    monkeypatch.setattr("fsspec.implementations.memory.MemoryFile.readinto", _away, raising=False)
    with pytest.raises(UserError, match=r"memory://.*shop.csv cannot be read \(no route\): check the address"):
        list(open_source(address, tmp_path).open_table(BY_PATH).rows())
