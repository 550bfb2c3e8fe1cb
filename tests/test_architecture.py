"""The rules of docs/architecture.md, held against the code itself."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("experiments", "vlm_core", "dashboard")
PAGE = (ROOT / "docs" / "architecture.md").read_text()
# Each room's floor, and what the page says of it. A room imports from lower floors only.
ROWS = re.findall(r"^\| (\d+) \| `([\w\/]+)` \| (.+) \|$", PAGE, re.MULTILINE)
FLOOR = {room: int(floor) for floor, room, _ in ROWS}

# Who may import each of these libraries. A folder ends with a slash.
ALLOWED_IMPORTERS = {
    "mlflow": {"vlm_core/tracking/"},
    "optuna": {"vlm_core/workflows/tune.py", "vlm_core/workflows/search_storage.py", "dashboard/importances.py"},
    "transformers": {"vlm_core/models/", "vlm_core/training/", "vlm_core/benchmark/"},
    "onnx": {"vlm_core/models/onnx_export.py"},
    "onnxruntime": {"vlm_core/models/onnx_export.py", "vlm_core/models/onnx_categoriser.py"},
    "peft": {"vlm_core/models/", "vlm_core/training/"},
    **{name: {"dashboard/"} for name in ("dash", "dash_ag_grid", "dash_mantine_components", "flask", "waitress")},
    "ray": {"vlm_core/engine/"},
}
# A statement that imports. Ruff lets none share its line, so parsing these alone takes a tenth of parsing all.
IMPORT = re.compile(r"^[ \t]*((?:from[ \t]+[\w.]+[ \t]+)?import[ \t]+(?:\([^)]*\)|[^(\n]+))", re.MULTILINE)
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
def _source(path: Path) -> str:
    return path.read_text()


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(_source(path), str(path))


def _trees_with(words: str) -> list[tuple[Path, ast.Module]]:
    """Return the files in which one of the words occurs, a regular expression: only these are parsed wholly."""
    return [(path, _tree(path)) for path in _python_files(*PACKAGES) if re.search(words, _source(path))]


def _called(node: ast.Call) -> str:
    """Return what is called by its dotted name; of `open(file).read` it is `.read`."""
    function, names = node.func, list[str]()
    while isinstance(function, ast.Attribute):
        names.append(function.attr)
        function = function.value
    return ".".join([function.id if isinstance(function, ast.Name) else "", *reversed(names)])


@cache
def _imports(path: Path) -> tuple[str, ...]:
    """Return the full names of what a file imports, also inside functions and by importlib."""
    source = _source(path)
    by_name = ast.walk(_tree(path)) if re.search(r"import_module|__import__", source) else ()
    statements = (node for text in IMPORT.findall(source) for node in ast.parse(text).body)
    return tuple(name for node in (*statements, *by_name) for name in _imported(path, node))


def _imported(path: Path, node: ast.AST) -> Iterator[str]:
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
        module = ".".join(filter(None, (base, node.module)))
        yield from (f"{module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Call) and _called(node).split(".")[-1] in ("import_module", "__import__"):
        yield ast.literal_eval(node.args[0]) if isinstance(node.args[0], ast.Constant) else "a name made at run time"


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


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


def _modules() -> Iterator[tuple[str, Path]]:
    """Yield each module with its room."""
    yield from ((_room(_name(path)), path) for path in _python_files(*PACKAGES) if path.stem != "__init__")


def test_the_rooms_are_those_of_the_page() -> None:
    assert {room for room, _ in _modules()} == set(FLOOR)
    assert len(FLOOR) == len(ROWS)  # none stands there twice


def test_each_module_stands_in_its_rooms_row() -> None:
    said = {room: text for _, room, text in ROWS} | {"dashboard": PAGE.split("## The dashboard")[1]}
    modules = [(room, path) for room, path in _modules() if path.parent == ROOT / room]
    assert [_name(path) for room, path in modules if not re.search(rf"\b{path.stem}\b", said[room])] == []


def test_imports_run_down_the_floors() -> None:
    assert [f"{_name(path)}: {room} -> {to}" for room, to, path in _arrows() if FLOOR[to] >= FLOOR[room]] == []


def test_the_page_says_how_many_rooms_floors_and_arrows_there_are() -> None:
    (said,) = re.findall(r"(\d+) rooms on (\d+) floors above the ground, with at most (\d+) arrows", PAGE)
    rooms, floors, arrows = map(int, said)
    assert (len(FLOOR), max(FLOOR.values())) == (rooms, floors)
    assert len({(room, to) for room, to, _ in _arrows()}) <= arrows


def _arrows() -> Iterator[tuple[str, str, Path]]:
    """Yield each import of another room: the room that imports, the one that is imported, and the file."""
    for path in _python_files(*PACKAGES):
        room = _room(_name(path))
        for to in {_room(name.replace(".", "/")) for name in _imports(path)} & FLOOR.keys():
            if room in FLOOR and to != room:
                yield room, to, path


@pytest.mark.parametrize("library", ALLOWED_IMPORTERS)
def test_a_foreign_library_is_imported_where_it_may_be(library: str) -> None:
    assert [
        f"{_name(path)} imports {name}"
        for path in _python_files(*PACKAGES)
        for name in _imports(path)
        if name.split(".")[0] == library
        and not any(_name(path).startswith(place) for place in ALLOWED_IMPORTERS[library])
    ] == []


def test_nothing_is_imported_under_a_name_made_at_run_time() -> None:
    assert [_name(path) for path in _python_files(*PACKAGES) if "a name made at run time" in _imports(path)] == []


def test_no_file_is_read_or_written_in_a_format_that_runs_code() -> None:
    imported = [
        f"{_name(path)} imports {name}"
        for path in _python_files(*PACKAGES)
        for name in _imports(path)
        if name.split(".")[0] in PICKLES
    ]
    words = r"_pickle\b|\btorch\.(load|save)\b"
    assert (
        imported + [f"{_name(path)}: {call}" for path, tree in _trees_with(words) for call in _pickle_calls(tree)] == []
    )


def _pickle_calls(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = _called(node)
        allowed = [word for word in node.keywords if word.arg == "allow_pickle" and ast.unparse(word.value) != "False"]
        if called in PICKLE_CALLS or called.endswith(".to_pickle") or allowed:
            yield f"line {node.lineno} calls {ast.unparse(node)}"


def test_nothing_runs_a_text_or_trusts_a_forgeable_checksum() -> None:
    imported = [
        f"{_name(path)} imports {name}"
        for path in _python_files(*PACKAGES)
        for name in _imports(path)
        if name in ("hashlib.md5", "hashlib.sha1")
    ]
    calls = "|".join(map(re.escape, UNSAFE_CALLS))
    words = rf"(?<![\w.])({calls})\(|\b(md5|sha1|{'|'.join(SAFE_VALUES)})\b"
    assert imported + [f"{_name(path)}: {line}" for path, tree in _trees_with(words) for line in _unsafe(tree)] == []


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
    """Yield what runs a text as code, or computes MD5 or SHA-1."""
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
            if name in SAFE_VALUES and ast.unparse(value) != SAFE_VALUES[name]:
                yield f"line {node.lineno} says {name}={ast.unparse(value)}"


def test_no_file_is_too_long_to_read() -> None:
    lengths = {_name(path): len(_source(path).splitlines()) for path in _python_files(*PACKAGES, "tests")}
    assert {name: lines for name, lines in lengths.items() if lines > 500} == {}


def test_no_module_has_a_name_that_says_nothing() -> None:
    nothing = ("utils", "helpers", "common", "misc")
    assert [_name(path) for path in _python_files(*PACKAGES) if path.stem in nothing] == []


@pytest.mark.slow
def test_every_command_shows_its_help_without_heavy_imports() -> None:
    commands = [f"experiments.{path.stem}" for path in _python_files("experiments") if '"__main__"' in path.read_text()]
    # One process for all: what a command imported stays, so the first one at fault is named, and later ones may be too.
    script = """
import contextlib, io, json, runpy, sys
heavy, report = set(json.loads(sys.argv[1])), {}
for command in json.loads(sys.argv[2]):
    sys.argv = [command, "--help"]
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        try:
            runpy.run_module(command, run_name="__main__", alter_sys=True)
            code = "no exit"
        except SystemExit as end:
            code = end.code or 0
    report[command] = [code, "usage:" in shown.getvalue(), sorted(heavy & sys.modules.keys())]
print(json.dumps(report))
"""
    line = [sys.executable, "-c", script, json.dumps(sorted(HEAVY)), json.dumps(commands)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
    assert commands
    assert json.loads(done.stdout) == {command: [0, True, []] for command in commands}
