"""The doors of docs/architecture.md, read from the code itself."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("experiments", "vlm_core", "dashboard")

# The rooms of docs/architecture.md, floor by floor from the ground up: a room imports from lower floors alone.
FLOORS = (
    (
        "vlm_core/errors",
        "vlm_core/atomic",
        "vlm_core/progress",
        "vlm_core/aliases",
        "vlm_core/pixels",
    ),
    ("vlm_core/config", "vlm_core/catalogue", "vlm_core/evaluation"),
    ("vlm_core/data", "vlm_core/models"),
    ("vlm_core/inference", "vlm_core/training"),
    ("vlm_core/attention", "vlm_core/tracking"),
    ("vlm_core/workflows",),
    ("vlm_core/benchmark",),
    ("vlm_core/study",),
    ("experiments", "dashboard"),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS, start=1) for room in rooms}

# The one place where each of these libraries may be imported. A folder ends with a slash.
DOORS = {
    "mlflow": {"vlm_core/tracking/"},
    "optuna": {"vlm_core/workflows/tune.py", "dashboard/importances.py"},
    "transformers": {"vlm_core/models/", "vlm_core/training/", "vlm_core/benchmark/"},
    "onnx": {"vlm_core/models/onnx_export.py"},
    "onnxruntime": {"vlm_core/models/onnx_export.py", "vlm_core/models/onnx_categoriser.py"},
    "peft": {"vlm_core/models/", "vlm_core/training/"},
    **{name: {"dashboard/"} for name in ("dash", "dash_ag_grid", "dash_mantine_components", "flask", "waitress")},
    "ray": set(),  # one module, named here by whoever brings it
}
# A file in one of these formats can run code when it is read.
PICKLES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "skops", "jsonpickle"}
PICKLE_CALLS = {"torch.load", "torch.save", "pd.read_pickle", "pandas.read_pickle"}
# Each costs a `--help` more than it may take.
HEAVY = {
    *("torch", "mlflow", "transformers", "onnxruntime"),
    *("sklearn", "skimage", "scipy", "datasets", "kagglehub", "matplotlib"),
}


def _python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def _imports(path: Path) -> Iterator[str]:
    """The full names of what a file imports, also inside functions and by importlib."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            yield (
                ast.literal_eval(node.args[0]) if isinstance(node.args[0], ast.Constant) else "a name made at run time"
            )


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("room", "forbidden"),
    [
        ("vlm_core", ("experiments", "dashboard", "tests")),
        ("dashboard", ("experiments", "tests")),
        ("experiments", ("dashboard", "tests")),
    ],
)
def test_imports_run_towards_the_library_and_never_across(room: str, forbidden: tuple[str, ...]) -> None:
    assert [
        f"{_name(path)} imports {name}"
        for path in _python_files(room)
        for name in _imports(path)
        if name.split(".")[0] in forbidden
    ] == []


def _room(path: str) -> str:
    parts = path.removesuffix(".py").split("/")
    return "/".join(parts[:2]) if parts[0] == "vlm_core" else parts[0]


def test_the_rooms_are_those_of_the_plan() -> None:
    packages = {_name(path) for room in ROOMS for path in (ROOT / room).rglob("__init__.py")}
    assert {_room(_name(path)) for path in _python_files(*ROOMS) if _name(path) not in packages} == set(FLOOR)
    page = (ROOT / "docs" / "architecture.md").read_text()
    assert [room for room in FLOOR if f"`{room}" not in page] == []


@pytest.mark.slow
def test_imports_run_down_the_floors() -> None:
    assert [
        f"{_name(path)} imports {name}"
        for path in _python_files(*ROOMS)
        for name in _imports(path)
        for there in [_room(name.replace(".", "/"))]
        if there in FLOOR and there != _room(_name(path)) and FLOOR[there] >= FLOOR.get(_room(_name(path)), 0)
    ] == []


@pytest.mark.slow
@pytest.mark.parametrize("library", DOORS)
def test_a_foreign_library_has_one_door(library: str) -> None:
    assert [
        f"{_name(path)} imports {name}"
        for path in _python_files(*ROOMS)
        for name in _imports(path)
        if name.split(".")[0] == library and not any(_name(path).startswith(door) for door in DOORS[library])
    ] == []


@pytest.mark.slow
def test_nothing_is_imported_under_a_name_made_at_run_time() -> None:
    assert [_name(path) for path in _python_files(*ROOMS) if "a name made at run time" in _imports(path)] == []


@pytest.mark.slow
def test_no_file_is_read_or_written_in_a_format_that_runs_code() -> None:
    assert [
        f"{_name(path)}: {found}"
        for path in _python_files(*ROOMS)
        for found in (*(name for name in _imports(path) if name.split(".")[0] in PICKLES), *_pickle_calls(path))
    ] == []


def _pickle_calls(path: Path) -> Iterator[str]:
    for node in ast.walk(_tree(path)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        allowed = [word for word in node.keywords if word.arg == "allow_pickle" and ast.unparse(word.value) != "False"]
        if called in PICKLE_CALLS or called.endswith(".to_pickle") or allowed:
            yield f"line {node.lineno} calls {ast.unparse(node)}"


def test_no_file_is_too_long_to_read() -> None:
    lengths = {_name(path): len(path.read_text().splitlines()) for path in _python_files(*ROOMS, "tests")}
    assert {name: lines for name, lines in lengths.items() if lines > 500} == {}


def test_no_module_has_a_name_that_says_nothing() -> None:
    assert [_name(path) for path in _python_files(*ROOMS) if path.stem in ("utils", "helpers", "common", "misc")] == []


@pytest.mark.slow
def test_every_door_answers_help_without_heavy_imports() -> None:
    doors = [f"experiments.{path.stem}" for path in _python_files("experiments") if '"__main__"' in path.read_text()]
    # One process for all: what a door imported stays, so the first one at fault is named, and later ones may be too.
    script = """
import contextlib, io, json, runpy, sys
heavy, report = set(json.loads(sys.argv[1])), {}
for door in json.loads(sys.argv[2]):
    sys.argv = [door, "--help"]
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        try:
            runpy.run_module(door, run_name="__main__", alter_sys=True)
            code = "no exit"
        except SystemExit as end:
            code = end.code or 0
    report[door] = [code, "usage:" in shown.getvalue(), sorted(heavy & sys.modules.keys())]
print(json.dumps(report))
"""
    command = [sys.executable, "-c", script, json.dumps(sorted(HEAVY)), json.dumps(doors)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert doors
    assert json.loads(done.stdout) == {door: [0, True, []] for door in doors}
