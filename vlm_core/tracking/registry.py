"""One registered model per family, its champion, and the folder that a name stands for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vlm_core.errors import UserError
from vlm_core.models.saved import find_categoriser
from vlm_core.tracking import tags
from vlm_core.tracking.opening import find_run
from vlm_core.tracking.patience import patiently
from vlm_core.tracking.problems import is_away, is_locked
from vlm_core.tracking.relocation import explain_missing
from vlm_core.tracking.store import connect, open_mlflow, store_errors, store_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION: Final = "champion"
SCORE: Final = "test_macro_f1"
FLOOR: Final = "test_majority_macro_f1"  # runs of earlier versions have none
WEAK: Final = "may_be_no_better_than_one_category"  # tag of a version, with its interval and the floor
FORGETTING: Final = "forgetting"  # macro-F1 that the old categories of a run that learnt more lost
_VERSION_TAGS: Final = (*tags.COMPARABLE, tags.EXTENDS, "protocol", "leaking", "leakage", "catalogue", "weights_source")

_READS: Final = {"text": "-text", "image+text": "-image-text"}  # ends of the names of models that read texts
_NO_MODEL: Final = (
    "{} is not a model of this tracking store: give the id of a finished run, or a model such as "
    "models:/categoriser-clip@champion."
)
_VERSION: Final = re.compile(r"models:/(?P<name>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<version>\d+))")
_EXPORT: Final = re.compile(r"runs:/(?P<run>[^/]+)/(?P<path>onnx/[^/]+)/?")


def register(run_id: str) -> str:
    """Register the run's model, and return one sentence: its version, whether it is champion now, and why.

    The run must hold its model, its data's tags and its test scores already; the model is named
    `categoriser-<family>`, with `-text` or `-image-text` behind it if it reads texts: a version never replaces one that
    is asked other things. A model that is registered already gets no second version. The alias `champion` goes to the
    first version that does not leak, and moves only to one with a better test macro-F1 on the same test products, or to
    one that learnt more from it and forgets no more than its `max_forgetting`. A version that may be no better than
    always predicting one category, by the interval of its test macro-F1, takes nobody's place, and is champion only
    until one that is better comes.
    Raises UserError if the run has no model.
    """
    uri = store_uri()
    with store_errors(uri):
        client = connect(uri, to_write=True)
        run = client.get_run(run_id)
        model_id = model_of(client, run_id)
        if model_id is None:
            raise UserError(f"run {run_id} holds no model to register: let it finish first.")
        family = str(run.data.params.get("model", "")).split("-")[0] or "model"
        name = f"categoriser-{family}{_READS.get(str(run.data.params.get('inputs', '')), '')}"
        version_tags: dict[str, str] = {key: run.data.tags[key] for key in _VERSION_TAGS if key in run.data.tags}
        if SCORE in run.data.metrics:
            version_tags[SCORE] = repr(float(run.data.metrics[SCORE]))
        floor, low = (run.data.metrics.get(name) for name in (FLOOR, f"{SCORE}_low"))
        if floor is not None and low is not None and low <= floor:
            version_tags[WEAK] = (
                f"may be {low:.4f} (95 % interval), and always predicting one category gives {floor:.4f}"
            )
        version = _new_version(client, name, model_id, run_id, version_tags)
        extension = _extension(run) if tags.EXTENDS in run.data.tags else None
        return _update_champion(client, name, str(version.version), version_tags, extension)


@dataclass(frozen=True)
class _Extension:
    """The run that a run extends, and why its version may not take that one's place ("" if it may)."""

    parent: str
    obstacle: str
    forgotten: str  # in words


def _extension(run: Any) -> _Extension:
    parent = run.data.tags[tags.EXTENDS]
    forgotten, most = run.data.metrics.get(FORGETTING), float(run.data.params.get("max_forgetting", 0))
    if forgotten is None:
        return _Extension(parent, "what it forgets of its old categories could not be measured", "")
    if forgotten < 0:
        return _Extension(parent, "", f"its old categories' macro-F1 rose by {-forgotten:.4f}")
    told = f"it forgets {forgotten:.4f} of its old categories' macro-F1, where max_forgetting={most:g}"
    return _Extension(parent, told if forgotten > most else "", told)


def run_of(reference: str) -> str:
    """Return the id of the run that an address such as `models:/name@alias` or a run id names. Raises UserError."""
    from mlflow.exceptions import MlflowException

    uri = store_uri()
    with store_errors(uri):
        client = connect(uri)
        if match := _VERSION.fullmatch(reference):
            try:
                version = (
                    client.get_model_version_by_alias(match["name"], match["alias"])
                    if match["alias"]
                    else client.get_model_version(match["name"], match["version"])
                )
                return str(version.run_id)
            except MlflowException as error:
                if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    raise
                raise UserError(_NO_MODEL.format(reference)) from error
        run_id = reference.removeprefix("runs:/").removesuffix("/model")
        if find_run(client, run_id) is None:
            raise UserError(_NO_MODEL.format(reference))
        return run_id


