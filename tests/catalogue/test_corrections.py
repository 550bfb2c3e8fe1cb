"""Corrections change what they name, and are never silently stale."""

import os

import pandas as pd
import pytest

from vlm_core.catalogue.corrections import Correction, apply_corrections, read_corrections
from vlm_core.catalogue.reading import Refusal
from vlm_core.errors import UserError

PRODUCTS = pd.DataFrame(
    {
        "id": ["1", "2", "3"], "category": ["Shoes", "Bags", "Bags"], "name": ["a", "b", "c"],
        "product_id": ["1", "2", "3"], "title": ["a", "b", "c"], "picture_digest": ["x", "y", "z"],
    }
)  # fmt: skip


def _apply(*corrections):
    made = [Correction(line, *each) for line, each in enumerate(corrections, start=2)]
    return apply_corrections(PRODUCTS, PRODUCTS["product_id"], made, ["id"], "name")


def test_cells_are_corrected_and_the_rest_is_left():
    done = _apply(("2", "category", "Bags", "Shoes"), ("3", "category", "Bags", "-"), ("1", "name", "a", "boot"))
    assert (done.applied, done.stale) == (3, ())
    assert done.products["category"].tolist() == ["Shoes", "Shoes", ""]
    assert done.products["title"].tolist() == ["boot", "b", "c"]
    assert PRODUCTS["category"].tolist() == ["Shoes", "Bags", "Bags"]


def test_what_does_not_fit_is_named_and_changes_nothing():
    done = _apply(
        ("2", "category", "Hats", "Shoes"), ("9", "category", "Bags", "Shoes"), ("2", "colour", "red", "blue"),
        ("2", "id", "2", "7"), ("2", "picture_digest", "y", "x"),
    )  # fmt: skip
    assert done.applied == 0 and done.products.equals(PRODUCTS)
    assert tuple(f"{each.place}: {each.reason}" for each in done.stale) == (
        "line 2: category of 2 is Bags, not Hats", "line 3: there is no usable product 9",
        "line 4: colour is no column that can be corrected", "line 5: id is no column that can be corrected",
        "line 6: picture_digest is no column that can be corrected",
    )  # fmt: skip


def test_what_is_done_already_or_not_decided_is_counted():
    done = _apply(("1", "category", "Bags", "Shoes"), ("2", "category", "Bags", ""))
    assert (done.applied, done.already, done.undecided, done.stale) == (0, 1, 1, ())


def test_a_later_correction_sees_the_earlier_one():
    done = _apply(("1", "category", "Shoes", "Bags"), ("1", "category", "Bags", "Hats"))
    assert done.products["category"].tolist() == ["Hats", "Bags", "Bags"] and done.applied == 2


@pytest.mark.parametrize(
    ("corrections", "said"),
    [
        ([("1", "Shoes", "Bags"), ("1", "Shoes", "Hats")], "Lines 2 and 3 .* category of 1 shall be Bags and Hats"),
        ([("1", "Hats", "Bags"), ("1", "Hats", "-")], "Lines 2 and 3 .* shall be Bags and empty"),
        ([("1", "Shoes", "Bags"), ("1.0", "Shoes", "Hats")], "Lines 2 and 3 .* shall be Bags and Hats"),
        ([("1", "Shoes", "Bags"), ("2", "Bags", "Hats"), ("1", "Bags", "Shoes")], "Lines 2 and 4 .* Bags and Shoes"),
        ([("1", "Shoes", "-"), ("1", "", "Bags"), ("1", "Bags", "Shoes")], "Lines 3 and 4 .* shall be Bags and Shoes"),
        ([("1", "Shoes", "Shoes"), ("1", "Shoes", "Bags")], "Lines 2 and 3 .* shall be Shoes and Bags"),
    ],
)
def test_corrections_that_contradict_each_other_are_refused(corrections, said):
    with pytest.raises(UserError, match=f"{said}. Keep one of them"):
        _apply(*((product, "category", old, new) for product, old, new in corrections))


@pytest.mark.parametrize(
    "corrections",
    [
        [("1", "Shoes", "Bags"), ("1", "Shoes", "Bags")],
        [("1", "Shoes", "Hats"), ("1", "Shoes", "Shoes"), ("1", "Hats", "Hats")][::2],
        [("1", "Bags", "Hats"), ("1", "Shoes", "Bags")],
        [("1", "Shoes", "Hats"), ("2", "Shoes", "Bags")],
    ],
)
def test_corrections_that_agree_are_not_refused(corrections):
    _apply(*((product, "category", old, new) for product, old, new in corrections))


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_file_is_read_as_spreadsheets_write_it(tmp_path, delimiter, mark):
    rows = [["finding", "id", "column", "old", "new", "by"], ["label", "007", "category", "nan", " Shoes ", "me"],
            ["label", "8", "title", "'=A1", "'+B", ""], ["label", "9", "title", "x"]]  # fmt: skip
    path = tmp_path / "corrections.csv"
    path.write_text(mark + "\n".join(delimiter.join(row) for row in rows), encoding="utf-8")
    corrections, assumed = read_corrections(path)
    assert len(assumed) == (delimiter != ",")
    assert corrections == [
        Correction(2, "007", "category", "nan", "Shoes"), Correction(3, "8", "title", "=A1", "+B"),
        Correction(4, "9", "title", "x", ""),
    ]  # fmt: skip


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-8-sig"])
def test_a_file_that_excel_saved_is_read_and_what_was_assumed_is_said(tmp_path, encoding):
    path = tmp_path / "corrections.csv"
    path.write_bytes("id;column;old;new\r\n1;category;Möbel;Stühle\r\n".encode(encoding))
    corrections, assumed = read_corrections(path)
    assert corrections == [Correction(2, "1", "category", "Möbel", "Stühle")]
    assert "semicolon" in assumed[0] and ("cp1252" in assumed[-1]) == (encoding == "cp1252")


@pytest.mark.parametrize("written", ["6", "6.0", "006", "00006.00"])
def test_an_id_that_a_spreadsheet_changed_is_found_where_it_is_clear(written):
    products = pd.DataFrame({"category": ["Bags", "Bags"]})
    made = [Correction(2, written, "category", "Bags", "Shoes")]
    done = apply_corrections(products, ["00006", "7"], made, [], "")
    assert done.products["category"].tolist() == ["Shoes", "Bags"] and not done.stale
    unclear = apply_corrections(products, ["0000006", "000006"], made, [], "")
    assert unclear.applied == 0
    assert unclear.stale == (Refusal(2, f"several products could be {written}: 0000006, 000006"),)
    exact = apply_corrections(products, ["00000006", written], made, [], "")
    assert exact.products["category"].tolist() == ["Bags", "Shoes"]


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "cannot be read"), (b"", "is empty"), (b"id,column,old\n1,a,b\n", "no column new"),
     (b"id,column,old,new\n1,a,b,c,d\n", "line 2: 5 fields"), (b"PK\3\4", "an Excel workbook, not text")],
)  # fmt: skip
def test_a_file_that_is_none_is_one_sentence(tmp_path, content, said):
    if content is not None:
        (tmp_path / "c.csv").write_bytes(content)
    with pytest.raises(UserError, match=f"c.csv [^\n]*{said}"):
        read_corrections(tmp_path / "c.csv")


def test_a_fifo_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "corrections.csv")
    with pytest.raises(UserError, match="is not a regular file"):
        read_corrections(tmp_path / "corrections.csv")
