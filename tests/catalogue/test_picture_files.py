"""From a table's cell to a picture: every spelling that means one file, and none that could mean another."""

import unicodedata
import zipfile

import pytest

from vlm_core.catalogue.containers.folder import FolderFiles
from vlm_core.catalogue.containers.zip_files import ZipFiles
from vlm_core.catalogue.picture_files import FilePictures, PictureMissing, split_cell


def _folder(tmp_path, *names):
    for name in names:
        (tmp_path / "shop" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "shop" / name).write_bytes(name.encode())
    return FilePictures(FolderFiles(tmp_path / "shop"))


def _zip(tmp_path, *names):
    with zipfile.ZipFile(tmp_path / "shop.zip", "w") as file:
        for name in names:
            file.writestr(name, name)
    return FilePictures(ZipFiles(tmp_path / "shop.zip"))


MAKERS = pytest.mark.parametrize("make", [_folder, _zip])


@MAKERS
def test_pictures_beside_the_folder_of_their_table(tmp_path, make):
    pictures = make(tmp_path, "shop/data/list.csv", "shop/photos/1.jpg")
    table = FilePictures(pictures._files, "shop/data")
    assert table.find("photos/1.jpg").path == table.find("1.jpg").path == "shop/photos/1.jpg"


def test_a_table_that_is_named_itself_may_lie_in_a_folder_beside_the_pictures(tmp_path):
    _folder(tmp_path, "data/list.csv", "Photos/1.jpg")
    files = FolderFiles(tmp_path / "shop" / "data")
    assert FilePictures(files, outside=True).read(FilePictures(files, outside=True).find("photos/1.JPG").path)
    with pytest.raises(PictureMissing, match="no picture files: give the folder or zip that has both"):
        FilePictures(files).find("photos/1.jpg")


@MAKERS
@pytest.mark.parametrize(
    ("cell", "file"),
    [
        ("pics/1001.jpg", "pics/1001.jpg"),
        (r"pics\1001.jpg", "pics/1001.jpg"),
        (r".\pics\1001.jpg", "pics/1001.jpg"),
        ("./pics//1001.jpg ", "pics/1001.jpg"),
        ("/pics/1001.jpg", "pics/1001.jpg"),
        (r"C:\Users\me\shop\pics\1001.jpg", "pics/1001.jpg"),
        ("/home/me/shop/pics/1001.jpg", "pics/1001.jpg"),
        (r"\\nas\shop\pics\1001.jpg", "pics/1001.jpg"),
        ("pics/1001.jpg?v=17", "pics/1001.jpg"),
        ("file:///home/me/pics/1001.jpg", "pics/1001.jpg"),
        ('"pics/1001.jpg"', "pics/1001.jpg"),
        ("file:///C:/shop/pics/1001.jpg", "pics/1001.jpg"),
        ("file://C:\\shop\\pics\\1001.jpg", "pics/1001.jpg"),
        ('=HYPERLINK("pics/1001.jpg"; "Bag")', "pics/1001.jpg"),
        ('<p><img class="a" src="pics/1001.jpg" alt=""></p>', "pics/1001.jpg"),
        ("![Bag](pics/1001.jpg)", "pics/1001.jpg"),
        ("pics/bag (1).jpg", "pics/bag (1).jpg"),
        ("PICS/1001.JPG", "pics/1001.jpg"),
        ("pics/1001.jpg", "Pics/1001.JPEG"),
        ("pics/1001", "pics/1001.png"),
        ("pics/1001.png", "pics/1001.webp"),
        ("pics/my%20bag.jpg", "pics/my bag.jpg"),
        ("1001.jpg", "images/1001.jpg"),
        ("1001", "images/1001.avif"),
        ("1001.jpg", "photos/new/1001.jpg"),
        ("1001.0", "images/1001.jpg"),
        ("images/1001.jpg", "images/00001001.jpg"),
        ("images/108775015.jpg", "images/010/0108775015.jpg"),
        ("images/1001.0.jpg", "images/1001.jfif"),
        ("images/1001.jpg", "1001.jpg"),
        ("images/sh.oe.v2", "images/sh.oe.v2.jpg"),
        ("images/MÖBEL.jpg", "images/Möbel.jpg"),
        (unicodedata.normalize("NFD", "images/Möbel.jpg"), "images/Möbel.jpg"),
        ("images/Möbel.jpg", unicodedata.normalize("NFD", "images/Möbel.jpg")),
        ("a.jpg, b.jpg", "a.jpg, b.jpg"),
    ],
)
def test_a_spelling_means_its_file(tmp_path, make, cell, file):
    pictures = make(tmp_path, "images/other.jpg" if file.startswith("images/") else "other.jpg", file)
    assert pictures.find(cell) == (file, 0)
    assert pictures.read(file) == file.encode()


