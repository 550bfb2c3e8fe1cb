"""Tables as programs write them: encodings, delimiters, quotes, and what stands above the column names."""

import csv
import io
import re
import tracemalloc

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vlm_core.catalogue import reading
from vlm_core.catalogue.containers.text_table import TextTable
from vlm_core.catalogue.reading import Columns, Refusal, TableRow, read_products
from vlm_core.errors import UserError

KAGGLE = Columns("id", "", "title", "category", ("gender",))
HEADER = b"id,gender,category,title\n"


def _table(content):
    return TextTable(io.BytesIO(content), "products.csv")


def _read(content, columns=KAGGLE):
    return list(read_products(_table(content), columns))


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


def test_a_short_row_that_has_what_is_needed_is_filled():
    assert _titles(HEADER + b"1,Men,Apparel\n2,Men,Apparel,Tie\n") == {"1": "", "2": "Tie"}


@pytest.mark.parametrize("title", ["title", ""])
@pytest.mark.parametrize("header", [b"id,gender,category,title\n", b"id,gender,category,title,,\n"])
def test_empty_fields_at_the_end_are_no_fields(header, title):
    columns = Columns("id", "", title, "category", ())
    (row,) = _read(header + b"1,Men,Apparel,Tie,,,\n", columns)
    assert row == TableRow(2, {"id": "1", "gender": "Men", "category": "Apparel", "title": "Tie"}, False)


def test_a_column_without_a_name_is_left_out():
    (row,) = _read(b",id,category\n0,1,Apparel\n")
    assert row.values == {"id": "1", "category": "Apparel"}


def test_a_name_that_stands_twice_is_refused():
    with pytest.raises(
        UserError, match=r"^products\.csv has more than one column called category: rename all but one\.$"
    ):
        _table(b"id,category,category\n1,Shoes,all\n")


@pytest.mark.parametrize(
    ("content", "assumed"),
    [
        (b"\xef\xbb\xbfid,gender,category,title\r\n1,Men,Apparel,Shirt\r\n\r\n", ""),
        (b"id;gender;category;title\n1;Men;Apparel;Shirt\n", "semicolon"),
        (b"id|gender|category|title\n1|Men|Apparel|Shirt\n", "bar"),
        (b"id\tgender\tcategory\ttitle\n1\tMen\tApparel\tShirt", "tab"),
        (b'"id","gender","category","title"\n"1","Men","Apparel","Shirt"\n', ""),
        (b"id,gender,category,title\n\n1,Men,Apparel,Sh\0irt\n", "null bytes are left out, the first in line 3"),
        (b"'id','gender','category','title'\n'1','Men','Apparel','Shirt'\n", "single quotes"),
        (b"\xef\xbb\xbf'id'; 'gender'; 'category'; 'title'\r\n1; 'Men'; 'Apparel'; 'Shirt'\r\n", "semicolon"),
        (b"id,gender,category,title\r1,Men,Apparel,Shirt\r", ""),
        (b'id, gender, category, title\n1, "Men", Apparel, "Shirt"\n', ""),
        (b"\xef\xbb\xbfsep=;\r\nid;gender;category;title\r\n1;Men;Apparel;Shirt\r\n", "semicolon"),
        (b'"sep=^"\nid^gender^category^title\n1^Men^Apparel^Shirt\n', r"\^"),
        (b"# exported today, by me\n#\n\nid,gender,category,title\n# half\n1,Men,Apparel,Shirt\n", ""),
        (b"All products\n\nid,gender,category,title\n1,Men,Apparel,Shirt\n", ""),
        (b'\n\n"id"\t"gender"\t"category"\t"title"\n1\tMen\tApparel\tShirt\n', "tab"),
        ("id,gender,category,title\n1,Men,Apparel,Shirt\n".encode("utf-16"), "UTF-16"),
        ("id;gender;category;title\n1;Men;Apparel;Shirt\n".encode("utf-16-le"), "UTF-16-LE.*semicolon"),
        ("id,gender,category,title\n1,Men,Apparel,Shirt\n".encode("utf-16-be"), "UTF-16-BE"),
        ("id,gender,category,title\n1,Men,Apparel,Shirt\n".encode("utf-32"), "UTF-32"),
    ],
)
def test_dialects(content, assumed):
    table = _table(content)
    (row,) = read_products(table, KAGGLE)
    assert list(row.values.values()) == ["1", "Men", "Apparel", "Shirt"]
    assert bool(table.notes) == bool(assumed)
    if assumed:
        assert re.search(assumed, table.notes[0])


