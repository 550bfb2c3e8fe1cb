"""File systems at addresses: what is one, how its paths are read, and one sentence for whatever goes wrong."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pyarrow.fs
import pytest

from tests.object_store import object_store
from vlm_core.catalogue.sources import open_source
from vlm_core.config import Config
from vlm_core.errors import UserError
from vlm_core.files.addresses import is_address, local_path, naming_address, open_address, shown_address


@pytest.mark.parametrize(
    "text", ["s3://bucket", "S3://bucket/a b.csv", "memory://x", "abfs://c@a.dfs.core.windows.net/x"]
)
def test_an_address_has_a_scheme(text: str) -> None:
    assert is_address(text)
    with pytest.raises(UserError, match=r"^output=.* is an address: give a path of this machine\.$"):
        local_path("output", text)


@pytest.mark.parametrize(
    "text", ["shop", "http://x", "HTTPS://x/y", "C:\\shop", "c://shop", "runs:/1/x", "//host/x", ""]
)
def test_paths_and_pages_of_the_web_are_none(text: str) -> None:
    assert not is_address(text)


def test_no_user_password_or_option_is_shown() -> None:
    address = "s3://key:pass/word@bucket/shop/?region=eu-west-1&endpoint_override=https%3A%2F%2Fu%3Ahunter2%40host"
    assert shown_address(address) == "s3://bucket/shop"
    assert shown_address("s3://bucket/what?.csv") == "s3://bucket/what?.csv"


@pytest.mark.parametrize("signature", ["hunter2%3D", "hun/ter2+x=", "/hunter2="])
def test_an_address_with_a_signature_is_opened_with_it_and_shown_without(
    signature: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def from_uri(uri: str) -> tuple[object, str]:
        opened.append(uri)
        return pyarrow.fs.LocalFileSystem(), "c"

    monkeypatch.setattr("pyarrow.fs.FileSystem", SimpleNamespace(from_uri=from_uri))
    address = f"abfs://c@a.dfs.core.windows.net/shop/x?sv=2022-11-02&sig={signature}&sp=rl"
    assert open_address(address)[1] == "c/shop/x"
    assert opened == [f"abfs://c@a.dfs.core.windows.net/?sv=2022-11-02&sig={signature}&sp=rl"]
    assert shown_address(address) == "abfs://a.dfs.core.windows.net/shop/x"
    params = Config(data=address, shared_checkpoints=address).to_params()
    assert "ter2" not in str(params) and params["data"].endswith("sig=***&sp=rl")


@pytest.mark.parametrize("path", ["a b/c%20d?e=f/g#h.jpg", "ä+b&c.jpg", "shop"])
def test_a_path_is_as_it_is_written(path: str) -> None:
    for options in ("", "?region=eu-west-1&scheme=http"):
        _, found = open_address(f"s3://key:secret@bucket/{path}{options or '?region=us-east-1'}")
        assert found == f"bucket/{path}"


def _problem(address: str) -> str:
    with pytest.raises(UserError) as caught:
        open_source(address, None)  # type: ignore[arg-type]  # nothing is written before the address was opened
    return str(caught.value)


def test_what_cannot_be_opened_is_said() -> None:
    assert "begins with a scheme that is not known: give s3://, gs://" in _problem("nosuch://user:hunter2@place/shop")
    assert "hunter2" not in _problem("nosuch://user:hunter2@place/shop")
    assert _problem("memory://nothing/here") == (
        "memory://nothing/here is not there: check the names of the bucket and of what is in it."
    )


def test_a_driver_that_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "paramiko", None)
    assert "sftp://host/shop needs a library that is not installed (" in _problem("sftp://host/shop")


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A server in the place of S3, whose next answers are these."""
    status = [403]

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status[0])
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    _surround(monkeypatch, server.server_port)
    yield status
    server.shutdown()
    thread.join()
    server.server_close()


def _surround(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.slow
def test_what_s3_refuses_is_said(answering: list[int]) -> None:
    problem = _problem("s3://bucket/shop")
    assert problem.startswith("s3://bucket/shop may not be read (") and "AWS_ACCESS_KEY_ID" in problem


@pytest.mark.slow
def test_a_bucket_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with object_store(monkeypatch):
        assert _problem("s3://nosuch/shop") == (
            "s3://nosuch/shop is not there: check the names of the bucket and of what is in it."
        )


@pytest.mark.slow
def test_a_server_that_is_away_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    _surround(monkeypatch, port)
    problem = _problem("s3://bucket/shop")
    assert problem.startswith("s3://bucket/shop cannot be read (") and "Could not connect" in problem
    assert "check the address, the network and the credentials (AWS_ACCESS_KEY_ID" in problem


def test_a_sentence_of_ours_stays() -> None:
    with pytest.raises(UserError, match=r"^as it is$"), naming_address("s3://bucket"):
        raise UserError("as it is")