@MAKERS
@pytest.mark.parametrize(
    ("cell", "further"),
    [
        ("a.jpg|b.jpg", 1),
        ("a.jpg;b.jpg;c.jpg", 2),
        ("a.jpg, b.jpg", 1),
        ("a.jpg\nb.jpg", 1),
        ("a.jpg b.png", 1),
        ('["a.jpg", "b.jpg"]', 1),
        ("['a.jpg', 'b.jpg', 'missing.jpg']", 2),
        ('["a.jpg"]', 0),
        ('{"path": "images/a.jpg"}', 0),
        ('{"path": "images/a.jpg", "alt": "it\'s red"}', 0),
        ("{'file_name': 'a.jpg', 'width': 3}", 0),
        ('[{"src": "a.jpg"}, {"src": "b.jpg"}]', 1),
        ('{"bytes": "3 bytes", "url": "a.jpg"}', 0),
    ],
)
def test_of_several_pictures_in_a_cell_the_first_is_used_and_the_others_counted(tmp_path, make, cell, further):
    assert make(tmp_path, "images/a.jpg", "images/b.jpg").find(cell) == ("images/a.jpg", further)


def test_a_cell_of_words_is_no_list():
    assert split_cell("my bag.jpg") == ["my bag.jpg"]
    assert split_cell("[red] a.jpg, b.jpg") == ["[red] a.jpg", "b.jpg"]
    assert split_cell("[red] bag.jpg") == ["[red] bag.jpg"]
    assert split_cell("[" * 100_000) == ["[" * 100_000]


@MAKERS
@pytest.mark.parametrize(
    ("cell", "files"),
    [
        ("1001", ("images/01001.jpg", "images/001001.jpg")),
        ("images/Bag.jpg", ("images/BAG.jpg", "images/bag.jpg")),
        ("bag.jpg", ("red/bag.jpg", "blue/bag.jpg")),
    ],
)
def test_what_could_mean_several_files_means_none(tmp_path, make, cell, files):
    with pytest.raises(PictureMissing, match=f"several files could be .*{files[0]}|.*{files[1]}"):
        make(tmp_path, *files).find(cell)


@MAKERS
@pytest.mark.parametrize("cell", ["31/front.jpg", "/srv/shop/31/front.jpg", "1/back.jpg"])
def test_a_picture_of_another_product_is_not_taken(tmp_path, make, cell):
    with pytest.raises(PictureMissing, match="which has 1/front.jpg|leads out"):
        make(tmp_path, "1/front.jpg").find(cell)


@MAKERS
def test_what_is_written_out_wins_over_what_is_alike(tmp_path, make):
    pictures = make(tmp_path, "images/1001.jpg", "images/01001.jpg", "images/1001.png", "images/1001.JPG", "1001.jpg")
    for path in ("images/1001.jpg", "images/01001.jpg", "images/1001.png", "images/1001.JPG", "1001.jpg"):
        assert pictures.find(path) == (path, 0)
    assert pictures.find("images/1001.webp").path == "images/1001.jpg"


@MAKERS
@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("pics/9.jpg", r"there is no pics/9\.jpg in .*shop.*, which has pics/1001\.jpg"),
        ("https://cdn.shop.example/1001.jpg?v=1", r"web address, https://cdn\.shop\.example/1001\.jpg\?v=1"),
        ("//cdn.shop.example/1001.jpg", "web address"),
        ("s3://bucket/1001.jpg|s3://bucket/1002.jpg", "web address"),
        ('["http://a.example/1.jpg"]', "web address"),
        ('[{"url": "https://a.example/1.jpg"}]', "web address, .*https://a.example/1.jpg"),
        ("data:image/png;base64,AAAA", "as text"),
        ("/9j/4AAQSkZJRgABAQ" + "Ab+/" * 500 + "==", "^the cell holds a picture itself, as text.* save each as a file"),
        ("iVBORw0KGgo" + "AAAA\n" * 500, "as text"),
        ('{"path": "a.jpg", "url": "b.jpg"}', "not exactly one of path, src, url, file_name"),
        ('[{"alt": "red"}]', "not exactly one of"),
        ("[]", "is empty"),
        ("  ", "is empty"),
        ("", "is empty"),
        ("a/" * 5000, "no path"),
        ("x" * 5000, "there is no xxx.*"),
        ("a\0b", "there is no"),
        ("../1001.jpg", "leads out"),
        ("pics/../../1001.jpg", "leads out"),
        ("/srv/shop/1001.jpg", "there is no /srv/shop/1001.jpg in .*shop"),
    ],
)
def test_a_miss_says_what_was_looked_for_where_and_what_is_there(tmp_path, make, cell, reason):
    (tmp_path / "1001.jpg").write_bytes(b"secret")
    with pytest.raises(PictureMissing, match=reason) as error:
        make(tmp_path, "pics/1001.jpg").find(cell)
    assert len(str(error.value)) < 1000


@MAKERS
def test_a_place_without_pictures_is_said_to_be_one(tmp_path, make):
    with pytest.raises(PictureMissing, match="which has no picture files"):
        make(tmp_path, "notes.md").find("1001.jpg")


@MAKERS
def test_a_zip_that_may_hold_the_pictures_is_named(tmp_path, make):
    with pytest.raises(PictureMissing, match=r"no picture files but another zip, pics\.zip: unpack it, so that"):
        make(tmp_path, "shop.csv", "pics.zip").find("pics/0.jpg")


