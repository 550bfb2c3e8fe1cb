"""A training that workers of a Ray cluster share, beside one process: `python -m tests.campaigns.data_parallel`.

- `steps`: the losses of the first ten steps, and the seconds of a step, of one process and of two workers;
- `worker`: a worker is killed after an epoch: its training goes on by itself;
- `leader`: the command that leads is killed after an epoch, and its run resumed;
- `stop`: the command is sent SIGTERM after an epoch, and its run resumed.

It fails unless two workers have the losses of one process within 1e-5, every training that was killed ends with the
weights of the unkilled one of two workers to the last bit and each epoch logged once, a stopped command ends within
ten seconds, and no run is left RUNNING. It takes the extra `ray`, and what one training takes five times.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psutil
import torch
from safetensors.torch import load_file

from tests.stores import ROOT
from vlm_core.config import Config
from vlm_core.training import loop
from vlm_core.training.checkpoint import POSITION, state_of
from vlm_core.training.loop import StepReport
from vlm_core.workflows import data_parallel

STEPS: Final = 10  # whose losses are compared
TOLERANCE: Final = 1e-5
SECONDS: Final = 900  # that a command may take
SECONDS_TO_STOP: Final = 10
SECONDS_OF_HELPERS: Final = 60  # in which Ray's own processes end after their leader was killed
SMALL: Final = {
    "preset": "demo", "model": "clip", "mode": "full", "per_category": 60, "train_per_category": 47, "epochs": 3,
    "resamples": 100, "threads": 1,
}  # fmt: skip
WORKER: Final = "RayTrainWorker"  # in the name of a process that trains


@contextmanager
def recorded(path: Path) -> Iterator[None]:
    """Write loss and seconds of each step inside the block to a file."""
    steps: list[tuple[float, float]] = []
    show = loop.show_steps

    def noted(reports: Any, *rest: Any) -> Any:
        began = time.perf_counter()
        for report in show(reports, *rest):
            if isinstance(report, StepReport):
                steps.append((report.loss, time.perf_counter() - began))
            yield report
            began = time.perf_counter()

    loop.show_steps = noted
    try:
        yield
    finally:
        loop.show_steps = show
        path.write_text(json.dumps(steps))


class Campaign:
    """The parts, one after the other, in one folder with one store."""

    def __init__(self, folder: Path, data: str, given: dict[str, Any]) -> None:
        self.folder = folder
        self.settings = {**SMALL, "data": data, **given}
        self.facts: dict[str, Any] = {}
        self.faults: list[str] = []
        self.expected: dict[str, torch.Tensor] = {}

    def run(self, parts: Sequence[str]) -> None:
        """Run the parts; each is compared with `steps`, which comes first."""
        for part in ("steps", *(each for each in parts if each != "steps")):
            self.facts[f"{part}: load before"] = round(os.getloadavg()[0], 1)
            getattr(self, part)()
            print(json.dumps(self.facts, indent=1), flush=True)
        from vlm_core.tracking.reader import RunReader

        if left := RunReader().runs()["status"].eq("RUNNING").sum():
            self.faults.append(f"{left} runs are left RUNNING")

    def steps(self) -> None:
        """Compare the steps of one process with one and with two threads, and of two workers with one each."""
        one = self._train("one process, 1 thread", threads=1)
        threads = self._train("one process, 2 threads", threads=2)
        two = self._train("two workers", engine="ray", workers=2)
        for name, steps in (("2 threads", threads), ("two workers", two)):
            apart = max(abs(ours[0] - theirs[0]) for ours, theirs in zip(steps[:STEPS], one[:STEPS], strict=True))
            self.facts[f"largest difference of the first {STEPS} losses, {name}"] = apart
            if name == "two workers" and not apart <= TOLERANCE:
                self.faults.append(f"steps: the losses of two workers are up to {apart} from one process's")
        seconds = [statistics.median(step[1] for step in steps[1:]) for steps in (one, threads, two)]
        self.facts["median ms of a step: 1 thread, 2 threads, two workers"] = [
            round(1000 * each, 1) for each in seconds
        ]
        self.facts["step time, two workers / one process with 2 threads"] = round(seconds[2] / seconds[1], 2)
        self.facts["step time, two workers / one process with 1 thread"] = round(seconds[2] / seconds[0], 2)

    def worker(self) -> None:
        """Kill a worker after an epoch."""
        command = self._start()
        self._wait_for_epoch(command)
        workers = [each for each in psutil.Process(command.pid).children(recursive=True) if WORKER in _name(each)]
        victim = max(workers, key=lambda each: each.create_time())
        victim.kill()
        self.facts["worker: killed"] = f"one of {len(workers)}"
        self._expect(self._end(command) == 0, "worker: the command failed")
        self._expect("All workers begin again at the last checkpoint" in self._said(), "worker: none began again")
        self._compare("worker", self._runs()[0])

    def leader(self) -> None:
        """Kill the command that leads after an epoch, and resume its run."""
        command = self._start()
        self._wait_for_epoch(command)
        below = psutil.Process(command.pid).children(recursive=True)
        workers = [each for each in below if WORKER in _name(each)]
        command.kill()
        command.wait()
        for processes, seconds in ((workers, SECONDS_TO_STOP), (below, SECONDS_OF_HELPERS)):
            end = time.monotonic() + seconds
            while (alive := [*filter(None, map(_name, processes))]) and time.monotonic() < end:
                time.sleep(0.2)
            self._expect(not alive, f"leader: alive after {seconds} s: {alive}")
        self._resume("leader")

    def stop(self) -> None:
        """Stop the command after an epoch, and resume its run."""
        command = self._start()
        self._wait_for_epoch(command)
        began = time.monotonic()
        command.send_signal(signal.SIGTERM)
        code = command.wait(SECONDS)
        self.facts["stop: seconds"] = round(time.monotonic() - began, 1)
        self._expect(time.monotonic() - began < SECONDS_TO_STOP, f"stop: {self.facts['stop: seconds']} s")
        self._expect(code == 130, f"stop: exit code {code}")
        from vlm_core.tracking.reader import RunReader

        status = RunReader().runs().set_index("run_id")["status"][self._runs()[0]]
        self._expect(status == "KILLED", f"stop: the run is {status}")
        self._resume("stop")

    def _resume(self, part: str) -> None:
        run_id = self._runs()[0]
        self._expect(self._end(self._start("--resume", run_id)) == 0, f"{part}: resuming failed")
        self._compare(part, run_id)

    def _train(self, name: str, **settings: Any) -> list[tuple[float, float]]:
        """Train here or with workers; return loss and seconds of each step."""
        from vlm_core.workflows.train import run_training

        path = self.folder / f"{name}.json"
        config = Config.build({**self.settings, **settings, "run_name": name})
        if config.engine == "ray":
            os.environ["RECORD_STEPS"] = str(path)
            data_parallel.train_part = recorded_part
            outcome = run_training(config, self.folder, register_model=False)
            self.expected = self._weights(outcome.run_id)
        else:
            with recorded(path):
                run_training(config, self.folder, register_model=False)
        steps: list[tuple[float, float]] = json.loads(path.read_text())
        return steps

    def _start(self, *flags: str) -> subprocess.Popen[bytes]:
        settings = {**self.settings, "engine": "ray", "workers": 2} if not flags else {}
        given = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        command = [sys.executable, "-m", "experiments.train", *given, *flags]
        return subprocess.Popen(command, cwd=self.folder, stdout=self._log(), stderr=subprocess.STDOUT)

    def _log(self) -> Any:
        return (self.folder / "said.txt").open("wb")

    def _said(self) -> str:
        return (self.folder / "said.txt").read_text()

    def _end(self, command: subprocess.Popen[bytes]) -> int:
        code = command.wait(SECONDS)
        self._expect("Traceback" not in self._said(), "a command showed a traceback")
        if code or "Traceback" in self._said():
            print(self._said()[-4000:], flush=True)
        return code

    def _wait_for_epoch(self, command: subprocess.Popen[bytes]) -> None:
        """Wait until the newest run has a checkpoint, and for the middle of an epoch."""
        end = time.monotonic() + SECONDS
        while not any(_epoch(path) for path in self.folder.glob(f"checkpoints/*/{POSITION}")):
            if command.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"ended too soon, or not at all: {self._said()[-3000:]}")
            time.sleep(0.05)
        time.sleep(0.3)

    def _runs(self) -> list[str]:
        """Return the ids of the runs, the newest first."""
        from vlm_core.tracking.reader import RunReader

        return RunReader().runs().sort_values("started", ascending=False)["run_id"].tolist()  # type: ignore[no-any-return]

    def _weights(self, run_id: str) -> dict[str, torch.Tensor]:
        from vlm_core.tracking.registry import resolve

        files = sorted(resolve(run_id).rglob("*.safetensors"))
        return {f"{file.name} {name}": weight for file in files for name, weight in load_file(file).items()}

    def _compare(self, part: str, run_id: str) -> None:
        from vlm_core.tracking.reader import RunReader

        weights = self._weights(run_id)
        other = [name for name, value in self.expected.items() if not torch.equal(weights[name], value)]
        self.facts[f"{part}: weights that are equal"] = f"{len(self.expected) - len(other)} of {len(self.expected)}"
        self._expect(not other, f"{part}: {len(other)} weights differ from those of the unkilled training")
        epochs = len(RunReader().history(run_id, "train_loss"))
        self._expect(epochs == self.settings["epochs"], f"{part}: {epochs} epochs are logged")

    def _expect(self, holds: bool, fault: str) -> None:
        if not holds:
            self.faults.append(fault)


def recorded_part(job: Any, place: Any) -> Any:
    """Train as a worker, and record the steps of the first."""
    path = Path(os.environ["RECORD_STEPS"])
    rank = int(os.environ["RANK"])
    with recorded(path if not rank else path.with_suffix(f".{rank}.json")):
        return _train_part(job, place)


_train_part: Callable[[Any, Any], Any] = data_parallel.train_part


def _name(process: psutil.Process) -> str:
    """Return a process's name; "" for one that has ended, whether anybody has noticed or not."""
    try:
        return " ".join(process.cmdline()[:1])
    except psutil.Error:
        return ""


def _epoch(path: Path) -> int:
    try:
        return state_of(path.read_bytes()).epoch
    except OSError:
        return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.campaigns.data_parallel", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--data", default="sample", help="catalogue")
    parser.add_argument("--folder", default="", help="folder of the runs (empty: one that is removed)")
    parser.add_argument("--parts", default="steps,worker,leader,stop")
    parser.add_argument("--mode", default=SMALL["mode"], help="what is trained")
    parser.add_argument("--output", default="", help="JSON file to write")
    options = parser.parse_args(arguments)
    os.environ["PYTHONPATH"] = str(ROOT)
    data = options.data if options.data == "sample" else str(Path(options.data).resolve())
    with tempfile.TemporaryDirectory(prefix="data-parallel-") as temporary:
        folder = Path(options.folder or temporary).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        os.chdir(folder)
        campaign = Campaign(folder, data, {"mode": options.mode})
        campaign.run(options.parts.split(","))
    told = json.dumps({"facts": campaign.facts, "faults": campaign.faults}, indent=1)
    print(told)
    if options.output:
        Path(options.output).write_text(told)
    return int(bool(campaign.faults))


if __name__ == "__main__":
    sys.exit(main())
