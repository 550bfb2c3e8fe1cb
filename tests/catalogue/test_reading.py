"""Products of a table, whatever it lies in: each id once, and what is left out is summed up."""

import pytest

from vlm_core.catalogue.reading import (
    FURTHER,
    Columns,
    ReadingReport,
    Record,
    Refusal,
    TableRow,
    column_name,
    is_shortened,
    number_of,
    read_products,
)


class _Rows:
    name, picture, label = "shop", "", ""

    def __init__(self, names, *rows):
        self.names, self.notes, self._rows = names, [], rows

    def records(self, columns):
        yield from (Record(line, list(cells)) for line, cells in enumerate(self._rows, start=2))

    def close(self):
        pass


def _read(names, *rows):
    return list(read_products(_Rows(names, *rows), Columns("id", "photo", "title", "kind", ())))


def test_an_id_is_needed_and_counts_once():
    first, empty, double = _read(["id", "kind"], ("1", "Bag"), (" ", "Bag"), ("1", "Shoe"))
    assert isinstance(first, TableRow)
    assert empty == Refusal(3, "the id is empty")
    assert double == Refusal(4, "the id 1 is already used in line 2")


def test_a_further_picture_of_a_product_is_said_to_be_one():
    _, further, again = _read(["id", "photo"], ("1", "a.jpg"), ("1", "b.jpg"), ("1", "a.jpg"))
    assert further.reason.endswith(FURTHER) and not again.reason.endswith(FURTHER)


def test_the_picture_is_the_id_where_there_is_no_id_column():
    rows = _read(["photo", "kind"], ("a.jpg", "Shoe"), ("a.jpg", "Shoe"))
    assert isinstance(rows[0], TableRow) and isinstance(rows[1], Refusal)


def test_whole_numbers_with_a_fraction_are_ids_without():
    rows = _read(
        ["id", "kind"], ("1001.0", "2.0"), ("1001", "3"), ("1.5", "4"), ("v1.0", "5"), ("7,00", "6"), ("8,000", "7")
    )
    assert [row.values["id"] for row in rows if isinstance(row, TableRow)] == ["1001", "1.5", "v1.0", "7", "8,000"]
    assert rows[0].values["kind"] == "2.0"


def test_ids_that_a_spreadsheet_has_shortened_are_said_to_be():
    first, second = _read(["id", "photo"], ("4.00638E+12", "a.jpg"), ("4.00638E+12", "b.jpg"))
    assert isinstance(first, TableRow) and second.reason.endswith("line 2: a spreadsheet has shortened both")
    assert all(map(is_shortened, ("4,00638E+12", "1E+12", "4.006381e+12")))
    assert not any(map(is_shortened, ("4006381000000", "E12", "1E12", "SHE+12")))


@pytest.mark.parametrize(
    "text", ["Größe  XL", " Gro\u0308ße XL ", "Größe\u00a0XL", "\ufeffGröße\nXL", "Grö\u200bße XL"]
)
def test_names_of_columns_are_what_is_seen_of_them(text):
    assert column_name(text) == "Größe XL"


def test_blank_rows_and_columns_without_a_name_are_nothing():
    assert _read(["", "id"], ("", ""), ("x", "1")) == [TableRow(3, {"id": "1"}, False)]


def test_a_report_is_summed_up_in_a_sentence():
    report = ReadingReport(41_021, 8, (Refusal(3, "the id is empty"),), 374, (Refusal(9, "it is cut short"),), 40_647)
    assert report.summary() == (
        "40,647 products from 41,021 rows: 8 rows repaired, 1 refused, 374 without a picture, 1 with an unreadable one."
    )
    assert report.first_reasons() == "line 3: the id is empty; line 9: it is cut short."


def test_one_of_a_kind_is_counted_in_the_singular():
    report = ReadingReport(1, 1, (), 0, (), 1, unlabelled=(Refusal(2, "none"),), further_pictures=1)
    assert report.summary() == (
        "1 product from 1 row: 1 row repaired, 0 refused, 0 without a picture, 0 with an unreadable one, "
        "1 product without a category, 1 further picture of a product not used."
    )
    assert number_of(0, "id") == "0 ids" and number_of(1_200, "category", "categories") == "1,200 categories"
