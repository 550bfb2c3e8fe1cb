"""A study and a search on a Ray cluster whose machines and leader are killed: `python -m tests.campaigns.ray_cluster`.

Three machines with a node each (see `machines`) share the files of this one; runs and trials are in PostgreSQL.

- `study`: 12 cells or more, on one machine without Ray and then on the cluster, with a machine killed in the middle;
- `leader`: the same study; its leader is stopped by SIGTERM, then killed, and its command repeated each time;
- `search`: 30 trials, in the middle of which a machine and later the leader are killed, and the command is repeated;
- `away`: the same study, in the middle of which the database is stopped for a minute;
- `speed`: the same study on one, two and three machines.

It fails unless each study's cells have the local run's metrics to the last digit, no run is left RUNNING, the search
has its finished trials, pruned ones among them, and every trial that died is repeated once.

It takes root, the programs of iproute2 and PostgreSQL, and the extras `ray`, `study`, `search` and `postgres`.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from tests.campaigns import machines
from tests.campaigns.machines import Cluster, Command
from tests.campaigns.team import PASSWORDS, USER, Database
from tests.campaigns.team_servers import OF_TIME, READ
from tests.stores import ROOT

SECONDS: Final = 1800  # that a command may take
_SMALL: Final = ("--preset", "demo", "--threads", "1", "--resamples", "100")
_STUDY: Final = (
    *(*_SMALL, "--families", "clip,blip,git", "--modes", "probe", "--objectives", "classify"),
    *("--protocols", "holdout", "--views", "0", "--parts", "families"),
)
_SEARCH: Final = (
    *(*_SMALL, "--model", "clip", "--mode", "full", "--epochs", "6", "--views", "0", "--trials", "30"),
    *("--search", "learning_rate,weight_decay"),
)
_TRIALS: Final = """
import json, sys, optuna
search = optuna.load_study(study_name="clip-full", storage=sys.argv[1])
attributes = ("repeats", "process")
rows = [
    {"number": each.number, "state": each.state.name, **{name: each.user_attrs.get(name) for name in attributes}}
    for each in search.get_trials()
]
json.dump(rows, sys.stdout)
"""


class Shared(Database):
    """PostgreSQL that other machines reach."""

    def start(self) -> None:
        access = self._data / "pg_hba.conf"
        line = "host all all 10.77.0.0/24 scram-sha-256\n"
        if line not in access.read_text():
            access.write_text(access.read_text() + line)
        options = f"-p {self.port} -c listen_addresses=0.0.0.0 -k {self.folder}"
        log = str(self.folder / "log")
        self._do("pg_ctl", "start", "--wait", "--pgdata", str(self._data), "--log", log, "--options", options)

    def reached(self, name: str) -> str:
        """Return the address of a database, as every machine reaches it."""
        return f"postgresql+psycopg://{USER}:{PASSWORDS['database']}@{machines.GATEWAY}:{self.port}/{name}"


class Campaign:
    """The parts, one after the other."""

    def __init__(self, folder: Path, data: Path, options: argparse.Namespace) -> None:
        self.folder, self.data, self.options = folder, data, options
        self.faults: list[str] = []
        self.facts: dict[str, Any] = {}
        self.expected: dict[str, dict[str, float]] = {}
        self.database: Shared

    def run(self, parts: Sequence[str]) -> None:
        """Run the parts of those names."""
        self.database = Shared(self.folder / "postgres")
        try:
            self._study_locally()
            works = {
                **{"study": self._study, "leader": self._leader, "search": self._search},
                **{"away": self._away, "speed": self._speed},
            }
            for part in parts:
                works[part]()
        finally:
            self.database.stop()

    def _surroundings(self, store: str = "") -> dict[str, str]:
        clean = {name: text for name, text in os.environ.items() if not name.startswith(("MLFLOW_", "AWS_", "RAY_"))}
        own = {
            **{"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "HF_HUB_OFFLINE": "1"},
            **{"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.options.token, "MLFLOW_DISABLE_TELEMETRY": "true"},
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        return clean | own | ({"MLFLOW_TRACKING_URI": self.database.reached(store)} if store else {})

    def _place(self, name: str) -> Path:
        """Return a new folder, in which the catalogue is prepared already."""
        folder = self.folder / name
        folder.mkdir()
        own, given = (Path(place) / "data" / "processed" for place in (self.folder / "local", self.options.prepared))
        if (prepared := own if own.exists() else given).exists():
            shutil.copytree(prepared, folder / "data" / "processed", copy_function=os.link)
        return folder

    def _flags(self, *own: str) -> list[str]:
        size = ("--per_category", str(self.options.per_category), "--train_per_category", "60")
        study = ("--epochs", str(self.options.epochs), "--seeds", str(self.options.seeds))
        return ["--data", str(self.data), *own, *size, *(() if "--trials" in own else study)]

    def _study_locally(self) -> None:
        if self.options.local:
            self.expected = _cells(self._read(Path(self.options.local).resolve(), ""))
            if not self.expected:
                raise SystemExit(f"--local {self.options.local}: no finished cell; name the folder of its mlflow.db.")
            return
        folder, log = self._place("local"), self.folder / "local.log"
        command = [sys.executable, "-m", "experiments.study", *self._flags(*_STUDY)]
        began = time.monotonic()
        with log.open("wb") as output:
            done = subprocess.run(command, cwd=folder, env=self._surroundings(), stdout=output, stderr=output)
        self.facts["local seconds"] = round(time.monotonic() - began, 1)
        if done.returncode:
            raise RuntimeError(log.read_text()[-2000:])
        self.expected = _cells(self._read(folder, ""))
        print(f"local: {len(self.expected)} cells in {self.facts['local seconds']} s", flush=True)

    def _start(self, cluster: Cluster, part: str, module: str, store: str, *own: str) -> Command:
        words = ["--engine", "ray", "--address", "auto", "--workers", str(len(cluster.machines)), *own]
        command = [sys.executable, "-m", module, *self._flags(*words)]
        surroundings = {**self._surroundings(store), "RAY_TMPDIR": machines.TEMPORARY}
        return cluster.machines[0].start(command, self.folder / part, self.folder / f"{part}.log", surroundings)

    def _cluster(self, count: int = 3) -> Any:
        return machines.cluster(self.folder, self._surroundings(), count)

    def _study(self) -> None:
        folder = self._place("study")
        with self._cluster() as cluster:
            began = time.monotonic()
            command = self._start(cluster, "study", "experiments.study", "psycopg", *_STUDY)
            self._wait(command, lambda: _ended(command.text()) >= 3)
            cluster.kill(cluster.machines[2])
            self._expect_end(command, "study")
            self.facts["study seconds, a machine killed"] = round(time.monotonic() - began, 1)
        if "A task is repeated, because its node or process died" not in command.text():
            self.faults.append("study: no cell died with the machine")
        self._compare(folder, "psycopg", "study")

    def _leader(self) -> None:
        folder = self._place("leader")
        with self._cluster() as cluster:
            command = self._start(cluster, "leader", "experiments.study", "psycopg2", *_STUDY)
            self._wait(command, lambda: _ended(command.text()) >= 2)
            began = time.monotonic()
            command.send(signal.SIGTERM)
            code = command.end(60)
            self.facts["seconds from SIGTERM to the end"] = round(time.monotonic() - began, 1)
            if code != 130 or self.facts["seconds from SIGTERM to the end"] > 10:
                self.faults.append(f"leader: exit code {code} after SIGTERM, {self.facts}")
            if left := [run["name"] for run in self._read(folder, "psycopg2") if run["status"] == "RUNNING"]:
                self.faults.append(f"leader: RUNNING after SIGTERM: {left}")
            command = self._start(cluster, "leader", "experiments.study", "psycopg2", *_STUDY)
            self._wait(command, lambda: _ended(command.text()) >= 6)
            command.send(signal.SIGKILL)
            command.end(60)
            command = self._start(cluster, "leader", "experiments.study", "psycopg2", *_STUDY)
            self._expect_end(command, "leader")
        self._compare(folder, "psycopg2", "leader")

    def _search(self) -> None:
        folder = self._place("search")
        storage = ("--storage", self.database.reached("searches"))
        own = (*_SEARCH, *storage)
        with self._cluster() as cluster:
            began = time.monotonic()
            command = self._start(cluster, "search", "experiments.tune", "mlflow", *own)
            self._wait(command, lambda: self._finished() >= 6)
            cluster.kill(cluster.machines[2])
            self._wait(command, lambda: self._finished() >= 16)
            command.send(signal.SIGKILL)
            command.end(60)
            cluster.add()
            command = self._start(cluster, "search", "experiments.tune", "mlflow", *own)
            self._expect_end(command, "search")
            self.facts["search seconds"] = round(time.monotonic() - began, 1)
        trials = self._trials()
        states = [trial["state"] for trial in trials]
        dead = [trial["number"] for trial in trials if trial["state"] == "FAIL"]
        repeated = [trial["repeats"] for trial in trials if trial["repeats"] is not None]
        self.facts["trials"] = {state: states.count(state) for state in sorted(set(states))}
        self.facts["trials that died"] = len(dead)
        self.facts["machines that ran trials"] = len({str(trial["process"]).split(":")[0] for trial in trials})
        finished = states.count("COMPLETE") + states.count("PRUNED")
        if finished != 30 or "PRUNED" not in states or {"RUNNING", "WAITING"} & set(states):
            self.faults.append(f"search: {self.facts['trials']}")
        if sorted(dead) != sorted(repeated) or not dead:
            self.faults.append(f"search: {dead} died, and {repeated} were repeated")
        if left := [run["name"] for run in self._read(folder, "mlflow") if run["status"] == "RUNNING"]:
            self.faults.append(f"search: RUNNING at the end: {left}")
        print(f"search: {self.facts}", flush=True)

    def _away(self) -> None:
        folder = self._place("away")
        with self._cluster() as cluster:
            command = self._start(cluster, "away", "experiments.study", "users", *_STUDY)
            self._wait(command, lambda: _ended(command.text()) >= 3)
            self.database.stop()
            time.sleep(self.options.seconds_away)
            self.database.start()
            self._expect_end(command, "away")
        self._compare(folder, "users", "away")

    def _speed(self) -> None:
        for count in (1, 2, 3):
            part = f"speed{count}"
            folder = self._place(part)
            self.database._psql("postgres", f'CREATE DATABASE "{part}"')
            with self._cluster(count) as cluster:
                began = time.monotonic()
                command = self._start(cluster, part, "experiments.study", part, *_STUDY)
                self._expect_end(command, part)
                self.facts[f"study seconds, machines: {count}"] = round(time.monotonic() - began, 1)
            self._compare(folder, part, part)

    def _wait(self, command: Command, reached: Callable[[], object]) -> None:
        end = time.monotonic() + SECONDS
        while not reached():
            if command.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"ended too soon, or not at all: {command.text()[-3000:]}")
            time.sleep(0.5)

    def _expect_end(self, command: Command, part: str) -> None:
        if code := command.end(SECONDS):
            self.faults.append(f"{part}: exit code {code}: {command.text()[-1500:]}")
        if "Traceback" in command.text():
            self.faults.append(f"{part}: a traceback: {command.text()[command.text().index('Traceback') :][:1500]}")

    def _compare(self, folder: Path, store: str, part: str) -> None:
        runs = self._read(folder, store)
        if left := [run["name"] for run in runs if run["status"] == "RUNNING"]:
            self.faults.append(f"{part}: RUNNING at the end: {left}")
        cells = _cells(runs)
        if cells != self.expected:
            different = [name for name in self.expected if cells.get(name) != self.expected[name]]
            self.faults.append(f"{part}: other metrics than the local run: {different}, {len(cells)} cells")
        print(f"{part}: {len(cells)} cells, {self.facts}", flush=True)

    def _read(self, folder: Path, store: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads(self._ask(READ, folder, store))
        return rows

    def _trials(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads(self._ask(_TRIALS, self.folder, "", self.database.address("searches")))
        return rows

    def _finished(self) -> int:
        statement = "SELECT count(*) FROM trials WHERE state IN ('COMPLETE', 'PRUNED')"
        try:
            return int(self.database._psql("searches", statement).split()[2])
        except RuntimeError:  # the table is not there yet
            return 0

    def _ask(self, script: str, folder: Path, store: str, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", script, *words],
            cwd=folder,
            env=self._surroundings() | ({"MLFLOW_TRACKING_URI": self.database.address(store)} if store else {}),
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        return done.stdout


def _ended(text: str) -> int:
    """Count the cells of all commands that have ended, given what they printed."""
    return sum(line.startswith("[") and ": run " in line for line in text.splitlines())


def _cells(runs: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the metrics of the finished cells that do not depend on time."""
    return {
        run["name"]: {name: value for name, value in run["metrics"].items() if not OF_TIME.search(name)}
        for run in runs
        if run["status"] == "FINISHED" and run["name"].count("/") == 4
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.ray_cluster", description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="", help="catalogue (empty: a shop of 1,600 drawn products)")
    parser.add_argument("--prepared", default="", help="folder in which a command has prepared that catalogue before")
    parser.add_argument("--local", default="", help="folder in which an earlier call with --keep ran the study locally")
    parser.add_argument("--parts", default="study,leader,search,away,speed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--per_category", type=int, default=120)
    parser.add_argument("--seconds_away", type=float, default=60, help="for which the database is stopped")
    parser.add_argument("--output", default="", help="JSON file to write")
    parser.add_argument("--keep", action="store_true", help="keep the folder of the runs and logs")
    options = parser.parse_args(arguments)
    options.token = secrets.token_hex(32)
    from vlm_core.catalogue.sample import draw_sample

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that its machines end with it
    folder = Path(tempfile.mkdtemp(prefix="ray-campaign-"))
    folder.chmod(0o755)  # the user postgres reads the path
    try:
        data = Path(options.data).resolve() if options.data else draw_sample(folder / "shop", products=1600)
        campaign = Campaign(folder, data, options)
        campaign.run(options.parts.split(","))
    finally:
        if options.keep:
            print(folder)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps({"facts": campaign.facts, "faults": campaign.faults}, indent=1))
    if options.output:
        Path(options.output).write_text(json.dumps({"facts": campaign.facts, "faults": campaign.faults}, indent=1))
    return int(bool(campaign.faults))


if __name__ == "__main__":
    sys.exit(main())
