"""The dashboard's categorise page under attack, in its real process."""

from __future__ import annotations

import base64
import http.client
import json
import os
import random
import re
import secrets
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from dashboard.sessions import COOKIE
from tests.campaigns.hostile_pictures import hostile_picture, hostile_text, picture
from tests.campaigns.hostile_server import (
    POOL,
    Memory,
    Outcome,
    Request,
    ask,
    attack_server,
    expected_rows,
    free_port,
    server,
)

UPDATE: Final = "/_dash-update-component"


def make_store(model: Path, work: Path) -> str:
    """Log the model in a run of a new store in `work`, and return the run's id."""
    script = (
        "import sys; from pathlib import Path; from vlm_core.tracking.store import connect\n"
        "from vlm_core.tracking.writer import RunWriter\n"
        "connect(to_write=True)\n"
        "with RunWriter('hostile', 'clip') as run:\n"
        "    run.params({'model': 'clip'}); run.metrics({'test_macro_f1': 0.5}); run.model(Path(sys.argv[1]))\n"
        "print(run.run_id)"
    )
    surroundings = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    surroundings.pop("MLFLOW_TRACKING_URI", None)
    command = [sys.executable, "-c", script, str(model)]
    done = subprocess.run(command, cwd=work, env=surroundings, capture_output=True, text=True, check=True)
    return done.stdout.split()[-1]


def callback(outputs: Sequence[tuple[str, str]], inputs: Any, state: Any, changed: str) -> dict[str, Any]:
    listed = [{"id": name, "property": prop} for name, prop in outputs]
    text = "...".join(f"{name}.{prop}" for name, prop in outputs)
    return {
        "output": f"..{text}.." if len(outputs) > 1 else text,
        "outputs": listed if len(outputs) > 1 else listed[0],
        "inputs": inputs,
        "state": state,
        "changedPropIds": [changed],
    }


def upload(contents: Any, names: Any) -> dict[str, Any]:
    """Return the callback that the browser calls when images are dropped on the categorise page."""
    values = (("categorise-upload", "contents", contents), ("categorise-paste", "data", None))
    more = ("categorise-drop", "data", None)
    inputs: list[Any] = [{"id": i, "property": p, "value": value} for i, p, value in (*values, more)]
    state = [{"id": "categorise-upload", "property": "filename", "value": names}]
    outputs = (("categorise-pictures", "data"), ("categorise-upload", "contents"))
    return callback(outputs, [*inputs, []], state, "categorise-upload.contents")


def results(pictures: Any, models: Any) -> dict[str, Any]:
    """Return the callback that asks for predictions of uploaded pictures."""
    inputs = [
        {"id": "categorise-pictures", "property": "data", "value": pictures},
        {"id": "categorise-models", "property": "value", "value": models},
        {"id": "categorise-title", "property": "value", "value": ""},
    ]
    return callback((("categorise-results", "data"),), inputs, [], "categorise-pictures.data")


def dashboard_requests(seed: int, number: int) -> list[Request]:
    """Return hostile uploads, and requests of odd shapes, to the categorise page."""
    chance = random.Random(seed)
    return [_dashboard_request(chance) for _ in range(number)]


def _dashboard_request(chance: random.Random) -> Request:
    count = chance.choice((1, 1, 2, 8, 9))
    texts = [hostile_text(chance, hostile_picture(chance, rarely=0.001)) for _ in range(count)]
    names = [chance.choice(("a.png", "=cmd|x", "<script>", "", "é" * 300, "../x")) for _ in range(count)]
    if chance.random() < 0.6:
        return _json_request(upload(texts, names), 200)
    odd: tuple[Any, ...] = (None, 7, "text", {}, [[]], [None], [{"name": "x"}], [{"token": 7, "name": []}], texts)
    if chance.random() < 0.6:
        body = chance.choice((upload(chance.choice(odd), names), upload(texts, chance.choice(odd))))
        return _json_request(body if chance.random() < 0.5 else results(chance.choice(odd), chance.choice(odd)))
    boundary = b'--x\r\nContent-Disposition: form-data; name="f"; filename="a.png"\r\n\r\n' + picture() + b"\r\n"
    raw = (boundary + b"--x--\r\n", boundary, b"--x\r\n" * 5000, b"{", b"[" * 50_000, b"\xff", b"null", b"")
    kinds = ("multipart/form-data; boundary=x", "multipart/form-data", "application/json", "text/plain", "")
    return Request(UPDATE, chance.choice(raw), chance.choice(kinds), _status_check(0))


