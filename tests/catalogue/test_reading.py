"""Rows of a table: repaired, refused with line and reason, and never lost."""

import csv
import io

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vlm_core.catalogue import reading
from vlm_core.catalogue.reading import Columns, ReadingReport, Refusal, TableRow, read_header, read_rows
from vlm_core.errors import UserError

KAGGLE = Columns("id", "", "title", "category", ("gender",))
HEADER = b"id,gender,category,title\n"


def _read(content, columns=KAGGLE):
    table = io.BytesIO(content)
    header, delimiter = read_header(table, "products.csv")
    return list(read_rows(table, header, delimiter, columns))


def _titles(content):
    return {row.values["id"]: row.values["title"] for row in _read(content) if isinstance(row, TableRow)}


def test_rows_keep_their_columns_and_lines():
    first, second = _read(HEADER + b"1,Men,Apparel,Blue Shirt\n2,Women,Footwear, Red Shoe \n")
    assert first == TableRow(2, {"id": "1", "gender": "Men", "category": "Apparel", "title": "Blue Shirt"}, False)
    assert (second.line, second.values["title"]) == (3, "Red Shoe")


def test_unquoted_commas_belong_to_a_title_that_is_last():
    (row,) = _read(HEADER + b"1,Men,Apparel,Live, Life, Laugh\n")
    assert row.repaired
    assert row.values["title"] == "Live, Life, Laugh"


def test_unquoted_commas_are_refused_where_the_title_is_not_last():
    (refusal,) = _read(b"id,title,category\n1,Live, Life,Apparel\n", Columns("id", "", "title", "category", ()))
    assert refusal == Refusal(2, "4 fields where the header has 3")


def test_a_row_that_is_cut_short_is_refused_and_its_neighbours_are_not():
    first, refusal, last = _read(HEADER + b"1,Men,Apparel,Shirt\n2,Men\n3,Men,Apparel,Tie\n")
    assert refusal == Refusal(3, "2 fields where the header has 4")
    assert (first.line, last.line) == (2, 4)


def test_an_id_is_needed_and_counts_once():
    _, empty, double = _read(HEADER + b"1,Men,Apparel,Shirt\n,Men,Apparel,Tie\n1,Men,Apparel,Sock\n")
    assert empty.line == 3 and "id is empty" in empty.reason
    assert double.line == 4 and "id 1" in double.reason


def test_the_picture_is_the_id_where_there_is_no_id_column():
    rows = _read(b"file,kind\na.jpg,Shoe\na.jpg,Shoe\n", Columns("id", "file", "title", "kind", ()))
    assert isinstance(rows[0], TableRow) and isinstance(rows[1], Refusal)


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfid,gender,category,title\r\n1,Men,Apparel,Shirt\r\n\r\n",
        b"id;gender;category;title\n1;Men;Apparel;Shirt\n",
        b"id\tgender\tcategory\ttitle\n1\tMen\tApparel\tShirt",
        b'"id","gender","category","title"\n"1","Men","Apparel","Shirt"\n',
        b"id,gender,category,title\n\n1,Men,Apparel,Sh\0irt\n",
    ],
    ids=["bom-and-crlf", "semicolons", "tabs-and-no-last-newline", "quoted", "blank-line-and-nul"],
)
def test_dialects(content):
    (row,) = _read(content)
    assert list(row.values.values()) == ["1", "Men", "Apparel", "Shirt"]


def test_bytes_that_are_no_utf8_cost_one_letter():
    assert _titles(HEADER + "1,Men,Apparel,Café\n".encode("latin-1") + b"2,Men,Apparel,Tie\n") == {
        "1": "Caf�",
        "2": "Tie",
    }


@pytest.mark.parametrize(
    ("first", "third", "titles"),
    [
        ('5" Shorts', "Tie", ('5" Shorts', "Tie")),
        ('5" Shorts', '6" Shorts', ('5" Shorts', '6" Shorts')),
        ('"Nike Shorts', '"Puma Shorts', ('"Nike Shorts', '"Puma Shorts')),
        ('"Nike Shorts', 'Puma 5"', ('"Nike Shorts', 'Puma 5"')),
        ('"Nike ""Air"" Shorts"', '"Nike 5"""', ('Nike "Air" Shorts', 'Nike 5"')),
        ('"Nike" Shorts', "Tie", ('"Nike" Shorts', "Tie")),
    ],
)
def test_a_stray_quote_swallows_no_other_row(first, third, titles):
    content = HEADER + f"1,Men,Apparel,{first}\n2,Men,Apparel,Sock\n3,Men,Apparel,{third}\n4,Men,Apparel,Cap\n".encode()
    assert _titles(content) == {"1": titles[0], "2": "Sock", "3": titles[1], "4": "Cap"}


