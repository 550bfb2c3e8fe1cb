"""A sample of the campaign on a million products."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.campaigns import million
from tests.catalogue.handovers import PICTURES, PRODUCTS, Dialect, put_folder, table_text


def test_no_two_pictures_are_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pictures = {f"images/{name}.jpg": data for name, data in PICTURES.items()}
    put_folder(tmp_path / "shop", {"styles.csv": table_text(PRODUCTS, Dialect()), **pictures})
    made = million._make(str(tmp_path / "shop"), 100, tmp_path / "shards")
    assert made["rows"] == 100
    table = pq.read_table(tmp_path / "shards").to_pylist()
    assert [row["id"] for row in table] == [str(10_000_000 + number) for number in range(100)]
    assert [row["masterCategory"] for row in table[28:30]] == ["Schuhe", "Möbel"]
    assert len({row["image"]["bytes"] for row in table}) == 100
