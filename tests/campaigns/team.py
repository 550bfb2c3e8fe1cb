"""The servers that a team shares, on loopback: PostgreSQL, a store that speaks S3, and MLflow's server with a login."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from tests.campaigns.hostile_server import free_port, server
from tests.stores import ROOT

PASSWORDS: Final = {"database": "planted-db-secret", "login": "planted-login-secret", "s3": "planted-s3-secret"}
BUCKET: Final = "runs"
USER: Final = "runner"


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
        with environment(own):
            stack.enter_context(server(command, mlflow, folder, "/health"))
        yield Team(folder, database, s3, mlflow)


@contextmanager
def environment(own: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(own)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _make_bucket(port: int) -> None:
    import boto3

    with environment(s3_surroundings(port)):
        boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}").create_bucket(Bucket=BUCKET)


def passwords_in_bucket(port: int) -> list[str]:
    import boto3

    faults = []
    with environment(s3_surroundings(port)):
        client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}")
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
            for each in page.get("Contents", ()):
                if each["Size"] < 1 << 22:
                    content = client.get_object(Bucket=BUCKET, Key=each["Key"])["Body"].read()
                    faults += [f"{each['Key']} has one" for text in PASSWORDS.values() if text.encode() in content]
    return faults