def test_a_quote_that_is_never_closed_costs_one_row_at_most():
    content = HEADER + b'0,Men,Apparel,"open\n' + b"".join(b"%d,Men,Apparel,Cap\n" % n for n in range(1, 300))
    assert set(_titles(content)) >= {str(number) for number in range(1, 300)}


def test_a_quoted_title_may_go_on_over_lines():
    first, second = _read(HEADER + b'1,Men,Apparel,"Blue\nShirt"\n2,Men,Apparel,Tie\n')
    assert first.values["title"] == "Blue\nShirt"
    assert (first.line, second.line) == (2, 4)


@pytest.mark.parametrize("content", [b"", b"\n", b",,\n", b"\xef\xbb\xbf"])
def test_a_table_without_column_names_is_empty(content):
    with pytest.raises(UserError, match=r"products\.csv is empty"):
        _read(content)


CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)


@pytest.mark.slow
@given(st.lists(st.tuples(CELLS, CELLS, CELLS), max_size=8), st.sampled_from(",;\t"), st.sampled_from(["\n", "\r\n"]))
def test_what_the_csv_module_writes_is_read_as_it_was(rows, delimiter, newline):
    # A line of a quoted cell that reads as a whole row is taken for one: here is where that would begin.
    assume(not any(cell.count(delimiter) >= 3 for row in rows for cell in row))
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, lineterminator=newline)
    writer.writerow(["id", "gender", "category", "title"])
    writer.writerows([(number, *row) for number, row in enumerate(rows)])
    read = _read(text.getvalue().encode())
    assert [tuple(row.values.values()) for row in read] == [
        (str(number), *(cell.strip() for cell in row)) for number, row in enumerate(rows)
    ]
    assert not any(row.repaired for row in read)


@given(st.lists(st.sampled_from(['"', ",", "\n", "a", '""', ',"', '",', "1", "\r\n"]), max_size=30))
def test_no_plain_row_after_whatever_came_before_is_lost(parts):
    content = HEADER + "".join(parts).encode() + b"\n77,Men,Apparel,Cap\n"
    assert "77" in _titles(content)


@given(st.binary(max_size=200), st.booleans())
def test_arbitrary_bytes_are_read_or_refused(content, headed):
    table = io.BytesIO(HEADER + content if headed else content)
    try:
        header, delimiter = read_header(table, "products.csv")
    except UserError:
        assert not headed
        return
    rows = list(read_rows(table, header, delimiter, Columns(header[0], "", header[-1], header[-1], ())))
    assert all(isinstance(row, Refusal) or list(row.values) == list(dict.fromkeys(header)) for row in rows)


@pytest.mark.parametrize(("header", "most"), [(HEADER, 30), (b",".join(b"c%d" % n for n in range(100)) + b"\n", 10)])
def test_more_rows_than_fit_in_memory_are_one_sentence(monkeypatch, header, most):
    monkeypatch.setattr(reading, "MOST_ROWS", 30)
    monkeypatch.setattr(reading, "MOST_CELLS", 1000)
    columns = Columns("id" if header == HEADER else "c0", "", "", "", ())
    assert len(_read(header + b"x\n" * most, columns)) == most
    with pytest.raises(UserError, match=f"^The table has more than {most} rows of .* give a smaller one.$"):
        _read(header + b"x\n" * (most + 1), columns)


def test_a_report_is_summed_up_in_a_sentence():
    report = ReadingReport(41_021, 8, (Refusal(3, "the id is empty"),), 374, (Refusal(9, "it is cut short"),), 40_647)
    assert report.summary() == (
        "40,647 products from 41,021 rows: 8 rows repaired, 1 refused, 374 without a picture, 1 with an unreadable one."
    )
