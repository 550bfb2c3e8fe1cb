"""The original paper's own files: a JSON log of all epochs, and a plot of each epoch's confusion matrix."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_core.files.atomic import write_atomically

if TYPE_CHECKING:
    from vlm_core.evaluation.summary import Summary
    from vlm_core.training.loop import EpochReport

_NAME = re.compile(r"(?P<model>.+)_training_log_(?P<stamp>\d{8}_\d{6})\.json")


class TrainingLog:
    """`logs/<model>_training_log_<stamp>.json` and `results/<model>_confusion_matrix_<stamp>_epoch_<n>.png`.

    The stamp is when the run began, as YYYYMMDD_HHMMSS; a resumed run keeps it, and so its file.
    """

    def __init__(self, root: Path, model: str, config: Mapping[str, str], stamp: str) -> None:
        self.root = root
        self.model = model
        self.stamp = stamp
        self.content: dict[str, Any] = {"config": dict(config), "epochs": []}

    @classmethod
    def begin(cls, root: Path, model: str, config: Mapping[str, str]) -> TrainingLog:
        """Start a log in a file that no other run has: one begun in the same second gets the next second's name."""
        moment = datetime.now()
        while True:
            log = cls(root, model, config, moment.strftime("%Y%m%d_%H%M%S"))
            log.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                log.path.touch(exist_ok=False)
            except FileExistsError:
                moment += timedelta(seconds=1)
            else:
                return log

    @classmethod
    def resume(cls, root: Path, written: Path) -> TrainingLog:
        """Return the log in the file `written`, to be continued under `root`. Raises ValueError if it is none."""
        match = _NAME.fullmatch(written.name)
        content = json.loads(written.read_text(encoding="utf-8"))
        if match is None or "config" not in content or "epochs" not in content:
            raise ValueError(f"{written} is not a training log")
        log = cls(root, match["model"], content["config"], match["stamp"])
        log.content = content
        return log

    @property
    def path(self) -> Path:
        """Where the JSON log is."""
        return self.root / "logs" / f"{self.model}_training_log_{self.stamp}.json"

    def plot_path(self, epoch: int) -> Path:
        """Return where the plot of an epoch's confusion matrix is."""
        return self.root / "results" / f"{self.model}_confusion_matrix_{self.stamp}_epoch_{epoch}.png"

    def add(self, report: EpochReport[Summary]) -> Path:
        """Add the epoch, write the log atomically, and return its path.

        An epoch that is trained again after an interruption replaces its own and all later entries.
        """
        earlier = [entry for entry in self.content["epochs"] if entry["epoch"] < report.epoch]
        self.content["epochs"] = [*earlier, epoch_entry(report)]
        text = json.dumps(self.content, indent=2) + "\n"
        write_atomically(self.path, lambda file: file.write(text.encode()))
        return self.path

    def plot(self, report: EpochReport[Summary]) -> Path:
        """Plot this epoch's confusion matrix, and return the path."""
        from vlm_core.evaluation.plots import plot_confusion

        path = self.plot_path(report.epoch)
        title = f"{self.model}, epoch {report.epoch}, validation"
        plot_confusion(report.validation.confusion, tuple(report.validation.per_category_f1), title, path)
        return path


def epoch_entry(report: EpochReport[Summary]) -> dict[str, Any]:
    """Return one epoch with exactly the keys of the original paper's log."""
    return {
        "epoch": report.epoch,
        "training_summary": report.training.to_dict(),
        "validation_summary": report.validation.to_dict(with_confusion=True),
        "fairness_metrics": report.validation.fairness_metrics(),
        "early_stopping_check": report.early_stopping,
    }
