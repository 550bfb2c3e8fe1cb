"""Full disks, read-only disks and a feature cache that is deleted: `python -m tests.campaigns.disks`.

Every place that a command writes to becomes a small disk of its own (a tmpfs): full from the start, full half-way, or
read-only. A command may then end well with the metrics of an undisturbed one, or with exit code 1 and one sentence
that names the place and the way out; nothing half-written may be left. When the disk has room again, the run is resumed
(or the command repeated) and must end with the metrics of the undisturbed one, to the last digit.

The disks are mounted in a namespace that ends with the campaign (`unshare`, as root or with user namespaces): no mount
outlives it, and none is seen by other processes. Linux only.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
NAMESPACE: Final = "CAMPAIGN_NAMESPACE"
KINDS: Final = ("full", "half", "read-only")
SECONDS: Final = 300  # that a command may take
LEAST: Final = 64 << 10  # bytes of room of a disk that fills up in the middle of a command
RESERVE: Final = "reserve"  # the file that takes the room of a full disk
_SMALL: Final = ("--preset", "demo", "--model", "clip", "--weights", "tiny", "--threads", "1")
_SAMPLING: Final = ("--train_per_category", "20", "--per_category", "30", "--resamples", "100")
# Metrics that differ between any two runs
_OF_TIME: Final = re.compile(r"seconds|per_second|^system/|_ms$|memory|cache_hit")
_WAY_OUT: Final = re.compile(r"free|writable|set |make |choose|name |give|lower|remove|move", re.IGNORECASE)
# What a sentence may call the place of a disk, beside its path
_CALLED: Final = {"artifacts": "artifact", "tmp": "temporary folder", "store": "tracking store"}


@dataclass(frozen=True)
class Command:
    """A command, and the folders that it writes to: the place's name, and its path in the working directory."""

    module: str
    arguments: tuple[str, ...]
    places: dict[str, str]
    needs: str  # what exists before: nothing, "data" or "model"
    resumes: bool = False


_STORE: Final = {"store": "store", "artifacts": "mlruns", "tmp": "tmp"}
COMMANDS: Final = {
    "train": Command(
        "experiments.train",
        ("--data", "{shop}", *_SMALL, *_SAMPLING, "--mode", "lp-ft", "--epochs", "2", "--views", "1"),
        {
            **_STORE,
            **{"data": "data", "cache": "cache", "checkpoints": "checkpoints", "logs": "logs", "results": "results"},
        },
        "store",
        resumes=True,
    ),
    "pretrain": Command(
        "experiments.pretrain",
        (
            *("--data", "{shop}", "--model", "clip", "--weights", "tiny-random", "--image_size", "32"),
            *("--threads", "1", "--epochs", "2"),
        ),
        {**_STORE, "data": "data", "checkpoints": "checkpoints", "weights": "pretrained"},
        "store",
        resumes=True,
    ),
    "prepare": Command("experiments.prepare", ("--data", "{shop}"), {"data": "data", "tmp": "tmp"}, "nothing"),
    "predict": Command(
        "experiments.predict",
        ("--model", "{model}", "--pictures", "{shop}", "--output", "out/predictions.csv", "--threads", "1"),
        {"output": "out", "tmp": "tmp", "store": "store"},
        "model",
    ),
}


@dataclass
class Ended:
    """How a command ended."""

    code: int
    printed: str
    errors: str
    seconds: float


@dataclass
class Result:
    """One trial: what was done to which place of which command, and what was wrong with the outcome."""

    command: str
    place: str
    kind: str
    code: int = 0
    sentence: str = ""
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


def run_command(module: str, arguments: Sequence[str], folder: Path, seconds: float = SECONDS) -> Ended:
    """Run a command's entry point in a forked process in `folder`, whose temporary folder is `folder/tmp`."""
    started = time.monotonic()
    out, err = (folder / ".." / f"{folder.name}-{time.monotonic_ns()}.{name}" for name in ("out", "err"))
    process = get_context("fork").Process(target=_child, args=(module, list(arguments), folder, out, err))
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
    assert process.exitcode is not None
    return Ended(process.exitcode, out.read_text(), err.read_text(), time.monotonic() - started)


