"""Write `MLproject` anew, after a setting in vlm_core/config has changed."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal, get_args, get_origin

from vlm_core.config import AuditConfig, Config, ExtensionConfig, PretrainingConfig, SearchConfig, StudyConfig
from vlm_core.config.presets import HEAD, OF_PROTOCOLS, PRESETS, SUITING, WITH_A_FILE_OF_PARTS
from vlm_core.config.settings import Settings
from vlm_core.files.atomic import write_atomically

MLPROJECT = Path(__file__).resolve().parent.parent / "MLproject"
# `mlflow run` takes the run's experiment from its own --experiment-name; a default here would claim another one.
_MLFLOW_DECIDES: Final = frozenset({"experiment"})

_VERBS: Final[dict[str, str]] = {
    "study": "runs the comparative study and writes its report; also takes the settings of main",
    "tune": "searches for a model's best settings with Optuna and retrains it; also takes the settings of main",
    "pretrain": "pretrains a model on a catalogue's images, titles and attributes, and writes its weights",
    "benchmark": "compares every training mode with a naive loop",
    "prepare": "reads, cleans, decodes and splits a catalogue; takes the settings about data",
    "shard": "packs a catalogue and its images into Parquet files that every command reads",
    "relations": "pairs the products of a catalogue: is each pair of one category? takes settings about data",
    "evaluate": "evaluates a stored run's model on another labelled catalogue",
    "extend": "teaches a finished run more categories, or more products of those it has, as a new version",
    "predict": "categorises images: single ones, or those of folders, zips and tables",
    "audit": "finds suspicious labels, duplicates and poor images in a catalogue; takes the settings about data",
    "export": "exports a stored run's model to ONNX in fp32 and int8, and compares it with PyTorch",
    "clean": "lists what killed commands left behind; removes it with -P remove=yes",
    "demo": "trains a small model of each family on the sample catalogue and compares them",
}
_CONFIGS: Final[dict[str, type[Settings]]] = {
    "pretrain": PretrainingConfig,
    "tune": SearchConfig,
    "study": StudyConfig,
    "extend": ExtensionConfig,
    "audit": AuditConfig,
}


def main(arguments: Sequence[str] | None = None) -> None:
    argparse.ArgumentParser(prog="python -m experiments.mlproject", description=__doc__).parse_args(arguments)
    write_atomically(MLPROJECT, lambda file: file.write(render().encode()))
    print(f"Wrote {MLPROJECT}.")


def render() -> str:
    """Return the text of `MLproject`: what `mlflow run` starts, and the settings it takes."""
    declared = declared_settings()
    others = [name for name in Config.model_fields if name not in declared]
    lines = [
        "# Written by `python -m experiments.mlproject` from vlm_core/config: change that, and write this again.",
        "name: vlm-product-categorisation",
        "python_env: python_env.yaml",
        "",
        "entry_points:",
        "  # fine-tunes one model and evaluates it: mlflow run . -P model=blip",
        "  main:",
        "    parameters:",
        *(line for name, default in declared.items() for line in _declaration(name, default)),
        "      # Taken with -P as well. They have no default here, because a preset or the mode may set them, because",
        "      # `mlflow run` decides it, or because it would log an empty text as two quotation marks for good.",
        *(f"      # {name}: {_help(Config, name)}" for name in others),
        "    command: >-",
        # exec: a signal from `mlflow run` must reach Python, not a shell that waits for it.
        "      exec python -m experiments.train",
        *(f"      --{name}={{{name}}}" for name in declared),
    ]
    for verb, what in _VERBS.items():
        lines += ["", f"  # {what}"]
        kind = _CONFIGS.get(verb, Config)
        lines += [f"  # {name}: {_help(kind, name)}" for name in kind.model_fields if _is_own(kind, name)]
        lines += [f"  {verb}:", f"    command: exec python -m experiments.{verb}"]
    return "\n".join(lines) + "\n"


def declared_settings() -> dict[str, str]:
    """Return the settings that `MLproject` declares, with the text of their default.

    MLflow hands a declared default on as if the user had given it, so a setting that a preset sets cannot be among
    them. It also logs defaults to the run, quoted for the shell, before our code starts, and refuses to change them:
    only a text that quoting leaves as it is agrees with what the run logs later.
    """
    from_presets = set(HEAD).union(WITH_A_FILE_OF_PARTS, *PRESETS.values(), *SUITING.values(), *OF_PROTOCOLS.values())
    defaults = {name: str(field.default) for name, field in Config.model_fields.items()}
    return {
        name: text
        for name, text in defaults.items()
        if name not in from_presets and name not in _MLFLOW_DECIDES and shlex.quote(text) == text
    }


def _declaration(name: str, default: str) -> tuple[str, str]:
    return f"      # {_help(Config, name)}", f'      {name}: {{default: "{default}"}}'


def _is_own(kind: type[Settings], name: str) -> bool:
    """Return whether a command has a setting that training has not, or has with another meaning."""
    return name not in Config.model_fields or _help(kind, name) != _help(Config, name)


def _help(kind: type[Settings], name: str) -> str:
    field = kind.model_fields[name]
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    return f"{field.description} [{', '.join(choices)}]" if choices else str(field.description)


if __name__ == "__main__":
    main()
