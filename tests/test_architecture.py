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
    ("vlm_core/errors",),
    (
        "vlm_core/addresses",
        "vlm_core/atomic",
        "vlm_core/progress",
        "vlm_core/aliases",
        "vlm_core/families",
        "vlm_core/presets",
        "vlm_core/lists",
        "vlm_core/pixels",
    ),
    ("vlm_core/config", "vlm_core/catalogue", "vlm_core/evaluation"),
    ("vlm_core/data", "vlm_core/models"),
    ("vlm_core/inference", "vlm_core/training"),
    ("vlm_core/attention", "vlm_core/tracking"),
    ("vlm_core/engine",),
    ("vlm_core/workflows",),
    ("vlm_core/benchmark",),
    ("vlm_core/study",),
    ("experiments", "dashboard"),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

# The one place where each of these libraries may be imported. A folder ends with a slash.
DOORS = {
    "mlflow": {"vlm_core/tracking/"},
    "optuna": {"vlm_core/workflows/tune.py", "vlm_core/workflows/search_storage.py", "dashboard/importances.py"},
    "transformers": {"vlm_core/models/", "vlm_core/training/", "vlm_core/benchmark/"},
    "onnx": {"vlm_core/models/onnx_export.py"},
    "onnxruntime": {"vlm_core/models/onnx_export.py", "vlm_core/models/onnx_categoriser.py"},
    "peft": {"vlm_core/models/", "vlm_core/training/"},
    **{name: {"dashboard/"} for name in ("dash", "dash_ag_grid", "dash_mantine_components", "flask", "waitress")},
    "ray": {"vlm_core/engine/"},
}
# A file in one of these formats can run code when it is read.
PICKLES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "skops", "jsonpickle"}
PICKLE_CALLS = {"torch.load", "torch.save", "pd.read_pickle", "pandas.read_pickle"}
# Each of these runs a text, or trusts a checksum that can be forged.
UNSAFE_CALLS = {"eval", "exec", "compile", "os.system", "os.popen", "hashlib.md5", "hashlib.sha1", "hashlib.new", "md5"}
UNSAFE_CALLS |= {"sha1", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "subprocess.getoutput", "tempfile.mktemp"}
# Keywords that make a library run what it reads, with the one value that is allowed.
SAFE_VALUES = {"shell": "False", "trust_remote_code": "False", "weights_only": "True", "allow_pickle": "False"}
# Each costs a `--help` more than it may take.
HEAVY = {
    *("ray", "torch", "mlflow", "transformers", "onnxruntime"),
    *("sklearn", "skimage", "scipy", "datasets", "kagglehub", "matplotlib"),
}


@cache
def _python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


@cache
def _called(node: ast.Call) -> str:
    return ast.unparse(node.func)


@cache
def _imports(path: Path) -> tuple[str, ...]:
    """The full names of what a file imports, also inside functions and by importlib."""
    return tuple(_find_imports(path))


def _find_imports(path: Path) -> Iterator[str]:
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and _called(node).split(".")[-1] in ("import_module", "__import__"):
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
        called = _called(node)
        allowed = [word for word in node.keywords if word.arg == "allow_pickle" and ast.unparse(word.value) != "False"]
        if called in PICKLE_CALLS or called.endswith(".to_pickle") or allowed:
            yield f"line {node.lineno} calls {ast.unparse(node)}"


@pytest.mark.slow
def test_nothing_runs_a_text_or_trusts_a_forgeable_checksum() -> None:
    assert [
        f"{_name(path)}: {found}"
        for path in _python_files(*ROOMS)
        for found in (
            *_unsafe(_tree(path)),
            *(name for name in _imports(path) if name in ("hashlib.md5", "hashlib.sha1")),
        )
    ] == []


@pytest.mark.parametrize(
    "line",
    [
        *("eval(text)", "exec(text)", "os.system(text)", "hashlib.sha1(data)", "hashlib.new('md5')"),
        *(
            "subprocess.run(text, shell=True)",
            "subprocess.run(text, shell=choice)",
            "hashlib.file_digest(file, 'sha1')",
        ),
        *(
            "Model.from_pretrained(name, trust_remote_code=True)",
            "load(file, weights_only=False)",
            "load(**{'shell': 1})",
        ),
        *("settings = {'trust_remote_code': True}", "dict(weights_only=False)"),
    ],
)
def test_an_unsafe_line_is_seen(line: str) -> None:
    assert len([*_unsafe(ast.parse(line))]) == 1


def test_safe_lines_are_let_pass() -> None:
    lines = "model.eval()\nre.compile(text)\nrun(words)\nload(folder, trust_remote_code=False, weights_only=True)\n"
    assert [*_unsafe(ast.parse(lines + "hashlib.file_digest(file, 'sha256')"))] == []


def _unsafe(tree: ast.AST) -> Iterator[str]:
    """What runs a text as code, or computes MD5 or SHA-1."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            words = {word.arg: word.value for word in node.keywords if word.arg}
            weak = any(isinstance(word, ast.Constant) and word.value in ("md5", "sha1") for word in node.args)
            if _called(node) in UNSAFE_CALLS or weak:
                yield f"line {node.lineno} calls {ast.unparse(node)}"
        elif isinstance(node, ast.Dict):
            words = {
                str(ast.literal_eval(key)): value
                for key, value in zip(node.keys, node.values, strict=True)
                if isinstance(key, ast.Constant)
            }
        else:
            continue
        for name, value in words.items():
            if ast.unparse(value) != SAFE_VALUES.get(name, ast.unparse(value)):
                yield f"line {node.lineno} says {name}={ast.unparse(value)}"


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