@pytest.mark.parametrize("form", ["absolute", "relative"])
def test_only_a_table_of_the_users_own_leads_out_of_its_folder(tmp_path, form):
    shop = tmp_path / "shop"
    shop.mkdir()
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics" / "1001.JPG").write_bytes(b"mine")
    cell = str(tmp_path / "pics" / "1001.jpg") if form == "absolute" else "../pics/1001.jpg"
    own = FilePictures(FolderFiles(shop), outside=True)
    assert own.read(own.find(cell).path) == b"mine"
    with pytest.raises(PictureMissing):
        FilePictures(FolderFiles(shop)).find(cell)


@pytest.mark.parametrize("slashes", ["\\\\", "\\" * 3, "\\" * 4])
def test_a_path_on_a_share_is_looked_for_here(tmp_path, slashes):
    _folder(tmp_path, "pics/1.jpg")
    pictures = FilePictures(FolderFiles(tmp_path / "shop"), outside=True)
    assert pictures.find(f"{slashes}nas\\pics\\1.jpg").path == "pics/1.jpg"
    with pytest.raises(PictureMissing):
        pictures.find(f"{slashes}nas\\pics\\2.jpg")


def test_a_path_that_leads_out_of_the_tables_folder_may_stay_in_the_zip(tmp_path):
    _zip(tmp_path, "tables/shop.csv", "pics/1.jpg")
    pictures = FilePictures(ZipFiles(tmp_path / "shop.zip"), "tables")
    assert pictures.find("../pics/1.JPG").path == "pics/1.jpg"
    with pytest.raises(PictureMissing, match="leads out"):
        pictures.find("../../pics/1.jpg")


@MAKERS
def test_a_table_in_a_folder_of_its_own_names_pictures_from_the_first_folder(tmp_path, make):
    files = make(tmp_path, "meta/shop.csv", "images/1.JPG", "meta/images/2.jpg", "images/2.jpg")._files
    pictures = FilePictures(files, "meta")
    assert pictures.find("images/1.jpg").path == "images/1.JPG"
    assert pictures.find("images/2.jpg").path == "meta/images/2.jpg"
    with pytest.raises(PictureMissing, match=r"there is no meta/images/3\.jpg"):
        pictures.find("images/3.jpg")


def test_each_folder_is_listed_once_however_many_cells_miss(tmp_path, monkeypatch):
    pictures = _folder(tmp_path, *(f"{number}/front.jpg" for number in range(30)))
    listed = []
    folder = FolderFiles.folder
    monkeypatch.setattr(FolderFiles, "folder", lambda self, path, **_: listed.append(path) or folder(self, path))
    for number in range(60):
        with pytest.raises(PictureMissing):
            pictures.find(f"{number}/back.jpg")
    assert listed.count("") <= 4 and len(listed) < 120


def test_links_are_followed_and_end(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "1.jpg").write_bytes(b"one")
    pictures = _folder(tmp_path, "a.csv")
    (tmp_path / "shop" / "images").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "again").symlink_to(tmp_path / "shop")
    (tmp_path / "disk" / "self.jpg").symlink_to("self.jpg")
    assert pictures.read(pictures.find("images/1.JPG").path) == b"one"
    for cell in ("self.jpg", "2.jpg"):
        with pytest.raises(PictureMissing):
            pictures.find(cell)


@MAKERS
def test_leftovers_of_macs_and_windows_are_no_pictures(tmp_path, make):
    pictures = make(tmp_path, "images/._1.jpg", "__MACOSX/images/._1.jpg", "__MACOSX/1.jpg", "images/1.JPG", ".x/1.jpg")
    assert pictures.find("1.jpg").path == "images/1.JPG"


def test_a_zip_from_windows_has_slashes(tmp_path):
    pictures = _zip(tmp_path, "shop\\images\\1.jpg", "shop\\images\\")
    assert pictures.find("shop/images/1.jpg").path == "shop/images/1.jpg"
    assert pictures.read("shop/images/1.jpg") == b"shop\\images\\1.jpg"


def test_a_zip_with_utf8_that_it_does_not_declare(tmp_path):
    pictures = _zip(tmp_path, "images/xx.jpg")
    path = tmp_path / "shop.zip"
    data = path.read_bytes()
    path.write_bytes(data.replace(b"images/xx.jpg", "images/ö.jpg".encode()))
    pictures = FilePictures(ZipFiles(path))
    assert pictures.find("ö.jpg").path == "images/ö.jpg"


def test_a_zip_with_very_deep_names(tmp_path):
    with pytest.raises(PictureMissing):
        _zip(tmp_path, "a/" * 20_000 + "1.jpg").find("b.jpg")


def test_a_name_in_a_zip_with_line_breaks_stays_in_one_line(tmp_path):
    assert _zip(tmp_path, "pics/1\n2.jpg").find("pics/1 2.jpg").path == "pics/1 2.jpg"
    with pytest.raises(PictureMissing, match=r"which has pics/1 2\.jpg$"):
        _zip(tmp_path, "pics/1\n2.jpg").find("3.jpg")
