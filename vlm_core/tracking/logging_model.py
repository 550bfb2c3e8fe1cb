"""A saved categoriser logged to the store as a model that MLflow can load and serve anywhere."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import vlm_core
from vlm_core.evaluation.level_scores import level_columns
from vlm_core.models.checksums import write_checksums
from vlm_core.tracking.artifacts import synchronise_artifacts
from vlm_core.tracking.store import open_mlflow

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

MODEL_NAME: Final = "model"  # runs:/<run id>/model is its address as well
# What `vlm_core.tracking.serving` needs to predict, whatever else training needs.
_ALWAYS: Final = ("mlflow", "numpy", "pandas", "pillow", "safetensors")
_NETWORKS: Final = ("tokenizers", "torch", "transformers")
_BASELINE: Final = ("scikit-image",)
_TEXT_BASELINE: Final = ("scikit-learn",)
_TEXT_ONNX: Final = ("tokenizers",)
_ONNX: Final = ("onnxruntime", "torch")  # PyTorch fits pictures to the model's input


def log_model(client: MlflowClient, run_id: str, folder: Path) -> str:
    """Log the categoriser in `folder` as a model of the run, and return its `models:/` address.

    The run's test metrics are linked to the model. A model that could not be stored whole is marked as failed. This can
    be repeated after a kill at any moment: a whole model of the run is kept, what is left of another is deleted.
    """
    from mlflow.entities import LoggedModelOutput

    run = client.get_run(run_id)
    model_id = _whole_model(client, run)
    if not model_id:
        model_id = _store_model(client, run, folder)
        _whole_model(client, run)  # deletes that of a request that was repeated because its answer was lost
    if not any(output.model_id == model_id for output in (run.outputs.model_outputs if run.outputs else ())):
        client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
    _link_scores(client, run, model_id)
    return f"models:/{model_id}"


def _whole_model(client: MlflowClient, run: Any) -> str:
    """Return the id of the model that the run has logged whole, or "", after deleting what is left of others."""
    whole = ""
    found = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
    for model in found:
        if str(model.status) == "READY":
            whole = whole or model.model_id
        else:
            delete_model(client, model)
    return whole


def delete_model(client: MlflowClient, model: LoggedModel) -> None:
    """Delete a model that was not logged whole, its files first."""
    model_files(model).delete_artifacts()
    client.delete_logged_model(model.model_id)


def model_files(model: LoggedModel) -> Any:
    """Return MLflow's repository of a model's files, which ships no types."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(model.artifact_location)


def _store_model(client: MlflowClient, run: Any, folder: Path) -> str:
    """Store the categoriser in `folder` as a new model of the run, and return its id."""
    from mlflow.models import Model

    run_id = run.info.run_id
    model = client.create_logged_model(
        run.info.experiment_id,
        name=MODEL_NAME,
        source_run_id=run_id,
        params=run.data.params,
        tags={name: text for name, text in run.data.tags.items() if not name.startswith("mlflow.")},
        model_type="categoriser",
    )
    try:
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / "model"
            meta = Model(
                artifact_path=model.artifact_location, run_id=run_id, model_uuid=model.model_id, model_id=model.model_id
            )
            save_model(folder, path, meta=meta)
            client.log_model_artifacts(model.model_id, str(path))
        synchronise_artifacts(model.artifact_location)
    except BaseException:
        client.finalize_logged_model(model.model_id, "FAILED")
        raise
    client.finalize_logged_model(model.model_id, "READY")
    return str(model.model_id)


