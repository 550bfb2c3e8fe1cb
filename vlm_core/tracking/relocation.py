"""A project folder that has moved: its store still holds the old place of every artifact, until it is mended.

MLflow makes each address absolute when it writes it, so that a store cannot simply hold relative ones.
"""

from __future__ import annotations

import logging
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vlm_core.errors import UserError
from vlm_core.tracking.artifacts import local_path
from vlm_core.tracking.database_file import sqlite_path
from vlm_core.tracking.store import connect, store_errors, store_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

_ARTIFACTS: Final = "mlruns"  # MLflow's folder of artifacts, beside the database
_MOST_EXPERIMENTS: Final = 1000
# Where MLflow's tables hold addresses of artifacts.
_COLUMNS: Final = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("trace_tags", "value"),
)


@dataclass(frozen=True)
class Move:
    """Where a store's artifacts were, and where they are: folders that hold `mlruns`."""

    old: Path
    new: Path

    def sentence(self, uri: str) -> str:
        """Return what is wrong with the store at that address, and the command that mends it."""
        places = f"--old {shlex.quote(str(self.old))} --new {shlex.quote(str(self.new))}"
        return (
            f"the tracking store {uri} points to artifacts in {self.old / _ARTIFACTS}, but its folder was moved or "
            f"copied to {self.new}: `python -m experiments.relocate {places}` mends the store."
        )


def find_move(uri: str, location: str) -> Move | None:
    """Return what happened to a store in a file since it got this address of artifacts; None if that still holds."""
    database, path = sqlite_path(uri), local_path(location)
    if database is None or path is None:
        return None
    new = database.resolve().parent
    if _ARTIFACTS not in path.parts:
        return None
    old = Path(*path.parts[: path.parts.index(_ARTIFACTS)])
    if old.resolve() == new or (old.exists() and not (new / path.relative_to(old)).exists()):
        return None
    return Move(old, new)


def require_place(uri: str, location: str) -> None:
    """Raise UserError where writing to this address of artifacts would write into a folder that was moved away."""
    if move := find_move(uri, location):
        raise UserError(move.sentence(uri))


def explain_missing(client: MlflowClient, uri: str) -> str:
    """Return why artifacts of the store at `uri` may be missing, if its folder was moved; else ""."""
    experiments = client.search_experiments(max_results=_MOST_EXPERIMENTS)
    moves = (find_move(uri, experiment.artifact_location) for experiment in experiments)
    return next((move.sentence(uri) for move in moves if move), "")


def relocate(old: Path, new: Path) -> int:
    """Replace the folder `old` by `new` in every address of artifacts of the store; return the number of addresses.

    All are changed, or none. Raises UserError for a store that is no file, and where no address begins with `old`.
    """
    import sqlalchemy
    from sqlalchemy.pool import NullPool

    uri = store_uri()
    if sqlite_path(uri) is None:
        raise UserError(f"the tracking store {uri} is no SQLite file: its server knows where its artifacts are.")
    connect(uri, to_write=True)
    changed = 0
    with store_errors(uri):
        engine = sqlalchemy.create_engine(uri, poolclass=NullPool)
        known = sqlalchemy.inspect(engine).get_table_names()
        with engine.begin() as connection:
            for (table, column), prefix in ((place, prefix) for place in _COLUMNS for prefix in ("", "file://")):
                if table not in known:
                    continue
                before, after = f"{prefix}{old}/{_ARTIFACTS}", f"{prefix}{new}/{_ARTIFACTS}"
                statement = sqlalchemy.text(
                    f"UPDATE {table} SET {column} = :after || substr({column}, :rest) "
                    f"WHERE {column} = :before OR substr({column}, 1, :rest) = :below"
                )
                given = {"after": after, "before": before, "below": f"{before}/", "rest": len(before) + 1}
                changed += connection.execute(statement, given).rowcount
    if not changed:
        raise UserError(f"no address in the tracking store {uri} begins with {old / _ARTIFACTS}: check old=.")
    return changed
