"""A store of the test's own in an empty working directory, and a small shop for whole runs."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
from cachetools import cached
from PIL import Image

from vlm_core.catalogue.sample import draw_sample
from vlm_core.files.atomic import write_atomically
from vlm_core.pixels.arrays import Rows
from vlm_core.pixels.picture_store import PictureStore
from vlm_core.tracking.store import open_mlflow

ROOT = Path(__file__).resolve().parents[1]
FIRST_RUN = """
import shutil
from pathlib import Path
from vlm_core.tracking.store import connect
from vlm_core.tracking.writer import RunWriter

connect(to_write=True)
shutil.copy("mlflow.db", "empty.db")
with RunWriter("first", "first") as run:
    run.params({"model": "clip"})
    run.metrics({"x": 1.0})
    Path("note.txt").write_text("x")
    run.artifact(Path("note.txt"))
"""


def run_python(script: str, folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What a Python process does that runs `script` in `folder`, with the project on its path.

    It looks for no garbage: while it imports, which is most of what it does, there is none.
    """
    command = [sys.executable, "-c", f"import gc\ngc.disable()\n{script}", *arguments]
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, cwd=folder, env=surroundings, capture_output=True, text=True)


def make_once(name: str, make: Callable[[Path], object]) -> Path:
    """A folder of that name that `make` has filled, once for all workers: not to be changed."""
    from filelock import FileLock

    folder = Path(os.environ["SHARED_BY_TESTS"]) / name
    folder.parent.mkdir(exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.with_suffix(".made").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            folder.with_suffix(".made").touch()
    return folder


@pytest.fixture(scope="session")
def shop() -> Path:
    """The sample catalogue with 320 products. Its pictures are hashed once, not by each run on them."""
    from vlm_core.catalogue import recognition

    recognition.hash_pictures = cached({}, key=_digest_of_rows)(recognition.hash_pictures)
    return make_once("catalogue", lambda folder: draw_sample(folder / "shop", products=320)) / "shop"


def _digest_of_rows(pictures: PictureStore, rows: Rows) -> bytes:
    return blake2b(pictures.take(rows)).digest()


@pytest.fixture(scope="session")
def empty_database() -> Path:
    """A database that MLflow has made, which takes it seconds, to be copied.

    It was made by a whole first run; what that printed lies beside it.
    """

    def run(folder: Path) -> None:
        done = run_python(FIRST_RUN, folder)
        assert done.returncode == 0, done.stderr
        (folder / "empty.printed").write_text(done.stdout + done.stderr)

    return make_once("first-run", run) / "empty.db"


def copy_database(empty: Path, folder: Path) -> Path:
    """An empty store in `folder`, as MLflow would have made it there."""
    path = folder / "mlflow.db"
    shutil.copy(empty, path)
    with closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE experiments SET artifact_location = ?", (f"{folder}/mlruns/0",))
        database.commit()
    return path


def hurry(patch: pytest.MonkeyPatch) -> None:
    """Write a blank image in the place of each plot, and time models in one pass: no test of whole runs looks at them.

    The plots' own tests draw, and so do runs in processes of their own.
    """

    def write_blank(*arguments: Any) -> None:
        write_atomically(arguments[-1], lambda file: Image.new("RGB", (8, 8)).save(file, "PNG"))

    for name in ("plot_confusion", "plot_reliability"):
        patch.setattr(f"vlm_core.evaluation.plots.{name}", write_blank)
    patch.setattr("vlm_core.inference.TIMED_PASSES", 1)


@pytest.fixture(scope="session")
def hasty_mlflow() -> None:
    """SQLite that does not wait for the disk at every commit: a test's store need not outlive its machine.

    And that opens its files anew in a forked process, as SQLite must. MLflow lists the installed packages once, not
    for each requirement of each model, and reads its schema's versions once, not for each store.
    """
    open_mlflow()
    from mlflow.store.db import utils
    from mlflow.utils import requirements_utils
    from sqlalchemy import event
    from sqlalchemy.exc import DisconnectionError
    from sqlalchemy.pool import QueuePool  # a connection of no pool asks once, for which it would read the whole schema

    requirements_utils._init_packages_to_modules_map = cache(requirements_utils._init_packages_to_modules_map)
    utils._get_latest_schema_revision = cache(utils._get_latest_schema_revision)

    def opened(connection: Any, record: Any) -> None:
        record.info["process"] = os.getpid()
        if isinstance(connection, sqlite3.Connection):
            with suppress(sqlite3.Error):  # of what is no database, or locked, the next statement tells
                connection.execute("PRAGMA synchronous = OFF")

    def taken(connection: Any, record: Any, proxy: Any) -> None:
        if record.info.get("process", os.getpid()) != os.getpid():
            record.dbapi_connection = proxy.dbapi_connection = None
            raise DisconnectionError("another process opened it")

    event.listen(QueuePool, "connect", opened)
    event.listen(QueuePool, "checkout", taken)


@pytest.fixture(scope="session")
def hasty_exports() -> None:
    """PyTorch's exporter reads the functions of ONNX once, not for each model."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    ONNXRegistry.from_torchlib = staticmethod(cache(ONNXRegistry.from_torchlib))  # type: ignore[method-assign]


@pytest.fixture
def store(hasty_mlflow: None, empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, whose default store exists and is empty."""
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    hurry(monkeypatch)
    copy_database(empty_database, tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def prepared(shop: Path) -> Path:
    """A folder where the small shop has been prepared, as a first run prepares it."""
    from vlm_core.config import Config
    from vlm_core.data import load_data

    return make_once("prepared", lambda folder: load_data(Config.build({"data": str(shop)}), folder))


@pytest.fixture
def stocked(store: Path, prepared: Path) -> Path:
    """The working directory, where the small shop is prepared already, and whose default store is empty."""
    shutil.copytree(prepared / "data", store / "data", copy_function=os.link)
    return store


@pytest.fixture(scope="session")
def root(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the small shop is prepared already, for what needs no store and may share a cache."""
    folder = tmp_path_factory.mktemp("root")
    shutil.copytree(prepared / "data", folder / "data", copy_function=os.link)
    return folder


FILLING = (
    {"model": "clip", "mode": "lp-ft", "epochs": 3},
    {"model": "blip", "mode": "probe", "epochs": 2},
    {"model": "baseline"},
    {"model": "clip", "mode": "probe", "epochs": 2, "protocol": "original"},
)


@pytest.fixture(scope="session")
def filled_store(hasty_mlflow: None, shop: Path, prepared: Path, empty_database: Path) -> Path:
    """A folder whose default store holds four real short runs on the small shop and one that failed: not to be changed.

    `filled_copy` gives one that may be.
    """

    def fill(folder: Path) -> None:
        copy_database(empty_database, folder)
        shutil.copytree(prepared / "data", folder / "data", copy_function=os.link)
        with pytest.MonkeyPatch.context() as patch:
            for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
                patch.delenv(name, raising=False)
            patch.chdir(folder)
            hurry(patch)
            _fill(shop, folder)

    return make_once("filled", fill)


def _fill(shop: Path, folder: Path) -> None:
    from vlm_core.config import Config
    from vlm_core.tracking.writer import RunWriter
    from vlm_core.workflows.train import run_training

    small = {"preset": "demo", "threads": 1, "resamples": 100, "train_per_category": 20, "per_category": 30}
    for given in FILLING:
        run_training(Config.build({**small, "data": str(shop), **given}), folder)
    with pytest.raises(RuntimeError), RunWriter("product-categorisation", "<b>broken</b>", folder=folder) as run:
        run.params({"model": "git", "mode": "full"})
        run.tags({"fingerprint": "f", "label": "masterCategory", "split": "other", "leaking": "false"})
        raise RuntimeError("<script>alert(1)</script>")


@pytest.fixture
def filled_copy(filled_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, whose default store holds the same runs and may be written to."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    hurry(monkeypatch)
    with closing(sqlite3.connect(filled_store / "mlflow.db")) as database:
        database.execute("VACUUM INTO ?", (str(tmp_path / "mlflow.db"),))
    return tmp_path
