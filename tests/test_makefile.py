"""The Makefile, run with make itself, on a copy of the project that pins nothing where an environment is built."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pip
import pytest

from vlm_core.errors import EXTRAS

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "Makefile").read_text()
STAMPS = (".ready", ".ready-dev", "tools/.ready", *(f".ready-{extra}" for extra in EXTRAS))
TARGETS = re.findall(r"^([a-z]+):", TEXT, flags=re.MULTILINE)


def _make(*words: str, folder: Path = ROOT, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": path or os.environ["PATH"]}
    return subprocess.run(["make", *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def _installed(folder: Path) -> Path:
    """An environment that make takes for a finished one."""
    environment = folder / "environment"
    (environment / "tools").mkdir(parents=True)
    for stamp in STAMPS:
        (environment / stamp).touch()
    return environment


def _printing(folder: Path, text: str) -> Path:
    """A finished environment whose Python prints the text, a shell's."""
    environment = _installed(folder)
    (environment / "bin").mkdir()
    python = environment / "bin/python"
    python.write_text(f'#!/bin/sh\necho "{text}"\n')
    python.chmod(0o755)
    return environment


def test_make_alone_lists_every_target_with_what_it_does() -> None:
    listed = re.findall(r"^  make ([a-z]+) +(\S.*)$", _make().stdout, flags=re.MULTILINE)
    assert [target for target, _ in listed] == TARGETS
    assert _make("help").stdout == _make().stdout


def test_every_target_is_phony() -> None:
    phony = re.search(r"^\.PHONY: (.*)$", TEXT, flags=re.MULTILINE)
    assert phony is not None
    assert sorted(phony[1].split()) == sorted(TARGETS)


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["train"], "-m experiments.train --preset demo --model blip --data sample"),
        (
            ["train", "MODEL=git", "DATA=a.zip", "FLAGS=--epochs 3"],
            "-m experiments.train --preset demo --model git --data a.zip --epochs 3",
        ),
        (["demo"], "-m experiments.demo"),
        (["prepare", "DATA=hf"], "-m experiments.prepare --data hf"),
        (["serve", "MODEL=blip-large"], "mlflow models serve -m models:/categoriser-blip@champion --env-manager local"),
        (["study"], "-m experiments.study --preset demo --data sample"),
        (["test"], "-m pytest -n"),
        (["check"], '-m "not slow"'),
        (["lock"], "--generate-hashes"),
        (["verify"], "-m experiments.verify"),
        (["audit"], "pip-audit --strict --disable-pip --require-hashes --requirement requirements-hashed.lock"),
        (["sbom"], "cyclonedx-py environment"),
    ],
)
def test_a_target_runs_its_command_and_installs_nothing_twice(tmp_path: Path, words: list[str], command: str) -> None:
    environment = _installed(tmp_path)
    printed = _make("-n", f"VENV={environment}", *words).stdout
    assert command in printed
    assert "pip install" not in printed


@pytest.mark.parametrize(
    ("words", "installed"),
    [
        (["train"], ["core.txt"]),
        (["train", "DATA=kaggle"], ["core.txt", "data.txt"]),
        (["tune"], ["core.txt", "search.txt"]),
        (["study", "DATA=hf"], ["core.txt", "study.txt", "data.txt"]),
        (["bench"], ["core.txt", "study.txt", "export.txt"]),
        (["dashboard"], ["core.txt", "dashboard.txt"]),
        (["setup", "EXTRAS=export data"], ["core.txt", "export.txt", "data.txt"]),
        (["setup", "EXTRAS=all"], ["core.txt", *(f"{extra}.txt" for extra in EXTRAS)]),
        (["test"], ["core.txt", "requirements.lock"]),
    ],
)
def test_changed_pins_are_installed_again_where_they_are_needed(
    tmp_path: Path, words: list[str], installed: list[str]
) -> None:
    environment = _installed(tmp_path)
    for stamp in environment.iterdir():
        os.utime(stamp, (0, 0))
    lines = [line for line in _make("-n", f"VENV={environment}", *words).stdout.splitlines() if "pip install" in line]
    assert sorted(line.rpartition(" -r ")[2].rpartition("/")[2] for line in lines) == sorted(installed)


def test_what_python_has_compiled_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    assert _make("-s", f"VENV={_printing(tmp_path, '[$PYTHONDONTWRITEBYTECODE]')}", "train").stdout == "[]\n"


@pytest.mark.parametrize("target", ["check", "test"])
def test_threads_of_tests_wait_passively(tmp_path: Path, target: str) -> None:
    environment = _printing(tmp_path, "$OMP_WAIT_POLICY $GOMP_SPINCOUNT")
    assert _make("-s", f"VENV={environment}", target).stdout == "PASSIVE 0\n"


