"""The commands that a campaign kills, on a small shop, and the moments at which it kills them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_DATA: Final = ("--preset", "demo", "--data", "{shop}", "--threads", "1")
_SPLIT: Final = (*_DATA, "--per_category", "24", "--train_per_category", "12")
_SMALL: Final = (*_SPLIT, "--resamples", "100", "--epochs", "2", "--views", "1")

# Files of a run, as patterns below its folder: what appears right before a kill.
_DATA_FILES: Final = ("data/processed/.*", "data/processed/*/*")
_CACHE_FILES: Final = ("cache/*/part-0.npy", "cache/*/filled.npy", "cache/*.lock")
_CHECKPOINTS: Final = ("checkpoints/*", "checkpoints/*/position.json", "checkpoints/*/.*", "checkpoints/*/best-*")
_MODEL_FILES: Final = ("mlruns/**/evaluation/test/*.npz", "mlruns/**/models/*", "mlruns/**/MLmodel")
# Steps of a run: functions, and whether the kill comes before or after the call of that number.
_STORE_STEPS: Final = (
    "vlm_core.tracking.writer:open_run",
    "vlm_core.tracking.writer:RunWriter.params",
    "vlm_core.tracking.writer:end_run",
    "mlflow:MlflowClient.set_terminated",
)
_END_STEPS: Final = (
    "vlm_core.tracking.writer:RunWriter.evaluation",
    "vlm_core.tracking.writer:RunWriter.predictions",
    "vlm_core.tracking.writer:RunWriter.model",
    "mlflow:MlflowClient.create_logged_model",
    "mlflow:MlflowClient.finalize_logged_model",
    "mlflow:MlflowClient.create_model_version",
    "mlflow:MlflowClient.set_registered_model_alias",
)
_EPOCH_STEPS: Final = ("vlm_core.training.checkpoint:Checkpoint.save", "os:replace", "mlflow:MlflowClient.log_batch")
_WEIGHTS_STEPS: Final = ("vlm_core.workflows.pretrain:write_checksums", "vlm_core.tracking.writer:RunWriter.artifact")


@dataclass(frozen=True)
class Command:
    """A command on the small shop."""

    name: str
    module: str  # its entry point
    arguments: tuple[str, ...]
    start: str = "prepared"  # what its folder holds: "empty", "data", that and a store ("prepared"), a run ("trained")
    resumes: bool = False  # by `--resume`; the others are repeated as they are
    output: str = ""  # the folder that it writes, where that is no run
    workers: int = 1
    files: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    weight: int = 3  # how often it is killed, relative to others


def _training(model: str, mode: str, name: str = "", *settings: str) -> Command:
    return Command(
        f"train {model} {name or mode}",
        "experiments.train",
        (*_SMALL, "--model", model, "--mode", mode, *settings),
        resumes=True,
        files=(*_CACHE_FILES, *_CHECKPOINTS, *_MODEL_FILES, "logs/*"),
        steps=(*_STORE_STEPS, *_EPOCH_STEPS, *_END_STEPS),
    )


def _prediction(name: str, pictures: str) -> Command:
    return Command(
        name,
        "experiments.predict",
        ("--model", "{run}", "--pictures", pictures, "--output", "predicted", "--threads", "1"),
        start="trained",
        output="predicted",
        files=(".predicted.predicting/*", ".predicted.predicting/.*", ".predicted.*", "predicted"),
        steps=("os:replace", "vlm_core.workflows.predict_parts:write_predictions"),
        weight=2,
    )


def _search(workers: int) -> Command:
    search = ("--search", "blocks", "--trials", "3", "--workers", str(workers))
    return Command(
        f"tune, {workers} worker{'s' * (workers > 1)}",
        "experiments.tune",
        (*_SMALL, "--model", "clip", "--mode", "last-blocks", *search),
        workers=workers,
        files=("optuna.log", *_CACHE_FILES, *_CHECKPOINTS, *_MODEL_FILES),
        steps=(*_STORE_STEPS, "optuna:Study.tell", "optuna:Study.set_user_attr", *_EPOCH_STEPS, *_END_STEPS[2:]),
        weight=3 if workers == 1 else 1,
    )


def _study(workers: int) -> Command:
    plan = ("--families", "clip", "--modes", "zero-shot,probe", "--objectives", "classify", "--protocols", "holdout")
    rest = ("--seeds", "2", "--parts", "families", "--workers", str(workers))
    return Command(
        f"study, {workers} worker{'s' * (workers > 1)}",
        "experiments.study",
        (*_SMALL, *plan, *rest),
        workers=workers,
        files=(*_CACHE_FILES, *_CHECKPOINTS, *_MODEL_FILES, "mlruns/**/study/*"),
        steps=(*_STORE_STEPS, *_EPOCH_STEPS, *_END_STEPS[:5], "vlm_core.study.report:write_report"),
        weight=3 if workers == 1 else 1,
    )


COMMANDS: Final = (
    Command(
        "prepare", "experiments.prepare", _SPLIT, start="empty", files=_DATA_FILES, steps=("os:replace",), weight=3
    ),
    Command(
        "first opening of a store",
        "experiments.train",
        (*_SMALL, "--model", "baseline"),
        start="data",
        resumes=True,
        files=("mlflow.db", ".mlflow.db.new", "mlflow.db.lock"),
        steps=("os:replace", *_STORE_STEPS, *_END_STEPS),
    ),
    *(
        _training(model, mode)
        for model, mode in (("clip", "probe"), ("blip", "lp-ft"), ("git", "lora"), ("clip", "full"))
    ),
    _training("clip", "probe", "with texts", "--inputs", "image+text", "--fusion", "concat"),
    _training("clip", "probe", "on two levels", "--label", "masterCategory,subCategory"),
    Command(
        "extend",
        "experiments.extend",
        ("--run", "{run}", "--data", "{more}", "--threads", "1", "--resamples", "100", "--method", "head"),
        start="trained",
        resumes=True,
        files=(*_CACHE_FILES, *_MODEL_FILES),
        steps=(*_STORE_STEPS, *_END_STEPS),
    ),
    Command(
        "shard",
        "experiments.shard",
        ("--data", "{shop}", "--output", "packed", "--rows", "32"),
        start="empty",
        output="packed",
        files=(".packed.packing/*", ".packed.packing/.*", ".packed.lock", "packed"),
        steps=("os:replace", "vlm_core.catalogue.shards:Packed.write"),
    ),
    _prediction("predict into a folder", "packed"),
    _prediction("pack and predict into a folder", "{shop}"),
    Command(
        "pretrain",
        "experiments.pretrain",
        ("--model", "clip", "--data", "{shop}", "--threads", "1", "--epochs", "2", "--batch_size", "32"),
        resumes=True,
        files=(*_CHECKPOINTS, "pretrained/.*", "pretrained/*", "mlruns/**/weights/*"),
        steps=(*_STORE_STEPS, *_EPOCH_STEPS, *_WEIGHTS_STEPS),
    ),
    _search(1),
    _search(2),
    _study(1),
    _study(2),
    Command(
        "export",
        "experiments.export",
        ("--run", "{run}", "--pictures", "8", "--threads", "1"),
        start="trained",
        files=("mlruns/**/onnx/*", "mlruns/**/models/*", "mlruns/**/MLmodel"),
        steps=("mlflow:MlflowClient.log_artifacts", "mlflow:MlflowClient.log_batch", *_END_STEPS[3:5]),
    ),
)
