"""Open the dashboard: `python -m dashboard --store sqlite:///mlflow.db --port 8050`."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from vlm_core.errors import UserError

THREADS = 8


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m dashboard", description="Compare runs and categorise pictures.")
    parser.add_argument(
        "--store", default="", help="tracking store (default: MLFLOW_TRACKING_URI, else mlflow.db here)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    parser.add_argument("--port", type=int, default=8050, help="port to listen on (default: 8050)")
    parser.add_argument("--mlflow_ui", default="", help="address of MLflow's own pages, for links")
    given = parser.parse_args(arguments)
    from dashboard.security import credentials, is_loopback

    # OpenMP's threads spin while they wait: beside a training, one picture took seconds instead of milliseconds
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    login = credentials(given.host)
    _check_free(given.host, given.port)
    import waitress

    from dashboard.app import create_app
    from dashboard.runs import Runs

    runs = Runs(given.store, Path.cwd())
    runs.start()
    store = given.store if given.store.startswith("http") else ""
    app = create_app(runs, mlflow_ui=given.mlflow_ui or store or "http://127.0.0.1:5000", login=login)
    reach = "this machine alone" if is_loopback(given.host) else "other machines too, with user and password"
    print(f"Dashboard on http://{given.host}:{given.port}/ for {reach}; Ctrl-C ends it.", flush=True)
    waitress.serve(app.server, host=given.host, port=given.port, threads=THREADS, ident=None)


def _check_free(host: str, port: int) -> None:
    """Nothing; raises UserError where the port cannot be listened on."""
    try:
        socket.create_server((host, port)).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"{host}:{port} cannot be listened on ({error}): choose another with --port.") from error


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(0)