@pytest.mark.parametrize("sign", [":", "~", "^", "\x01", "#", "||"])
def test_needed_names_tell_what_separates_fields(sign):
    header, row = sign[0].join(["id", "photo", "category"]), sign[0].join(["1", "1.jpg" + sign + "2.jpg", "Shoes"])
    row = row if len(sign) > 1 else row.replace(f"{sign}2.jpg", "", 1)
    if len(sign) > 1:  # between the pictures of a cell
        header, row = "id,photo,category", "1,1.jpg||2.jpg,Shoes"
    table = TextTable(io.BytesIO(f"{header}\n{row}\n{row}\n".encode()), "products.csv", {"category", "photo"})
    assert table.names == ["id", "photo", "category"]
    assert next(table.records(KAGGLE)).cells[2] == "Shoes"


def test_cells_of_unnamed_columns_at_the_end_are_passed_over_and_said_to_be():
    table = _table(HEADER.strip() + b",,\n1,Men,Apparel,Tie,red,\n2,Men,Apparel,Tie, red\n3,Men,Apparel,Tie,,\n")
    titles = [row.values["title"] for row in read_products(table, KAGGLE)]
    assert titles == ["Tie", "Tie, red", "Tie"]
    assert table.notes == ["columns at the end without a name are passed over"]


def test_a_text_that_excel_is_told_to_keep_is_that_text():
    table = _table(HEADER + b'="007",Men,Apparel,"=""x"""\n="8",Men,Apparel,<p class="a">b</p>\n')
    rows = list(read_products(table, KAGGLE))
    assert [(row.values["id"], row.values["title"]) for row in rows] == [("007", "x"), ("8", '<p class="a">b</p>')]


@pytest.mark.parametrize("texts", [["Möbel"], ["Mäntel für Jürgen", "Möbel"], ["Été", "Vêtements à café"]])
@pytest.mark.parametrize("newline", ["\r", "\n"])
def test_a_table_of_an_old_mac(texts, newline):
    if newline == "\n" and texts == ["Möbel"]:
        return  # nothing tells
    lines = ["id,gender,category,title", *(f"{number},Men,Apparel,{text}" for number, text in enumerate(texts))]
    table = _table(newline.join(lines).encode("mac_roman"))
    assert [row.values["title"] for row in read_products(table, KAGGLE)] == texts
    assert "mac_roman" in table.notes[0]


@pytest.mark.parametrize(
    ("header", "row", "names"),
    [
        (b'id;category;"name, brand, colour, size, material"', b"1;Shoes;n", 3),
        (b"id;name, brand", b"1;Shirt", 2),
        (b"id,tags;more,category", b"1,a;b,Shoes", 3),
        (b"id,size|colour,category", b"1,M,Shoes", 3),
        (b'"id;category;name"', b"1", 1),
    ],
)
def test_what_separates_fields_is_told_by_the_rows_too(header, row, names):
    assert len(_table(header + b"\n" + row + b"\n" + row + b"\n").names) == names


@pytest.mark.parametrize(
    ("encoding", "texts"),
    [
        ("cp1252", ["Möbel", "Mäntel für Größe 38", "Sofa – 3-Sitzer “Oslo”", "Schränke, 20 €"]),
        ("latin-1", ["Vêtements d'été", "Chaussures à lacets", "Pièces détachées, déjà"]),
        (
            "cp1250",
            ["Sukienka długa z koronką", "Kurtka męska żółta", "Łóżko dziecięce, ściąg", "Spódnica ołówkowa źle"],
        ),
        ("cp1250", ["Dámské šaty", "Příliš žluťoučký kůň", "Dětské boty", "Černá košile, velikost L"]),
        ("cp1252", ["Camisón de algodón", "Niños", "Bañador", "Señora, año 2020"]),
        ("cp1252", ["Kläder för män", "Tröja", "Smørrebrød på tallerken", "Felpa più bella", "Vestido de verão"]),
        ("cp1252", ["Möbel"]),
        ("latin-1", ["Café"]),
        ("cp1254", ["Kadın elbise uzun kollu şık", "Erkek gömlek düğmeli", "Çocuk ayakkabısı ğ"]),
        ("mac_roman", ["Möbel", "Mäntel für Größe 38", "Café crème"]),
        ("cp850", ["Möbel", "Mäntel für Größe 38", "Café crème"]),
        ("cp949", ["남성 셔츠 긴팔", "여성 원피스 여름", "아동 운동화"]),
        ("cp1253", ["Γυναικείο φόρεμα", "Ανδρικό πουκάμισο"]),
        ("cp1251", ["Платье женское летнее", "Куртка мужская зимняя", "Обувь для детей", "Сумка кожаная чёрная"]),
        ("cp932", ["メンズ シャツ 長袖", "レディース スカート", "子供用 靴", "革のバッグ 黒"]),
        ("gb18030", ["男士衬衫 长袖 蓝色", "女士连衣裙 夏季 新款", "儿童运动鞋", "真皮手提包 黑色"]),
    ],
)
def test_encodings_of_other_programs(encoding, texts):
    lines = [f"{number},Men,Apparel,{text}" for number, text in enumerate(texts * 5)]
    content = HEADER + "\n".join(lines).encode(encoding) + b"\n"
    table = _table(content)
    titles = [row.values["title"] for row in read_products(table, KAGGLE)]
    assert titles == texts * 5
    assert any("no UTF-8" in note and "line" in note for note in table.notes)


