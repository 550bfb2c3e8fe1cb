"""Excel workbooks: the sheet with the products, as Excel shows it."""

import datetime
import io
import re
import sys
import zipfile

import openpyxl
import openpyxl.drawing.image
import pytest
from PIL import Image

from vlm_core.catalogue.containers import workbook as module
from vlm_core.catalogue.containers.workbook import Workbook
from vlm_core.catalogue.reading import Columns, ReadingReport, Refusal, read_products
from vlm_core.errors import UserError

COLUMNS = Columns("id", "", "title", "category", ())


def _book(*sheets):
    book = openpyxl.Workbook()
    book.remove(book.active)
    for rows in sheets:
        sheet = book.create_sheet()
        for row in rows:
            sheet.append(row)
    file = io.BytesIO()
    book.save(file)
    return io.BytesIO(file.getvalue())


def _values(*sheets):
    return [row.values for row in read_products(Workbook(_book(*sheets), "shop.xlsx"), COLUMNS)]


def test_values_are_texts_as_in_other_tables():
    rows = [
        (None, None),
        ("id", "category", "title", "day", None),
        (1001, "Möbel", " Sofa ", datetime.datetime(2024, 5, 1)),
        (1002.0, "Möbel", 2.5, datetime.datetime(2024, 5, 1, 12)),
        (None, None),
        ("00012", "Bag"),
    ]
    assert _values(rows) == [
        {"id": "1001", "category": "Möbel", "title": "Sofa", "day": "2024-05-01"},
        {"id": "1002", "category": "Möbel", "title": "2.5", "day": "2024-05-01 12:00:00"},
        {"id": "00012", "category": "Bag", "title": "", "day": ""},
    ]


def test_the_first_sheet_with_cells_is_read_and_said():
    book = Workbook(_book([], [("id", "category"), (1, "Bag")]), "shop.xlsx")
    assert book.names == ["id", "category"] and book.notes == ["sheet Sheet1, of 2"]


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (_book([]), "is empty"),
        (_book([("id", "kind", "kind"), (1, 2, 3)]), "more than one column called kind"),
        (io.BytesIO(b"no zip"), "cannot be read as a workbook .*save it as CSV"),
        (io.BytesIO(_book([("id",)]).getvalue()[:500]), "cannot be read as a workbook"),
    ],
)
def test_what_is_no_table_is_said_so(file, message):
    with pytest.raises(UserError, match=message):
        Workbook(file, "shop.xlsx")


def test_a_workbook_is_bounded_before_it_is_unpacked(monkeypatch):
    monkeypatch.setattr(module, "MOST_UNPACKED_BYTES", 1_000_000)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/workbook.xml", bytes(1_100_000))
    with pytest.raises(UserError, match="unpacks to more than 1 MB"):
        Workbook(file, "shop.xlsx")


def test_without_openpyxl_there_are_two_ways_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(UserError, match=r"save it as CSV UTF-8 in Excel\. Or: .*\[excel\]"):
        Workbook(io.BytesIO(), "shop.xlsx")


def test_the_sheet_and_line_with_the_needed_column_names_are_read():
    sheets = [("Instructions",), ("Fill in", "id")], [("Products of May",), (), ("id", "category"), (1, "Bag")]
    book = Workbook(_book(*sheets), "shop.xlsx", ["id", "category"])
    (row,) = read_products(book, COLUMNS)
    assert (row.line, row.values) == (4, {"id": "1", "category": "Bag"})
    assert book.notes == ["sheet Sheet1, of 2", "column names in line 3"]


def test_all_sheets_with_the_needed_columns_are_one_table():
    shoes = [("id", "category", "size"), (1, "Shoe", 42), (2, "Shoe", 38)]
    bags = [("Bags",), ("category", "title", "id"), ("Bag", "Tote", 3), ("Bag", "Clutch", None), ("Bag", "Sack", 2)]
    book = Workbook(_book(shoes, [("brand", "id"), ("Acme", 1)], bags), "shop.xlsx", ["id", "category"])
    *rows, without, twice = list(read_products(book, COLUMNS))
    assert [row.values for row in rows] == [
        {"id": "1", "category": "Shoe", "size": "42", "title": ""},
        {"id": "2", "category": "Shoe", "size": "38", "title": ""},
        {"id": "3", "category": "Bag", "size": "", "title": "Tote"},
    ]
    assert book.notes == ["sheets Sheet and Sheet2, of 3", "column names in line 2"]
    report = ReadingReport(5, 0, (twice, without), 0, (), 3)
    assert report.first_reasons() == (
        "line 4 of sheet Sheet2: the id is empty; "
        "line 5 of sheet Sheet2: the id 2 is already used in line 3 of sheet Sheet."
    )


