"""What is added to a run that has ended."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from vlm_core.files import atomic
from vlm_core.tracking.additions import add_files
from vlm_core.tracking.reader import RunReader
from vlm_core.tracking.writer import RunWriter


def test_files_are_on_the_disk_before_a_tag_says_that_they_are_there(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunWriter("made") as run:
        pass
    (store / "more").mkdir()
    (store / "more" / "a.txt").write_text("a")
    steps: list[str] = []
    tag = MlflowClient.set_tag
    monkeypatch.setattr(atomic, "synchronise", lambda folder: steps.append((folder / "more" / "a.txt").read_text()))
    monkeypatch.setattr(MlflowClient, "set_tag", lambda client, *given: (steps.append("tag"), tag(client, *given)))
    add_files(run.run_id, store / "more", "more", {"measured": "true"})
    assert steps == ["a", "tag"]
    assert RunReader().tags(run.run_id)["measured"] == "true"
