"""Tables of JSON objects."""

import io

from vlm_core.catalogue.containers.json_lines import JsonLines
from vlm_core.catalogue.reading import Columns, Record, Refusal


def test_a_value_nested_as_deeply_as_can_be_read_is_read_or_refused() -> None:
    for depth in range(900, 1000):
        lines = b'{"id": 1, "x": ' + b"[" * depth + b"]" * depth + b'}\n{"id": 2, "x": 3}\n'
        records = list(JsonLines(io.BytesIO(lines), "shop.jsonl").records(Columns("id", "", "", "", ())))
        assert isinstance(records[0], Record | Refusal) and records[1] == Record(2, ["2", "3"])
