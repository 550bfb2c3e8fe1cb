"""The original paper's files, key for key."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tracking.made import make_report
from vlm_core.evaluation.summary import summarise
from vlm_core.tracking.training_log import TrainingLog, epoch_entry
from vlm_core.training.loop import EpochReport

STUDY = ("Accessories", "Apparel", "Footwear", "Free Items", "Personal Care")
PUBLISHED = np.array([[76, 16, 1, 25, 2], [0, 120, 0, 0, 0], [0, 2, 118, 0, 0], [1, 0, 0, 118, 1], [0, 1, 0, 2, 117]])


def test_the_published_epoch_is_written_with_its_published_figures() -> None:
    labels = np.repeat(np.repeat(np.arange(5), 5), PUBLISHED.ravel())
    predicted = np.repeat(np.tile(np.arange(5), 5), PUBLISHED.ravel())
    validation = summarise(labels, predicted, STUDY, 0.25)
    entry = epoch_entry(EpochReport(4, 10, validation, validation, 2e-5, 1.0, True, False, "improved"))
    assert list(entry) == [
        "epoch",
        "training_summary",
        "validation_summary",
        "fairness_metrics",
        "early_stopping_check",
    ]
    assert list(entry["training_summary"]) == ["overall_loss", "overall_accuracy", "macro_f1", "per_class_f1"]
    summary = entry["validation_summary"]
    assert list(summary) == [*entry["training_summary"], "confusion_matrix"]
    assert summary["confusion_matrix"] == PUBLISHED.tolist()
    assert (round(summary["overall_accuracy"], 4), round(summary["macro_f1"], 4)) == (0.9150, 0.9102)
    published = [0.7716, 0.9266, 0.9874, 0.8906, 0.9750]
    assert [round(entry["fairness_metrics"][name]["f1"], 4) for name in STUDY] == published
    assert list(entry["fairness_metrics"]["Footwear"]) == ["precision", "recall", "f1"]
    json.dumps(entry, allow_nan=False)


@pytest.mark.slow
def test_names_and_contents_of_the_files(tmp_path: Path) -> None:
    log = TrainingLog.begin(tmp_path, "blip-large", {"epochs": "3"})
    paths = log.add(make_report(1)), log.plot(make_report(1))
    assert re.fullmatch(r"blip-large_training_log_\d{8}_\d{6}\.json", paths[0].name)
    assert paths[1] == tmp_path / "results" / f"blip-large_confusion_matrix_{log.stamp}_epoch_1.png"
    content = json.loads(paths[0].read_text())
    assert content["config"] == {"epochs": "3"}
    assert [entry["epoch"] for entry in content["epochs"]] == [1]
    with Image.open(paths[1]) as picture:
        assert min(picture.size) > 200
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == sorted(path.name for path in paths)


def test_a_log_is_continued_in_its_file_and_a_repeated_epoch_replaced(tmp_path: Path) -> None:
    log = TrainingLog.begin(tmp_path, "git", {})
    for epoch in (1, 2):
        log.add(make_report(epoch))
    again = TrainingLog.resume(tmp_path, log.path)
    again.add(make_report(2, right=9))
    again.add(make_report(3))
    assert again.path == log.path
    epochs = json.loads(log.path.read_text())["epochs"]
    assert [entry["epoch"] for entry in epochs] == [1, 2, 3]
    assert epochs[1]["validation_summary"]["overall_accuracy"] == 1.0


def test_two_runs_of_one_second_have_files_of_their_own(tmp_path: Path) -> None:
    logs = [TrainingLog.begin(tmp_path, "clip", {}) for _ in range(3)]
    assert len({log.path for log in logs}) == 3


def test_a_log_that_cannot_be_written_stays_as_it_was(tmp_path: Path) -> None:
    log = TrainingLog.begin(tmp_path, "clip", {})
    log.add(make_report(1))
    before = log.path.read_bytes()
    log.content["config"]["unwritable"] = {1, 2}  # type: ignore[assignment]
    with pytest.raises(TypeError):
        log.add(make_report(2))
    assert log.path.read_bytes() == before


def test_another_file_is_no_log(tmp_path: Path) -> None:
    other = tmp_path / "clip_training_log_20260101_000000.json"
    other.write_text("{}")
    with pytest.raises(ValueError, match="not a training log"):
        TrainingLog.resume(tmp_path, other)
