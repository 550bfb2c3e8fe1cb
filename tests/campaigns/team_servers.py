"""Every command over the servers that teams use: `python -m tests.campaigns.team_servers`.

PostgreSQL (a cluster of its own in a temporary folder), a store for artifacts that speaks S3 (moto's server) and
MLflow's server with a login are started on loopback. Every command then runs once in each arrangement:

- `server`: MLFLOW_TRACKING_URI is MLflow's server, which asks for a login and passes artifacts on to S3;
- `psycopg` and `psycopg2`: MLFLOW_TRACKING_URI is the database itself, by either driver, and artifacts go to S3.

A search keeps its trials in PostgreSQL, too. In the middle of a last training the database is stopped for a minute.
A step fails if its exit code is not 0, if it prints a traceback or a password, or if a training has other metrics than
one over SQLite. At the end no password may be in the databases, the artifacts or the files of the working folder.

It takes PostgreSQL's programs, and `pip install 'moto[server]' Flask-WTF psycopg2-binary` beside the extras `postgres`,
`s3`, `search`, `study`, `export` and `dashboard`. PostgreSQL does not run as root: as root, the cluster belongs to the
user postgres.
"""

from __future__ import annotations

import argparse
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.campaigns.hostile_dashboard import shown_runs
from tests.campaigns.hostile_server import ask, free_port, server

ROOT: Final = Path(__file__).resolve().parents[2]
ARRANGEMENTS: Final = ("server", "psycopg", "psycopg2")
PASSWORDS: Final = {"database": "planted-db-secret", "login": "planted-login-secret", "s3": "planted-s3-secret"}
BUCKET: Final = "runs"
USER: Final = "runner"
EXPERIMENT: Final = "team"
SECONDS: Final = 900  # that a command may take
_DATA: Final = ("--data", "shop", "--threads", "1")
_SMALL: Final = ("--preset", "demo", *_DATA, "--per_category", "24", "--train_per_category", "12", "--resamples", "100")
_TRAIN: Final = (*_SMALL, "--model", "clip", "--mode", "probe", "--epochs", "2", "--views", "1")
_LONG: Final = (*_SMALL, "--model", "clip", "--mode", "full", "--epochs", "8", "--patience", "8")
_NAMED: Final = ("--experiment", EXPERIMENT)
_PRETRAIN: Final = (*("--model", "clip"), *_DATA, *("--epochs", "1", "--batch_size", "32"))
_TUNE: Final = (
    *(*_SMALL, *_NAMED, "--model", "clip", "--mode", "probe", "--epochs", "2"),
    *("--search", "learning_rate", "--trials", "2"),
)
_STUDY: Final = (
    *(*_SMALL, *_NAMED),
    *("--families", "clip", "--modes", "zero-shot,probe", "--objectives", "classify"),
    *("--protocols", "holdout", "--epochs", "2", "--views", "1", "--seeds", "2", "--parts", "families"),
)
_EXPORT: Final = ("--pictures", "8", "--threads", "1")
_PREDICT: Final = ("--model", "models:/categoriser-clip/1", "--pictures", "shop/images", "--threads", "1")
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
    facts = {name: row[name] for name in ("run_id", "status", "name")}
    rows.append({**facts, "metrics": metrics, "steps": steps})
json.dump(rows, sys.stdout)
"""
CREATE: Final = """
import sys
from vlm_core.tracking.store import connect
client = connect(to_write=True)
if client.get_experiment_by_name(sys.argv[1]) is None:
    client.create_experiment(sys.argv[1], artifact_location=sys.argv[2] or None)
