"""Facts about a run that are not settings: code, machine, data. One name for each, whoever reads or writes it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from vlm_core.catalogue.catalogue import Catalogue
    from vlm_core.catalogue.exposure import Exposure
    from vlm_core.catalogue.splitting import Split

ROLE: Final = "role"  # "run", or "launcher" for what `mlflow run` created only to start or resume another run
RUN: Final = "run"
LAUNCHER: Final = "launcher"
LAUNCHED: Final = "launched_run"  # on a launcher: the run that it started or resumed
PROCESS: Final = "process"  # host:pid:start of the process that writes the run
FAILURE: Final = "failure"  # why the run did not finish
ENDED: Final = "ended"  # its status as we set it: `mlflow run` turns KILLED into FAILED
TRAINING_LOG: Final = "training_log"  # file name of the JSON log of the epochs
KIND: Final = "kind"  # of a run that is not a plain training: search, trial, study, ablation, reader
STUDY: Final = "study"  # name of the study that a run leads
SEARCH_NAME: Final = "search_name"  # name of the search that a run leads
STUDY_PARTS: Final = "study_parts"  # on a study's cell: what was measured after training
TOWERS: Final = "towers_checksums"  # on a study: JSON of the checksum of each tower in a folder, by its name
WEIGHTS: Final = "weights_checksums"  # of a pretraining: SHA-256 of the checksums of the weights that it wrote
COMMIT: Final = "weights_commit"  # of the hub's checkpoint that the run started from
EXTENDS: Final = "extends"  # on an extension: the run whose model it extends
CATEGORIES: Final = "categories"  # names of the label's categories, as JSON: metrics have plain letters alone
LABELS: Final = "labels"  # of a run of several label levels: all of them, `label` last
SETTING: Final = "setting."  # prefix: the value of a param for which MLflow holds another text
PRETRAINING_RULE: Final = "pretraining_rule"  # which products the weights may have seen
PRETRAINING_CATALOGUE: Final = "pretraining_catalogue"  # fingerprint of the catalogue they saw
PRETRAINING_PRODUCTS: Final = "pretraining_products"  # fingerprint of the ids they saw
EXPOSURE: Final = "exposure"  # folder of a run's artifacts: what its weights had seen
# Two runs whose values of these agree were tested on the same products.
COMPARABLE: Final = ("fingerprint", "label", "split")

LONGEST_TEXT: Final = 8000  # characters of a tag or a setting in MLflow
_PACKAGES: Final = ("torch", "transformers", "mlflow")


def machine_tags() -> dict[str, str]:
    """Return the commit (and whether files were changed since), package versions, processor, cores and threads."""
    tags = {**_commit_tags(), "python": platform.python_version(), "cpu": _processor()}
    tags["cores"] = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    for package in _PACKAGES:
        try:
            tags[package] = version(package)
        except PackageNotFoundError:
            tags[package] = "not installed"
    torch: Any = sys.modules.get("torch")  # a run without torch, such as the baseline's, need not import it
    if torch is not None:
        tags["threads"] = str(torch.get_num_threads())
        tags["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return tags


def load_tag(when: str) -> dict[str, str]:
    """Return the machine's load now, the mean over a minute, as `load_start` or `load_end`: load makes times long."""
    return {f"load_{when}": f"{os.getloadavg()[0]:.2f}"} if hasattr(os, "getloadavg") else {}


def data_tags(catalogue: Catalogue, split: Split) -> dict[str, str]:
    """Return what a run was trained and tested on, and whether test products leak into training."""
    categories = json.dumps(split.categories, ensure_ascii=False)
    return {
        "catalogue": catalogue.name,
        "fingerprint": catalogue.fingerprint,
        "label": split.label,
        "split": split.fingerprint,
        "protocol": split.protocol,
        "leakage": f"{split.leakage.near:.4f}",
        "leakage_pretraining": f"{split.leakage.pretraining:.4f}",
        "leaking": str(split.leaking).lower(),
        **({CATEGORIES: categories} if len(categories) <= LONGEST_TEXT else {}),
        **({LABELS: ",".join([*(level.label for level in split.levels), split.label])} if split.levels else {}),
    }


def exposure_tags(exposure: Exposure) -> dict[str, str]:
    """Return what the weights that a run started from had seen."""
    return {
        PRETRAINING_RULE: exposure.rule,
        PRETRAINING_CATALOGUE: exposure.catalogue_fingerprint,
        PRETRAINING_PRODUCTS: exposure.products_fingerprint,
    }


def process_tag() -> str:
    """Return what identifies this process, also among those that had its number before."""
    import psutil

    return f"{platform.node()}:{os.getpid()}:{psutil.Process().create_time():.2f}"


def process_is_dead(tag: str) -> bool:
    """Return whether the process of a `process_tag` ran on this machine and has ended, or is unknown."""
    return tag.partition(":")[0] in ("", platform.node()) and not process_is_alive(tag)


def process_is_alive(tag: str) -> bool:
    """Return whether the process of a `process_tag` still runs on this machine; False for one on another machine.

    A zombie, whose exit code has not been collected yet, does not run any more.
    """
    import psutil

    node, _, rest = tag.partition(":")
    number, _, started = rest.partition(":")
    if node != platform.node() or not number.isdigit():
        return False
    try:
        process = psutil.Process(int(number))
        return f"{process.create_time():.2f}" == started and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


@cache
def _commit_tags() -> dict[str, str]:
    """Return the commit of the code that this process runs, as it was when it was first asked for."""
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        # no optional locks: asking for the state must not write to the user's index
        command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        return {"git_commit": git("rev-parse", "HEAD"), "git_dirty": str(bool(git("status", "--porcelain"))).lower()}
    except (OSError, subprocess.SubprocessError):
        return {"git_commit": "unknown", "git_dirty": "unknown"}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return names[0] if names else platform.processor() or platform.machine()
