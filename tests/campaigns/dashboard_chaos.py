"""Disturb the store and the server below an open page: `python -m tests.campaigns.dashboard_chaos`.

A page in Chromium watches the leaderboard while the store is removed (also while it is first read), replaced by
another file, overwritten in place, emptied, locked, stopped (slow) or killed, and while the dashboard itself is
stopped or killed. Measured: the seconds until the page says so, and those until it is right again afterwards, without
a reload and with the runs that its reader had selected. `--rounds 3` does all of it three times.
"""

from __future__ import annotations

import argparse
import math
import os
import re
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
from vlm_core.tracking.store import connect
from vlm_core.tracking.writer import RunWriter

LONGEST: Final = 15.0  # seconds until a page tells the truth, as promised
UNREACHABLE: Final = "store unreachable"
SILENT: Final = "dashboard not responding"
READY: Final = re.compile(r"[1-9][\d,]* runs? in the store")


@dataclass(frozen=True)
class Disturbance:
    """What was done, how long the page took over it (nan where it never did), and whether it kept what it held."""

    name: str
    said_after: float
    recovered_after: float
    kept: bool = True

    @property
    def is_good(self) -> bool:
        """Return whether the page kept its promise."""
        return self.said_after <= LONGEST and self.recovered_after <= LONGEST and self.kept


class Chaos:
    """A folder with a store, a dashboard over it and an open page."""

    def __init__(self, folder: Path, browser: Any, store: str = "") -> None:
        self.folder, self.store = folder, store or f"sqlite:///{folder}/mlflow.db"
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.start()
        self.context = browser.new_context(viewport={"width": 1440, "height": 900})
        self.context.set_default_timeout(90_000)  # for a busy machine
        self.site = Site(f"http://127.0.0.1:{self.port}", self.context)
        self.page = self.site.open("/")
        if math.isnan(self.wait(self.is_ready, 90)):
            raise RuntimeError(f"the page says {self.dot()!r} and shows no runs")
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

    def is_ready(self) -> bool:
        """Return whether the page says how many runs there are, and there are some."""
        return bool(READY.fullmatch(self.dot()))

    def select(self) -> None:
        """Select the first two runs."""
        boxes = self.page.locator(".ag-row:not(.ag-full-width-row) input[type=checkbox]")
        for place in (0, 1):
            boxes.nth(place).check()

    def is_whole(self) -> bool:
        """Return whether the page was not loaded again and still has its selection."""
        selected = self.page.get_by_role("link", name="Compare 2 runs")
        return bool(self.page.evaluate("window.untouched === true") and selected.count())

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
        recovered = self.wait(self.is_ready, 4 * LONGEST)
        return Disturbance(name, said, recovered, self.is_whole())


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


def write_runs(*names: str) -> None:
    """Write tested runs of those names into this process's store."""
    for name in names:
        with RunWriter("chaos", name) as run:
            run.params({"model": "clip", "mode": "probe"})
            run.tags({"fingerprint": "f", "label": "kind", "split": "s", "protocol": "holdout", "leaking": "false"})
            run.metrics({"test_macro_f1": 0.5})


def fill(folder: Path, *names: str, store: str = "") -> None:
    """Write tested runs of those names into the folder's store, or another one."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": store or "sqlite:///mlflow.db"}
    program = f"from tests.campaigns.dashboard_chaos import write_runs; write_runs(*{names})"
    subprocess.run([sys.executable, "-c", program], cwd=folder, env=environment, check=True)


def remove(chaos: Chaos) -> Disturbance:
    """Move the store away, and back."""
    place, aside = chaos.folder / "mlflow.db", chaos.folder / "aside.db"
    return chaos.disturb(
        "store removed", lambda: place.rename(aside), UNREACHABLE, lambda: aside.rename(place) and None
    )


def change(chaos: Chaos, name: str, other: Path, put: Callable[[Path, Path], object]) -> Disturbance:
    """Put another store, which holds no run called first, in the place of the first one, and that one back."""
    place, first, new = (chaos.folder / file for file in ("mlflow.db", "first.db", "new.db"))
    shutil.copy(place, first)
    shutil.copy(other, new)
    before = chaos.dot()
    put(new, place)
    said = chaos.wait(lambda: chaos.dot() != before and not chaos.shows("first"), 4 * LONGEST)
    put(first, place)
    recovered = chaos.wait(lambda: chaos.dot() == before and chaos.shows("first"), 4 * LONGEST)
    return Disturbance(name, said, recovered, bool(chaos.page.evaluate("window.untouched === true")))


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


def remove_early(chaos: Chaos) -> Disturbance:
    """Start the dashboard again, move the store away while it is first read, and back."""
    place, aside = chaos.folder / "mlflow.db", chaos.folder / "aside.db"
    chaos.process.kill()
    chaos.process.wait(20)

    def begin() -> None:
        chaos.start()
        place.rename(aside)

    return chaos.disturb("store removed early", begin, UNREACHABLE, lambda: aside.rename(place) and None)


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
        fill(folder, "first", "second", store=address)
        chaos = Chaos(folder, browser, address)
        chaos.select()
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
    places = {name: folder / name for name in ("elsewhere", "empty")}
    for place in places.values():
        place.mkdir()
    fill(folder, "first", "second", "third")
    fill(places["elsewhere"], "other")
    connect(f"sqlite:///{places['empty']}/mlflow.db", to_write=True)
    other, empty = (place / "mlflow.db" for place in places.values())
    chaos = Chaos(folder, browser)
    try:
        changed = [
            change(chaos, "store replaced", other, os.replace),
            change(chaos, "store overwritten", other, shutil.copyfile),
            change(chaos, "store emptied", empty, os.replace),
        ]
        chaos.select()
        return [remove(chaos), *changed, lock(chaos), stop_server(chaos), kill_server(chaos), remove_early(chaos)]
    finally:
        chaos.end()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args(arguments)
    from playwright.sync_api import sync_playwright

    made: list[Disturbance] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(FLAGS))
        for _ in range(options.rounds):
            for disturb in (disturb_file, disturb_http):
                with tempfile.TemporaryDirectory() as folder:
                    found = disturb(Path(folder), browser)
                made += found
                print("\n".join(map(_line, found)), flush=True)
        browser.close()
    if not all(each.is_good for each in made):
        sys.exit(1)


def _line(each: Disturbance) -> str:
    verdict = "" if each.is_good else "  TOO LATE" if each.kept else "  LOST WHAT IT HELD"
    return f"{each.name:20} said after {each.said_after:5.1f} s, right after {each.recovered_after:5.1f} s{verdict}"


if __name__ == "__main__":
    main()
