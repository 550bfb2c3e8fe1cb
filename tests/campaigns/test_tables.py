"""A sample of the campaign of hostile tables."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.campaigns.hostile import isolated
from tests.campaigns.tables import attack_tables, mutate, read_all, write_table


@pytest.mark.slow
def test_hostile_tables_are_read_refused_or_explained() -> None:
    outcome = isolated(attack_tables, "tables", 60, 1, 60.0)
    assert (outcome.tried, outcome.failed) == (60, 0), outcome.faults
    assert len(outcome.answers) >= 3


def test_a_seed_makes_the_same_mutations() -> None:
    first, second = ([mutate(b"id,title\n1,Shirt\n" * 9, random.Random(seed)) for seed in range(20)] for _ in range(2))
    assert first == second
    assert len(set(first)) > 15


def test_an_undamaged_table_is_read_whole(tmp_path: Path) -> None:
    for seed in range(12):
        assert read_all(write_table(tmp_path / f"{seed}" / "shop", random.Random(seed))) == "all products"
