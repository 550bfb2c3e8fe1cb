"""Who becomes champion and who does not; and what a name leads to."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.tracking.made import make_catalogue, make_evaluation, make_split
from tests.tracking.models import save_categoriser
from vlm_core.errors import UserError
from vlm_core.models.saved import load_categoriser
from vlm_core.tracking import logging_model, patience
from vlm_core.tracking.registry import register, resolve
from vlm_core.tracking.store import connect, open_mlflow
from vlm_core.tracking.writer import RunWriter


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_categoriser("clip", tmp_path_factory.mktemp("clip") / "clip")


SAID: list[str] = []


def _train(
    model: Path | None, right: int, *, protocol: str = "holdout", seed: int = 0, fingerprint: str = "c0ffee"
) -> str:
    """The id of a finished run of that quality, with its model registered; what was said goes to `SAID`.

    Without a folder its model is an entry that has no files, which is quicker.
    """
    catalogue = make_catalogue(fingerprint)
    with RunWriter("made") as run:
        run.params({"model": "clip-large"})
        run.dataset(catalogue, make_split(catalogue, protocol, seed))
        run.metrics(make_evaluation(right).metrics("test_"))
        if model:
            run.model(model)
        else:
            _log_empty_model(run.run_id)
        SAID.append(register(run.run_id))
    return run.run_id


def _log_empty_model(run_id: str) -> None:
    from mlflow.entities import LoggedModelOutput

    client = connect()
    model = client.create_logged_model(client.get_run(run_id).info.experiment_id, source_run_id=run_id)
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])


def _champion() -> str | None:
    version = connect().get_registered_model("categoriser-clip").aliases.get("champion")
    return None if version is None else str(version)


def test_champions_come_and_go_by_the_rules(store: Path) -> None:
    _train(None, 29, protocol="original")
    assert "version 1; it cannot be champion, because its test products leak" in SAID[-1]
    assert _champion() is None
    _train(None, 18)
    assert "version 2; it is the first champion" in SAID[-1]
    assert _champion() == "2"
    _train(None, 18)
    assert "version 2 stays champion: test macro-F1 0." in SAID[-1]
    _train(None, 24)
    assert "version 4; it is champion now" in SAID[-1]
    assert _champion() == "4"
    _train(None, 30, seed=1)
    assert "version 4 stays champion, because the two differ in split" in SAID[-1]
    _train(None, 30, fingerprint="decaf")
    assert "differ in fingerprint" in SAID[-1]
    _train(None, 30, protocol="original")
    assert "leak" in SAID[-1]
    assert _champion() == "4"
    client = connect()
    facts = client.get_model_version("categoriser-clip", "4").tags
    assert facts.keys() >= {"fingerprint", "label", "split", "protocol", "leaking", "test_macro_f1"}
    client.delete_model_version("categoriser-clip", "4")
    _train(None, 12)
    assert "it is the first champion" in SAID[-1]


def test_what_may_be_no_better_than_one_category_for_all_takes_nobodys_place(store: Path) -> None:
    _train(None, 8)  # macro-F1 0.27, from 0.13: one category for all gives (2/3) / (4/3) / 3 = 0.1667
    assert "version 1; it is the first champion, with a test macro-F1 of 0.26" in SAID[-1]
    assert "But that may be 0.1" in SAID[-1] and "always predicting one category gives 0.1667: the first" in SAID[-1]
    _train(None, 9)
    assert "version 1 stays champion, because the test macro-F1 here may be 0.1" in SAID[-1]
    _train(None, 24, fingerprint="decaf")  # tested on other products
    assert "it is champion now" in SAID[-1] and "in the place of version 1, which may be no better" in SAID[-1]
    _train(None, 9)
    assert "version 3 stays champion, because the test macro-F1 here" in SAID[-1]
    assert _champion() == "3"


def test_a_run_without_scores_or_data_is_no_champion(store: Path, clip: Path) -> None:
    with RunWriter("made") as run:
        run.params({"model": "clip"})
        run.model(clip)
    assert "it cannot be champion" in register(run.run_id)
    with RunWriter("made") as run:
        run.params({"model": "clip"})
        run.tags({"leaking": "false"})
        run.model(clip)
    assert "no test macro-F1" in register(run.run_id)
    assert _champion() is None


def test_a_run_without_a_model_cannot_be_registered(store: Path) -> None:
    with RunWriter("made") as run:
        pass
    with pytest.raises(UserError, match="holds no model"):
        register(run.run_id)


def test_every_kind_of_name_leads_to_the_categoriser(store: Path, clip: Path) -> None:
    run_id = _train(clip, 20)
    names = (run_id, "models:/categoriser-clip@champion", "models:/categoriser-clip/1", f"runs:/{run_id}/model")
    folders = {resolve(name) for name in names}
    assert len(folders) == 1
    folder = folders.pop()
    assert load_categoriser(folder).categories == ("Apparel", "Footwear", "Free Items")
    connect().log_artifacts(run_id, str(folder.parent.parent), "onnx/fp32")  # as an export lies there
    assert resolve(f"runs:/{run_id}/onnx/fp32").is_relative_to(store)  # not a copy of it, which would be left behind
    saved = folder.parents[2]  # as it lies in the store, and as MLflow has written it below that
    assert {resolve(str(place)) for place in (folder, folder.parents[1], saved)} == {folder}
    model = connect().search_logged_models(["1"])[0]
    assert (str(model.status), model.source_run_id) == ("READY", run_id)
    assert {metric.key for metric in model.metrics} >= {"test_macro_f1", "test_accuracy"}


def test_a_folder_without_a_model_is_refused_and_no_store_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no categoriser"):
        resolve("empty")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_of_two_models_of_a_run_the_later_one_counts(
    store: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = shutil.copytree(clip, tmp_path / "later")
    (later / "README.md").write_text("later")
    monkeypatch.setattr(logging_model, "_whole_model", lambda *given: "")  # as earlier versions, resumed at their end
    with RunWriter("made") as run:
        run.model(clip)
        time.sleep(0.01)  # MLflow counts milliseconds
        run.model(later)
    assert (resolve(run.run_id) / "README.md").read_text() == "later"


def test_requests_whose_answer_is_lost_leave_one_model_and_one_version(
    store: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setattr(patience, "SECONDS_BETWEEN", 0.0)
    for name in ("create_logged_model", "create_model_version"):
        create, lost = getattr(MlflowClient, name), [ConnectionError("Connection aborted")]

        def create_once_in_vain(*given: Any, create: Any = create, lost: list[Exception] = lost, **named: Any) -> Any:
            created = create(*given, **named)
            if lost:
                raise lost.pop()
            return created

        monkeypatch.setattr(MlflowClient, name, create_once_in_vain)
    run_id = _train(clip, 20)
    client = connect()
    (model,) = client.search_logged_models(["1"])
    (version,) = client.search_model_versions("name = 'categoriser-clip'")
    assert (str(model.status), version.source, version.run_id) == ("READY", f"models:/{model.model_id}", run_id)
    assert _champion() == str(version.version) == "1"


@pytest.mark.parametrize(
    "name",
    [
        "0" * 32,
        "models:/categoriser-clip@champion",
        "models:/none/3",
        "models:/m-0",
        "runs:/x/model",
        "runs:/x/onnx/fp32",
        "models:/",
    ],
)
def test_a_name_that_leads_nowhere(store: Path, name: str) -> None:
    with pytest.raises(UserError, match="give the id of a finished run, or a model such as"):
        resolve(name)


def test_a_model_of_another_program(store: Path) -> None:
    mlflow = open_mlflow()
    (store / "code.py").write_text("def _load_pyfunc(path):\n    return None\n")
    mlflow.pyfunc.save_model(store / "other", loader_module="code", code_paths=["code.py"], pip_requirements=["mlflow"])
    client = connect()
    client.create_registered_model("other")
    client.create_model_version("other", str(store / "other"))
    with pytest.raises(UserError, match="a model of another program"):
        resolve("models:/other/1")


def test_a_model_that_could_not_be_kept_whole_is_never_taken(
    store: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_no_room(*given: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    with RunWriter("made") as run, monkeypatch.context() as full:
        full.setattr("mlflow.tracking.client.MlflowClient.log_model_artifacts", find_no_room)
        with pytest.raises(UserError, match="is full"):
            run.model(clip)
    assert str(connect().search_logged_models(["1"])[0].status) == "FAILED"
    with pytest.raises(UserError, match="not a run with a model"):
        resolve(run.run_id)


@pytest.mark.slow
def test_mlflow_serves_the_champion_of_the_default_store(store: Path, clip: Path, tmp_path: Path) -> None:
    _train(clip, 20)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("mlflow")), "models", "serve", "--env-manager", "local"]
    command += ["-m", "models:/categoriser-clip@champion", "--host", "127.0.0.1", "--port", str(port)]
    # MLflow starts `uvicorn` by name: without an active environment it finds none, or another one's
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with (tmp_path / "served.txt").open("w") as said:
        server = subprocess.Popen(command, cwd=store, env={**os.environ, "PATH": path}, stdout=said, stderr=said)
    try:
        answer = _ask(port, server)
    except OSError as error:
        raise AssertionError((tmp_path / "served.txt").read_text()) from error
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)
    good, bad = answer["predictions"]
    assert sum(good[f"p_{name}"] for name in ("Apparel", "Footwear", "Free Items")) == pytest.approx(1)
    assert (good["error"], bad["category"], bad["confidence"]) == (None, None, None)
    assert bad["error"].startswith("The picture is not base64")


def _ask(port: int, server: subprocess.Popen[bytes]) -> dict[str, list[dict[str, object]]]:
    """What the server says to its own example as a data URL and to a bad picture, once it is up."""
    example = json.loads((resolve("models:/categoriser-clip@champion").parents[1] / "input_example.json").read_text())
    pictures = [f"data:image/png;base64,{example['data'][0][0]}", "bad!"]
    body = json.dumps({"dataframe_records": [{"picture": picture} for picture in pictures]}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"})
    end = time.monotonic() + 240
    while True:
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.load(response)  # type: ignore[no-any-return]
        except urllib.error.URLError as error:
            if isinstance(error, urllib.error.HTTPError) or server.poll() is not None or time.monotonic() > end:
                raise
        time.sleep(0.2)
