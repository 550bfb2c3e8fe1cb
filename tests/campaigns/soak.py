"""Dashboard, served model and a search beside each other for hours: `python -m tests.campaigns.soak --seconds 7200`.

One client asks each server once a second and checks its answer: the served model for the category of a known picture,
the dashboard for that as well and, in turn, for the number of runs in the store that the search fills. The search
rests after each trial, so that it computes for a small share of the time. Memory, threads and open files of each
process, with its children, are taken at the start, every two minutes and at the end, and written at once.
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

from tests.campaigns import findings
from tests.campaigns.hostile import known_serving
from tests.campaigns.hostile_dashboard import known_upload, make_store, shown_runs
from tests.campaigns.hostile_server import MIB, ask, free_port, make_model, server
from vlm_core.files.atomic import write_atomically

SECONDS_BETWEEN_REQUESTS: Final = 1.0
SECONDS_TO_END: Final = 12.0
MORE_MEMORY: Final = 1.1  # times that of the second quarter: more than that in the last one is a failure
MORE_HANDLES: Final = 4  # threads or open files, likewise
# A trial, then a rest: the search's processor time is the first word's share of the time that passes.
_SEARCH: Final = """
import sys, time
import optuna
from experiments.cli import run_command
from experiments.tune import main

share, tell, began = float(sys.argv.pop(1)), optuna.Study.tell, [time.monotonic(), time.process_time()]

def tell_and_rest(*arguments, **named):
    told = tell(*arguments, **named)
    worked, passed = time.process_time() - began[1], time.monotonic() - began[0]
    time.sleep(max(0.0, worked / share - passed))
    began[:] = time.monotonic(), time.process_time()
    return told

