"""Hostile images and requests at every door: `python -m tests.campaigns.hostile --images 10000 --seed 0`.

Mutated and generated images go to the decoder, to `predict` and `prepare`; some of them, and requests of odd shapes, to
the served model (`mlflow models serve`) and to the dashboard's categorise page, each in its real process on loopback,
with 1 and with 16 clients. Nothing may crash or answer with 5xx: a bad image is an error in its own row. Afterwards a
known picture must get its answer. Memory is that of the process and its children: at the start (after a first
request), at its peak and at the end.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import math
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import psutil

from tests.campaigns.hostile_pictures import hostile_picture, hostile_request, hostile_text, picture

MIB: Final = 1 << 20
DOORS: Final = ("decode", "predict", "prepare", "serve", "dashboard")
POOL: Final = 400  # requests that clients take turns with
SECONDS_TO_ANSWER: Final = 120
KNOWN: Final = "known"
_ID: Final = "{:06}"
_UPDATE: Final = "/_dash-update-component"


@dataclass
class Outcome:
    """What one door did with what came."""

    door: str
    tried: int = 0
    failed: int = 0
    answers: dict[str, int] = field(default_factory=dict)  # how many of each kind
    faults: list[str] = field(default_factory=list)  # the first ones
    seconds: float = 0.0
    rate: float = 0.0  # a second
    p95_ms: float = 0.0
    memory_mib: tuple[int, int, int] = (0, 0, 0)  # at the start, at the peak, at the end

    def fail(self, text: str) -> None:
        """Count a failure, and keep the first few texts."""
        self.failed += 1
        if len(self.faults) < 10:
            self.faults.append(text[:300])

    def finish(self, started: float, durations: Sequence[float], answers: Counter[str]) -> None:
        """Take the figures of all attempts since `started`."""
        self.seconds = round(time.monotonic() - started, 1)
        self.rate = round(self.tried / max(self.seconds, 0.001), 1)
        ordered = sorted(durations)
        self.p95_ms = round(1000 * ordered[math.ceil(0.95 * len(ordered)) - 1], 1) if ordered else 0.0
        self.answers = dict(answers.most_common(12))


class Memory:
    """The resident memory of a process and its children, sampled in a thread."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self.start = self.peak = self.now()
        self._ended = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def now(self) -> int:
        """Return MiB."""
        total = 0
        with suppress(psutil.Error):
            for each in (self._process, *self._process.children(recursive=True)):
                with suppress(psutil.Error):
                    total += each.memory_info().rss
        return total // MIB

    def _watch(self) -> None:
        while not self._ended.wait(0.05):
            self.peak = max(self.peak, self.now())

    def stop(self) -> tuple[int, int, int]:
        """Return start, peak and end."""
        self._ended.set()
        return self.start, self.peak, self.now()


def isolated(work: Callable[..., Outcome], *given: Any) -> Outcome:
    """Return what `work` returns in a forked process: a crash there is a failure, not the campaign's end."""
    context = get_context("fork")
    reading, writing = context.Pipe(duplex=False)
    process = context.Process(target=lambda: writing.send(work(*given)))
    process.start()
    writing.close()
    try:
        outcome: Outcome = reading.recv()
    except EOFError:
        process.join()
        outcome = Outcome(given[0] if given else "?", 1)
        outcome.fail(f"the process ended with exit code {process.exitcode}")
    process.join()
    return outcome


def attack_decoder(door: str, images: int, seed: int, seconds: float) -> Outcome:
    """Decode hostile images: each is a picture or an UnreadablePicture, and the known one is right afterwards."""
    import numpy as np

    from vlm_core.pixels.picture_store import UnreadablePicture, decode_picture

    _silence()
    chance, outcome, answers, durations = random.Random(seed), Outcome(door), Counter[str](), list[float]()
    expected = np.asarray(decode_picture(picture()))
    memory, started = Memory(os.getpid()), time.monotonic()
    while outcome.tried < images and time.monotonic() - started < seconds:
        data = hostile_picture(chance)
        outcome.tried += 1
        began = time.perf_counter()
        try:
            decoded = decode_picture(data)
            answers["decoded"] += 1
            if decoded.mode != "RGB":
                outcome.fail(f"image {outcome.tried}: mode {decoded.mode}")
        except UnreadablePicture:
            answers["refused"] += 1
        except BaseException as error:
            outcome.fail(f"image {outcome.tried} ({data[:12]!r}, {len(data)} bytes): {type(error).__name__}: {error}")
        durations.append(time.perf_counter() - began)
    outcome.finish(started, durations, answers)
    if not np.array_equal(np.asarray(decode_picture(picture())), expected):
        outcome.fail("the known picture is decoded in another way afterwards")
    outcome.memory_mib = memory.stop()
    return outcome


