"""A store that speaks S3 on loopback, moto's server in this process, and any file system under one roof for tests."""

from __future__ import annotations

import logging
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import fsspec
import pytest

BUCKET = "shops"


class MemoryStore:
    """Files in memory, at memory://<name>."""

    def __init__(self, name: str) -> None:
        self.top = f"memory://{name}"

    def put(self, path: str, data: bytes) -> None:
        fsspec.filesystem("memory").pipe_file(f"{self.top}/{path}", data)

    def put_all(self, place: Path) -> str:
        """Put a file, or a folder with all in it, below the name of the folder around it, and return its address."""
        return _put_all(self, place)


class ObjectStore(logging.Handler):
    """A store that speaks S3, at s3://shops; `requests` are those that it answered."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.top, self.port = f"s3://{BUCKET}", port
        self.requests: list[str] = []
        self.put("", b"")

    def emit(self, record: logging.LogRecord) -> None:
        self.requests.append(record.getMessage())

    def put(self, path: str, data: bytes) -> None:
        place = f"http://127.0.0.1:{self.port}/{BUCKET}" + (f"/{quote(path)}" if path else "")
        who = "AWS4-HMAC-SHA256 Credential=planted-key/20260101/us-east-1/s3/aws4_request"  # which is not verified
        headers = {"Content-Type": "application/octet-stream", "Authorization": who}
        urllib.request.urlopen(urllib.request.Request(place, data, headers, method="PUT"), timeout=10).close()

    def put_all(self, place: Path) -> str:
        """Put a file, or a folder with all in it, below the name of the folder around it, and return its address."""
        return _put_all(self, place)

    def count(self, method: str, what: str) -> int:
        """Return how many requests there were of a method whose line has a text."""
        return sum(f"{method} " in line and what in line for line in self.requests)


def _put_all(store: MemoryStore | ObjectStore, place: Path) -> str:
    for path in [place] if place.is_file() else sorted(place.rglob("*")):
        if path.is_file():
            store.put(path.relative_to(place.parents[1]).as_posix(), path.read_bytes())
    return f"{store.top}/{place.parent.name}/{place.name}"


@contextmanager
def object_store(patch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """Run a store, which this process finds by its environment, until the block ends."""
    from moto.server import ThreadedMotoServer

    log = logging.getLogger("werkzeug")
    patch.setattr(log, "propagate", False)
    log.setLevel(logging.INFO)
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    _, port = server.get_host_and_port()
    for name, text in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "planted-key",
        "AWS_SECRET_ACCESS_KEY": "planted-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        patch.setenv(name, text)
    store = ObjectStore(port)
    log.addHandler(store)
    try:
        yield store
    finally:
        log.removeHandler(store)
        server.stop()
