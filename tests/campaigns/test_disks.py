"""A sample of the campaign of full and read-only disks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.campaigns.disks import COMMANDS, Ended, Result, faults_of, leftovers, may_mount, table, trials
from tests.stores import ROOT


@pytest.mark.slow
@pytest.mark.skipif(not may_mount(), reason="needs root or user namespaces, to mount disks")
def test_a_command_on_a_full_disk_says_so_and_ends_well_with_room(tmp_path: Path) -> None:
    flags = ["--commands", "prepare", "--places", "data", "--kinds", "full", "--products", "60"]
    flags += ["--deletions", "0", "--races", "0", "--output", str(tmp_path / "results.json")]
    command = [sys.executable, "-m", "tests.campaigns.disks", *flags]
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=surroundings, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (result,) = json.loads((tmp_path / "results.json").read_text())
    assert (result["code"], result["faults"]) == (1, [])
    assert "is full" in result["sentence"]


@pytest.mark.parametrize(
    ("ended", "faults"),
    [
        (Ended(0, "", "", 1.0), []),
        (Ended(1, "", "error: /w/logs/a.json cannot be written: full. Free some space there.", 1.0), []),
        (Ended(1, "", "error: logs/a.json is read-only: make it writable.", 1.0), []),
        (Ended(1, "", "error: the store is full: free some space.", 1.0), ["does not blame the place"]),
        (Ended(1, "", "error: /w/logs is full.", 1.0), ["names no way out"]),
        (Ended(-9, "", "", 1.0), ["exit code -9", "not one sentence"]),
        (Ended(1, "", "Traceback (most recent call last): error: /w/logs", 1.0), ["not one sentence"]),
    ],
)
def test_what_is_wrong_with_an_ending_is_seen(ended: Ended, faults: list[str]) -> None:
    assert faults_of(ended, Path("/w"), "logs", Path("/w/logs")) == faults


def test_what_an_interruption_left_is_seen(tmp_path: Path) -> None:
    for name in (".table.csv.0a1b2c3d.part", "tmpab12cd_3", "filled.npy", ".gitignore"):
        (tmp_path / name).touch()
    assert leftovers(tmp_path) == [".table.csv.0a1b2c3d.part", "tmpab12cd_3"]


def test_every_place_of_every_command_is_tried() -> None:
    planned = trials(list(COMMANDS), [], ["full", "read-only"])
    assert len(planned) == 2 * sum(len(command.places) for command in COMMANDS.values())
    assert trials(["prepare"], ["tmp"], ["half"]) == [("prepare", "tmp", "half")]


def test_the_table_counts_what_failed() -> None:
    text = table([Result("train", "logs", "full"), Result("train", "data", "half", 1, faults=["left x"])])
    assert text.splitlines()[0].endswith("ok")
    assert text.splitlines()[-1] == "2 trials, 1 failed"
