"""Disturb the store and the server below an open page: `python -m tests.campaigns.dashboard_chaos`.

A page in Chromium watches the leaderboard and a run while the store is removed, replaced, locked, stopped (slow) or
killed, and while the dashboard itself is stopped or killed. Measured: the seconds until the page says so, and those
until it is right again afterwards, without a reload by its reader.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.browser.conftest import FLAGS, Site
from tests.stores import ROOT

LONGEST: Final = 15.0  # seconds until a page tells the truth, as promised
UNREACHABLE: Final = "store unreachable"
SILENT: Final = "dashboard not responding"
_FILL: Final = """
import sys
from vlm_core.tracking.writer import RunWriter

for name in sys.argv[1].split(","):
    with RunWriter("chaos", name) as run:
        run.params({"model": "clip", "mode": "probe"})
        run.tags({"fingerprint": "f", "label": "kind", "split": "s", "protocol": "holdout", "leaking": "false"})
        run.metrics({"test_macro_f1": 0.5})
"""


@dataclass(frozen=True)
class Disturbance:
    """What was done, and how long the page took over it; nan where it never did."""

    name: str
    said_after: float
    recovered_after: float

    @property
    def is_good(self) -> bool:
        """Return whether the page kept its promise."""
        return self.said_after <= LONGEST and self.recovered_after <= LONGEST


class Chaos:
    """A folder with a store, a dashboard over it and an open page."""

    def __init__(self, folder: Path, browser: Any, store: str = "") -> None:
        self.folder, self.store = folder, store or f"sqlite:///{folder}/mlflow.db"
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.start()
        self.context = browser.new_context(viewport={"width": 1440, "height": 900})
        self.site = Site(f"http://127.0.0.1:{self.port}", self.context)
        self.page = self.site.open("/")
        self.wait(lambda: self.dot().endswith("run") or self.dot().endswith("runs"), 90)
        self.page.evaluate("window.untouched = true")  # gone after a reload

    def start(self) -> None:
        """Start the dashboard, at the same address each time."""
        command = [sys.executable, "-m", "dashboard", "--port", str(self.port), "--store", self.store]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=subprocess.DEVNULL)
        wait_for(f"http://127.0.0.1:{self.port}/alive")

    def end(self) -> None:
        """End the page and the dashboard."""
        self.context.close()
        self.process.kill()
        self.process.wait(20)

    def dot(self) -> str:
        """Return what the page says beside its dot."""
        return str(self.page.locator("#shell-store").inner_text()).strip()

    def shows(self, name: str) -> bool:
        """Return whether the leaderboard lists a run of that name."""
        return bool(self.page.get_by_role("link", name=name, exact=True).count())

    def wait(self, is_so: Callable[[], bool], seconds: float) -> float:
        """Return the seconds until it is so; nan if that takes longer than `seconds`."""
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            if is_so():
                return round(time.monotonic() - began, 1)
            self.page.wait_for_timeout(200)
        return float("nan")

    def disturb(self, name: str, begin: Callable[[], None], words: str, end: Callable[[], None]) -> Disturbance:
        """Return how long the page took to say the words, and to be ready again."""
        begin()
        said = self.wait(lambda: words in self.dot(), 4 * LONGEST)
        end()
        recovered = self.wait(lambda: self.dot().endswith(("run", "runs")), 4 * LONGEST)
        return Disturbance(name, said, recovered)


def wait_for(address: str, seconds: float = 120) -> None:
    """Wait until something answers at the address."""
    began = time.monotonic()
    while True:
        try:
            urllib.request.urlopen(address, timeout=5).close()
        except OSError:
            if time.monotonic() - began > seconds:
                raise
            time.sleep(0.25)
        else:
            return


def fill(folder: Path, *names: str, store: str = "") -> None:
    """Write tested runs of those names into the folder's store, or another one."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": store or "sqlite:///mlflow.db"}
    subprocess.run([sys.executable, "-c", _FILL, ",".join(names)], cwd=folder, env=environment, check=True)


def remove(chaos: Chaos) -> Disturbance:
    """Move the store away, and back."""
    place, aside = chaos.folder / "mlflow.db", chaos.folder / "aside.db"
    return chaos.disturb(
        "store removed", lambda: place.rename(aside), UNREACHABLE, lambda: aside.rename(place) and None
    )