def test_an_id_alone_joins_only_sheets_with_the_columns_of_the_first():
    products, prices = [("id", "title"), (1, "Tote")], [("id", "price", "price"), (1, 9, 8)]
    more = [("title", "id"), ("Sack", 2)]
    book = Workbook(_book(products, prices, more), "shop.xlsx", ["id"])
    assert [row.values for row in read_products(book, COLUMNS)] == [
        {"id": "1", "title": "Tote"},
        {"id": "2", "title": "Sack"},
    ]


def _with_values(book, values):
    """Store values of formulas, which openpyxl does not: by the name of their cell, the XML after the formula."""
    file = io.BytesIO()
    with zipfile.ZipFile(book) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            data = old.read(name).decode()
            if name == "xl/worksheets/sheet1.xml":
                for cell, (kind, value) in values.items():
                    data = re.sub(
                        rf'<c r="{cell}"><f>(.*?)</f><v ?/?>(</v>)?', rf'<c r="{cell}"{kind}><f>\1</f>{value}', data
                    )
            new.writestr(name, data)
    return io.BytesIO(file.getvalue())


FORMULAS = [
    ("id", "category", "title", "photo"), (1, '="Ba" & "g"', "=1+1", '=HYPERLINK("pics/1.jpg","see")'),
    (2, '="Shoe"', '=""', '=_xlfn.IMAGE("pics/2.jpg")'), (3, "=A1", "=A2", "3.jpg"),
]  # fmt: skip


def test_values_of_formulas_are_those_that_were_stored_and_lost_ones_are_said():
    stored = {
        "B2": (' t="str"', "<v>Bag</v>"), "B3": (' t="str"', "<v>Shoe</v>"), "C3": (' t="str"', "<v></v>"),
        "D2": (' t="str"', "<v>see</v>"), "D3": (' t="e"', "<v>#VALUE!</v>"),
    }  # fmt: skip
    book = Workbook(_with_values(_book(FORMULAS), stored), "shop.xlsx")
    *rows, refusal = read_products(book, Columns("id", "photo", "title", "category", ()))
    assert [row.values for row in rows] == [
        {"id": "1", "category": "Bag", "title": "", "photo": "pics/1.jpg"},
        {"id": "2", "category": "Shoe", "title": "", "photo": "pics/2.jpg"},
    ]
    store = "no stored value: open the workbook in Excel or LibreOffice, and save it"
    assert (refusal.line, refusal.reason) == (4, f"the formula in the column category has {store}")
    lost = "no stored value and an empty cell, first the column title of line 2"
    assert book.notes == [f"1 formula has {lost}: open the workbook in Excel or LibreOffice, and save it"]


def test_cells_merged_downwards_have_their_text_in_each_row():
    book = openpyxl.Workbook()
    for row in [
        ("Shop",),
        ("category", "id", "title"),
        ("Shoe", 1, "Boot"),
        (None, 2),
        (None, 3, "Sock"),
        ("Bag", 4, "Sack"),
    ]:
        book.active.append(row)
    for cells in ("A1:C1", "A3:A5", "C3:C4", "A6:B6"):
        book.active.merge_cells(cells)
    file = io.BytesIO()
    book.save(file)
    table = Workbook(file, "shop.xlsx", ["id", "category"])
    rows = [row for row in read_products(table, COLUMNS) if not isinstance(row, Refusal)]
    assert [tuple(row.values.values()) for row in rows] == [
        ("Shoe", "1", "Boot"),
        ("Shoe", "2", "Boot"),
        ("Shoe", "3", "Sock"),
    ]
    assert table.notes == ["cells that are merged downwards have their text in each row", "column names in line 2"]


def test_pictures_in_the_workbook_itself_are_said_not_to_be_read():
    book = openpyxl.Workbook()
    book.active.append(("id", "photo"))
    picture = io.BytesIO()
    Image.new("RGB", (4, 4)).save(picture, "PNG")
    book.active.add_image(openpyxl.drawing.image.Image(picture), "B2")
    file = io.BytesIO()
    book.save(file)
    notes = Workbook(file, "shop.xlsx", ["id"]).notes
    assert notes == ["1 picture in the workbook itself not read: save each as a file, and name it in a column"]


def test_all_rows_are_read_whatever_size_the_sheet_says_that_it_has():
    file = io.BytesIO()
    with zipfile.ZipFile(_book([("id", "category"), (1, "Bag"), (2, "=A1")])) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            new.writestr(name, re.sub(b'<dimension ref="[^"]*"', b'<dimension ref="A1:A2"', old.read(name)))
    first, second = read_products(Workbook(file, "shop.xlsx"), COLUMNS)
    assert (first.values, second.line) == ({"id": "1", "category": "Bag"}, 3)
