"""Tags of runs: whether the process that wrote one still runs, and what its categories are called."""

import json
import os
import platform
import subprocess
import sys
from dataclasses import replace

import psutil

from tests.tracking.made import make_catalogue, make_split
from vlm_core.tracking.tags import data_tags, process_is_alive, process_is_dead, process_tag


def test_a_process_that_ended_and_was_not_asked_for_its_exit_code_is_dead():
    child = subprocess.Popen([sys.executable, "-S", "-c", ""])
    tag = f"{platform.node()}:{child.pid}:{psutil.Process(child.pid).create_time():.2f}"
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and stays unasked
    assert process_is_dead(tag) and not process_is_alive(tag)
    child.wait()
    assert process_is_dead(tag)
    assert process_is_alive(process_tag())


def test_the_categories_of_a_run_are_told_unless_they_are_too_many_for_a_tag() -> None:
    catalogue = make_catalogue()
    split = make_split(catalogue)
    assert json.loads(data_tags(catalogue, split)["categories"]) == list(split.categories)
    many = replace(split, categories=tuple(f"category {number} of very many" for number in range(400)))
    assert "categories" not in data_tags(catalogue, many)