@pytest.mark.parametrize(
    ("said", "code", "expected"),
    [
        ("No known vulnerabilities found", 0, "No known vulnerabilities found\n"),
        ("Found 2 known vulnerabilities in 1 package", 1, "Found 2 known vulnerabilities in 1 package\n"),
        (
            "Traceback (most recent call last):\nConnectionError: no route",
            1,
            "Nothing is known of the locked packages' weaknesses, because they could not be looked up: run make audit "
            "where pypi.org can be reached, or with FLAGS='-s osv' where api.osv.dev can. The reason: ConnectionError: "
            "no route\n",
        ),
    ],
)
def test_an_audit_says_what_it_found_or_why_it_found_nothing(
    tmp_path: Path, said: str, code: int, expected: str
) -> None:
    environment = _installed(tmp_path)
    (environment / "tools/bin").mkdir()
    audit = environment / "tools/bin/pip-audit"
    audit.write_text(f"#!/bin/sh\ncat >&2 <<'END'\n{said}\nEND\nexit {code}\n")
    audit.chmod(0o755)
    done = _make("-s", f"VENV={environment}", "audit")
    printed = [line for line in (done.stdout + done.stderr).splitlines(keepends=True) if not line.startswith("make")]
    assert (done.returncode != 0, "".join(printed)) == (code != 0, expected)


def test_a_missing_python_gives_one_sentence_and_makes_nothing(tmp_path: Path) -> None:
    done = _make("train", "PYTHON=python3.11-that-is-missing", f"VENV={tmp_path / 'environment'}")
    assert done.returncode != 0
    said, *rest = done.stderr.splitlines()
    assert said.startswith("Python 3.11, 3.12 or 3.13 with its venv module is needed: install it")
    assert [line.split(":")[0] for line in rest] == ["make"]
    assert list(tmp_path.iterdir()) == []


WITH_PIP_AT_HAND = """
[ "$1 $2" = "-m venv" ] || exec "{python}" "$@"
set -e
"{python}" -m venv --without-pip "$3"
ln -s "{pip}" "$3"/lib/python3.*/site-packages/
ln -s "{python}" "$3/bin/pip"
"""


@pytest.fixture(scope="module")
def bare_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Makefile beside a pyproject.toml that asks for nothing, set up with a PATH that has no pyenv.

    Of the Pythons on that PATH the first starts nothing, as a shim may, and the second fits. It has pip at hand, which
    it would otherwise unpack into the environment for seconds.
    """
    project, tools = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("tools")
    shutil.copy(ROOT / "Makefile", project)
    (project / "requirements.lock").touch()
    (project / "pyproject.toml").write_text("[project]\ndependencies = []\noptional-dependencies.data = []\n")
    for tool in ("sh", "bash", "env", "touch", "chmod", "mkdir", "dirname", "ln"):
        (tools / tool).symlink_to(shutil.which(tool) or tool)
    (tools / "make").symlink_to(shutil.which("make") or "make")
    with_pip = WITH_PIP_AT_HAND.format(python=sys.executable, pip=Path(pip.__file__).parent)
    for name, command in (("python3.11", "exit 127"), ("python3.12", with_pip)):
        (tools / name).write_text(f"#!/bin/sh\n{command}\n")
        (tools / name).chmod(0o755)
    done = _make("setup", "EXTRAS=data", "PYTHONS=python3.11 python3.12", folder=project, path=str(tools))
    assert done.returncode == 0, done.stderr
    (project / "path").write_text(f"{project}/.venv/bin:{tools}")
    return project


@pytest.mark.slow
def test_setup_builds_an_environment_once(bare_project: Path) -> None:
    assert (bare_project / ".venv/.ready-data").exists()
    assert _make("-q", "setup", folder=bare_project).returncode == 0
    for changed in ("pyproject.toml", "requirements.lock"):
        later = (bare_project / ".venv/.ready").stat().st_mtime + 1
        os.utime(bare_project / changed, (later, later))
        assert _make("-q", "setup", folder=bare_project).returncode == 1
        os.utime(bare_project / changed, (0, 0))


@pytest.mark.slow
def test_mlflow_builds_its_environment_where_pyenv_is_missing(
    bare_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.utils import virtualenv
    from mlflow.utils.environment import _PythonEnv

    run = virtualenv._exec_cmd

    def run_without_pip(command: list[str], **named: Any) -> Any:
        """Installing pip, which is asked nothing here, would take seconds."""
        return run([*command, "--without-pip"] if "venv" in command else command, **named)

    monkeypatch.setattr(virtualenv, "_exec_cmd", run_without_pip)
    monkeypatch.setenv("PATH", (bare_project / "path").read_text())
    made = tmp_path / "made"
    python_env = _PythonEnv(python=_PythonEnv.from_yaml(ROOT / "python_env.yaml").python)
    activate = virtualenv._create_virtualenv(
        bare_project, python_env, made, env_manager="virtualenv", capture_output=True
    )
    asked = "import sys; print(sys.prefix, *sys.version_info[:2])"
    command = ["bash", "-c", f"{activate} && python -c '{asked}'"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == [
        *(str(made), *map(str, sys.version_info[:2]))
    ]


@pytest.mark.slow
def test_the_stand_in_for_pyenv_refuses_what_it_cannot_give(bare_project: Path) -> None:
    for words in (["install", "--skip-existing", "3.14.0"], ["install", "--list"], ["versions"], []):
        done = subprocess.run([bare_project / ".venv/bin/pyenv", *words], capture_output=True, text=True)
        assert done.returncode == 1
        assert done.stderr.startswith("pyenv is not installed: its stand-in")
        assert len(done.stderr.splitlines()) == 1
