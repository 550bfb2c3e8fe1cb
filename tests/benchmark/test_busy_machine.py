"""Steps beside other processes: both kinds of waiting are measured, and what they are compared with."""

import pytest

from vlm_core.benchmark import busy_machine
from vlm_core.benchmark.markdown_tables import busy_table


@pytest.mark.slow
def test_both_kinds_are_measured_beside_each_number_of_competitors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(busy_machine, "COMPETITORS", (0, 1))
    monkeypatch.setattr(busy_machine, "ROUNDS", 1)
    monkeypatch.setattr(busy_machine, "SECONDS", 0.1)
    found = busy_machine.measure_busy("clip", busy_machine.TINY_SIZE, 1)
    assert found["waiting"].keys() == {"spinning", "sleeping"}
    for of_kind in found["waiting"].values():
        assert of_kind.keys() == {"0", "1"}
        assert all(each["median"] > 0 and each["count"] >= 2 for each in of_kind.values())
    assert "| clip | 64 | 1 |" in busy_table([found])


def test_the_ideal_is_an_equal_share_of_the_cores() -> None:
    def seconds(*medians: float) -> dict[str, dict[str, float]]:
        return {
            count: {"median": value, "lower": value, "upper": value}
            for count, value in zip("028", medians, strict=True)
        }

    waiting = {"spinning": seconds(0.010, 0.200, 0.500), "sleeping": seconds(0.0101, 0.020, 0.055)}
    table = busy_table([{"family": "git", "image_size": 64, "cores": 2, "waiting": waiting}]).splitlines()
    # Alone 10 ms; beside 2 competitors on 2 cores the ideal is 20 ms, beside 8 it is 50 ms.
    assert [line.split(" | ")[-2:] for line in table[2:]] == [
        ["1.00", "1.01 |"],
        ["10.00", "1.00 |"],
        ["10.00", "1.10 |"],
    ]
