"""What the import of the package decides for every process: how OpenMP's threads wait."""

import os
import subprocess
import sys

import pytest

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


@pytest.mark.parametrize(
    ("module", "chosen", "expected"),
    [
        ("experiments.cli", {}, "PASSIVE 0"),
        ("dashboard.__main__", {}, "PASSIVE 0"),
        ("experiments.cli", {"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE None"),
        ("experiments.cli", {"GOMP_SPINCOUNT": "1000"}, "None 1000"),
    ],
)
def test_threads_sleep_while_they_wait_unless_the_user_chose(
    module: str, chosen: dict[str, str], expected: str
) -> None:
    script = f"""
import os, sys
import vlm_core
assert not {{"torch", "sklearn", "numpy"}} & sys.modules.keys()  # which load OpenMP
import {module}
print(*(os.environ.get(name) for name in {NAMES}))
"""
    environment = {name: value for name, value in os.environ.items() if name not in NAMES} | chosen
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected
