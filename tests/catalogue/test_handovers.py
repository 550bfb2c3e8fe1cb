"""Whatever the same products lie in, and however they are written: the same catalogue, and the same split."""

import csv
import random
import shutil
import tempfile
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.catalogue.handovers import (
    CONTAINERS,
    DIALECTS,
    FORMS,
    PICTURES,
    PRODUCTS,
    Dialect,
    column_of_parts,
    folders_by_category,
    folders_in_parts,
    imagefolder,
    in_halves,
    parquet_parts,
    pictures_inside,
    saved_datasets,
    tables_of_parts,
)
from tests.messages import collected_messages
from vlm_core.catalogue.catalogue import prepare_catalogue
from vlm_core.catalogue.reading import Columns
from vlm_core.config import Config
from vlm_core.data import load_data

PARTS = (imagefolder, folders_in_parts, parquet_parts, saved_datasets, tables_of_parts, column_of_parts)


def _rows(form, columns=("id", "masterCategory", "title")):
    return [{**{name: row[name] for name in columns}, "photo": FORMS[form][0](row["id"])} for row in PRODUCTS]


def _pictures(form):
    return {FORMS[form][1](name): data for name, data in PICTURES.items()}


def _prints(place, root, picture="photo", **settings):
    """The fingerprints of the catalogue and of its split."""
    data = load_data(
        Config(data=str(place), picture_column=picture, title_column="title", attributes="", **settings), root
    )
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


@pytest.mark.parametrize("make", [pictures_inside, imagefolder, parquet_parts, saved_datasets, tables_of_parts])
def test_containers_that_name_the_pictures_themselves(tmp_path, make):
    assert _prints(make(tmp_path / "shop", PRODUCTS), tmp_path, "") == _plain()


def test_folders_by_category_are_a_table_of_ids_and_categories(tmp_path):
    rows = _rows("path", ("id", "masterCategory"))
    expected = _prints(CONTAINERS["csv"](tmp_path / "a", rows, _pictures("path"), Dialect()), tmp_path)
    assert _prints(folders_by_category(tmp_path / "b", PRODUCTS), tmp_path, "") == expected


@pytest.mark.parametrize("container", ["csv", "parquet"])
def test_any_order_of_rows(tmp_path, container):
    rows = random.Random(1).sample(_rows("path"), len(PRODUCTS))
    place = CONTAINERS[container](tmp_path / "shop", rows, _pictures("path"), Dialect())
    assert _prints(place, tmp_path) == _plain()
    fingerprint, split = _prints(place, tmp_path, row_order="table")
    assert fingerprint == _plain()[0] and split != _plain()[1]


@pytest.mark.parametrize("make", PARTS)
def test_given_parts_are_kept_if_asked(tmp_path, make):
    picture = "photo" if make == column_of_parts else ""
    place = make(tmp_path / "shop", PRODUCTS)
    config = Config(data=str(place), picture_column=picture, title_column="", attributes="", protocol="given")
    with collected_messages() as messages:
        data = load_data(config, tmp_path)
    ids, split = data.catalogue.products["product_id"], data.split
    train, test = ([row["id"] for row in half] for half in in_halves(PRODUCTS).values())
    assert set(ids.iloc[split.test]) == set(test)
    assert {*ids.iloc[split.train], *ids.iloc[split.validation]} == set(train) and len(split.validation) == 4
    assert not split.leaking and "train (20), test (8); some products of train are validated on" in " ".join(messages)


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
