"""A stored run exported: compared, added to the run and served by MLflow, or refused."""

import dataclasses
import shutil

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient

from experiments import export as command
from experiments import predict
from tests.messages import collected_messages
from tests.models.families import make_shallow
from tests.models.test_onnx_export import exported, saved_again
from tests.stub_training import train_nothing
from tests.tracking.models import save_categoriser
from vlm_core.config import Config
from vlm_core.errors import UserError
from vlm_core.models.saved import load_categoriser
from vlm_core.tracking.reader import RunReader
from vlm_core.tracking.registry import resolve
from vlm_core.tracking.store import open_mlflow
from vlm_core.workflows import export

SMALL = {
    "preset": "demo", "epochs": 1, "train_per_category": 12, "per_category": 20, "threads": 1, "resamples": 100,
}  # fmt: skip


@pytest.fixture
def keep(shop, stocked, tmp_path, monkeypatch):
    """The id of a run that learnt nothing and holds that categoriser; an export of it is timed once."""
    monkeypatch.setattr(export, "_PASSES", 1)

    def start(categoriser):
        folder = tmp_path / "categoriser"
        folder.mkdir()
        categoriser.save(folder)
        config = Config.build({**SMALL, "data": str(shop), "model": "clip"})
        return train_nothing(model=folder)(config, stocked).run_id

    return start


@pytest.mark.slow
@pytest.mark.usefixtures("hasty_exports")
def test_an_exported_run_is_compared_and_served(keep, shop, store, capsys):
    run_id = keep(make_shallow("clip", blocks=1))
    before = RunReader().runs().iloc[0]
    command.main(["--run", run_id, "--pictures", "8", "--threads", "1"])
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("PyTorch", "fp32", "int8", f"runs:/{run_id}/onnx/int8"))
    metrics = RunReader().metrics(run_id)
    assert metrics["onnx_fp32_largest_difference"] < 1e-4
    assert metrics["onnx_fp32_equal_predictions"] == 1
    assert metrics["onnx_int8_batch_effect"] == 0
    assert metrics["onnx_int8_megabytes"] < metrics["onnx_fp32_megabytes"]
    assert metrics["onnx_int8_seconds_per_image_batch_32"] > 0
    after = RunReader().runs().iloc[0]
    assert (after["status"], after["ended"]) == ("FINISHED", before["ended"])

    photos = store / "photos"
    photos.mkdir()
    for path in sorted((shop / "images").iterdir())[:6]:
        shutil.copy(path, photos)
    predict.main(["--model", f"runs:/{run_id}/onnx/fp32", "--pictures", str(photos), "--threads", "1"])
    predict.main(["--model", run_id, "--pictures", str(photos), "--output", "pytorch.csv", "--threads", "1"])
    ours, theirs = pd.read_csv("predictions.csv"), pd.read_csv("pytorch.csv")
    assert list(ours) == list(theirs)
    np.testing.assert_allclose(ours["confidence"], theirs["confidence"], atol=1e-4)

    served = open_mlflow().pyfunc.load_model(f"runs:/{run_id}/onnx/int8")
    predictions = served.predict(served.input_example)
    assert predictions["category"][0] in load_categoriser(resolve(f"runs:/{run_id}/onnx/int8")).categories
    needed = (RunReader().artifact(run_id, "onnx/int8") / "requirements.txt").read_text()
    assert "onnxruntime==" in needed and "transformers" not in needed  # a model that needs no more is tried elsewhere


def test_what_cannot_be_exported_is_refused_and_nothing_is_logged(keep, store, tmp_path):
    run_id = keep(load_categoriser(save_categoriser("baseline", tmp_path / "baseline")))
    with pytest.raises(UserError, match="the baseline and models that are ONNX already"):
        export.run_export(run_id, ("fp32",), 4, 1, store)
    with pytest.raises(UserError, match="not a run with a model"):
        export.run_export("0" * 32, ("fp32",), 4, 1, store)
    with pytest.raises(UserError, match="pictures=0"):
        export.run_export(run_id, ("fp32",), 0, 1, store)
    with pytest.raises(UserError, match="not a model of this tracking store"):
        resolve(f"runs:/{run_id}/onnx/int8")


def test_an_export_that_differs_is_refused_and_a_lost_catalogue_is_replaced_by_the_sample(keep, store, monkeypatch):
    model, onnx, _ = exported("clip", "linear", "fused")
    run_id = keep(model)
    compare, load = export.compare, export.load_catalogue
    monkeypatch.setattr("vlm_core.models.onnx_export.export_onnx", saved_again(onnx))

    def different(form, *rest):
        return dataclasses.replace(compare(form, *rest), largest_difference=0.01 if form == "fp32" else 0.0)

    with monkeypatch.context() as patched:
        patched.setattr(export, "compare", different)
        with pytest.raises(UserError, match="more than 0.001, so nothing was logged"):
            export.run_export(run_id, ("int8",), 4, 1, store)
    for wrong, message in (
        ({"same_category": 0.85}, "for 85% of the images, less than 90%"),
        ({"batch_effect": 0.14}, "other log-probabilities among others than alone, by 0.14"),
        ({"same_category": float("nan")}, "less than 90%"),
    ):

        def worse(form, *rest, wrong=wrong):
            return dataclasses.replace(compare(form, *rest), **(wrong if form == "int8" else {}))

        with monkeypatch.context() as patched:
            patched.setattr(export, "compare", worse)
            with pytest.raises(UserError, match=message):
                export.run_export(run_id, ("int8",), 4, 1, store)
    assert not MlflowClient().list_artifacts(run_id, "onnx")
    assert not [name for name in RunReader().metrics(run_id) if name.startswith("onnx_")]

    own = RunReader().params(run_id)["data"]

    def lost(config, *rest):
        if config.data == own:
            raise UserError("data=shop does not exist.")
        assert config.data == "sample"
        return load(Config.build({"data": own}), *rest)  # the whole sample would take long to draw

    monkeypatch.setattr(export, "load_catalogue", lost)
    with collected_messages() as lines:
        done = export.run_export(run_id, ("int8",), 4, 1, store)
    assert [each.form for each in done.comparisons] == ["PyTorch", "int8"]
    assert any("sample catalogue" in line for line in lines)
    assert {item.path for item in MlflowClient().list_artifacts(run_id, "onnx")} == {"onnx/int8"}
