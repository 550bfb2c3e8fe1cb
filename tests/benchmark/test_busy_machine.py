"""Steps beside other processes: both kinds of waiting are measured, and what they are compared with."""

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from vlm_core.benchmark import busy_machine
from vlm_core.benchmark.markdown_tables import busy_table

# In the place of Python, which would import PyTorch for seconds: a worker that tells how its threads wait.
WORKER = """#!/bin/sh
[ "$1" = -S ] && exec "{python}" "$@"
[ "$*" = "-m vlm_core.benchmark.busy_machine clip 64 1 0.1" ] || exit 2
while read -r line; do echo "[$GOMP_SPINCOUNT.5, $GOMP_SPINCOUNT.5]"; done
"""


def test_both_kinds_are_measured_beside_each_number_of_competitors(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    worker = tmp_path / "python"
    worker.write_text(WORKER.format(python=sys.executable))
    worker.chmod(0o755)
    monkeypatch.setattr(busy_machine, "sys", SimpleNamespace(executable=str(worker)))
    monkeypatch.setattr(busy_machine, "COMPETITORS", (0, 1))
    monkeypatch.setattr(busy_machine, "ROUNDS", 1)
    monkeypatch.setattr(busy_machine, "SECONDS", 0.1)
    found = busy_machine.measure_busy("clip", busy_machine.TINY_SIZE, 1)
    for name, seconds in (("spinning", 300000.5), ("sleeping", 0.5)):
        once = {"median": seconds, "lower": seconds, "upper": seconds, "count": 2}
        assert found["waiting"][name] == {"0": once, "1": once}
    assert "| clip | 64 | 1 |" in busy_table([found])


@pytest.mark.slow
def test_a_worker_takes_steps_whenever_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(busy_machine, "sys", SimpleNamespace(stdin=io.StringIO("\n\n"), stdout=written))
    monkeypatch.setitem(busy_machine.BATCH, True, 2)
    busy_machine._serve_steps(["clip", "64", "1", "0.01"])
    answers = [json.loads(line) for line in written.getvalue().splitlines()]
    assert len(answers) == 2
    assert all(len(seconds) >= 2 and min(seconds) > 0 for seconds in answers)


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