def replace(chaos: Chaos, other: Path) -> Disturbance:
    """Put another store in its place, whose only run is called `other`, and the first one back."""
    place, first = chaos.folder / "mlflow.db", chaos.folder / "first.db"
    shutil.copy(place, first)
    shutil.copy(other, chaos.folder / "new.db")
    os.replace(chaos.folder / "new.db", place)
    said = chaos.wait(lambda: chaos.shows("other") and not chaos.shows("first"), 4 * LONGEST)
    os.replace(first, place)
    recovered = chaos.wait(lambda: chaos.shows("first") and not chaos.shows("other"), 4 * LONGEST)
    return Disturbance("store replaced", said, recovered)


def lock(chaos: Chaos) -> Disturbance:
    """Hold the database, so that nobody can read it."""
    holder = sqlite3.connect(chaos.folder / "mlflow.db", check_same_thread=False)
    return chaos.disturb("store locked", lambda: holder.execute("BEGIN EXCLUSIVE") and None, UNREACHABLE, holder.close)


def kill_server(chaos: Chaos) -> Disturbance:
    """Kill the dashboard, and start it again at the same address."""

    def kill() -> None:
        chaos.process.kill()
        chaos.process.wait(20)

    return chaos.disturb("dashboard killed", kill, SILENT, chaos.start)


def stop_server(chaos: Chaos) -> Disturbance:
    """Stop the dashboard's process, as one that hangs."""

    def send(number: int) -> Callable[[], None]:
        return lambda: chaos.process.send_signal(number)

    return chaos.disturb("dashboard stopped", send(signal.SIGSTOP), SILENT, send(signal.SIGCONT))


@contextmanager
def mlflow_server(folder: Path) -> Iterator[tuple[Callable[[], subprocess.Popen[bytes]], str]]:
    """Give what starts an MLflow server over the folder's store, at one address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--port", str(port), "--workers", "1", "--serve-artifacts", "--artifacts-destination", f"{folder}/kept"]
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
        started.append(subprocess.Popen(command, cwd=folder, **quiet))  # type: ignore[call-overload]
        wait_for(f"http://127.0.0.1:{port}/health")
        return started[-1]

    try:
        yield start, f"http://127.0.0.1:{port}"
    finally:
        for process in started:
            _signal_group(process, signal.SIGKILL)


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    if process.poll() is None:
        os.killpg(process.pid, number)


def disturb_http(folder: Path, browser: Any) -> list[Disturbance]:
    """Stop (slow) and kill (away) the server of an HTTP store."""
    with mlflow_server(folder) as (start, address):
        server = start()
        fill(folder, "first", store=address)
        chaos = Chaos(folder, browser, address)
        try:
            slow = chaos.disturb(
                "HTTP store slow",
                lambda: _signal_group(server, signal.SIGSTOP),
                UNREACHABLE,
                lambda: _signal_group(server, signal.SIGCONT),
            )

            def kill() -> None:
                _signal_group(server, signal.SIGKILL)
                server.wait(20)

            away = chaos.disturb("HTTP store away", kill, UNREACHABLE, lambda: start() and None)
        finally:
            chaos.end()
    return [slow, away]


def disturb_file(folder: Path, browser: Any) -> list[Disturbance]:
    """Disturb a store that is a file, and the dashboard over it."""
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    fill(folder, "first")
    fill(elsewhere, "other")
    chaos = Chaos(folder, browser)
    try:
        made = [
            remove(chaos),
            replace(chaos, elsewhere / "mlflow.db"),
            lock(chaos),
            stop_server(chaos),
            kill_server(chaos),
        ]
        assert chaos.page.evaluate("window.untouched === true"), "the page was loaded again"
        return made
    finally:
        chaos.end()


def main(arguments: Sequence[str] | None = None) -> None:
    argparse.ArgumentParser(description=__doc__).parse_args(arguments)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as temporary:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(FLAGS))
        folders = [Path(temporary, name) for name in ("file", "http")]
        for folder in folders:
            folder.mkdir()
        made = [*disturb_file(folders[0], browser), *disturb_http(folders[1], browser)]
        browser.close()
    for each in made:
        verdict = "" if each.is_good else "  TOO LATE"
        print(f"{each.name:20} said after {each.said_after:5.1f} s, right after {each.recovered_after:5.1f} s{verdict}")
    if not all(each.is_good for each in made):
        sys.exit(1)


if __name__ == "__main__":
    main()
