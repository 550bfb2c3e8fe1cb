"""Ranges in pyproject.toml, exact versions in requirements.lock, and an environment that has them."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from vlm_core.errors import EXTRAS
from vlm_core.tracking.logging_model import requirements as served_requirements

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text().splitlines()
PYTHONS = ("3.11", "3.12", "3.13")


def normalise(name: str) -> str:
    """A distribution's name as registries compare it: case and separators do not count."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(lines: Iterable[str]) -> dict[str, Requirement]:
    """Requirements by the distribution that they ask for."""
    return {normalise(requirement.name): requirement for requirement in map(Requirement, lines)}


PINS = requirements(line for line in LOCK if not line.startswith("#"))
OPTIONAL = {extra: lines for extra, lines in PROJECT["optional-dependencies"].items() if extra != "all"}
RANGES = [
    line
    for line in (*PROJECT["dependencies"], *(line for lines in OPTIONAL.values() for line in lines))
    if not line.startswith(PROJECT["name"])
]


def test_the_lock_pins_each_distribution_once_to_one_version_from_any_index() -> None:
    assert len(PINS) == sum(not line.startswith("#") for line in LOCK)
    for pin in PINS.values():
        assert re.fullmatch(r"==[0-9][0-9a-z.]*", str(pin.specifier))
        assert (pin.url, pin.extras) == (None, set())


@pytest.mark.parametrize("line", RANGES)
def test_the_lock_has_what_pyproject_asks_for(line: str) -> None:
    asked = Requirement(line)
    pin = PINS[normalise(asked.name)]
    assert {clause.operator for clause in asked.specifier} == {">=", "<"}
    assert asked.specifier.contains(str(pin.specifier).removeprefix("=="))
    assert pin.marker is None


@pytest.mark.parametrize("pin", PINS.values(), ids=str)
def test_a_pin_that_is_for_this_machine_is_installed(pin: Requirement) -> None:
    if pin.marker is None or pin.marker.evaluate():
        # A CPU wheel of PyTorch calls itself 1.2.3+cpu.
        assert f"=={version(pin.name).split('+')[0]}" == str(pin.specifier)


def test_each_python_that_fits_has_the_same_pins() -> None:
    assert [python for python in PYTHONS if python not in SpecifierSet(PROJECT["requires-python"])] == []
    for pin in PINS.values():
        if pin.marker:
            assert len({pin.marker.evaluate({"python_full_version": f"{python}.0"}) for python in PYTHONS}) == 1


def test_the_environment_files_refer_to_the_lock() -> None:
    from mlflow.utils.environment import _PythonEnv
    from mlflow.utils.requirements_utils import _parse_requirements

    conda = yaml.safe_load((ROOT / "conda.yaml").read_text())
    assert conda["dependencies"][-1] == {"pip": ["-r requirements.lock"]}
    from_conda = _PythonEnv.from_conda_yaml(ROOT / "conda.yaml")
    from_python_env = _PythonEnv.from_yaml(ROOT / "python_env.yaml")
    assert from_conda.to_dict() == from_python_env.to_dict()
    # Anything but a full version makes pyenv build the newest Python from the network.
    assert re.fullmatch(r"3\.11\.\d+", from_conda.python)
    read = list(_parse_requirements(from_conda.dependencies, is_constraint=False, base_dir=str(ROOT)))
    assert requirements(requirement.req_str for requirement in read) == PINS
    assert not any(requirement.is_constraint for requirement in read)


@pytest.mark.parametrize(("family", "engine"), [("clip", ""), ("baseline", ""), ("git", "onnx")])
def test_a_served_model_asks_for_pins_of_the_lock(family: str, engine: str) -> None:
    served = requirements(served_requirements(family, engine))
    assert {name: PINS[name].specifier for name in served} == {
        name: requirement.specifier for name, requirement in served.items()
    }
    core = requirements(PROJECT["dependencies"])
    assert {*served} - {*core} == ({"onnxruntime"} if engine else set())


@pytest.mark.slow
def test_code_imports_nothing_that_is_not_asked_for() -> None:
    asked = {*requirements(PROJECT["dependencies"])}
    asked |= {name for extra in EXTRAS for name in requirements(OPTIONAL[extra])}
    distributions = packages_distributions()
    own = {"vlm_core", "experiments", "dashboard"}
    unasked = {
        f"{path.relative_to(ROOT)} imports {module}"
        for package in own
        for path in (ROOT / package).rglob("*.py")
        for module in _imported(path) - own - sys.stdlib_module_names
        if asked.isdisjoint(map(normalise, distributions.get(module, [])))
    }
    assert unasked == set()


def _imported(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found