def test_a_line_in_another_encoding_costs_no_other():
    mixed = (
        HEADER + "1,Men,Apparel,Café\n".encode("latin-1") + "2,Men,Apparel,Größe\n".encode() + b"3,Men,Apparel,Tie\n"
    )
    assert _titles(mixed) == {"1": "Café", "2": "Größe", "3": "Tie"}


def test_a_letter_far_behind_ascii_is_read():
    rows = b"".join(b"%d,Men,Apparel,Cap with a long title of plain letters\n" % n for n in range(40_000))
    titles = _titles(HEADER + rows + "x,Men,Apparel,Möbel\n".encode("cp1252"))
    assert len(titles) == 40_001 and titles["x"] == "Möbel"


@pytest.mark.parametrize(
    ("first", "third", "titles"),
    [
        ('5" Shorts', "Tie", ('5" Shorts', "Tie")),
        ('5" Shorts', '6" Shorts', ('5" Shorts', '6" Shorts')),
        ('"Nike Shorts', '"Puma Shorts', ('"Nike Shorts', '"Puma Shorts')),
        ('"Nike Shorts', 'Puma 5"', ('"Nike Shorts', 'Puma 5"')),
        ('"Nike ""Air"" Shorts"', '"Nike 5"""', ('Nike "Air" Shorts', 'Nike 5"')),
        ('"Nike \\"Air\\", Shorts"', "Tie", ('Nike "Air", Shorts', "Tie")),
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


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("order", [("id", "gender", "category", "title"), ("id", "title", "category", "gender")])
def test_descriptions_of_many_lines_and_commas(newline, order):
    texts = [
        "<p>Model</p>\nSoft, warm, light, washable, vegan\n<li>Made in EU</li>\n",
        "red, blue, green, pink",
        "A,\n" * 200,
    ]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, order, lineterminator=newline)
    writer.writeheader()
    writer.writerows({"id": n, "gender": "Men", "category": "Bag", "title": texts[n % 3]} for n in range(9))
    rows = _read(text.getvalue().encode())
    assert [row.values["title"] for row in rows] == [texts[n % 3].strip() for n in range(9)]


@pytest.mark.parametrize("content", [b"", b"\n", b",,\n", b"\xef\xbb\xbf", b"\xff\xfe", b"sep=;\n", b"#\n"])
def test_a_table_without_column_names_is_empty(content):
    if content == b"#\n":
        assert _table(content).names == ["#"]
        return
    with pytest.raises(UserError, match=r"products\.csv is empty"):
        _table(content)


@pytest.mark.parametrize(
    "start", [b"PK\3\4", b"\x1f\x8b\x08", b"PAR1", b"\x89PNG\r\n", b"\xd0\xcf\x11\xe0", b"<table>", b"{\\rtf1"]
)
def test_a_file_that_is_no_text_is_said_to_be_none(start):
    with pytest.raises(UserError, match=r"products\.csv is .*not text"):
        _table(start + bytes(range(256)) * 4)


CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)


@pytest.mark.slow
@given(st.lists(st.tuples(CELLS, CELLS, CELLS), max_size=8), st.sampled_from(",;\t|"), st.sampled_from(["\n", "\r\n"]))
def test_what_the_csv_module_writes_is_read_as_it_was(rows, delimiter, newline):
    # A line of a quoted cell that reads as a whole row is taken for one: here is where that would begin.
    assume(not any(cell.count(delimiter) >= 3 for row in rows for cell in row))
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, lineterminator=newline)
    writer.writerows([("id", "gender", "category", "title"), *((str(n), *row) for n, row in enumerate(rows))])
    found = _read(text.getvalue().encode())
    assert [tuple(row.values.values()) for row in found] == [
        (str(n), *(cell.strip() for cell in row)) for n, row in enumerate(rows)
    ]


@pytest.mark.slow
@given(st.binary(max_size=300))
def test_no_content_raises_anything_else(content):
    try:
        table = _table(content)
    except UserError:
        return
    names = [name for name in table.names if name]
    for row in read_products(table, Columns(table.names[0], "", table.names[-1], table.names[-1], ())):
        assert isinstance(row, Refusal) or list(row.values) == names


