"""A sample of the campaign of hostile images and requests."""

from __future__ import annotations

import json
import os
import random
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.campaigns.hostile import attack_decoder, isolated, table
from tests.campaigns.hostile_dashboard import dashboard_requests, results, upload
from tests.campaigns.hostile_pictures import hostile_picture, hostile_text
from tests.campaigns.hostile_server import Outcome, Request, attack_server
from vlm_core.inference import predict_records
from vlm_core.tracking.serving import picture_bytes


@pytest.mark.slow
def test_hostile_images_are_pictures_or_refused() -> None:
    outcome = isolated(attack_decoder, "decode", 60, 1, 30.0)
    assert (outcome.tried, outcome.failed) == (60, 0), outcome.faults
    assert min(outcome.answers["decoded"], outcome.answers["refused"]) > 5


def test_a_seed_makes_the_same_images() -> None:
    first, second = ([hostile_picture(random.Random(seed), rarely=0) for seed in range(20)] for _ in range(2))
    assert first == second
    assert len(set(first)) > 15


def test_a_crash_is_a_failure_and_not_the_end() -> None:
    outcome = isolated(lambda target: os._exit(7), "decode")
    assert outcome.faults == ["the process ended with exit code 7"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_hostile_rows_have_a_category_or_an_error() -> None:
    from tests.models.families import make_categoriser

    chance = random.Random(2)
    texts = [hostile_text(chance, hostile_picture(chance, rarely=0)) for _ in range(40)]
    records = predict_records(make_categoriser("clip"), [partial(picture_bytes, text) for text in texts])
    assert all(("category" in record) != ("error" in record) for record in records)
    assert 5 < sum("error" in record for record in records) < 40


@pytest.mark.slow
def test_hostile_uploads_are_never_an_error_of_the_dashboard(tmp_path: Path) -> None:
    from dashboard.app import create_app
    from dashboard.runs import Runs

    client = create_app(Runs("sqlite:///nowhere.db", tmp_path)).server.test_client()
    for request in dashboard_requests(0, 40):
        answer = client.post(request.path, data=request.body, content_type=request.kind or None)
        assert request.check(answer.status_code, answer.data) == ""


def test_uploads_have_the_form_that_the_page_sends(tmp_path: Path) -> None:
    from dashboard.app import create_app
    from dashboard.runs import Runs

    callbacks = create_app(Runs("sqlite:///nowhere.db", tmp_path)).callback_map
    for sent in (upload([], []), results([], [])):
        expected, (groups, state) = callbacks[sent["output"]], (sent["inputs"], sent["state"])
        named = [(each["id"], each["property"]) for each in groups if each]  # [] stands for the samples
        inputs = [(each["id"], each["property"]) for each in expected["inputs"] if not each["id"].startswith("{")]
        assert named == inputs and len(groups) == len(expected["inputs"])
        assert [(each["id"], each["property"]) for each in state] == [
            (each["id"], each["property"]) for each in expected["state"]
        ]


class _Server(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(500 if body == b"bad" else 200)
        self.end_headers()
        self.wfile.write(b"right")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    server = HTTPServer(("127.0.0.1", 0), _Server)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def test_failures_of_a_server_are_counted(port: int) -> None:
    def check(status: int, body: bytes) -> str:
        return "" if status == 200 and body == b"right" else f"status {status}"

    requests = [Request("/", body, "text/plain", check) for body in (b"good", b"bad")]
    outcome = attack_server("serve", port, os.getpid(), requests, 2, 0.1, requests[0])
    assert outcome.tried == sum(outcome.answers.values())
    assert outcome.failed == outcome.answers["500"]
    assert outcome.failed
    assert outcome.faults[0].startswith("status 500 <- b'bad'")
    assert 0 < outcome.memory_mib[0] <= outcome.memory_mib[1]
    wrong = attack_server("serve", port, os.getpid(), requests[:1], 1, 0.01, requests[1])
    assert wrong.faults == ["the known picture: status 500"] * 2


def test_the_table_has_a_line_for_each_door_and_for_each_fault() -> None:
    outcome = Outcome("serve, 16 clients", 10, 1, {"200": 9}, ["status 500"], 1.0, 10.0, 2.5, (1, 2, 3))
    lines = table([outcome]).splitlines()
    assert len(lines) == 3
    assert "1, 2, 3" in lines[1]
    assert json.dumps(lines[2]) == '"    status 500"'
