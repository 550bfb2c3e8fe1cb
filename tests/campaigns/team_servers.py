"""Every command over the servers that teams use: `python -m tests.campaigns.team_servers`.

PostgreSQL (a cluster of its own in a temporary folder), a store for artifacts that speaks S3 (moto's server) and
MLflow's server with a login are started on loopback. Every command then runs once in each arrangement:

- `server`: MLFLOW_TRACKING_URI is MLflow's server, which asks for a login and passes artifacts on to S3;
- `psycopg` and `psycopg2`: MLFLOW_TRACKING_URI is the database itself, by either driver, and artifacts go to S3.

A search keeps its trials in PostgreSQL, too. `mlflow models serve` serves the model that is registered under an alias,
which must answer a real picture as `experiments.predict` does. In the middle of a last training, and of a study, the
database is stopped for a minute. A step fails if its exit code is not 0, if it prints a traceback or a password, or if
a training or a cell has other metrics than one over SQLite. At the end no password may be in the databases, the
artifacts or the files of the working folder, which has no store of its own.

It takes PostgreSQL's programs, and `pip install 'moto[server]' Flask-WTF psycopg2-binary` beside the extras `postgres`,
`s3`, `search`, `study`, `export` and `dashboard`. PostgreSQL does not run as root: as root, the cluster belongs to the
user postgres.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import pandas as pd

from tests.campaigns.hostile_dashboard import shown_runs
from tests.campaigns.hostile_server import alike, ask, free_port, server
from tests.campaigns.team import PASSWORDS, Team, environment, passwords_in_bucket, team

ARRANGEMENTS: Final = ("server", "psycopg", "psycopg2")
EXPERIMENT: Final = "team"
STUDY_EXPERIMENT: Final = "team-study"  # of the study whose database is stopped
CHAMPION: Final = "models:/categoriser-clip@champion"
SECONDS: Final = 900  # that a command may take
_DATA: Final = ("--data", "shop", "--threads", "1")
_SPLIT: Final = ("--preset", "demo", *_DATA, "--per_category", "24", "--train_per_category", "12")
_SMALL: Final = (*_SPLIT, "--resamples", "100")
_TRAIN: Final = (*_SMALL, "--model", "clip", "--mode", "probe", "--epochs", "2", "--views", "1")
_LONG: Final = (*_SMALL, "--model", "clip", "--mode", "full", "--epochs", "8", "--patience", "8")
_NAMED: Final = ("--experiment", EXPERIMENT)
_PRETRAIN: Final = (*("--model", "clip"), *_DATA, *("--epochs", "1", "--batch_size", "32"))
_TUNE: Final = (
    *(*_SMALL, *_NAMED, "--model", "clip", "--mode", "probe", "--epochs", "2"),
    *("--search", "learning_rate", "--trials", "2"),
)
_STUDY: Final = (
    *_SMALL,
    *("--families", "clip", "--modes", "zero-shot,probe", "--objectives", "classify"),
    *("--protocols", "holdout", "--epochs", "2", "--views", "1", "--seeds", "2", "--parts", "families"),
)
_STUDY_AWAY: Final = (*_STUDY, "--experiment", STUDY_EXPERIMENT, "--study", "away")
_EXPORT: Final = ("--pictures", "8", "--threads", "1")
PREDICTIONS: Final = "predictions.parquet"
_PREDICT: Final = ("--model", CHAMPION, "--pictures", "shop/images", "--threads", "1", "--output", PREDICTIONS)
_EVALUATE: Final = (*_DATA, *_NAMED, "--resamples", "100")
OF_TIME: Final = re.compile(r"seconds|per_second|^system/|_ms$|memory|megabytes|cost")
READ: Final = """
import json, sys
from vlm_core.tracking.reader import RunReader
reader = RunReader()
table = reader.runs()
rows = []
for _, row in table.iterrows():
    metrics = {name[8:]: value for name, value in row.items() if name.startswith("metrics.") and value == value}
    steps = reader.history(row["run_id"], "validation_macro_f1")["step"].tolist()
    facts = {name: row[name] for name in ("run_id", "status", "name", "experiment")}
    rows.append({**facts, "metrics": metrics, "steps": steps})
json.dump(rows, sys.stdout)
"""
CREATE: Final = """
import sys
from vlm_core.tracking.store import connect
client = connect(to_write=True)
for name in sys.argv[2:]:
    if client.get_experiment_by_name(name) is None:
        client.create_experiment(name, artifact_location=sys.argv[1] or None)