optuna.Study.tell = tell_and_rest
sys.exit(run_command(main))
"""
_SETTINGS: Final = (
    *("--preset", "demo", "--data", "shop", "--threads", "1", "--per_category", "24", "--train_per_category", "12"),
    *("--resamples", "100", "--model", "clip", "--mode", "probe", "--epochs", "2", "--views", "1"),
    *("--search", "learning_rate", "--trials", "100000"),
)


@dataclass(frozen=True)
class Sample:
    """A process, with its children, at one moment."""

    seconds: float  # since the start
    mib: int  # resident
    threads: int
    handles: int  # open files, sockets and pipes
    processes: int
    cpu_seconds: float  # of all of its life

    @classmethod
    def of(cls, pid: int, seconds: float) -> Sample:
        """Take the figures of a process, of this one without its children; those of one that is gone are 0."""
        found: list[tuple[int, int, int, float]] = []
        with suppress(psutil.Error):
            leader = psutil.Process(pid)
            children = leader.children(recursive=True) if pid != os.getpid() else []
            for each in (leader, *children):
                with suppress(psutil.Error), each.oneshot():
                    times = each.cpu_times()
                    found.append((each.memory_info().rss, each.num_threads(), each.num_fds(), sum(times[:2])))
        sums = [sum(values) for values in zip(*found, strict=True)] or [0, 0, 0, 0.0]
        memory, threads, handles, worked = sums
        return cls(round(seconds, 1), int(memory) // MIB, int(threads), int(handles), len(found), round(worked, 1))


@dataclass
class Client:
    """What asks one server, and what came of it."""

    name: str
    ask: Callable[[], str]  # returns what is wrong with the answer, "" if nothing is
    asked: int = 0
    failed: int = 0
    p95_ms: float = 0.0
    faults: list[str] = field(default_factory=list)  # the first ones
    _durations: list[float] = field(default_factory=list)

    def work(self, ended: threading.Event) -> None:
        """Ask once a second until the event is set."""
        while not ended.wait(SECONDS_BETWEEN_REQUESTS):
            began = time.perf_counter()
            try:
                fault = self.ask()
            except (OSError, http.client.HTTPException, ValueError, LookupError) as error:
                fault = f"{type(error).__name__}: {error}"
            self.asked += 1
            self._durations.append(time.perf_counter() - began)
            if fault:
                self.failed += 1
                self.faults = [*self.faults, f"request {self.asked}: {fault[:300]}"][:10]

    def figures(self) -> dict[str, Any]:
        """Return the counts and the 95th percentile of the times to answer."""
        ordered = sorted(self._durations)
        p95 = round(1000 * ordered[math.ceil(0.95 * len(ordered)) - 1], 1) if ordered else 0.0
        return {"asked": self.asked, "failed": self.failed, "p95_ms": p95, "faults": self.faults}


def grown(samples: Sequence[Sample]) -> list[str]:
    """Return what grew from the second quarter of the samples to the last one; both are taken by their medians."""
    quarter = len(samples) // 4
    if not quarter:
        return []
    early, late = samples[quarter : 2 * quarter], samples[-quarter:]
    faults = []
    for name, most in (("mib", None), ("threads", MORE_HANDLES), ("handles", MORE_HANDLES)):
        before, after = (statistics.median(getattr(each, name) for each in group) for group in (early, late))
        if after > (before * MORE_MEMORY if most is None else before + most):
            faults.append(f"{name} grew from {before:g} to {after:g}")
    return faults


class Soak:
    """The three processes over one folder, their clients and their samples."""

    def __init__(self, folder: Path, output: Path, share: float) -> None:
        self.folder, self.output, self.share = folder, output, share
        self.samples: dict[str, list[Sample]] = {}
        self.clients: list[Client] = []
        self.faults: list[str] = []
        self._most_runs = 0

    def run(self, seconds: float, between: float) -> None:
        """Run everything for so long, with a sample every `between` seconds."""
        model = make_model(self.folder / "model")
        run_id = make_store(model, self.folder)
        with ExitStack() as stack:
            pids = {
                "dashboard": stack.enter_context(self._dashboard(model, run_id)),
                "served model": stack.enter_context(self._served(model)),
                "search": stack.enter_context(self._search()),
                "this script": os.getpid(),
            }
            ended = threading.Event()
            stack.callback(ended.set)
            for client in self.clients:
                threading.Thread(target=client.work, args=(ended,), daemon=True).start()
            self._watch(pids, seconds, between)
        self._judge()

    def _watch(self, pids: Mapping[str, int], seconds: float, between: float) -> None:
        started = time.monotonic()
        for number in range(int(seconds // between) + 1):
            time.sleep(max(0.0, started + number * between - time.monotonic()))
            for name, pid in pids.items():
                sample = Sample.of(pid, time.monotonic() - started)
                self.samples.setdefault(name, []).append(sample)
                if not sample.processes:
                    self.faults.append(f"the {name} ended after {sample.seconds:.0f} s at the latest")
                    self.write(is_done=False)
                    return
            self.write(is_done=False)

    def _judge(self) -> None:
        self.faults += [f"{name}: {fault}" for name, each in self.samples.items() for fault in grown(each)]
        self.faults += [f"{each.name}: {each.failed} of {each.asked} failed" for each in self.clients if each.failed]
        left = [run for run in findings.runs(self.folder) if run[2] == "RUNNING"]
        self.faults += [f"run {run[1]} is RUNNING afterwards" for run in left]
        self.write(is_done=True)

    @contextmanager
    def _dashboard(self, model: Path, run_id: str) -> Iterator[int]:
        port = free_port()
        known, turn = known_upload(model, run_id, port), iter(range(1 << 62))

        def check() -> str:
            if next(turn) % 2:
                return known.check(*ask(port, "POST", known.path, known.body, known.kind))
            shown, before = shown_runs(port), self._most_runs
            self._most_runs = max(before, shown or 0)
            return "" if shown is not None and shown >= before else f"shows {shown} runs after {before}"

        self.clients.append(Client("dashboard", check))
        with server([sys.executable, "-m", "dashboard", "--port", str(port)], port, self.folder, "/") as process:
            yield process.pid

    @contextmanager
    def _served(self, model: Path) -> Iterator[int]:
        from vlm_core.tracking.logging_model import save_model

        save_model(model, self.folder / "served")
        port, known = free_port(), known_serving(model)
        flags = ["-m", "served", "--env-manager", "local", "--port", str(port), "--host", "127.0.0.1"]
        self.clients.append(
            Client("served model", lambda: known.check(*ask(port, "POST", known.path, known.body, known.kind)))
        )
        command = [sys.executable, "-m", "mlflow", "models", "serve", *flags]
        with server(command, port, self.folder, "/ping") as process:
            yield process.pid

    @contextmanager
    def _search(self) -> Iterator[int]:
        surroundings = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        with (self.folder / "search.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", _SEARCH, str(self.share), *_SETTINGS],
                cwd=self.folder,
                env=surroundings,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            yield process.pid
        finally:
            self._end(process)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """Ask the search to end, as a user does."""
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS_TO_END)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        printed = (self.folder / "search.log").read_text(errors="replace")
        if process.wait() != 130 or "Traceback" in printed:
            self.faults.append(f"the search ended with code {process.returncode}: {printed[-600:]}")

    def write(self, is_done: bool) -> None:
        """Write all figures so far."""
        statuses = [run[2] for run in findings.runs(self.folder) if run[3]]
        content = {
            "done": is_done,
            "faults": self.faults,
            "trials": {status: statuses.count(status) for status in sorted(set(statuses))},
            "clients": {each.name: each.figures() for each in self.clients},
            "samples": {name: [asdict(each) for each in samples] for name, samples in self.samples.items()},
        }
        write_atomically(self.output, lambda file: file.write(json.dumps(content, indent=1).encode()))


def table(content: Mapping[str, Any]) -> str:
    """Return start, middle and end of each process in Markdown, then the clients and what failed."""
    lines = ["| process | after, min | memory, MiB | threads | open files | CPU, s |", "|---|---:|---:|---:|---:|---:|"]
    for name, samples in content["samples"].items():
        for each in (samples[0], samples[len(samples) // 2], samples[-1]):
            figures = f"{each['mib']:,} | {each['threads']} | {each['handles']} | {each['cpu_seconds']:,.0f}"
            lines.append(f"| {name} | {each['seconds'] / 60:.0f} | {figures} |")
    for name, client in content["clients"].items():
        lines.append(f"\n{name}: {client['asked']:,} asked, {client['failed']} failed, p95 {client['p95_ms']} ms")
        lines += [f"    {fault}" for fault in client["faults"]]
    return "\n".join([*lines, "", f"Trials: {content['trials']}", *content["faults"]])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=7200)
    parser.add_argument("--between", type=float, default=120, help="seconds between samples")
    parser.add_argument("--share", type=float, default=0.1, help="of a core that the search computes on")
    parser.add_argument("--output", type=Path, default=Path("soak.json"), help="file that is written at each sample")
    options = parser.parse_args(arguments)
    from vlm_core.catalogue.sample import draw_sample

    os.environ.pop("MLFLOW_TRACKING_URI", None)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that its processes end with it
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        draw_sample(folder / "shop", products=160)
        soak = Soak(folder, options.output.resolve(), options.share)
        soak.run(options.seconds, options.between)
    print(table(json.loads(options.output.read_text())))
    return int(bool(soak.faults))


if __name__ == "__main__":
    sys.exit(main())