def write_pictures(folder: Path, images: int, seed: int) -> None:
    """Write hostile images and 40 good ones below `folder/images`, and a table that names them."""
    chance = random.Random(seed)
    (folder / "images").mkdir(parents=True)
    rows = ["id,masterCategory,productDisplayName"]
    for number in range(images):
        (folder / "images" / f"{_ID.format(number)}.jpg").write_bytes(hostile_picture(chance))
        rows.append(f"{_ID.format(number)},{chance.choice(('Apparel', 'Footwear', '=1+1', '[/b]'))},a title")
    for number in range(40):  # enough good ones that a catalogue can be made of them
        (folder / "images" / f"{KNOWN}{number}.jpg").write_bytes(picture(6 * number, (60 + number, 80)))
        rows.append(f"{KNOWN}{number},{('Apparel', 'Footwear')[number % 2]},a title")
    (folder / "styles.csv").write_text("\n".join(rows))


def attack_prediction(door: str, model: Path, images: int, seed: int, work: Path) -> Outcome:
    """Run `predict` over a folder of hostile images: a row for each, with a category or an error."""
    import pyarrow.csv as csv

    shop, output = work / f"{door}-pictures", work / "predictions.csv"
    write_pictures(shop, images, seed)
    outcome, started = Outcome(door, images + 40), time.monotonic()
    script = (
        "import sys; from pathlib import Path; from experiments.cli import run_command\n"
        "import vlm_core.tracking.registry as registry; registry.resolve = lambda name: Path(name)\n"
        "from experiments.predict import main; sys.exit(run_command(main))"
    )
    flags = ["--model", str(model), "--pictures", str(shop), "--output", str(output), "--threads", "1"]
    ended, outcome.memory_mib = _run_watched([sys.executable, "-c", script, *flags], work)
    if ended.returncode or "Traceback" in ended.stderr:
        outcome.fail(f"exit code {ended.returncode}: {ended.stderr[-250:]}")
        return outcome
    rows = csv.read_csv(output).to_pylist()
    for row in rows:
        if bool(row["category"]) == bool(row["error"]):
            outcome.fail(f"{row['id']}: neither a category alone nor an error alone")
    if len(rows) != outcome.tried:
        outcome.fail(f"{len(rows)} rows")
    expected = _expected(model, [picture(6 * number, (60 + number, 80)) for number in range(40)])
    known = {row["id"].removeprefix("images/"): row for row in rows}
    for number, answer in enumerate(expected):
        if not _alike(known[f"{KNOWN}{number}"], answer):
            outcome.fail(f"{KNOWN}{number}: another answer than alone")
    outcome.finish(started, [], Counter("error" if row["error"] else "category" for row in rows))
    return outcome


def attack_preparation(door: str, images: int, seed: int, work: Path) -> Outcome:
    """Run `prepare` over a catalogue of hostile images: the bad ones are left out, with their reasons."""
    shop = work / f"{door}-shop"
    write_pictures(shop, images, seed)
    outcome, started = Outcome(door, images + 40), time.monotonic()
    (work / "prepared").mkdir()
    ended, outcome.memory_mib = _run_watched(
        [sys.executable, "-m", "experiments.prepare", "--data", str(shop)], work / "prepared"
    )
    outcome.finish(started, [], Counter())
    if ended.returncode or "Traceback" in ended.stderr:
        outcome.fail(f"exit code {ended.returncode}: {ended.stderr[-250:]}")
        return outcome
    kept = _kept(work / "prepared" / "data" / "processed")
    outcome.answers = {"products kept": len(kept)}
    if lost := sorted({f"{KNOWN}{number}" for number in range(40)} - kept):
        outcome.fail(f"good images are missing: {lost[:3]}")
    return outcome


