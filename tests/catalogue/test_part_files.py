"""Files that say which part each product is in."""

import json

import pandas as pd
import pytest

from vlm_core.catalogue.part_files import parts_of_products, read_part_file
from vlm_core.errors import UserError

PARTS = {"1": "train", "2": "train", "3": "validation", "4": "test", "5": ""}


@pytest.mark.parametrize(
    "text",
    [
        "id,part\n1,train\n2,train\n3,validation\n4,test\n5,\n",
        "Part;ID\r\nTraining;1.0\r\ntrain;2\r\ndev;3\r\nTEST;4\r\n;5\r\n",
        "product\tsplit\n1\ttrain\n2\ttrain\n3\tval\n4\ttest\n5\t\n\n",
        "1,train\n2,train\n3,valid\n4,testing\n5,\n",
        "id,part\n1,train\n1,train\n2,train\n3,validation\n4,test\n5,\n",
    ],
)
def test_lines_of_id_and_part_are_read_as_tables_are(text, tmp_path):
    path = tmp_path / "parts.csv"
    path.write_bytes(text.encode())
    assert read_part_file(path) == PARTS


def test_the_parts_of_another_split_are_read(tmp_path):
    path = tmp_path / "dataset_info.json"
    path.write_text(json.dumps({"ids": {"train": ["1", "2", "1"], "validation": ["3"], "test": ["4"]}}))
    assert read_part_file(path) == {name: part for name, part in PARTS.items() if part}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("parts.csv", "id,part\n1,train\n2,unused\n", "line 3: unused is no part: name train, validation, test"),
        ("parts.csv", "id,part\n1,train\n1,test\n", "line 3: the product 1 is in test, and in train in an earlier"),
        ("parts.csv", "id,part\n,train\n", "line 2: the id is empty"),
        ("parts.csv", "id,part\n1,train,x\n", "line 2: 3 fields where the header has 2"),
        ("parts.csv", "id,colour\n1,red\n", "has the columns id, colour: it needs id and part"),
        ("parts.json", "{}", "is no dataset_info.json"),
        ("parts.json", "[1", "is no dataset_info.json"),
        ("missing.csv", None, "cannot be read .No such file"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_line(name, text, message, tmp_path):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_part_file(path)


def test_products_that_the_catalogue_does_not_have_are_counted_and_others_are_in_no_part(tmp_path):
    path = tmp_path / "parts.csv"
    path.write_text("id,part\n1,train\n8,test\n9,test\n")
    parts, note = parts_of_products(path, pd.Series(["1", "2"]))
    assert parts.tolist() == ["train", ""]
    assert note.startswith("parts.csv names 3 products, of which the catalogue does not have 2") and "8, 9" in note
    assert parts_of_products(path, pd.Series(["9", "8", "1"]))[1] == ""
    with pytest.raises(UserError, match="names no product of the catalogue: its ids are such as 1, 8, 9, the"):
        parts_of_products(path, pd.Series(["a", "b"]))
