"""The original study's own files: a JSON log of all epochs, and a picture of each epoch's confusion matrix."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_core.atomic import write_atomically

if TYPE_CHECKING:
    from vlm_core.evaluation.summary import Summary
    from vlm_core.training.loop import EpochReport

_NAME = re.compile(r"(?P<model>.+)_training_log_(?P<stamp>\d{8}_\d{6})\.json")


class TrainingLog:
    """`logs/<model>_training_log_<stamp>.json` and `results/<model>_confusion_matrix_<stamp>_epoch_<n>.png`.

    The stamp is when the run began, as YYYYMMDD_HHMMSS; a run that is gone on with keeps it, and so its file.
    """

    def __init__(self, root: Path, model: str, config: Mapping[str, str], stamp: str) -> None:
        self.root = root
        self.model = model
        self.stamp = stamp
        self.content: dict[str, Any] = {"config": dict(config), "epochs": []}

    @classmethod
    def begin(cls, root: Path, model: str, config: Mapping[str, str]) -> TrainingLog:
        """A log that starts now, with a file that is no other run's: one begun in the same second gets the next."""
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
    def go_on(cls, root: Path, written: Path) -> TrainingLog:
        """The log that `written` holds, to be continued under `root`. Raises ValueError if it is not such a log."""
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

    def picture_path(self, epoch: int) -> Path:
        """Where the picture of an epoch's confusion matrix is."""
        return self.root / "results" / f"{self.model}_confusion_matrix_{self.stamp}_epoch_{epoch}.png"

    def add(self, report: EpochReport[Summary]) -> Path:
        """The log, written whole, with this epoch in it.

        An epoch that is trained again after an interruption takes its own and all later entries' place.
        """
        earlier = [entry for entry in self.content["epochs"] if entry["epoch"] < report.epoch]
        self.content["epochs"] = [*earlier, entry_of(report)]
        text = json.dumps(self.content, indent=2) + "\n"
        write_atomically(self.path, lambda file: file.write(text.encode()))
        return self.path

    def draw(self, report: EpochReport[Summary]) -> Path:
        """The picture of this epoch's confusion matrix, written whole."""
        from vlm_core.evaluation.plots import plot_confusion

        picture = self.picture_path(report.epoch)
        title = f"{self.model}, epoch {report.epoch}, validation"
        plot_confusion(report.validation.confusion, tuple(report.validation.per_category_f1), title, picture)
        return picture


def entry_of(report: EpochReport[Summary]) -> dict[str, Any]:
    """One epoch with exactly the keys of the original study's log."""
    return {
        "epoch": report.epoch,
        "training_summary": report.training.to_dict(),
        "validation_summary": report.validation.to_dict(with_confusion=True),
        "fairness_metrics": report.validation.fairness_metrics(),
        "early_stopping_check": report.early_stopping,
    }
