"""What the README tells people to type works: the commands are taken from its text and run, on little data."""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.stores import copy_database
from tests.test_errors import HIDE_EXTRAS
from vlm_core.config import OF_MACHINES, Config, SearchConfig, StudyConfig
from vlm_core.tracking.reader import RunReader

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = "\n".join(page.read_text() for page in PAGES)
BLOCKS = "\n".join(re.findall(r"^```\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL))
COMMANDS = [line.split("#")[0].strip() for line in BLOCKS.replace("\\\n", " ").splitlines() if line.strip()]
LITTLE = "-P epochs=1 -P train_per_category=12 -P per_category=20 -P threads=1 -P resamples=100"


def _commands(start):
    return [command for command in COMMANDS if command.startswith(start)]


@pytest.fixture(scope="module")
def project(tmp_path_factory, shop, empty_database):
    """A copy of what `mlflow run .` needs, with a small catalogue of pictures and an empty store beside it.

    To its processes no extra is installed.
    """
    folder = tmp_path_factory.mktemp("readme") / "project"
    folder.mkdir()
    for name in ("vlm_core", "experiments"):
        shutil.copytree(ROOT / name, folder / name)  # what is compiled already, too
    for name in ("MLproject", "python_env.yaml"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "sitecustomize.py").write_text(f"{HIDE_EXTRAS}import gc\ngc.disable()\n")  # Python imports it by itself
    copy_database(empty_database, folder)
    shutil.copytree(shop, folder / "shop", copy_function=os.link)
    shutil.copytree(shop / "images", folder / "photos", copy_function=os.link)
    shutil.move(shutil.make_archive(str(folder / "other"), "zip", shop), folder / "other_catalogue.zip")
    return folder


def _surroundings(project):
    """What a process in the project needs to find its code and this Python."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path, "PYTHONPATH": str(project)}


def _run(command, project):
    environment = {**os.environ, **_surroundings(project)}
    done = subprocess.run(
        shlex.split(command), cwd=project, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def _call(command):
    """Do what the command does in this process: another one would start for seconds."""
    program, *words = shlex.split(command)
    if program == "mlflow":
        from mlflow.cli import cli

        cli.main(words, standalone_mode=False)
    else:
        importlib.import_module(words[1]).main(words[2:])


@pytest.mark.slow
def test_the_core_trains_by_mlflow_run_then_predicts_then_evaluates(project, monkeypatch, capsys):
    assert _run("python -c 'import sys; print(sys.modules[\"onnx\"])'", project) == "None\n"
    (command,) = _commands("mlflow run . --env-manager local")
    monkeypatch.chdir(project)
    for name, value in _surroundings(project).items():
        monkeypatch.setenv(name, value)
    _call(f"{command} {LITTLE} -P data=shop")
    run_id = RunReader().runs()["run_id"].item()
    (predict,) = _commands("python -m experiments.predict")
    _run(predict.replace("categoriser-blip", "categoriser-clip"), project)
    table = pd.read_csv(project / "predictions.csv", dtype={"id": str})
    assert len(table) == len(list((project / "photos").iterdir()))
    assert set(table.columns) >= {"id", "category", "confidence", "p_Apparel", "error"}
    assert table["category"].isna().sum() == table["error"].notna().sum() == 1  # the truncated picture
    (evaluate,) = _commands("python -m experiments.evaluate")
    _call(evaluate.replace("<run id>", run_id) + " --resamples 100 --threads 1")
    assert "macro-F1" in capsys.readouterr().out


def test_every_make_target_named_is_there():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", TEXTS, flags=re.MULTILINE))
    assert {"train", "test", "demo", "help"} <= named <= targets


def test_every_setting_named_is_one():
    for name, value in re.findall(r"-P (\w+)=(\S*?)[`\s]", TEXTS):
        assert any(name in kind.model_fields for kind in (Config, SearchConfig, StudyConfig))
        if name in Config.model_fields.keys() - OF_MACHINES and "<" not in value and value:
            Config.build({name: value})
    flags = re.findall(r"--(\w+) ", " ".join(_commands("python -m experiments.")))
    assert {"model", "pictures", "output", "run", "data"} <= set(flags)


def test_the_readme_is_short():
    assert len(README.splitlines()) < 200


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_document_linked_is_there(page):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert links or page.name != "README.md"
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_command_named_is_one():
    modules = set(re.findall(r"python -m ((?:experiments|dashboard)[\w.]*)", TEXTS))
    assert "experiments.train" in modules
    assert [
        name for name in modules if not (ROOT / (name.replace(".", "/") + ".py")).exists() and name != "dashboard"
    ] == []