def save_model(folder: Path, path: Path, *, meta: Any = None) -> None:
    """Save the categoriser in `folder` as `path`, for `mlflow.pyfunc.load_model` and `mlflow models serve`.

    Its checksums are written first, and verified wherever the model is loaded.
    """
    write_checksums(folder)
    description = json.loads((folder / "categoriser.json").read_text(encoding="utf-8"))
    engine = description.get("engine", "")
    writes_text = "sentences" in (description.get("head"), description.get("answer")) and not engine
    reads_text = bool(description.get("reads") or description.get("settings", {}).get("reads"))
    with tempfile.TemporaryDirectory() as temporary:
        # MLflow keeps the folder's own name in the model
        data = Path(temporary) / "categoriser"
        data.symlink_to(folder.resolve(), target_is_directory=True)
        code = Path(temporary) / "vlm_core"  # without the tiny weights, which no saved model starts from
        left_out = shutil.ignore_patterns("weights", "__pycache__")
        shutil.copytree(Path(vlm_core.__file__).parent, code, ignore=left_out, copy_function=os.symlink)
        open_mlflow().pyfunc.save_model(
            path,
            loader_module="vlm_core.tracking.serving",
            data_path=str(data),
            code_paths=[str(code)],
            signature=_signature(description["categories"], writes_text, reads_text, description.get("hierarchy")),
            input_example=_example(reads_text),
            pip_requirements=requirements(description["family"], engine, reads_text),
            mlflow_model=meta,
        )
    card = folder / "README.md"
    if card.exists():
        shutil.copy(card, path / card.name)


def requirements(family: str, engine: str = "", reads_text: bool = False) -> list[str]:
    """Return the packages that inference needs, pinned at the versions installed here; exports have engine "onnx"."""
    baseline = (*_BASELINE, *_TEXT_BASELINE) if reads_text else _BASELINE
    onnx = (*_ONNX, *_TEXT_ONNX) if reads_text else _ONNX
    own = onnx if engine == "onnx" else baseline if family == "baseline" else _NETWORKS
    names = sorted((*_ALWAYS, *own))
    # "2.14.1+cpu" names a build of one index; any build of 2.14.1 will do
    return [f"{name}=={version(name).split('+')[0]}" for name in names]


def _signature(
    categories: list[str], writes_text: bool, reads_text: bool, hierarchy: dict[str, Any] | None = None
) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    probabilities = [ColSpec(DataType.double, f"p_{name}", required=False) for name in categories]
    texts = [ColSpec(DataType.string, name, required=False) for name in ("text", "text_category") if writes_text]
    texts += [ColSpec(DataType.string, "read", required=False)] * reads_text
    picture = ColSpec(DataType.string, "picture", required=not reads_text)
    text = [ColSpec(DataType.string, "text", required=False)] * reads_text
    kinds = {"category": DataType.string, "confidence": DataType.double}
    levels = [
        ColSpec(kinds[name.split("_")[0]], name, required=False)
        for name in (level_columns(hierarchy["labels"]) if hierarchy else ())
    ]
    return ModelSignature(
        inputs=Schema([picture, *text]),
        outputs=Schema(
            [
                ColSpec(DataType.string, "category", required=False),
                ColSpec(DataType.double, "confidence", required=False),
                *probabilities,
                *levels,
                *texts,
                ColSpec(DataType.string, "error", required=False),
            ]
        ),
    )


def _example(reads_text: bool) -> Any:
    """Return a table with one small drawn image, and a title for a model that reads texts."""
    import pandas as pd
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (60, 80), "white")
    shirt = [(15, 12), (45, 12), (52, 30), (44, 34), (44, 70), (16, 70), (16, 34), (8, 30)]
    ImageDraw.Draw(picture).polygon(shirt, "navy")
    data = io.BytesIO()
    picture.save(data, "PNG")
    text = {"text": ["Navy Blue Shirt"]} if reads_text else {}
    return pd.DataFrame({"picture": [base64.b64encode(data.getvalue()).decode()], **text})


def _link_scores(client: MlflowClient, run: Any, model_id: str) -> None:
    """Link the run's test metrics to the model, at the times they were logged: the run would have others twice."""
    from mlflow.entities import Metric

    run_id = run.info.run_id
    linked = {metric.key for metric in client.get_logged_model(model_id).metrics or ()}
    points = [Metric.from_proto(point) for point in run.data.to_proto().metrics]
    metrics = [
        Metric(point.key, point.value, point.timestamp, point.step, model_id=model_id, run_id=run_id)
        for point in points
        if point.key.startswith("test_") and point.key not in linked
    ]
    for start in range(0, len(metrics), 1000):
        client.log_batch(run_id, metrics=metrics[start : start + 1000])