"""


@dataclass
class Step:
    """What one command did."""

    arrangement: str
    name: str
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


class Database:
    """A PostgreSQL cluster in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.port, self.folder, self._data = free_port(), folder, folder / "data"
        found = shutil.which("initdb")
        self._programs = Path(found).resolve().parent if found else max(Path("/usr/lib/postgresql").glob("*/bin"))
        folder.mkdir()
        (folder / "password").write_text(PASSWORDS["database"])
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres")
            shutil.chown(folder / "password", "postgres")
        secret = ("--auth=scram-sha-256", f"--username={USER}", f"--pwfile={folder}/password")
        self._do("initdb", "--no-sync", "--encoding=UTF8", *secret, "--pgdata", str(self._data))
        self.start()
        for name in ("mlflow", "users", "searches", "psycopg", "psycopg2"):
            self._psql("postgres", f'CREATE DATABASE "{name}"')

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -k {self.folder}"
        log = str(self.folder / "log")
        self._do("pg_ctl", "start", "--wait", "--pgdata", str(self._data), "--log", log, "--options", options)

    def stop(self) -> None:
        """End all its connections, and answer no more."""
        self._do("pg_ctl", "stop", "--wait", "--mode=fast", "--pgdata", str(self._data))

    def address(self, name: str, driver: str = "psycopg") -> str:
        return f"postgresql+{driver}://{USER}:{PASSWORDS['database']}@127.0.0.1:{self.port}/{name}"

    def dump(self) -> str:
        """Return all that the databases hold, without the users' passwords, which are hashes."""
        return "".join(
            self._do("pg_dump", "--host=127.0.0.1", f"--port={self.port}", f"--username={USER}", name)
            for name in ("mlflow", "searches", "psycopg", "psycopg2")
        )

    def _psql(self, name: str, statement: str) -> str:
        where = ("--host=127.0.0.1", f"--port={self.port}", f"--username={USER}", "--dbname", name)
        return self._do("psql", "--quiet", *where, "--command", statement)

    def _do(self, program: str, *words: str) -> str:
        before = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        output = subprocess.DEVNULL if program == "pg_ctl" else subprocess.PIPE  # what it starts would keep a pipe open
        done = subprocess.run(
            [*before, str(self._programs / program), *words],
            cwd=self.folder,
            env={**os.environ, "PGPASSWORD": PASSWORDS["database"]},
            stdout=output,
            stderr=output,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"{program}: {done.stderr}")
        return done.stdout or ""