@pytest.mark.parametrize(("header", "most"), [(HEADER, 30), (b",".join(b"c%d" % n for n in range(100)) + b"\n", 10)])
def test_more_rows_than_fit_in_memory_are_one_sentence(monkeypatch, header, most):
    monkeypatch.setattr(reading, "MOST_ROWS", 30)
    monkeypatch.setattr(reading, "MOST_CELLS", 1000)
    columns = Columns("id" if header == HEADER else "c0", "", "", "", ())
    assert len(_read(header + b"x\n" * most, columns)) == most
    with pytest.raises(UserError, match=f"^The table has more than {most} rows of .* give a smaller one.$"):
        _read(header + b"x\n" * (most + 1), columns)


@pytest.mark.parametrize("long", [b"2,Men,Apparel,%s\n", b'2,Men,Apparel,"%s"\n', b"2,Men,Apparel,\0%s\n"])
def test_a_line_without_end_costs_its_row_alone_and_little_memory(long):
    tracemalloc.start()
    first, refusal, last = _read(HEADER + b"1,Men,Apparel,Tie\n" + long % (b"x," * 5_000_000) + b"3,Men,Apparel,Cap\n")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (refusal.line, refusal.reason[:32]) == (3, "longer than 1,000,000 characters")
    assert (first.values["title"], last.line, last.values["title"]) == ("Tie", 4, "Cap")
    assert peak < 60_000_000


def test_names_of_columns_in_a_line_without_end_are_said_to_be():
    with pytest.raises(UserError, match="^Line 1 of products.csv, which must name the columns, is longer than 1,000,0"):
        _table(b"x," * 600_000)


def test_null_bytes_are_left_out_and_said():
    table = _table(HEADER + b"1,Men,Apparel,Tie\n2,Men,App\0arel,C\0ap\n3,\0,Apparel,Hat\n")
    assert [row.values["title"] for row in read_products(table, KAGGLE)] == ["Tie", "Cap", "Hat"]
    assert table.notes == ["null bytes are left out, the first in line 3"]


@pytest.mark.parametrize(
    "above",
    [
        "Artikelliste;;;\n;;;\n",
        "Artikelliste, Stand 1. Mai\n",
        "TemplateType=shop;Version=1;;\nNummer;Geschlecht;Art;Name\n",
    ],
)
def test_the_column_names_are_in_the_line_that_has_those_that_are_needed(above):
    content = f"{above}id;gender;category;title\n1;Men;Shoes;Boot, brown\n".encode()
    table = TextTable(io.BytesIO(content), "products.csv", ["id", "category"])
    (row,) = read_products(table, KAGGLE)
    lines = above.count("\n")
    assert (row.line, row.values["title"]) == (lines + 2, "Boot, brown")


def test_fields_may_end_at_blanks_where_the_column_names_do():
    content = b"2\nid   gender  category\n1.jpg     Men     Shoes\n2 b.jpg Men Bags\n"
    table = TextTable(io.BytesIO(content), "list.txt", ["id", "category"])
    first, second = read_products(table, KAGGLE)
    assert (first.line, first.values) == (3, {"id": "1.jpg", "gender": "Men", "category": "Shoes"})
    assert isinstance(second, Refusal) and table.notes[0] == "fields end at a blank"


def test_a_row_that_only_looks_like_column_names_is_a_row():
    table = TextTable(io.BytesIO(HEADER + b"id,gender,category,title\n"), "products.csv", ["id", "category"])
    assert [row.line for row in read_products(table, KAGGLE)] == [2] and not table.notes


def test_letters_that_no_language_has_together_tell_encodings_apart_however_long_a_word_is():
    for word in ("Ko\u0161ile", "KO\u0160ILE"):  # Czech, which as Western Europe's would be Ko¹ile or Košile with ø
        content = HEADER + f"1,Men,Apparel,{word} p\u0159\u00ed\u017e {'x' * 100_000}\u0159\n".encode("cp1250")
        assert _titles(content)["1"].startswith(f"{word} p\u0159\u00ed\u017e")


def test_cells_in_single_quotes_keep_the_double_ones_and_their_delimiters():
    assert _titles(b"'id','category','title'\n'1','Men''s','A \"blue\", long shirt'\n2,Bag,It's\n") == {
        "1": 'A "blue", long shirt', "2": "It's",
    }  # fmt: skip


def test_a_note_counts_one_field():
    (refusal,) = _read(HEADER + b"(24 rows)\n")
    assert refusal.reason == "1 field where the header has 4"