def _json_request(content: Any, status: int = 0) -> Request:
    return Request(UPDATE, json.dumps(content).encode(), "application/json", _status_check(status))


def _status_check(wanted: int) -> Callable[[int, bytes], str]:
    def check(status: int, body: bytes) -> str:
        right = status == wanted if wanted else status < 500
        return "" if right else f"status {status}: {body[:150]!r}"

    return check


def categorise(port: int, contents: Sequence[Any], run_id: str) -> Any:
    """Upload pictures and ask for their categories as the browser does; return the results."""
    cookie = f"{COOKIE}={secrets.token_urlsafe(32)}"  # a new visitor each time

    def call(callback: dict[str, Any]) -> Any:
        status, body = ask(port, "POST", UPDATE, json.dumps(callback).encode(), cookie=cookie)
        assert status == 200, (status, body[:200])
        return json.loads(body)["response"]

    uploaded = call(upload(contents, ["x.png"] * len(contents)))["categorise-pictures"]["data"]
    return call(results(uploaded, [run_id]))["categorise-results"]["data"]


def known_upload(model: Path, run_id: str, port: int) -> Request:
    """Return the upload of a picture whose check asks for its categories as well, which are known."""
    (expected,) = expected_rows(model, [picture()])
    url = "data:image/png;base64," + base64.b64encode(picture()).decode()

    def check(_status: int, _body: bytes) -> str:
        try:
            (result,) = categorise(port, [url], run_id)
            prediction = result["predictions"][run_id]
            right = all(abs(expected[f"p_{name}"] - value) < 1e-4 for name, value in prediction["top"])
        except (AssertionError, KeyError, ValueError) as error:
            return f"{type(error).__name__}: {error}"
        return "" if right else f"another answer: {prediction['top']}"

    return Request(UPDATE, json.dumps(upload([url], ["x.png"])).encode(), "application/json", check)


def shell_tick() -> dict[str, Any]:
    """Return the callback by which each page asks for the state of the store."""
    shown = (("version", "data"), ("state", "data"), ("store", "children"), ("notice", "children"))
    inputs = [{"id": "shell-tick", "property": "n_intervals", "value": 1}]
    state = [{"id": f"shell-{name}", "property": "data", "value": None} for name in ("version", "state")]
    outputs = [(f"shell-{name}", what) for name, what in shown]
    return callback(outputs, inputs, state, "shell-tick.n_intervals")


def shown_store(port: int) -> str:
    """Return what every page says of the store, as Dash sends it."""
    return ask(port, "POST", UPDATE, json.dumps(shell_tick()).encode())[1].decode()


def shown_runs(port: int) -> int | None:
    """Return the number of runs that every page shows, None before the store was read."""
    shown = re.search(r"([\d,]+) runs?\b", shown_store(port))
    return int(shown[1].replace(",", "")) if shown else None


def attack_dashboard(model: Path, work: Path, seed: int, seconds: float, clients: Sequence[int]) -> list[Outcome]:
    """Attack the categorise page: uploads alone from each number of clients, then uploads with predictions."""
    run_id, port = make_store(model, work), free_port()
    known = known_upload(model, run_id, port)
    requests, outcomes = dashboard_requests(seed, POOL), []
    with server([sys.executable, "-m", "dashboard", "--port", str(port)], port, work, "/") as process:
        for number in clients:
            outcomes.append(attack_server("dashboard", port, process.pid, requests, number, seconds, known))
        outcomes.append(_attack_predictions(port, process.pid, run_id, seed, seconds, known))
    return outcomes


def _attack_predictions(port: int, pid: int, run_id: str, seed: int, seconds: float, known: Request) -> Outcome:
    """Upload hostile images one by one and ask for their categories: a prediction or an error for each."""
    chance, outcome, answers, durations = (
        random.Random(seed),
        Outcome("dashboard, categories"),
        Counter[str](),
        list[float](),
    )
    memory, started = Memory(pid), time.monotonic()
    while time.monotonic() - started < seconds:
        url = "data:image/png;base64," + base64.b64encode(hostile_picture(chance, rarely=0.001)).decode()
        began = time.perf_counter()
        outcome.tried += 1
        try:
            (result,) = categorise(port, [url], run_id)
            answers["error" if "error" in result else "category"] += 1
        except (AssertionError, OSError, http.client.HTTPException, ValueError) as error:
            outcome.fail(f"{type(error).__name__}: {error}")
        durations.append(time.perf_counter() - began)
    outcome.finish(started, durations, answers)
    if fault := known.check(200, b""):
        outcome.fail(f"the known picture: {fault}")
    outcome.memory_mib = memory.stop()
    return outcome