"""


@dataclass
class Step:
    """What one command did."""

    arrangement: str
    name: str
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


class Campaign:
    """The commands of one arrangement after the other."""

    def __init__(self, team: Team, shop: Path, seconds_away: float) -> None:
        self.team, self.shop, self.seconds_away = team, shop, seconds_away
        self.steps: list[Step] = []
        self._expected: dict[tuple[str, ...], dict[str, float]] = {}
        self._expected_cells: dict[str, dict[str, float]] = {}

    def run(self, arrangement: str, names: Sequence[str]) -> None:
        """Run the steps of those names (none: all) over an arrangement's servers."""
        folder = self._folder(arrangement)
        self._script(arrangement, CREATE, self.team.location(arrangement), EXPERIMENT, STUDY_EXPERIMENT)
        works: dict[str, Callable[[Step], None]] = {
            "prepare": lambda step: self._do(step, "experiments.prepare", *_SPLIT),
            "train": lambda step: self._train(step, _TRAIN),
            "pretrain": lambda step: self._do(step, "experiments.pretrain", *_PRETRAIN, *_NAMED),
            "tune": lambda step: self._do(step, "experiments.tune", *_TUNE, "--storage", self._storage(arrangement)),
            "study": lambda step: self._do(step, "experiments.study", *_STUDY, *_NAMED),
            "export": lambda step: self._do(step, "experiments.export", "--run", self._first(arrangement), *_EXPORT),
            "predict": lambda step: self._do(step, "experiments.predict", *_PREDICT),
            "serve": self._serve,
            "evaluate": lambda step: self._do(
                step, "experiments.evaluate", "--run", self._first(arrangement), *_EVALUATE
            ),
            "clean": lambda step: self._do(step, "experiments.clean"),
            "dashboard": self._dashboard,
            "database away": self._away,
            "away in a study": self._away_in_study,
        }
        for name, work in works.items():
            if names and name not in names:
                continue
            step, started = Step(arrangement, name), time.monotonic()
            try:
                work(step)
            except (RuntimeError, OSError, KeyError, IndexError, ValueError) as error:
                step.faults.append(f"{type(error).__name__}: {error}")
            step.seconds = round(time.monotonic() - started, 1)
            self.steps.append(step)
            print(f"{arrangement:9} {name:14} {step.seconds:6.1f} s  {'; '.join(step.faults) or 'ok'}", flush=True)
        self._look_for_store(arrangement, folder)
        self._look_for_passwords(arrangement, folder)

    def _folder(self, arrangement: str) -> Path:
        folder = self.team.folder / arrangement
        if not folder.exists():
            folder.mkdir()
            shutil.copytree(self.shop, folder / "shop", copy_function=os.link)
        return folder

    def _storage(self, arrangement: str) -> str:
        return self.team.database.address("searches", "psycopg2" if arrangement == "psycopg2" else "psycopg")

    def _do(self, step: Step, module: str, *words: str) -> str:
        started = self._start(step.arrangement, module, *words)
        printed = started.communicate(timeout=SECONDS)[0]
        self._judge(step, started.returncode, printed)
        return printed

    def _start(self, arrangement: str, module: str, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", module, *words],
            cwd=self._folder(arrangement),
            env=self.team.surroundings(arrangement),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def _judge(self, step: Step, code: int, printed: str) -> None:
        if code:
            step.faults.append(f"exit code {code}: {printed[-300:]}")
        if "Traceback" in printed:
            step.faults.append(f"a traceback: {printed[printed.index('Traceback') :][-600:]}")
        step.faults += [f"printed the password of the {name}" for name, text in PASSWORDS.items() if text in printed]

    def _script(self, arrangement: str, script: str, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", script, *words],
            cwd=self._folder(arrangement),
            env=self.team.surroundings(arrangement),
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(done.stderr[-600:])
        return done.stdout

    def _runs(self, arrangement: str) -> list[dict[str, Any]]:
        runs: list[dict[str, Any]] = json.loads(self._script(arrangement, READ))
        return runs

    def _first(self, arrangement: str) -> str:
        """Return the id of the run of the first training."""
        return str(next(run["run_id"] for run in reversed(self._runs(arrangement)) if run["name"] == "clip-probe-0"))

    def _expect(self, words: tuple[str, ...]) -> dict[str, float]:
        """Return the metrics of the same training over SQLite."""
        if words not in self._expected:
            step = Step("sqlite", "train")
            self._do(step, "experiments.train", *words, *_NAMED)
            if step.faults:
                raise RuntimeError(f"over SQLite: {step.faults}")
            self._expected[words] = _numbers(self._runs("sqlite")[0])
        return self._expected[words]

    def _train(self, step: Step, words: tuple[str, ...]) -> None:
        expected = self._expect(words)
        self._do(step, "experiments.train", *words, *_NAMED)
        self._compare(step, expected)

    def _compare(self, step: Step, expected: dict[str, float]) -> None:
        newest = self._runs(step.arrangement)[0]
        if newest["status"] != "FINISHED":
            step.faults.append(f"its run is {newest['status']}")
        if different := [name for name, value in expected.items() if _numbers(newest).get(name) != value]:
            step.faults.append(f"other metrics than over SQLite: {different[:3]}")
        if newest["steps"] != sorted(set(newest["steps"])):
            step.faults.append(f"epochs were logged twice: {newest['steps']}")

    def _away(self, step: Step) -> None:
        """Stop the database in the middle of a training."""
        expected = self._expect(_LONG)
        self._do_without_database(step, "Epoch 2", "experiments.train", *_LONG, *_NAMED)
        self._compare(step, expected)

    def _away_in_study(self, step: Step) -> None:
        """Stop the database when the first cell of a study has ended."""
        plain = Step("sqlite", step.name)
        if not self._expected_cells:
            self._do(plain, "experiments.study", *_STUDY_AWAY)
            self._expected_cells = self._cells(plain)
        if plain.faults:
            raise RuntimeError(f"over SQLite: {plain.faults}")
        self._do_without_database(step, "[1/", "experiments.study", *_STUDY_AWAY)
        cells, expected = self._cells(step), self._expected_cells
        if different := [name for name in cells.keys() | expected.keys() if cells.get(name) != expected.get(name)]:
            step.faults.append(f"other metrics than over SQLite: {sorted(different)}")

    def _cells(self, step: Step) -> dict[str, dict[str, float]]:
        """Return the metrics of each run of the study whose database is stopped."""
        runs = [run for run in self._runs(step.arrangement) if run["experiment"] == STUDY_EXPERIMENT]
        step.faults += [f"{run['name']} is {run['status']}" for run in runs if run["status"] != "FINISHED"]
        if len({run["name"] for run in runs}) != len(runs):
            step.faults.append(f"a cell was run twice: {sorted(run['name'] for run in runs)}")
        return {run["name"]: _numbers(run) for run in runs}

    def _do_without_database(self, step: Step, moment: str, module: str, *words: str) -> None:
        """Run a command, and stop the database for a while when a line has the text `moment` in it."""
        started = self._start(step.arrangement, module, *words)
        printed, stopped = "", threading.Event()

        def stop_for_a_while() -> None:
            self.team.database.stop()
            time.sleep(self.seconds_away)
            self.team.database.start()

        thread = threading.Thread(target=stop_for_a_while)
        assert started.stdout
        for line in started.stdout:
            printed += line
            if moment in line and not stopped.is_set():
                stopped.set()
                thread.start()
        started.wait(SECONDS)
        if not stopped.is_set():
            step.faults.append(f"it ended before {moment}")
            self._judge(step, started.returncode, printed)
            return
        thread.join()
        self._judge(step, started.returncode, printed)
        if "is back" not in printed:
            step.faults.append("it did not wait for the store")

    def _serve(self, step: Step) -> None:
        """Serve the champion, and compare its answer with the row that `experiments.predict` wrote."""
        port, folder = free_port(), self._folder(step.arrangement)
        words = ("-m", CHAMPION, "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port))
        rows = pd.read_parquet(folder / PREDICTIONS).set_index("id")
        picture = folder / "shop" / "images" / f"{rows.index[7]}.jpg"
        sent = {"dataframe_records": [{"picture": base64.b64encode(picture.read_bytes()).decode()}]}
        command = [sys.executable, "-m", "mlflow", "models", "serve", *words]
        with environment(self.team.surroundings(step.arrangement)), server(command, port, folder, "/ping"):
            status, answer = ask(port, "POST", "/invocations", json.dumps(sent).encode())
        if status != 200:
            step.faults.append(f"answered {status}: {answer[:300]!r}")
        elif not alike(json.loads(answer)["predictions"][0], rows.iloc[7].dropna().to_dict()):
            step.faults.append(f"answered {answer[:300]!r} instead of {rows.iloc[7].to_dict()}")

    def _dashboard(self, step: Step) -> None:
        """Ask for every page as a browser does, and look for the runs in the leaderboard's."""
        port, runs = free_port(), self._runs(step.arrangement)
        command = [sys.executable, "-m", "dashboard", "--port", str(port)]
        with (
            environment(self.team.surroundings(step.arrangement)),
            server(command, port, self._folder(step.arrangement), "/"),
        ):
            end = time.monotonic() + 60
            while (shown := shown_runs(port)) is None and time.monotonic() < end:
                time.sleep(0.5)
            if shown != len(runs):
                step.faults.append(f"shows {shown} of {len(runs)} runs")
            first = self._first(step.arrangement)
            for path in ("/", "/run", "/compare", "/study", "/catalogue", "/categorise", "/attention", "/search"):
                page = _callback(port, *_page(path, f"?run={first}"))
                if "_pages_content" not in page:
                    step.faults.append(f"{path} answers {page[:200]}")
                step.faults += [f"{path} shows a password" for text in PASSWORDS.values() if text in page]
                if path == "/" and first not in page:
                    step.faults.append("the leaderboard lacks the first training")

    def _look_for_store(self, arrangement: str, folder: Path) -> None:
        step = Step(arrangement, "no local store")
        stores = ("mlflow.db", "mlruns", "optuna.log")
        step.faults += [f"{name} is there" for name in stores if (folder / name).exists()]
        self.steps.append(step)
        print(f"{arrangement:9} {step.name}: {'; '.join(step.faults) or 'ok'}", flush=True)

    def _look_for_passwords(self, arrangement: str, folder: Path) -> None:
        step = Step(arrangement, "no password is kept")
        dump = self.team.database.dump()
        step.faults += [f"the database has that of the {name}" for name, text in PASSWORDS.items() if text in dump]
        for path in folder.rglob("*"):
            if path.is_file() and path.stat().st_size < 1 << 24:
                content = path.read_bytes()
                step.faults += [f"{path.name} has one" for text in PASSWORDS.values() if text.encode() in content]
        step.faults += passwords_in_bucket(self.team.s3)
        self.steps.append(step)
        print(f"{arrangement:9} {step.name}: {'; '.join(step.faults) or 'ok'}", flush=True)


def _page(path: str, search: str) -> tuple[Any, Any, Any]:
    outputs = (("_pages_content", "children"), ("_pages_store", "data"))
    return outputs, (("_pages_location", "pathname", path), ("_pages_location", "search", search)), ()


def _callback(port: int, outputs: Any, inputs: Any, state: Any) -> str:
    body = {
        "output": f"..{'...'.join(f'{name}.{prop}' for name, prop in outputs)}..",
        "outputs": [{"id": name, "property": prop} for name, prop in outputs],
        "inputs": [{"id": name, "property": prop, "value": value} for name, prop, value in inputs],
        "state": [{"id": name, "property": prop, "value": value} for name, prop, value in state],
        "changedPropIds": [f"{inputs[0][0]}.{inputs[0][1]}"],
    }
    return ask(port, "POST", "/_dash-update-component", json.dumps(body).encode())[1].decode()


def _numbers(run: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in run["metrics"].items() if not OF_TIME.search(name)}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.team_servers", description=__doc__.splitlines()[0])
    parser.add_argument("--arrangements", default=",".join(ARRANGEMENTS))
    parser.add_argument("--steps", default="", help="comma-separated; empty: all")
    parser.add_argument("--seconds_away", type=float, default=60, help="for which the database is stopped")
    parser.add_argument("--output", default="", help="JSON file to write")
    parser.add_argument("--keep", action="store_true", help="keep the folder of the servers and their logs")
    options = parser.parse_args(arguments)
    from vlm_core.catalogue.sample import draw_sample

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that its servers end with it
    folder = Path(tempfile.mkdtemp(prefix="team-"))
    folder.chmod(0o755)  # the user postgres reads the path
    try:
        shop = draw_sample(folder / "shop", products=160)
        with team(folder) as servers:
            campaign = Campaign(servers, shop, options.seconds_away)
            for arrangement in options.arrangements.split(","):
                campaign.run(arrangement, [name for name in options.steps.split(",") if name])
    finally:
        if options.keep:
            print(folder)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    failed = sum(bool(step.faults) for step in campaign.steps)
    print(f"{len(campaign.steps)} steps, {failed} failed")
    if options.output:
        Path(options.output).write_text(json.dumps([asdict(step) for step in campaign.steps], indent=1))
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