def _child(module: str, arguments: list[str], folder: Path, out: Path, err: Path) -> None:
    for stream, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), stream)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    os.chdir(folder)
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/store/mlflow.db"
    os.environ["TMPDIR"] = str(folder / "tmp")
    tempfile.tempdir = None
    code = 1
    try:
        from experiments.cli import run_command as run

        code = run(lambda: import_module(module).main(arguments))
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def metrics_of(folder: Path, run_id: str = "") -> dict[str, Any]:
    """Return the metrics and status of a run (the newest) that do not depend on time, by name and step."""
    with closing(sqlite3.connect(folder / "store" / "mlflow.db")) as database:
        newest = "SELECT run_uuid FROM runs ORDER BY start_time DESC LIMIT 1"
        run_id = run_id or database.execute(newest).fetchone()[0]
        rows = database.execute("SELECT key, step, value FROM metrics WHERE run_uuid = ? ORDER BY 1, 2", (run_id,))
        read = [(f"{key}@{step}", value) for key, step, value in rows if not _OF_TIME.search(key)]
        (status,) = database.execute("SELECT status FROM runs WHERE run_uuid = ?", (run_id,)).fetchone()
    names = [name for name, _ in read]
    twice = sorted({name for name in names if names.count(name) > 1})
    return {**dict(read), "status": status, **({"logged twice": twice} if twice else {})}


def newest_run(folder: Path) -> str:
    """Return the id of the newest run in the store; "" if there is none."""
    with suppress(sqlite3.Error), closing(sqlite3.connect(folder / "store" / "mlflow.db")) as database:
        row = database.execute("SELECT run_uuid FROM runs ORDER BY start_time DESC LIMIT 1").fetchone()
        return str(row[0]) if row else ""
    return ""


def _run_named(folder: Path, name: str) -> str:
    with closing(sqlite3.connect(folder / "store" / "mlflow.db")) as database:
        return str(database.execute("SELECT run_uuid FROM runs WHERE name = ?", (name,)).fetchone()[0])


def _outcome(name: str, folder: Path) -> Any:
    """Return what a command that ended well leaves: metrics, or the bytes of its table."""
    if COMMANDS[name].resumes:
        return metrics_of(folder)
    if name == "predict":
        return (folder / "out" / "predictions.csv").read_text()
    return json.loads((folder / "data" / "processed" / "dataset_info.json").read_text())


def leftovers(folder: Path) -> list[str]:
    """Return files and folders that an interrupted writing left below `folder`."""
    unfinished = re.compile(r"(^\..+\.part$)|(^tmp[a-z0-9_]{8}$)|(^\..+\.[a-z0-9_]{8}$)")
    found = (path for path in folder.rglob("*") if unfinished.search(path.name))
    return sorted(str(path.relative_to(folder)) for path in found)


