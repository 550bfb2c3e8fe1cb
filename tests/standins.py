"""Stand-ins for Kaggle and for the Hugging Face hub: small servers on loopback that can be told to misbehave."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import random
import re
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

# Two sets of products: as Kaggle's zip holds them, and as the hub's parquet files do.
TABLE = b"id,productDisplayName\n1,Blue, loose shirt\n2,Watch\n"
PICTURES = {f"images/{number}.jpg": random.Random(number).randbytes(600_000) for number in (1, 2)}
TITLES = ('Shirt, "slim" fit', "Watch", None)
PIXELS = (b"\xff\xd8 first \xff\xd9", b"no picture at all", None)
WORDS = ("gender", "masterCategory", "subCategory", "articleType", "baseColour", "season")

# A proxy of this machine must not come between; `localhost` is left to one, see `KaggleStandIn.environment`.
DIRECT = {"no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}


@dataclass(frozen=True)
class Asked:
    """One request as it arrived."""

    method: str
    path: str
    range: str  # the Range header, "" when there was none


class StandIn:
    """A server on a free port of loopback. What is set on it takes effect from the next request on."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.status = 0  # answer every request with this HTTP status
        self.hanging = False  # take every request and never answer
        self.cut_after: int | None = None  # close the connection after so many bytes of a body
        self.dead_after_cut = False  # from the first cut on, answer bodies with HTTP 500
        self.slow = False  # send bodies at 2 MB/s
        self._closing = threading.Event()
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_any(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                path = urlsplit(self.path)  # a client that sees a proxy in us sends the whole address
                stand_in.asked.append(Asked(self.command, path.path, self.headers.get("Range", "")))
                if stand_in.hanging:
                    stand_in._closing.wait()
                    self.close_connection = True
                elif stand_in.status:
                    self.answer(stand_in.status, {"Content-Type": "text/html"}, b"<html>trouble</html>")
                else:
                    stand_in.answer(self, path.path, parse_qs(path.query))

            do_GET = do_HEAD = do_POST = do_any  # noqa: N815

            def answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def answer_file(self, data: bytes, headers: dict[str, str]) -> None:
                """A file, or the part of it that the request's Range asks for."""
                if stand_in.dead_after_cut and stand_in.cut_after == 0:
                    return self.answer(500, {})
                span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
                start = int(span[1]) if span else 0
                stop = int(span[2]) + 1 if span and span[2] else len(data)
                body = data[start:stop]
                place = {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"} if span else {}
                self.send_response(206 if span else 200)
                for name, value in {
                    "Content-Length": str(len(body)),
                    "Accept-Ranges": "bytes",
                    **place,
                    **headers,
                }.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.send_body(body)

            def send_body(self, body: bytes) -> None:
                kept = body if stand_in.cut_after is None else body[: stand_in.cut_after]
                for start in range(0, len(kept), 100_000):
                    self.wfile.write(kept[start : start + 100_000])
                    if stand_in.slow and stand_in._closing.wait(0.05):
                        break
                if len(kept) < len(body):
                    self.close_connection = True
                if stand_in.cut_after is not None:
                    stand_in.cut_after -= len(kept)

            def log_message(self, *arguments: object) -> None:
                pass

            def handle(self) -> None:
                with contextlib.suppress(ConnectionError):  # the client broke off, as some tests want
                    super().handle()

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.block_on_close = False
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, handler: Any, path: str, query: dict[str, list[str]]) -> None:
        raise NotImplementedError

    def bodies(self) -> list[Asked]:
        """What was asked for other than by HEAD."""
        return [asked for asked in self.asked if asked.method == "GET"]

    def close(self) -> None:
        self._closing.set()
        self.server.shutdown()
        self.server.server_close()


class KaggleStandIn(StandIn):
    """Kaggle's download service with one archive, which it serves from a storage address as Kaggle does."""

    def __init__(self, archive: bytes) -> None:
        self.archive = archive
        super().__init__()

    def environment(self) -> dict[str, str]:
        """What turns kagglehub to this server: a proxy's place, for its own other addresses have fixed ports."""
        return {"KAGGLE_API_ENVIRONMENT": "LOCALHOST", "http_proxy": self.url, **DIRECT}

    def answer(self, handler: Any, path: str, query: dict[str, list[str]]) -> None:
        if path.endswith("/datasets.DatasetApiService/DownloadDataset"):
            handler.answer(302, {"Location": "http://localhost/storage/archive.zip"})
        elif path == "/storage/archive.zip":
            digest = base64.b64encode(hashlib.md5(self.archive).digest()).decode()
            handler.answer_file(self.archive, {"x-goog-hash": f"md5={digest}", "Content-Type": "application/zip"})
        else:
            handler.answer(404, {})


class HubStandIn(StandIn):
    """The hub with the repositories of `repositories`: `name` or `datasets/name` -> file name -> content."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.former: dict[str, dict[str, bytes]] = {}  # earlier commits of any repository, and their files
        super().__init__()

    def supersede(self, name: str, files: dict[str, bytes]) -> None:
        """Push `files` as the repository's newest commit; the one before can still be asked for."""
        self.former[self.commit(name)] = self.repositories[name]
        self.repositories[name] = files

    def environment(self, home: Path) -> dict[str, str]:
        """What turns a new process to this server, with a cache of its own."""
        online = {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(home), **online, **DIRECT}

    def commit(self, name: str) -> str:
        """The repository's newest commit: 40 hex digits of its contents."""
        return _commit(self.repositories[name])

    def _files(self, name: str, revision: str) -> dict[str, bytes] | None:
        """The repository's files at a commit or on its main branch; None if it has no such commit."""
        current = self.repositories.get(name, {})
        return current if revision in ("main", _commit(current)) else self.former.get(revision)

    def answer(self, handler: Any, path: str, query: dict[str, list[str]]) -> None:
        if match := re.fullmatch(r"/api/(?:models/(.+?)|(datasets/.+?))(?:/revision/(.+))?", path):
            self._describe(handler, match[1] or match[2], match[3] or "main")
        elif match := re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path):
            self._resolve(handler, match[1], match[2], match[3])
        elif match := re.fullmatch(r"/storage/(.+)/([0-9a-f]{40})/(.+)", path):
            handler.answer_file((self._files(match[1], match[2]) or {})[match[3]], {})
        else:
            handler.answer(404, {})

    def _describe(self, handler: Any, name: str, revision: str) -> None:
        if name not in self.repositories:
            return handler.answer(404, {"X-Error-Code": "RepoNotFound"})
        if (files := self._files(name, revision)) is None:
            return handler.answer(404, {"X-Error-Code": "RevisionNotFound"})
        siblings = [
            {
                "rfilename": file,
                "size": len(data),
                "blobId": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(),
                **(
                    {"lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}}
                    if _is_large(file)
                    else {}
                ),
            }
            for file, data in files.items()
        ]
        body = json.dumps({"id": name.removeprefix("datasets/"), "sha": _commit(files), "siblings": siblings})
        handler.answer(200, {"Content-Type": "application/json"}, body.encode())

    def _resolve(self, handler: Any, name: str, revision: str, file: str) -> None:
        files = self._files(name, revision) or {}
        if file not in files:
            return handler.answer(404, {"X-Error-Code": "EntryNotFound"})
        data, commit = files[file], _commit(files)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
        if _is_large(file) and handler.command == "GET":
            return handler.answer(302, {**headers, "Location": f"{self.url}/storage/{name}/{commit}/{file}"})
        handler.answer_file(data, headers)


def _commit(files: dict[str, bytes]) -> str:
    digest = hashlib.sha1()
    for file, data in sorted(files.items()):
        digest.update(file.encode() + data)
    return digest.hexdigest()


def _is_large(file: str) -> bool:
    """Whether the hub keeps such a file in Git LFS."""
    return file.endswith((".parquet", ".safetensors", ".bin"))


def make_archive() -> bytes:
    """Kaggle's zip: the set, and a second copy of it below `myntradataset/`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in {"styles.csv": TABLE, **PICTURES}.items():
            archive.writestr(name, data)
            archive.writestr(f"myntradataset/{name}", data)
    return buffer.getvalue()


def make_shard(first: int, pixels: tuple[bytes | None, ...] = PIXELS) -> bytes:
    """Three products in a parquet file as `datasets` pushes it to the hub."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    count = len(pixels)
    columns = {
        "id": pa.array(range(first, first + count), pa.int64()),
        **{name: pa.array(["x"] * count) for name in WORDS},
        "year": pa.array([2012.0, None, 2016.0][:count], pa.float64()),
        "usage": pa.array(["Casual", None, "Sports"][:count]),
        "productDisplayName": pa.array(TITLES[:count]),
        "image": pa.array([data and {"bytes": data, "path": None} for data in pixels]),
    }
    kinds = {name: {"dtype": "string", "_type": "Value"} for name in columns}
    kinds |= {"id": {"dtype": "int64", "_type": "Value"}, "year": {"dtype": "float64", "_type": "Value"}}
    kinds["image"] = {"_type": "Image"}
    table = pa.table(columns).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": kinds}})})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="none", use_dictionary=False)
    return buffer.getvalue()


@pytest.fixture(name="kaggle")
def kaggle_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KaggleStandIn]:
    """Kaggle with a small set, with kagglehub turned to it and to an empty cache in `tmp_path`."""
    stand_in = KaggleStandIn(make_archive())
    for name, value in stand_in.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "kagglehub"))
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path))
    # For its user agent, kagglehub looks up the module of every frame on the stack: pytest's stack is deep.
    monkeypatch.setattr("kagglehub.clients.search_lib_in_call_stack", lambda name: None)
    yield stand_in
    stand_in.close()


@pytest.fixture(name="hub")
def hub_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    """A hub, with huggingface_hub turned to it and to an empty cache in `tmp_path`."""
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    stand_in = HubStandIn()
    # The library reads its environment once, when it is imported.
    monkeypatch.setattr(constants, "ENDPOINT", stand_in.url)
    template = stand_in.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    for name, value in DIRECT.items():
        monkeypatch.setenv(name, value)
    close_session()
    yield stand_in
    close_session()
    stand_in.close()


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Return when `condition()` is true; fail the test when that takes too long."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)