def resolve(reference: str, uri: str = "") -> Path:
    """Return the folder of the categoriser that a run id or an address names, in the store at `uri` (empty: default).

    Addresses are `models:/name@alias`, `models:/name/3`, `runs:/id/model` and, for an export, `runs:/id/onnx/int8`.
    It is downloaded if the store is remote. The folder of a saved model is one without asking any store. Raises
    UserError if there is none.
    """
    if folder := find_categoriser(Path(reference)):
        return folder
    uri = uri or store_uri()
    with store_errors(uri):
        client = connect(uri)
        if export := _EXPORT.fullmatch(reference):
            # MLflow would copy runs:/<id>/<path> into a folder that nobody removes, though it lies on this disk
            run = find_run(client, export["run"])
            if run is not None:
                return _fetch(client, reference, uri, artifact_uri=f"{run.info.artifact_uri}/{export['path']}")
            raise UserError(_NO_MODEL.format(reference))
        if not reference.startswith("models:/"):
            # MLflow would copy runs:/<id>/model, though it lies on this disk as the run's models:/ address
            model_id = model_of(client, reference.removeprefix("runs:/").removesuffix("/model"))
            if model_id is None:
                raise UserError(
                    f"{reference} is not a run with a model: give the id of a finished run, or a model such as "
                    f"models:/categoriser-clip@{CHAMPION}."
                )
            # its own place, not its models:/ address, which MLflow looks up in the default store alone
            return _fetch(client, reference, uri, artifact_uri=client.get_logged_model(model_id).artifact_location)
        return _fetch(client, reference, uri, artifact_uri=reference)


def _fetch(client: MlflowClient, address: str, uri: str, **place: str) -> Path:
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model

    try:
        folder = Path(patiently(uri, open_mlflow().artifacts.download_artifacts, **place, tracking_uri=uri))
        loader = Model.load(str(folder)).flavors["python_function"]
    except (MlflowException, OSError, KeyError) as error:
        if is_locked(error) or is_away(error):
            raise
        raise UserError(explain_missing(client, uri) or _NO_MODEL.format(address)) from error
    categoriser = folder / str(loader.get("data", ""))
    if not (categoriser / "categoriser.json").exists():
        raise UserError(f"{address} is a model of another program: give one that this program has trained.")
    return categoriser


def model_of(client: MlflowClient, run_id: str) -> str | None:
    """Return the id of the model that the run logged last, if it did."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
    models = [client.get_logged_model(output.model_id) for output in run.outputs.model_outputs] if run.outputs else []
    ready = [model for model in models if str(model.status) == "READY"]
    return max(ready, key=lambda model: model.creation_timestamp).model_id if ready else None


def _new_version(client: MlflowClient, name: str, model_id: str, run_id: str, version_tags: dict[str, str]) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"models:/{model_id}"

    def versions() -> list[Any]:
        of_run = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
        return sorted((known for known in of_run if known.source == source), key=lambda known: int(known.version))

    if not versions():  # else it was registered before the process was killed
        client.create_model_version(name, source, run_id, tags=version_tags, model_id=model_id)
    first, *again = versions()
    for version in again:  # of a request that was repeated because its answer was lost
        client.delete_model_version(name, version.version)
    return first


def _update_champion(
    client: MlflowClient, name: str, version: str, version_tags: dict[str, str], extension: _Extension | None
) -> str:
    became = f"Registered {name} version {version}"
    if version_tags.get("leaking") != "false":
        return f"{became}; it cannot be {CHAMPION}, because its test products leak into its training."
    if SCORE not in version_tags:
        return f"{became}; it cannot be {CHAMPION}, because it has no test macro-F1."
    if extension and extension.obstacle:
        return f"{became}; it cannot be {CHAMPION}, because {extension.obstacle}."
    score, weak = float(version_tags[SCORE]), version_tags.get(WEAK)
    holder = _champion(client, name)
    if holder is None:
        client.set_registered_model_alias(name, CHAMPION, version)
        first = f"{became}; it is the first {CHAMPION}, with a test macro-F1 of {score:.4f}"
        return f"{first}. But that {weak}: the first version above this takes its place." if weak else f"{first}."
    if holder.version == version:
        return f"{became}; it is {CHAMPION}, with a test macro-F1 of {score:.4f}."
    if weak:
        return f"{became}; version {holder.version} stays {CHAMPION}, because the test macro-F1 here {weak}."
    if WEAK in holder.tags:
        client.set_registered_model_alias(name, CHAMPION, version)
        return (
            f"{became}; it is {CHAMPION} now, with a test macro-F1 of {score:.4f}, in the place of version "
            f"{holder.version}, which may be no better than always predicting one category."
        )
    if extension and holder.run_id == extension.parent:
        client.set_registered_model_alias(name, CHAMPION, version)
        return (
            f"{became}; it is {CHAMPION} now, in the place of version {holder.version}, from which it learnt more: "
            f"{extension.forgotten}."
        )
    different = [key for key in tags.COMPARABLE if holder.tags.get(key) != version_tags.get(key)]
    if different or SCORE not in holder.tags:
        why = " and ".join(different) or SCORE
        return (
            f"{became}; version {holder.version} stays {CHAMPION}, because the two differ in {why} and so cannot be "
            f"compared (test macro-F1 {score:.4f} here)."
        )
    best = float(holder.tags[SCORE])
    if score <= best:
        return f"{became}; version {holder.version} stays {CHAMPION}: test macro-F1 {best:.4f}, here {score:.4f}."
    client.set_registered_model_alias(name, CHAMPION, version)
    return (
        f"{became}; it is {CHAMPION} now: test macro-F1 {score:.4f}, above {best:.4f} of version {holder.version} on "
        "the same test products."
    )


def _champion(client: MlflowClient, name: str) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException as error:
        # MLflow calls an alias that is not there an invalid parameter
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