class Campaign:
    """The folders that trials start from, and the outcomes of undisturbed commands."""

    def __init__(self, work: Path, names: Sequence[str], products: int = 320) -> None:
        from vlm_core.catalogue.sample import draw_sample

        self.work, self.shop = work, work / "shop"
        self._undisturbed: dict[str, tuple[Any, Path]] = {}
        self._numbers = itertools.count()
        draw_sample(self.shop, products=products)
        if any(COMMANDS[name].needs != "nothing" for name in names):
            _warm_up()
            self._make_store()

    def _make_store(self) -> None:
        from vlm_core.tracking.store import connect

        (self.work / "empty").mkdir()
        here = Path.cwd()
        os.chdir(self.work / "empty")
        connect(f"sqlite:///{self.work}/empty/mlflow.db", to_write=True)
        os.chdir(here)

    def folder(self, name: str) -> Path:
        """Return a new working directory as it is before the command of that name."""
        folder = self.work / f"{name}-{next(self._numbers)}"
        for place in COMMANDS[name].places.values():
            (folder / place).mkdir(parents=True, exist_ok=True)
        (folder / "tmp").mkdir(exist_ok=True)
        if COMMANDS[name].needs != "nothing":
            shutil.copy(self.work / "empty" / "mlflow.db", folder / "store" / "mlflow.db")
            with closing(sqlite3.connect(folder / "store" / "mlflow.db")) as database:
                database.execute("UPDATE experiments SET artifact_location = ?", (f"{folder}/mlruns/0",))
                database.commit()
        if COMMANDS[name].needs == "model":
            source = self.undisturbed("train")[1]
            shutil.copy(source / "store" / "mlflow.db", folder / "store" / "mlflow.db")
        return folder

    def run(self, name: str, folder: Path, *more: str) -> Ended:
        """Run the command of that name in its folder."""
        command = COMMANDS[name]
        model = newest_run(folder) if command.needs == "model" else ""
        arguments = [part.format(shop=self.shop, model=model) for part in command.arguments]
        return run_command(command.module, [*arguments, *more], folder)

    def undisturbed(self, name: str) -> tuple[Any, Path]:
        """Return what the undisturbed command leaves, and its folder."""
        if name not in self._undisturbed:
            folder = self.folder(name)
            ended = self.run(name, folder)
            assert ended.code == 0, ended.printed + ended.errors
            self._undisturbed[name] = (_outcome(name, folder), folder)
        return self._undisturbed[name]

    def trial(self, name: str, place: str, kind: str) -> Result:
        """Run a command whose `place` is a disk of that kind, then again with room."""
        expected, model_folder = self.undisturbed(name)
        folder = self.folder(name)
        disk = folder / COMMANDS[name].places[place]
        used = _size(model_folder / COMMANDS[name].places[place]) - _size(disk)
        mount(disk, kind, max(used // 2, LEAST) if kind == "half" else 0)
        result = Result(name, place, kind)
        try:
            ended = self.run(name, folder)
            result.code, result.seconds = ended.code, round(ended.seconds, 1)
            result.sentence = ended.errors.strip()[-400:].replace(str(folder), "<folder>")
            result.faults = faults_of(ended, folder, place, disk)
            make_room(disk)
            self._check_again(name, folder, ended, expected, result)
        except Exception as error:
            result.faults.append(f"{type(error).__name__}: {error}"[:300])
        finally:
            _unmount(disk)
            shutil.rmtree(folder, ignore_errors=True)
        return result

    def _check_again(self, name: str, folder: Path, ended: Ended, expected: Any, result: Result) -> None:
        """Resume or repeat a command that failed, and compare the outcome with the undisturbed one's."""
        if ended.code:
            run_id = newest_run(folder) if COMMANDS[name].resumes else ""
            again = self.run(name, folder, *(["--resume", run_id] if run_id else []))
            if again.code:
                result.faults.append(f"with room: exit code {again.code}: {again.errors.strip()[-300:]}")
                return
        _compare(expected, _outcome(name, folder), result)

    def deletion(self, moment: float) -> Result:
        """Train while the feature cache is deleted: after a share of its time, or below 0 ten times a second."""
        expected, _ = self.undisturbed("train")
        folder = self.folder("train")
        result = Result("train", "cache", "deleted all the time" if moment < 0 else f"deleted at {moment:.0%}")
        ended = threading.Event()

        def delete() -> None:
            while not (folder / "cache").exists() or not any((folder / "cache").iterdir()):
                if ended.wait(0.005):
                    return
            if moment >= 0:
                ended.wait(moment * self.filling_seconds)
                shutil.rmtree(folder / "cache", ignore_errors=True)
            while moment < 0 and not ended.wait(0.1):
                shutil.rmtree(folder / "cache", ignore_errors=True)

        thread = threading.Thread(target=delete)
        thread.start()
        done = self.run("train", folder)
        ended.set()
        thread.join()
        result.code, result.seconds = done.code, round(done.seconds, 1)
        result.sentence = done.errors.strip()[-400:].replace(str(folder), "<folder>")
        if done.code or "Traceback" in done.errors:
            result.faults.append("did not end well")
        else:
            _compare(expected, _outcome("train", folder), result)
        shutil.rmtree(folder, ignore_errors=True)
        return result

    filling_seconds = 6.0  # from the cache's first file to the last epoch

    def race(self, gib: float) -> Result:
        """Train with two seeds at once in one folder, whose feature cache of `gib` has no room for both."""
        result = Result("train", "cache", f"two runs, {1024 * gib:.1f} MiB")
        seeds = ("0", "1")
        alone = self.folder("train")
        expected = {"0": self.undisturbed("train")[0]}
        if self.run("train", alone, "--seed", "1").code == 0:
            expected["1"] = metrics_of(alone)
        folder, started = self.folder("train"), time.monotonic()
        with ThreadPoolExecutor(len(seeds)) as pool:
            ended = pool.map(lambda seed: self.run("train", folder, "--seed", seed, "--cache_gib", f"{gib:f}"), seeds)
            for seed, done in zip(seeds, ended, strict=True):
                result.code = max(result.code, done.code)
                if done.code or "Traceback" in done.errors:
                    result.faults.append(f"seed {seed} did not end well: {done.errors.strip()[-300:]}")
                else:
                    _compare(expected.get(seed), metrics_of(folder, _run_named(folder, f"clip-lp-ft-{seed}")), result)
        result.seconds = round(time.monotonic() - started, 1)
        for each in (alone, folder):
            shutil.rmtree(each, ignore_errors=True)
        return result


def faults_of(ended: Ended, folder: Path, place: str, disk: Path) -> list[str]:
    """Return what is wrong with how a command ended whose `place` is that disk."""
    faults = [f"left {path}" for path in leftovers(folder)[:3]]
    if ended.code == 0:
        return faults
    text = ended.errors.strip()
    if ended.code != 1:
        faults.append(f"exit code {ended.code}")
    if "Traceback" in text or text.count("error: ") != 1:
        faults.append("not one sentence")
    elif str(disk) not in text and f" {disk.relative_to(folder)}/" not in text and _CALLED.get(place, "-") not in text:
        faults.append("does not blame the place")
    elif not _WAY_OUT.search(text):
        faults.append("names no way out")
    return faults


def _compare(expected: Any, outcome: Any, result: Result) -> None:
    if outcome != expected:
        wrong = "another table"
        if isinstance(expected, dict):
            keys = sorted(key for key in {*expected, *outcome} if expected.get(key) != outcome.get(key))
            wrong = ", ".join(f"{key}: {expected.get(key)} -> {outcome.get(key)}" for key in keys[:3])
        result.faults.append(f"not the undisturbed outcome ({wrong})")


def mount(disk: Path, kind: str, room: int) -> None:
    """Make `disk`, with what is in it, a disk of its own: read-only, or with `room` bytes left."""
    kept = disk.with_name(f".kept-{disk.name}")
    shutil.copytree(disk, kept)
    _do("mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", str(disk))
    shutil.copytree(kept, disk, dirs_exist_ok=True)
    shutil.rmtree(kept)
    if kind == "read-only":
        _do("mount", "-o", "remount,ro", str(disk))
        return
    size = _size(disk) + room + (1 << 20)
    _do("mount", "-o", f"remount,size={size}", str(disk))
    with suppress(OSError), (disk / RESERVE).open("wb", buffering=0) as file:
        free = shutil.disk_usage(disk).free - room
        while free > 0:
            free -= file.write(bytes(min(free, 4096)))


def make_room(disk: Path) -> None:
    """Make a disk writable, with room."""
    _do("mount", "-o", "remount,rw,size=1g", str(disk))
    (disk / RESERVE).unlink(missing_ok=True)


def _unmount(disk: Path) -> None:
    subprocess.run(["umount", "-l", str(disk)], capture_output=True)


def _do(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _size(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def table(results: Sequence[Result]) -> str:
    """Return one line for each trial, and how many there were and failed."""
    lines = [
        f"{each.command:9} {each.place:12} {each.kind:22} exit {each.code:3} {each.seconds:6.1f} s  "
        + ("; ".join(each.faults) or "ok")
        for each in results
    ]
    failed = sum(bool(each.faults) for each in results)
    return "\n".join([*lines, f"{len(results)} trials, {failed} failed"])


def trials(names: Sequence[str], places: Sequence[str], kinds: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return every trial of those commands, places (empty: all) and kinds."""
    return [
        (name, place, kind)
        for name in names
        for place in COMMANDS[name].places
        for kind in kinds
        if not places or place in places
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.disks", description=__doc__.splitlines()[0])
    parser.add_argument("--commands", default=",".join(COMMANDS))
    parser.add_argument("--places", default="", help="comma-separated; empty: all")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--deletions", type=int, default=10, help="trainings whose feature cache is deleted")
    parser.add_argument("--races", type=int, default=5, help="pairs of trainings that share a small feature cache")
    parser.add_argument("--products", type=int, default=320, help="of the sample catalogue")
    parser.add_argument("--seconds", type=float, default=3600, help="no further trial is begun after these")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of deletions and the order of trials")
    parser.add_argument("--output", default="", help="JSON file to write")
    options = parser.parse_args(arguments)
    if not os.environ.get(NAMESPACE):
        return _in_namespace(sys.argv[1:] if arguments is None else list(arguments))
    names = [name for name in options.commands.split(",") if name]
    planned = trials(names, [p for p in options.places.split(",") if p], options.kinds.split(","))
    chance = random.Random(options.seed)
    chance.shuffle(planned)
    started = time.monotonic()
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="disks-") as work:
        campaign = Campaign(Path(work), names, options.products)
        work_list: list[Callable[[], Result]] = [lambda each=each: campaign.trial(*each) for each in planned]
        moments = [-1.0, *(chance.random() for _ in range(options.deletions - 1))][: options.deletions]
        work_list += [lambda moment=moment: campaign.deletion(moment) for moment in moments]
        rooms = [chance.uniform(0.5, 20) / 1024 for _ in range(options.races)]
        work_list += [lambda gib=gib: campaign.race(gib) for gib in rooms]
        for each in work_list:
            if time.monotonic() - started > options.seconds:
                break
            results.append(each())
            print(table(results[-1:]).splitlines()[0], "|", results[-1].sentence, flush=True)
    print(table(results))
    print(f"{len(work_list) - len(results)} of {len(work_list)} planned trials were not begun")
    if options.output:
        Path(options.output).write_text(json.dumps([asdict(each) for each in results], indent=1))
    return int(any(each.faults for each in results))


def _in_namespace(arguments: list[str]) -> int:
    """Run the campaign where it may mount. Without `unshare`, or where it is forbidden, say so."""
    flags = ["-m"] if os.geteuid() == 0 else ["-rm"]
    if not may_mount():
        print("Disks cannot be mounted here: run this on Linux, as root or with user namespaces.", file=sys.stderr)
        return 2
    command = ["unshare", *flags, sys.executable, "-m", "tests.campaigns.disks", *arguments]
    return subprocess.run(command, env={**os.environ, NAMESPACE: "1"}).returncode


def may_mount() -> bool:
    """Return whether disks can be mounted in a namespace of their own."""
    flags = "-m" if os.geteuid() == 0 else "-rm"
    script = "mount -t tmpfs -o size=1m tmpfs /tmp"
    try:
        return subprocess.run(["unshare", flags, "sh", "-c", script], capture_output=True).returncode == 0
    except OSError:
        return False


def _warm_up() -> None:
    """Import once what every forked command needs."""
    # all of this project's, too: a tree that is edited during a campaign must not change it
    modules = [path for room in ("vlm_core", "experiments") for path in (ROOT / room).rglob("*.py")]
    for path in modules:
        import_module(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    for name in ("torch", "transformers", "sklearn.metrics", "matplotlib.pyplot", "scipy.stats", "pyarrow.parquet"):
        import_module(name)
    from vlm_core.tracking.store import open_mlflow

    open_mlflow()


if __name__ == "__main__":
    sys.exit(main())
