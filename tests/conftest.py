"""What holds in every test: no network, no telemetry, one thread a worker, nothing of the developer's own."""

import gc
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# Libraries read these when they are imported, and subprocesses inherit them. A test may set others for itself.
os.environ.update(
    {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "DISABLE_KAGGLE_LOGGING": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "MPLBACKEND": "Agg",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        # Threads that wait by spinning take the cores from those that work.
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "0",
        # Ray's clusters ask for a token, which it would otherwise write into the developer's home.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
)
# The suite may run inside `mlflow run` or `make`: neither's run, store or flags are for the tests.
for _name in list(os.environ):
    if _name.startswith(("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT", "MLFLOW_TRACKING", "MLFLOW_REGISTRY", "MAKE", "MFLAGS")):
        del os.environ[_name]

pytest_plugins = ["tests.stores"]

hypothesis.settings.register_profile("suite", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("suite")

_LOOPBACK = ("localhost", "127.", "::1", "0.0.0.0")
_connect, _getaddrinfo = socket.socket.connect, socket.getaddrinfo


def _local(host: object) -> bool:
    text = host.decode() if isinstance(host, bytes) else host
    return not isinstance(text, str) or text in ("", socket.gethostname()) or text.startswith(_LOOPBACK)


def _connect_locally(self: socket.socket, address: Any) -> None:
    if isinstance(address, tuple) and not _local(address[0]):
        raise OSError(f"a test tried to reach {address[0]}: tests are offline")
    _connect(self, address)


def _look_up_locally(host: Any, *rest: Any, **named: Any) -> Any:
    if not _local(host):
        raise socket.gaierror(socket.EAI_NONAME, f"a test tried to reach {host}: tests are offline")
    return _getaddrinfo(host, *rest, **named)


def pytest_configure(config: pytest.Config) -> None:
    # A shell's background job is started with Ctrl-C ignored, and so is all that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    socket.socket.connect = _connect_locally
    socket.getaddrinfo = _look_up_locally
    if not hasattr(config, "workerinput"):
        # Models and data that happen to be cached on a machine must not decide what a test sees. Workers inherit this.
        caches = tempfile.mkdtemp(prefix="caches-of-tests-")
        config.add_cleanup(lambda: shutil.rmtree(caches, ignore_errors=True))
        os.environ.update(HF_HOME=f"{caches}/huggingface", KAGGLEHUB_CACHE=f"{caches}/kagglehub")
        os.environ["SHARED_BY_TESTS"] = f"{caches}/shared"
        # Processes that a test kills leave their temporary files.
        os.environ["TMPDIR"] = f"{caches}/temporary"
        Path(os.environ["TMPDIR"]).mkdir()
        for name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_TOKEN", "HF_ENDPOINT"):
            os.environ.pop(name, None)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep what collection imports out of every search for garbage: going through it takes half a second each time.

    Later searches are rare, too: tests leave little garbage, and import much that is none.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
        gc.set_threshold(50_000, 20, 20)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what needs a tracking store: the first one takes MLflow seconds to make."""
    for item in items:
        if "empty_database" in getattr(item, "fixturenames", ()):
            item.add_marker("slow")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """Each test starts with one thread of PyTorch's, and imports from nowhere but this tree.

    Tests that train set the threads as a run would; a served model leaves the folder of its code in the path, which
    processes started later would take for the library's.
    """
    path = sys.path[:]
    yield
    sys.path[:] = path
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
