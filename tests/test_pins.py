"""One place of the pins, two files that repeat them, and an environment that has them."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = PROJECT["dependencies"]
DEV_PINS = PROJECT["optional-dependencies"]["dev"]


def _name(pin: str) -> str:
    """A distribution's name as registries compare it: case and separators do not count."""
    return re.sub(r"[-_.]+", "-", pin.split("==")[0]).lower()


@pytest.mark.parametrize("pin", PINS + DEV_PINS)
def test_a_pin_is_exact_and_installed(pin: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_-]+==[0-9][0-9a-z.]*", pin)
    # A CPU wheel of PyTorch calls itself 1.2.3+cpu.
    assert version(_name(pin)).split("+")[0] == pin.split("==")[1]


def test_the_environment_files_have_the_pins_of_pyproject() -> None:
    python_env = yaml.safe_load((ROOT / "python_env.yaml").read_text())
    conda = yaml.safe_load((ROOT / "conda.yaml").read_text())
    assert python_env["dependencies"] == PINS
    assert conda["dependencies"][-1] == {"pip": PINS}


def test_mlflow_builds_one_environment_from_either_file() -> None:
    from mlflow.utils.environment import _PythonEnv

    from_conda = _PythonEnv.from_conda_yaml(ROOT / "conda.yaml")
    from_python_env = _PythonEnv.from_yaml(ROOT / "python_env.yaml")
    assert from_conda.to_dict() == from_python_env.to_dict()
    assert from_conda.dependencies == PINS
    # Anything but a full version makes pyenv build the newest Python from the network.
    assert re.fullmatch(r"3\.11\.\d+", from_conda.python)


def test_mlflow_reads_every_pin_as_a_plain_requirement() -> None:
    from mlflow.utils.environment import _PythonEnv
    from mlflow.utils.requirements_utils import _parse_requirements

    pins = _PythonEnv.from_yaml(ROOT / "python_env.yaml").dependencies
    parsed = list(_parse_requirements(pins, is_constraint=False, base_dir=str(ROOT)))
    assert [requirement.req_str for requirement in parsed] == pins


def test_code_imports_nothing_that_is_not_pinned() -> None:
    pinned = {_name(pin) for pin in PINS}
    distributions = packages_distributions()
    own = {"vlm_core", "experiments", "dashboard"}
    unpinned = {
        f"{path.relative_to(ROOT)} imports {module}"
        for package in own
        for path in (ROOT / package).rglob("*.py")
        for module in _imported(path) - own - sys.stdlib_module_names
        if pinned.isdisjoint(map(_name, distributions.get(module, [])))
    }
    assert unpinned == set()


def _imported(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found
