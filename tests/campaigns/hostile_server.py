"""A server under attack: what came, what it answered, how long it took, and its memory."""

from __future__ import annotations

import http.client
import math
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

MIB: Final = 1 << 20
POOL: Final = 400  # requests that clients take turns with
SECONDS_TO_ANSWER: Final = 120


@dataclass
class Outcome:
    """What one target did with what came."""

    target: str
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


def make_model(folder: Path) -> Path:
    """Save a small categoriser, as training leaves it."""
    from tests.tracking.models import save_categoriser

    folder.mkdir(parents=True)
    return save_categoriser("clip", folder)


def expected_rows(model: Path, pictures: Sequence[bytes]) -> list[dict[str, Any]]:
    """Return the answers of a model in this process."""
    from vlm_core.inference import predict_records
    from vlm_core.models.saved import load_categoriser

    categoriser = load_categoriser(model)
    return [predict_records(categoriser, [lambda data=data: data])[0] for data in pictures]


def alike(row: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Return whether category and probabilities agree; batches of other sizes may round in another way."""
    names = [name for name in expected if name.startswith("p_")]
    return row["category"] == expected["category"] and all(abs(row[name] - expected[name]) < 1e-4 for name in names)


@contextmanager
def server(
    command: Sequence[str], port: int, folder: Path, path: str, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server in a process group of its own until the block ends; it answers at `path` when the block begins."""
    path_of_programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    surroundings = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), "PATH": path_of_programs}
    surroundings |= environment
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
            if ask(port, "GET", path)[0] < 500:
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


def ask(
    port: int, method: str, path: str, body: bytes = b"", kind: str = "application/json", cookie: str = ""
) -> tuple[int, bytes]:
    """Return status and body of the answer to one request. Raises OSError or http.client.HTTPException."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS_TO_ANSWER)
    try:
        headers = {"Content-Type": kind, "Cookie": cookie}
        connection.request(method, path, body, {name: text for name, text in headers.items() if text})
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
    target: str, port: int, pid: int, requests: Sequence[Request], clients: int, seconds: float, known: Request
) -> Outcome:
    """Send requests from several clients at once for some time; then the known one must be answered rightly."""
    outcome, answers, durations, lock = (
        Outcome(f"{target}, {clients} clients"),
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