def _kept(processed: Path) -> set[str]:
    """Return the ids of the products of the one prepared catalogue."""
    from pyarrow import parquet

    (path,) = processed.glob("*/products.parquet")
    return set(parquet.read_table(path)["product_id"].to_pylist())


def _run_watched(command: Sequence[str], folder: Path) -> tuple[subprocess.CompletedProcess[str], tuple[int, int, int]]:
    surroundings = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    with (folder / "printed").open("w+") as out, (folder / "errors").open("w+") as err:
        process = subprocess.Popen(command, cwd=folder, env=surroundings, stdout=out, stderr=err)
        memory = Memory(process.pid)
        process.wait()
        sizes = memory.start, memory.peak, memory.stop()[2]
    printed, errors = ((folder / name).read_text(errors="replace") for name in ("printed", "errors"))
    return subprocess.CompletedProcess(command, process.returncode, printed, errors), sizes


def make_model(folder: Path) -> Path:
    """Save a small categoriser, as training leaves it."""
    from tests.tracking.models import save_categoriser

    folder.mkdir(parents=True)
    return save_categoriser("clip", folder)


def _expected(model: Path, pictures: Sequence[bytes]) -> list[dict[str, Any]]:
    """Return the answers of a model in this process."""
    from vlm_core.inference import predict_records
    from vlm_core.models.saved import load_categoriser

    categoriser = load_categoriser(model)
    return [predict_records(categoriser, [lambda data=data: data])[0] for data in pictures]


def _alike(row: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Return whether category and probabilities agree; batches of other sizes may round in another way."""
    names = [name for name in expected if name.startswith("p_")]
    return row["category"] == expected["category"] and all(abs(row[name] - expected[name]) < 1e-4 for name in names)


@contextmanager
def server(command: Sequence[str], port: int, folder: Path, path: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server in a process group of its own until the block ends; it answers at `path` when the block begins."""
    path_of_programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    surroundings = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), "PATH": path_of_programs}
    with (folder / f"server-{port}.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=surroundings, stdout=log, stderr=log, start_new_session=True
        )
        try:
            _wait_for(process, port, path)
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_for(process: subprocess.Popen[bytes], port: int, path: str) -> None:
    for _ in range(600):
        with suppress(OSError):
            if ask(port, "GET", path)[0] == 200:
                return
        if process.poll() is not None:
            break
        time.sleep(0.2)
    raise RuntimeError(f"the server ended with exit code {process.poll()} or did not answer")