class Team:
    """The servers of a team, and the surroundings of a command that uses them."""

    def __init__(self, folder: Path, database: Database, s3: int, mlflow: int) -> None:
        self.folder, self.database = folder, database
        self.s3, self.mlflow = s3, mlflow

    def surroundings(self, arrangement: str) -> dict[str, str]:
        """Return the environment of a command."""
        own = {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
        if arrangement == "server":
            login = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": PASSWORDS["login"]}
            own |= {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{self.mlflow}", **login}
        elif arrangement != "sqlite":
            address = self.database.address(arrangement, arrangement)
            own |= {"MLFLOW_TRACKING_URI": address, **s3_surroundings(self.s3)}
        clean = {name: text for name, text in os.environ.items() if not name.startswith(("MLFLOW_", "AWS_"))}
        return clean | own

    def location(self, arrangement: str) -> str:
        """Return where the experiment's artifacts go; "" where the server decides."""
        return f"s3://{BUCKET}/{arrangement}" if arrangement.startswith("psycopg") else ""


def s3_surroundings(port: int) -> dict[str, str]:
    """Return what a client of the S3-like server needs."""
    return {
        "MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "planted-s3-key",
        "AWS_SECRET_ACCESS_KEY": PASSWORDS["s3"],
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    }


@contextmanager
def team(folder: Path) -> Iterator[Team]:
    """Run PostgreSQL, S3 and MLflow's server inside the block."""
    with ExitStack() as stack:
        database = Database(folder / "postgres")
        stack.callback(database.stop)
        s3, mlflow = free_port(), free_port()
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(s3)]
        stack.enter_context(server(command, s3, folder, "/moto-api/"))
        _make_bucket(s3)
        config = folder / "auth.ini"
        config.write_text(
            "[mlflow]\ndefault_permission = READ\nadmin_username = admin\nauth_cache_ttl_seconds = 60\n"
            f"database_uri = {database.address('users')}\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        )
        own = {
            **s3_surroundings(s3),
            "MLFLOW_AUTH_CONFIG_PATH": str(config),
            "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORDS["login"],
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "planted-key",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        words = ("--app-name", "basic-auth", "--workers", "1", "--allowed-hosts", f"127.0.0.1:{mlflow}")
        stores = ("--backend-store-uri", database.address("mlflow"), "--artifacts-destination", f"s3://{BUCKET}/server")
        where = ("--host", "127.0.0.1", "--port", str(mlflow))
        command = [sys.executable, "-m", "mlflow", "server", *where, *stores, *words]
        with _environment(own):
            stack.enter_context(server(command, mlflow, folder, "/health"))
        yield Team(folder, database, s3, mlflow)


@contextmanager
def _environment(own: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(own)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _make_bucket(port: int) -> None:
    import boto3

    with _environment(s3_surroundings(port)):
        boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}").create_bucket(Bucket=BUCKET)


class Campaign:
    """The commands of one arrangement after the other."""

    def __init__(self, team: Team, shop: Path, seconds_away: float) -> None:
        self.team, self.shop, self.seconds_away = team, shop, seconds_away
        self.steps: list[Step] = []
        self._expected: dict[tuple[str, ...], dict[str, float]] = {}

    def run(self, arrangement: str, names: Sequence[str]) -> None:
        """Run the steps of those names (none: all) over an arrangement's servers."""
        folder = self._folder(arrangement)
        self._script(arrangement, CREATE, EXPERIMENT, self.team.location(arrangement))
        works: dict[str, Callable[[Step], None]] = {
            "prepare": lambda step: self._do(step, "experiments.prepare", *_SMALL),
            "train": lambda step: self._train(step, _TRAIN),
            "pretrain": lambda step: self._do(step, "experiments.pretrain", *_PRETRAIN, *_NAMED),
            "tune": lambda step: self._do(step, "experiments.tune", *_TUNE, "--storage", self._storage(arrangement)),
            "study": lambda step: self._do(step, "experiments.study", *_STUDY),
            "export": lambda step: self._do(step, "experiments.export", "--run", self._first(arrangement), *_EXPORT),
            "predict": lambda step: self._do(step, "experiments.predict", *_PREDICT),
            "evaluate": lambda step: self._do(
                step, "experiments.evaluate", "--run", self._first(arrangement), *_EVALUATE
            ),
            "clean": lambda step: self._do(step, "experiments.clean"),
            "dashboard": self._dashboard,
            "database away": self._away,
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
        started = self._start(step.arrangement, "experiments.train", *_LONG, *_NAMED)
        printed, stopped = "", threading.Event()

        def stop_for_a_while() -> None:
            self.team.database.stop()
            time.sleep(self.seconds_away)
            self.team.database.start()

        thread = threading.Thread(target=stop_for_a_while)
        assert started.stdout
        for line in started.stdout:
            printed += line
            if line.startswith("Epoch 2") and not stopped.is_set():
                stopped.set()
                thread.start()
        started.wait(SECONDS)
        if not stopped.is_set():
            step.faults.append("it ended before its second epoch")
            self._judge(step, started.returncode, printed)
            return
        thread.join()
        self._judge(step, started.returncode, printed)
        if "is back" not in printed:
            step.faults.append("it did not wait for the store")
        self._compare(step, expected)

    def _dashboard(self, step: Step) -> None:
        """Ask for every page as a browser does, and look for the runs in the leaderboard's."""
        port, runs = free_port(), self._runs(step.arrangement)
        command = [sys.executable, "-m", "dashboard", "--port", str(port)]
        with (
            _environment(self.team.surroundings(step.arrangement)),
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

    def _look_for_passwords(self, arrangement: str, folder: Path) -> None:
        step = Step(arrangement, "no password is kept")
        dump = self.team.database.dump()
        step.faults += [f"the database has that of the {name}" for name, text in PASSWORDS.items() if text in dump]
        for path in folder.rglob("*"):
            if path.is_file() and path.stat().st_size < 1 << 24:
                content = path.read_bytes()
                step.faults += [f"{path.name} has one" for text in PASSWORDS.values() if text.encode() in content]
        step.faults += _passwords_in_bucket(self.team.s3)
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


def _passwords_in_bucket(port: int) -> list[str]:
    import boto3

    faults = []
    with _environment(s3_surroundings(port)):
        client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}")
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
            for each in page.get("Contents", ()):
                if each["Size"] < 1 << 22:
                    content = client.get_object(Bucket=BUCKET, Key=each["Key"])["Body"].read()
                    faults += [f"{each['Key']} has one" for text in PASSWORDS.values() if text.encode() in content]
    return faults


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
