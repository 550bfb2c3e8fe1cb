"""Whether the process that wrote a run still runs."""

import os
import platform
import subprocess
import sys

import psutil

from vlm_core.tracking.tags import process_is_alive, process_is_dead, process_tag


def test_a_process_that_ended_and_was_not_asked_for_its_exit_code_is_dead():
    child = subprocess.Popen([sys.executable, "-S", "-c", ""])
    tag = f"{platform.node()}:{child.pid}:{psutil.Process(child.pid).create_time():.2f}"
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and stays unasked
    assert process_is_dead(tag) and not process_is_alive(tag)
    child.wait()
    assert process_is_dead(tag)
    assert process_is_alive(process_tag())