def free_port() -> int:
    """Return a free port of loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
    return port


def ask(port: int, method: str, path: str, body: bytes = b"", kind: str = "application/json") -> tuple[int, bytes]:
    """Return status and body of the answer to one request. Raises OSError or http.client.HTTPException."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS_TO_ANSWER)
    try:
        connection.request(method, path, body, {"Content-Type": kind} if kind else {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@dataclass
class Request:
    """A request, and what is wrong with the answer to it, if anything is."""

    path: str
    body: bytes
    kind: str
    check: Callable[[int, bytes], str]


def attack_server(
    door: str, port: int, pid: int, requests: Sequence[Request], clients: int, seconds: float, known: Request
) -> Outcome:
    """Send requests from several clients at once for some time; then the known one must be answered rightly."""
    outcome, answers, durations, lock = (
        Outcome(f"{door}, {clients} clients"),
        Counter[str](),
        list[float](),
        threading.Lock(),
    )
    _ask_known(port, known, outcome)
    memory, started = Memory(pid), time.monotonic()

    def work(number: int) -> None:
        chance = random.Random(number)
        while time.monotonic() - started < seconds:
            request = chance.choice(requests)
            began = time.perf_counter()
            try:
                status, body = ask(port, "POST", request.path, request.body, request.kind)
                fault = request.check(status, body)
            except (OSError, http.client.HTTPException) as error:
                status, fault = 0, f"{type(error).__name__}: {error}"
            with lock:
                outcome.tried += 1
                durations.append(time.perf_counter() - began)
                answers[str(status)] += 1
                if fault:
                    outcome.fail(f"{fault} <- {request.body[:150]!r} ({len(request.body)} bytes, {request.kind})")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outcome.finish(started, durations, answers)
    _ask_known(port, known, outcome)
    outcome.memory_mib = memory.stop()
    return outcome


def _ask_known(port: int, known: Request, outcome: Outcome) -> None:
    try:
        fault = known.check(*ask(port, "POST", known.path, known.body))
    except (OSError, http.client.HTTPException) as error:
        fault = f"{type(error).__name__}: {error}"
    if fault:
        outcome.fail(f"the known picture: {fault}")


def serving_requests(seed: int, number: int) -> list[Request]:
    """Return hostile requests to the served model."""
    chance = random.Random(seed)
    made = (hostile_request(chance, lambda c: hostile_picture(c, rarely=0.001)) for _ in range(number))
    return [Request("/invocations", body, kind, _row_check(rows)) for body, kind, rows in made]


def _row_check(rows: int) -> Callable[[int, bytes], str]:
    def check(status: int, body: bytes) -> str:
        if status >= 500:
            return f"status {status}: {body[:150]!r}"
        if not rows:
            return ""
        if status != 200:
            return f"status {status} for well-formed rows: {body[:150]!r}"
        answers = json.loads(body)["predictions"]
        wrong = len(answers) != rows or any(bool(row["category"]) == bool(row["error"]) for row in answers)
        return "a row without one answer" if wrong else ""

    return check


def known_serving(model: Path) -> Request:
    """Return a harmless request to the served model, whose answer is known."""
    (expected,) = _expected(model, [picture()])

    def check(status: int, body: bytes) -> str:
        right = status == 200 and _alike(json.loads(body)["predictions"][0], expected)
        return "" if right else f"another answer: {status} {body[:200]!r}"

    body = json.dumps({"dataframe_records": [{"picture": base64.b64encode(picture()).decode()}]}).encode()
    return Request("/invocations", body, "application/json", check)


def attack_serving(model: Path, work: Path, seed: int, seconds: float, clients: Sequence[int]) -> list[Outcome]:
    """Attack `mlflow models serve`."""
    from vlm_core.tracking.logging_model import save_model

    save_model(model, work / "served")
    port, requests, known = free_port(), serving_requests(seed, POOL), known_serving(model)
    flags = ["-m", str(work / "served"), "--env-manager", "local", "--port", str(port), "--host", "127.0.0.1"]
    with server([sys.executable, "-m", "mlflow", "models", "serve", *flags], port, work, "/ping") as process:
        return [attack_server("serve", port, process.pid, requests, each, seconds, known) for each in clients]


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


def _callback(outputs: Sequence[tuple[str, str]], inputs: Any, state: Any, changed: str) -> dict[str, Any]:
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
    more = ("categorise-refused", "data", None)
    inputs: list[Any] = [{"id": i, "property": p, "value": value} for i, p, value in (*values, more)]
    state = [{"id": "categorise-upload", "property": "filename", "value": names}]
    outputs = (("categorise-pictures", "data"), ("categorise-upload", "contents"))
    return _callback(outputs, [*inputs, []], state, "categorise-upload.contents")


def results(pictures: Any, models: Any) -> dict[str, Any]:
    """Return the callback that asks for predictions of uploaded pictures."""
    inputs = [
        {"id": "categorise-pictures", "property": "data", "value": pictures},
        {"id": "categorise-models", "property": "value", "value": models},
    ]
    return _callback((("categorise-results", "data"),), inputs, [], "categorise-pictures.data")


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
    return Request(_UPDATE, chance.choice(raw), chance.choice(kinds), _status_check(0))


def _json_request(content: Any, status: int = 0) -> Request:
    return Request(_UPDATE, json.dumps(content).encode(), "application/json", _status_check(status))


def _status_check(wanted: int) -> Callable[[int, bytes], str]:
    def check(status: int, body: bytes) -> str:
        right = status == wanted if wanted else status < 500
        return "" if right else f"status {status}: {body[:150]!r}"

    return check


def categorise(port: int, contents: Sequence[Any], run_id: str) -> Any:
    """Upload pictures and ask for their categories as the browser does; return the results."""
    status, body = ask(port, "POST", _UPDATE, json.dumps(upload(contents, ["x.png"] * len(contents))).encode())
    assert status == 200, (status, body[:200])
    pictures = json.loads(body)["response"]["categorise-pictures"]["data"]
    status, body = ask(port, "POST", _UPDATE, json.dumps(results(pictures, [run_id])).encode())
    assert status == 200, (status, body[:200])
    return json.loads(body)["response"]["categorise-results"]["data"]


def attack_dashboard(model: Path, work: Path, seed: int, seconds: float, clients: Sequence[int]) -> list[Outcome]:
    """Attack the categorise page: uploads alone from each number of clients, then uploads with predictions."""
    run_id, port = make_store(model, work), free_port()
    (expected,) = _expected(model, [picture()])
    url = "data:image/png;base64," + base64.b64encode(picture()).decode()

    def is_right() -> str:
        try:
            (result,) = categorise(port, [url], run_id)
            prediction = result["predictions"][run_id]
            right = all(abs(expected[f"p_{name}"] - value) < 1e-4 for name, value in prediction["top"])
        except (AssertionError, KeyError, ValueError) as error:
            return f"{type(error).__name__}: {error}"
        return "" if right else f"another answer: {prediction['top']}"

    known = Request(_UPDATE, json.dumps(upload([url], ["x.png"])).encode(), "", lambda status, body: is_right())
    known.kind = "application/json"
    requests, outcomes = dashboard_requests(seed, POOL), []
    with server([sys.executable, "-m", "dashboard", "--port", str(port)], port, work, "/") as process:
        for number in clients:
            outcomes.append(attack_server("dashboard", port, process.pid, requests, number, seconds, known))
        outcomes.append(_attack_predictions(port, process.pid, run_id, seed, seconds, is_right))
    return outcomes


def _attack_predictions(
    port: int, pid: int, run_id: str, seed: int, seconds: float, is_right: Callable[[], str]
) -> Outcome:
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
    if fault := is_right():
        outcome.fail(f"the known picture: {fault}")
    outcome.memory_mib = memory.stop()
    return outcome


def table(outcomes: Sequence[Outcome]) -> str:
    """Return a line for each door."""
    lines = [
        f"{'door':22} {'tried':>7} {'failed':>6} {'a second':>9} {'p95 ms':>8}  {'MiB: start, peak, end':32} answers"
    ]
    for each in outcomes:
        memory = ", ".join(f"{size:,}" for size in each.memory_mib)
        said = ", ".join(f"{name} {count:,}" for name, count in each.answers.items())
        lines.append(
            f"{each.door:22} {each.tried:7,} {each.failed:6,} {each.rate:9.1f} {each.p95_ms:8.1f}  {memory:32} {said}"
        )
        lines += [f"    {fault}" for fault in each.faults]
    return "\n".join(lines)


def _silence() -> None:
    """Keep libtiff and Pillow from telling about each file."""
    import warnings

    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def run(
    doors: Sequence[str], images: int, seed: int, seconds: float, clients: Sequence[int], work: Path
) -> list[Outcome]:
    """Attack the doors; each server for `seconds` with each number of clients."""
    outcomes: list[Outcome] = []
    model = make_model(work / "model") if set(doors) - {"decode", "prepare"} else work
    share = max(50, images // 10)
    steps: dict[str, Callable[[], list[Outcome]]] = {
        "decode": lambda: [isolated(attack_decoder, "decode", images, seed, 10 * seconds)],
        "predict": lambda: [attack_prediction("predict", model, share, seed + 1, work)],
        "prepare": lambda: [attack_preparation("prepare", share, seed + 2, work)],
        "serve": lambda: attack_serving(model, work, seed + 3, seconds, clients),
        "dashboard": lambda: attack_dashboard(model, work, seed + 4, seconds, clients),
    }
    for door in doors:
        made = steps[door]()
        print(table(made), flush=True)
        outcomes += made
    return outcomes


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.hostile", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000, help="for the decoder; a tenth for predict and prepare")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=60, help="of each attack on a server")
    parser.add_argument("--clients", default="1,16")
    parser.add_argument("--doors", default=",".join(DOORS))
    parser.add_argument("--output", default="", help="JSON file to write")
    options = parser.parse_args(arguments)
    clients = [int(number) for number in options.clients.split(",")]
    with tempfile.TemporaryDirectory(prefix="hostile-") as work:
        outcomes = run(options.doors.split(","), options.images, options.seed, options.seconds, clients, Path(work))
    print(table(outcomes))
    if options.output:
        Path(options.output).write_text(json.dumps([asdict(each) for each in outcomes], indent=1))
    return int(any(each.failed for each in outcomes))


if __name__ == "__main__":
    sys.exit(main())
