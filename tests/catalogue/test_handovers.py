"""Whatever the same products lie in, and however they are written: the same catalogue, and the same split."""

import csv
import shutil
import tempfile
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.catalogue.handovers import (
    CONTAINERS,
    FORMS,
    PICTURES,
    PRODUCTS,
    Dialect,
    folders_by_category,
    imagefolder,
    pictures_inside,
)
from vlm_core.catalogue.catalogue import prepare_catalogue
from vlm_core.catalogue.reading import Columns
from vlm_core.config import Config
from vlm_core.data import load_data

DIALECTS = (
    *(Dialect(delimiter=delimiter) for delimiter in ";\t|"),
    *(Dialect(encoding=encoding) for encoding in ("utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252", "latin-1")),
    *(Dialect(newline=newline) for newline in ("\r\n", "\r")),
    Dialect(quoting=csv.QUOTE_ALL),
    Dialect("utf-8-sig", ";", "\r\n", above="sep=;\r\n"),
    Dialect(above="# exported by hand\n\n", behind=",,"),
)


def _rows(form, columns=("id", "masterCategory", "title")):
    return [{**{name: row[name] for name in columns}, "photo": FORMS[form][0](row["id"])} for row in PRODUCTS]


def _pictures(form):
    return {FORMS[form][1](name): data for name, data in PICTURES.items()}


def _prints(place, root, picture="photo"):
    """The fingerprints of the catalogue and of its split."""
    data = load_data(Config(data=str(place), picture_column=picture, title_column="title", attributes=""), root)
    assert data.catalogue.reading.products == 28 and not data.catalogue.reading.left_out()
    return data.catalogue.fingerprint, data.split.fingerprint


@cache
def _plain():
    with tempfile.TemporaryDirectory() as folder:
        place = CONTAINERS["csv"](Path(folder, "shop"), _rows("path"), _pictures("path"), Dialect())
        return _prints(place, Path(folder))


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container(tmp_path, container):
    place = CONTAINERS[container](tmp_path / "shop", _rows("path"), _pictures("path"), Dialect())
    assert _prints(place, tmp_path) == _plain()


@pytest.mark.parametrize("dialect", DIALECTS, ids=str)
def test_every_dialect(tmp_path, dialect):
    place = CONTAINERS["csv"](tmp_path / "shop", _rows("path"), _pictures("path"), dialect)
    assert _prints(place, tmp_path) == _plain()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("container", ["csv", pytest.param("zip", marks=pytest.mark.slow)])
def test_every_form_of_a_path(tmp_path, form, container):
    place = CONTAINERS[container](tmp_path / "shop", _rows(form), _pictures(form), Dialect())
    assert _prints(place, tmp_path) == _plain()


@pytest.mark.parametrize("make", [pictures_inside, imagefolder])
def test_containers_that_name_the_pictures_themselves(tmp_path, make):
    assert _prints(make(tmp_path / "shop", PRODUCTS), tmp_path, "") == _plain()


def test_folders_by_category_are_a_table_of_ids_and_categories(tmp_path):
    rows = _rows("path", ("id", "masterCategory"))
    expected = _prints(CONTAINERS["csv"](tmp_path / "a", rows, _pictures("path"), Dialect()), tmp_path)
    assert _prints(folders_by_category(tmp_path / "b", PRODUCTS), tmp_path, "") == expected


@pytest.mark.slow
@settings(max_examples=40)
@given(
    container=st.sampled_from(sorted(CONTAINERS)),
    form=st.sampled_from(sorted(FORMS)),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]),
    delimiter=st.sampled_from(",;\t|"),
    newline=st.sampled_from(["\n", "\r\n", "\r"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    columns=st.permutations(["id", "masterCategory", "title"]),
    lost=st.sets(st.integers(0, 27), max_size=3),
    empty=st.sets(st.integers(0, 27), max_size=3),
)
def test_all_products_come_out_or_every_loss_is_explained(
    container, form, encoding, delimiter, newline, quoting, columns, lost, empty
):
    rows = _rows(form, columns)
    for number in empty:
        rows[number]["id"] = ""
    pictures = _pictures(form)
    for number in lost:
        del pictures[FORMS[form][1](PRODUCTS[number]["id"])]
    root = Path(tempfile.mkdtemp())
    try:
        place = CONTAINERS[container](root / "shop", rows, pictures, Dialect(encoding, delimiter, newline, quoting))
        catalogue = prepare_catalogue(str(place), Columns("id", "photo", "title", "masterCategory", ()), root)
        left = len(empty | lost)
        assert catalogue.reading.products == 28 - left
        listed = list(csv.DictReader(catalogue.left_out.open())) if left else []
        assert len(listed) == left and all(row["reason"] for row in listed)
    finally:
        shutil.rmtree(root)
