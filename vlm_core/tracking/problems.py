"""What can be wrong with a tracking store: one clear sentence for each problem, and whether to wait is of use."""

from __future__ import annotations

import errno
import re
from typing import Final

from vlm_core.errors import installing, redact

_LOCKED: Final = ("database is locked", "database table is locked", "deadlock detected", "lock wait timeout")
_AWAY: Final = (
    *("max retries exceeded", "connection refused", "timed out", "failed to resolve", "could not connect"),
    *("can't connect", "connection reset", "[econnrefused]", "network is unreachable", "name or service not"),
    *("error code 502", "error code 503", "error code 504", "api request to", "connection aborted"),
    # of PostgreSQL and MySQL, while they stop and start
    *("server closed the connection", "terminating connection", "the database system is", "the connection is lost"),
    *("connection already closed", "connection is closed", "lost connection", "server has gone away"),
)
_REFUSED_LOGIN: Final = (
    *("unauthenticated", "invalid credentials", "error code 401", "error code 403", "status code 401"),
    "401 client error",
)
_REFUSED_DATABASE: Final = (
    "password authentication failed",
    "no password supplied",
    "access denied for user",
    "no pg_hba.conf",
)
_MODULE: Final = re.compile(r"no module named '([a-z0-9_]+)")
# Modules that MLflow and SQLAlchemy import for a database or an artifact store: which extra brings them, or what pip
# calls them.
_EXTRAS: Final = {"psycopg": "postgres", "boto3": "s3", "botocore": "s3"}
_PACKAGES: Final = {
    "psycopg2": "psycopg2-binary",
    "mysqldb": "mysqlclient",
    "azure": "azure-storage-blob",
    "google": "google-cloud-storage",
}


def problem_sentence(error: BaseException, uri: str) -> str | None:
    """Return what is wrong with the store at `uri` and what to do about it; None for what no user could fix."""
    text = _whole_text(error)
    for signs, sentence in _SENTENCES:
        if any(sign in text for sign in signs):
            match = _MODULE.search(text)
            module = match[1] if match else "the library of its kind"
            return sentence.format(place=redact(uri), module=module, installing=_installing(module))
    return None


def _installing(module: str) -> str:
    extra = _EXTRAS.get(module)
    return installing(extra) if extra else f"run pip install {_PACKAGES.get(module, module)}"


def is_locked(error: BaseException) -> bool:
    """Return whether another process holds the store."""
    return _signs(error) is _LOCKED


def is_away(error: BaseException) -> bool:
    """Return whether the store did not answer."""
    return _signs(error) is _AWAY


def refuses_login(error: BaseException) -> bool:
    """Return whether the store's server does not know the login."""
    return _signs(error) is _REFUSED_LOGIN


def _signs(error: BaseException) -> tuple[str, ...]:
    """Return the signs that decide which problem it is; none for an unknown one."""
    text = _whole_text(error)
    return next((signs for signs, _ in _SENTENCES if any(sign in text for sign in signs)), ())


def _whole_text(error: BaseException | None) -> str:
    """Return the lower-case messages of an error and of its causes, with system error names."""
    parts = []
    while error is not None:
        parts.append(str(error))
        if isinstance(error, OSError) and error.errno is not None:
            parts.append(f"[{errno.errorcode.get(error.errno, '')}]")
        error = error.__cause__ or error.__context__
    return "\n".join(parts).lower()


# First match wins: the system's precise messages come before a library's broad ones.
_SENTENCES: Final[tuple[tuple[tuple[str, ...], str], ...]] = (
    (
        ("[enospc]", "no space left", "database or disk is full", "[edquot]"),
        "the disk of the tracking store {place} or of its artifacts is full: free some space, then continue with "
        "resume=<run id>; what was logged is kept.",
    ),
    (
        ("readonly database", "read-only", "[erofs]", "[eacces]", "[eperm]", "permission denied"),
        "the tracking store {place} or its artifacts folder cannot be written to: make it writable, or set "
        "MLFLOW_TRACKING_URI to another one, such as sqlite:////tmp/mlflow.db.",
    ),
    (
        ("out-of-date database schema", "can't locate revision"),
        "the tracking store {place} was made by another version of MLflow: copy the file as a backup, then run "
        "`mlflow db upgrade {place}` with the newest of the two, or set MLFLOW_TRACKING_URI to a new store.",
    ),
    (
        _LOCKED,
        "the tracking store {place} is locked by another process: wait for it to end, then try again; resume=<run id> "
        "continues a run that it has ended.",
    ),
    (
        ("file is not a database", "database disk image is malformed"),
        "the tracking store {place} is not an MLflow database, or is damaged: move the file away, or set "
        "MLFLOW_TRACKING_URI to another store.",
    ),
    (
        ("unable to open database file", "[enoent]", "[enotdir]", "[eisdir]"),
        "the tracking store {place} or a file of its artifacts cannot be opened: check the path, or set "
        "MLFLOW_TRACKING_URI to another store.",
    ),
    (
        ("filesystem tracking backend", "file store"),
        "a folder such as {place} can no longer be a tracking store: set MLFLOW_TRACKING_URI=sqlite:///mlflow.db, or "
        "move its runs there with `mlflow migrate-filestore`.",
    ),
    (
        _REFUSED_DATABASE,
        "the database of the tracking store {place} refuses user or password: correct them in MLFLOW_TRACKING_URI, "
        "or where the database's client finds them (PostgreSQL's in PGPASSWORD or ~/.pgpass).",
    ),
    (
        ("unknown database", 'fatal:  database "', 'fatal:  role "'),
        "the database or the user that {place} names does not exist: create it, or correct MLFLOW_TRACKING_URI.",
    ),
    (
        ("unable to locate credentials", "invalidaccesskeyid", "signaturedoesnotmatch", "accessdenied", "nosuchbucket"),
        "the artifacts of the tracking store {place} cannot be reached: set AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY (MLFLOW_S3_ENDPOINT_URL for a server of your own), and check that the bucket exists.",
    ),
    (
        _REFUSED_LOGIN,
        "the tracking store {place} refuses the credentials: set MLFLOW_TRACKING_USERNAME and "
        "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN.",
    ),
    (
        _AWAY,
        "the tracking store {place} does not answer: start its server, or unset MLFLOW_TRACKING_URI to keep runs in "
        "mlflow.db here; resume=<run id> continues a run that was ended by this.",
    ),
    (
        ("no module named", "google-cloud-storage", "azure-storage"),
        "the tracking store {place} or its artifacts need {module}, which is not installed: {installing}.",
    ),
    (
        ("can't load plugin", "model registry functionality is unavailable", "unsupported uri"),
        "the tracking store {place} is of a kind that is not installed: install its database driver, or set "
        "MLFLOW_TRACKING_URI=sqlite:///mlflow.db.",
    ),
    (
        ("create table", "alter table", "duplicate column name", "no such table", "no such column"),
        "the tracking store {place} is incomplete, because a program was stopped while it made or changed its tables: "
        "if it holds no runs yet, delete the file, and the next command makes a new one; else bring back a backup, or "
        "set MLFLOW_TRACKING_URI to another store.",
    ),
)
