"""Tables of JSON objects."""

import io
import json

import pytest

from vlm_core.catalogue.containers.json_lines import JsonLines
from vlm_core.catalogue.reading import Columns, Record, Refusal
from vlm_core.errors import UserError

COLUMNS = Columns("id", "photo", "", "label", ())
OBJECTS = [{"id": number, "photo": f"{number}.jpg", "label": label} for number, label in ((7, "Möbel"), (8, "Bag"))]
TOLD = [["7", "7.jpg", "Möbel"], ["8", "8.jpg", "Bag"]]


def _read(data, needed=("photo", "label")):
    """The rows in the order of the names id, photo and label."""
    table = JsonLines(io.BytesIO(data), "shop.json", needed)
    records = list(table.records(COLUMNS))
    order = [table.names.index(name) for name in ("id", "photo", "label")]
    return [[record.cells[place] for place in order] for record in records if isinstance(record, Record)], table.notes


def _by_column(index):
    return {name: {key: row[name] for key, row in zip(index, OBJECTS, strict=True)} for name in OBJECTS[0]}


DOCUMENTS = {
    "a list": OBJECTS,
    "a list within": {"total": 2, "products": OBJECTS},
    "a list deeper within": {"data": {"total": 2, "products": OBJECTS}},
    "by id": {str(row["id"]): {"photo": row["photo"], "label": row["label"]} for row in OBJECTS},
    "pandas' columns": _by_column(["0", "1"]),
    "pandas' columns by id": {name: column for name, column in _by_column(["7", "8"]).items() if name != "id"},
    "pandas' index": {str(number): row for number, row in enumerate(OBJECTS)},
    "rows below a list of names": [list(OBJECTS[0]), *(list(row.values()) for row in OBJECTS)],
    "pandas' split": {"columns": list(OBJECTS[0]), "index": [0, 1], "data": [list(row.values()) for row in OBJECTS]},
}


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("form", DOCUMENTS)
def test_documents_hold_the_table_in_whatever_programs_write(form, indent):
    assert _read(json.dumps(DOCUMENTS[form], indent=indent).encode())[0] == TOLD


def test_objects_over_several_lines_one_after_the_other():
    assert _read("\n".join(json.dumps(row, indent=1) for row in OBJECTS).encode())[0] == TOLD


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
@pytest.mark.parametrize("is_document", [True, False])
def test_any_encoding_which_is_said(encoding, is_document):
    text = json.dumps(OBJECTS, ensure_ascii=False, indent=1)
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in OBJECTS)
    rows, notes = _read(f"\n {text if is_document else lines}".encode(encoding))
    assert rows == TOLD and bool(notes) == (encoding == "cp1252")


def test_a_broken_line_costs_itself_only():
    for broken in (0, 1, 2):
        lines = [json.dumps({"id": str(number)}) for number in range(3)]
        lines[broken] = lines[broken][:-2]
        records = list(JsonLines(io.BytesIO("\n".join(lines).encode()), "shop.jsonl").records(COLUMNS))
        assert [isinstance(record, Record) for record in records] == [number != broken for number in range(3)]
        assert records[broken] == Refusal(broken + 1, "not valid JSON")


def test_coco_gives_each_image_the_category_of_its_annotations():
    document = {
        "images": [{"id": number, "file_name": f"{number}.jpg"} for number in range(4)],
        "categories": [{"id": 1, "name": "Bag"}, {"id": 2, "name": "Shoe"}, 7],
        "annotations": [
            *({"image_id": image, "category_id": kind} for image, kind in ((0, 1), (0, 1), (1, 2), (2, 1), (2, 2))),
            {"image_id": [0], "category_id": {}},
        ],
    }
    table = JsonLines(io.BytesIO(json.dumps(document).encode()), "coco.json")
    assert (table.names, table.picture, table.label) == (["id", "file_name", "label"], "file_name", "label")
    table.names[2] = "masterCategory"  # as the table's reader may call it
    assert list(table.records(COLUMNS)) == [
        Record(1, ["0", "0.jpg", "Bag"]),
        Record(2, ["1", "1.jpg", "Shoe"]),
        Refusal(3, "the image 2.jpg has several categories: Bag, Shoe"),
        Record(4, ["3", "3.jpg", ""]),
    ]


def test_a_value_nested_as_deeply_as_can_be_read_is_read_or_refused() -> None:
    for depth in range(900, 1000):
        lines = b'{"id": 1, "x": ' + b"[" * depth + b"]" * depth + b'}\n{"id": 2, "x": 3}\n'
        records = list(JsonLines(io.BytesIO(lines), "shop.jsonl").records(Columns("id", "", "", "", ())))
        assert isinstance(records[0], Record | Refusal) and records[1] == Record(2, ["2", "3"])


def test_a_line_without_end_costs_its_object_alone():
    lines = [json.dumps(each) for each in OBJECTS]
    table = JsonLines(io.BytesIO("\n".join([lines[0], json.dumps({"id": "x" * 2_500_000}), lines[1]]).encode()), "a")
    first, refusal, last = table.records(COLUMNS)
    assert (first.cells, last.line, last.cells) == (TOLD[0], 3, TOLD[1])
    assert (refusal.line, refusal.reason[:32]) == (2, "longer than 1,000,000 characters")


def test_a_key_that_stands_twice_is_refused():
    twice = '{"id": 9, "label": "Bag", "label": "Shoe"}'
    table = JsonLines(io.BytesIO("\n".join([json.dumps(OBJECTS[0]), twice]).encode()), "shop.json")
    _, refusal = table.records(COLUMNS)
    assert refusal == Refusal(2, "the key label stands twice in one object")
    with pytest.raises(UserError, match="shop.json cannot be used, because the key label stands twice in one object"):
        JsonLines(io.BytesIO(f"[{twice}]".encode()), "shop.json")


def test_a_list_of_one_text_is_that_text():
    table = JsonLines(io.BytesIO(json.dumps([{"id": ["7"], "label": ["Bag", "Red"], "photo": []}]).encode()), "a")
    (row,) = table.records(COLUMNS)
    assert row.cells == ["7", '["Bag", "Red"]', "[]"]
