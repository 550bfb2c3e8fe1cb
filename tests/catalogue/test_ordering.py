"""The order of products, which does not depend on that of a table's rows."""

import numpy as np

from vlm_core.catalogue.ordering import PUBLISHED, places_in_order
from vlm_core.catalogue.sample import plan_rows


def _sorted(ids: list[str]) -> list[str]:
    return [ids[place] for place in places_in_order(ids)]


def test_ids_are_in_natural_order() -> None:
    assert _sorted(["B-10", "B-9", "A", "010", "10", "9", ""]) == ["", "9", "010", "10", "A", "B-9", "B-10"]
    assert _sorted([]) == []


def test_the_sample_keeps_the_order_that_it_is_drawn_in() -> None:
    drawn = [str(row.id) for row in plan_rows(1600, 7)]
    assert _sorted(sorted(drawn)) == drawn


def test_myntra_keeps_its_published_order_and_so_does_a_part_of_it() -> None:
    published = [str(number) for number in np.load(PUBLISHED / "myntra.npy")]
    assert published[:4] == ["15970", "39386", "59263", "21379"] and len(set(published)) == 41_021
    assert _sorted(sorted(published)) == published
    part = published[7::200]
    assert _sorted([*sorted(part), "60001", "x"]) == [*part, "60001", "x"]
