"""What a run holds after it was written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.tracking.made import CATEGORIES, make_catalogue, make_evaluation, make_report, make_split
from vlm_core.config import Config
from vlm_core.errors import UserError
from vlm_core.evaluation.evaluation import Evaluation
from vlm_core.files import atomic
from vlm_core.tracking.reader import RunReader
from vlm_core.tracking.store import connect
from vlm_core.tracking.writer import RunWriter


def test_the_whole_config_is_kept_and_comes_back(store: Path) -> None:
    params = Config(model="clip", seed=7).to_params()
    with RunWriter("made") as run:
        run.params(params)
    assert connect().get_run(run.run_id).data.params == params


def test_more_params_and_metrics_than_a_request_takes(store: Path) -> None:
    params = {f"setting_{number}": str(number) for number in range(250)}
    metrics = {f"figure_{number}": float(number) for number in range(2500)}
    with RunWriter("made") as run:
        run.params(params)
        run.metrics(metrics, step=3)
    kept = connect().get_run(run.run_id).data
    assert kept.params == params
    assert metrics.items() <= kept.metrics.items()


def test_params_that_mlflow_run_wrote_as_typed_do_not_stop_the_run(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect()
    launched = client.create_run("0").info.run_id
    client.log_param(launched, "learning_rate", "1e-4")
    client.log_param(launched, "model", "clip")
    monkeypatch.setenv("MLFLOW_RUN_ID", launched)
    with RunWriter("made") as run:
        run.params({"learning_rate": "0.0001", "model": "clip", "seed": "3"})
    kept = client.get_run(launched).data
    assert run.run_id == launched
    assert kept.params == {"learning_rate": "1e-4", "model": "clip", "seed": "3"}
    assert {name: text for name, text in kept.tags.items() if name.startswith("setting.")} == {
        "setting.learning_rate": "0.0001"
    }
    assert RunReader().params(launched) == {"learning_rate": "0.0001", "model": "clip", "seed": "3"}


def test_tags_tell_the_machine_and_the_code(store: Path) -> None:
    with RunWriter("made") as run:
        run.tags({"weights_source": "tiny"})
    tags = connect().get_run(run.run_id).data.tags
    assert tags["weights_source"] == "tiny"
    assert tags["mlflow"] == "3.17.2"
    assert tags["git_dirty"] in ("true", "false", "unknown")
    assert tags["git_commit"] == "unknown" or len(tags["git_commit"]) == 40
    assert int(tags["cores"]) >= 1
    assert tags["cpu"]
    assert int(tags["threads"]) >= 1  # torch is loaded, by the training room that `made` imports


def test_a_run_of_a_moment_has_system_metrics(store: Path) -> None:
    with RunWriter("made") as run:
        pass
    metrics = connect().get_run(run.run_id).data.metrics
    assert 0 <= metrics["system/cpu_utilization_percentage"] <= 100
    assert metrics["system/system_memory_usage_megabytes"] > 0


def test_an_epoch_is_kept_as_figures_by_step_log_and_picture(store: Path) -> None:
    with RunWriter("made") as run:
        run.params({"model": "git", "epochs": "3"})
        run.epoch(make_report(1))
        run.epoch(make_report(2, right=9))
    reader = RunReader()
    assert reader.history(run.run_id, "train_loss").to_dict("list") == {"step": [1, 2], "value": [1.0, 0.5]}
    assert reader.history(run.run_id, "validation_accuracy")["value"].tolist() == [6 / 9, 1.0]
    metrics = connect().get_run(run.run_id).data.metrics
    for name in ("loss", "accuracy", "macro_f1", "f1_apparel", "f1_footwear", "f1_free_items"):
        assert {f"train_{name}", f"validation_{name}"} <= metrics.keys()
    assert {
        "learning_rate",
        "seconds",
        "validation_recall_free_items",
        "validation_precision_apparel",
    } <= metrics.keys()
    (log,) = (store / "logs").iterdir()
    assert (reader.artifact(run.run_id, "logs") / log.name).read_text() == log.read_text()
    pictures = sorted(path.name for path in (store / "results").iterdir())
    stamp = log.stem.removeprefix("git_training_log_")
    assert pictures == [f"git_confusion_matrix_{stamp}_epoch_{epoch}.png" for epoch in (1, 2)]
    assert sorted(path.name for path in reader.artifact(run.run_id, "results").iterdir()) == pictures


@pytest.mark.parametrize("name", ["logs", "results"])
def test_a_folder_that_cannot_be_written_to_is_named_and_not_the_store(store: Path, name: str) -> None:
    (store / name).write_text("in the folder's place, which root could write to")
    with pytest.raises(UserError, match=f"/{name} cannot be written to .*resume=") as raised, RunWriter("made") as run:
        run.params({"model": "git"})
        run.epoch(make_report(1))
    assert "tracking store" not in str(raised.value)


def test_an_epoch_that_is_not_to_be_drawn_is_in_the_log_alone(store: Path) -> None:
    with RunWriter("made") as run:
        run.params({"model": "git"})
        run.epoch(make_report(1), plot=False)
    assert len(list((store / "logs").iterdir())) == 1
    assert not (store / "results").exists()


def test_the_data_is_kept_as_lineage_ids_and_tags(store: Path) -> None:
    catalogue = make_catalogue()
    split = make_split(catalogue)
    with RunWriter("made") as run:
        run.dataset(catalogue, split)
        run.dataset(catalogue, split)  # as a resumed run does
    kept = connect().get_run(run.run_id)
    contexts = {entry.tags[0].value: entry.dataset for entry in kept.inputs.dataset_inputs}
    assert sorted(contexts) == ["test", "training", "validation"]
    assert len({dataset.digest for dataset in contexts.values()}) == 3
    assert json.loads(contexts["training"].profile)["rows"] == len(split.train)
    assert json.loads(contexts["test"].source)["tags"]["fingerprint"] == catalogue.fingerprint
    for part, rows in (("training", split.train), ("validation", split.validation), ("test", split.test)):
        content = json.loads(RunReader().artifact(run.run_id, f"split/{part}.json").read_text())
        assert content["products"] == [f"{10_000 + row}" for row in rows]
        assert content["categories"] == list(CATEGORIES)
    expected = {
        "fingerprint": catalogue.fingerprint,
        "label": "masterCategory",
        "split": split.fingerprint,
        "protocol": "holdout",
        "leakage": "0.0000",
        "leaking": "false",
    }
    assert expected.items() <= kept.data.tags.items()


def test_the_original_protocol_is_marked_as_leaking(store: Path) -> None:
    catalogue = make_catalogue()
    with RunWriter("made") as run:
        run.dataset(catalogue, make_split(catalogue, "original"))
    tags = connect().get_run(run.run_id).data.tags
    assert tags["leaking"] == "true"
    assert float(tags["leakage"]) > 0


@pytest.mark.parametrize("texts", [False, True])
def test_an_evaluation_is_kept_whole(store: Path, texts: bool) -> None:
    evaluation = make_evaluation(texts=texts)
    with RunWriter("made") as run:
        run.evaluation(evaluation)
    reader = RunReader()
    metrics = connect().get_run(run.run_id).data.metrics
    assert metrics["test_accuracy"] == pytest.approx(20 / 30)
    assert evaluation.metrics("test_").items() <= metrics.items()
    back = reader.evaluation(run.run_id)
    assert isinstance(back, Evaluation)
    assert back.to_dict() == evaluation.to_dict()
    assert reader.predictions(run.run_id).to_frame().equals(evaluation.predictions.to_frame())
    folder = reader.artifact(run.run_id, "evaluation/test")
    assert {path.name for path in folder.iterdir()} >= {"predictions.csv", "confusion.png", "reliability.png"}
    head, *rows = (folder / "predictions.csv").read_text().splitlines()
    assert head.startswith("product_id,true,predicted,confidence,p_Apparel,")
    assert len(rows) == 30


def test_artifacts_are_on_the_disk_before_their_run_is_finished(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[tuple[str, str]] = []
    end = MlflowClient.set_terminated
    monkeypatch.setattr(atomic, "synchronise", lambda folder: steps.append((folder.parent.name, "synchronised")))
    monkeypatch.setattr(
        MlflowClient,
        "set_terminated",
        lambda client, run_id, status: (steps.append((run_id, status)), end(client, run_id, status)),
    )
    with RunWriter("made") as run:
        run.predictions(make_evaluation().predictions, "validation")
    with pytest.raises(ValueError, match="boom"), RunWriter("made") as failed:
        raise ValueError("boom")
    assert steps == [(run.run_id, "synchronised"), (run.run_id, "FINISHED"), (failed.run_id, "FAILED")]


def test_files_and_folders_become_artifacts(store: Path) -> None:
    (store / "made").mkdir()
    (store / "made" / "a.txt").write_text("a")
    with RunWriter("made") as run:
        run.artifact(store / "made", "folder")
        run.artifact(store / "made" / "a.txt")
    reader = RunReader()
    assert reader.artifact(run.run_id, "folder/a.txt").read_text() == "a"
    assert reader.artifact(run.run_id, "a.txt").read_text() == "a"
