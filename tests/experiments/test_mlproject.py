"""MLproject, through MLflow's own reader and a real shell: training gets the arguments that the user gives."""

import argparse
import subprocess
from pathlib import Path

import pytest
from mlflow.projects._project_spec import EntryPoint, load_project

from experiments.mlproject import declared_settings, render
from vlm_core.config import Config
from vlm_core.config.presets import PRESETS, SUITING

ROOT = Path(__file__).resolve().parents[2]


def _entry_point(verb: str) -> EntryPoint:
    return load_project(ROOT).get_entry_point(verb)


def _arguments(settings: dict[str, str], verb: str = "main") -> list[str]:
    """The words that a real shell makes of the command `mlflow run -P ...` would start, after `python -m`."""
    command = _entry_point(verb).compute_command(settings, storage_dir=None)
    start = "exec python -m "
    assert command.startswith(start)
    printed = subprocess.run(
        ["bash", "-c", command.replace(start, "printf '%s\\0' ", 1)], capture_output=True, text=True, check=True
    )
    return printed.stdout.split("\0")[:-1]


def test_the_file_is_what_the_settings_render_to() -> None:
    assert (ROOT / "MLproject").read_text() == render(), "run `python -m experiments.mlproject`"


def test_the_project_names_one_environment_that_exists() -> None:
    project = load_project(ROOT)
    assert project.env_type == "python_env"
    assert Path(project.env_config_path) == ROOT / "python_env.yaml"


@pytest.mark.parametrize("verb", ["main", "prepare", "evaluate", "extend", "predict", "export", "clean", "demo"])
def test_an_entry_point_starts_a_door_that_exists(verb: str) -> None:
    module, *_ = _arguments({}, verb)
    assert module == f"experiments.{'train' if verb == 'main' else verb}"
    assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"model": "git"},
        {"preset": "demo"},
        {"preset": "demo", "epochs": "3", "model": "clip"},
        {"weights": "tiny", "learning_rate": "1e-4", "categories": ""},
        {"data": '/data/my shop\'s "best" $HOME `id` {model} \\.zip', "title_column": "the title; rm -rf x"},
        {"label": "--odd", "run_name": "été ✓"},
    ],
)
def test_training_gets_what_the_user_gives(settings: dict[str, str]) -> None:
    _, *flags = _arguments(settings)
    assert Config.from_flags(flags, argparse.ArgumentParser()) == Config.build(settings)


def test_an_empty_text_survives_the_shell() -> None:
    assert Config.from_flags(_arguments({"attributes": ""})[1:], argparse.ArgumentParser()).attributes == ""


def test_what_mlflow_logs_before_the_run_starts_agrees_with_what_the_run_logs() -> None:
    logged, extra = _entry_point("main").compute_parameters({}, storage_dir=None)
    assert logged.items() <= Config().to_params().items()
    assert extra == {}


def test_no_setting_of_a_preset_is_declared() -> None:
    logged, _ = _entry_point("main").compute_parameters({}, storage_dir=None)
    for settings in (*SUITING.values(), *PRESETS.values()):
        assert logged.keys().isdisjoint(settings)


def test_a_setting_that_is_not_declared_is_explained_in_the_file() -> None:
    text = render()
    for name in Config.model_fields.keys() - declared_settings().keys():
        assert f"# {name}: {Config.model_fields[name].description}" in text


def test_the_door_writes_the_file_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from experiments import mlproject

    written = tmp_path / "MLproject"
    written.write_text("old")
    monkeypatch.setattr(mlproject, "MLPROJECT", written)
    mlproject.main([])
    assert written.read_text() == render()
    assert list(tmp_path.iterdir()) == [written]
