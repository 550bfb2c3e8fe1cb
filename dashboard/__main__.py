"""Open the dashboard: `python -m dashboard --store sqlite:///mlflow.db --port 8050`."""

from __future__ import annotations

import argparse
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from dashboard.limits import LARGEST_REQUEST
from vlm_core.errors import UserError, require_extra
from vlm_core.progress import printable

# Of waitress. A connection costs an attacker nothing: there are many, and those that ask nothing are closed soon.
SERVER: Final[dict[str, Any]] = {
    "threads": 8,
    "ident": None,
    "connection_limit": 500,
    "asyncore_use_poll": True,  # select() knows no file above 1,024
    "channel_timeout": 15,  # seconds without a byte
    "cleanup_interval": 5,
    "max_request_header_size": 65_536,
    "max_request_body_size": LARGEST_REQUEST,
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m dashboard", description="Compare runs and categorise images in the browser."
    )
    parser.add_argument(
        "--store", default="", help="tracking store (default: MLFLOW_TRACKING_URI, or mlflow.db in this folder)"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only)"
    )
    parser.add_argument("--port", type=int, default=8050, help="port to listen on (default: 8050)")
    parser.add_argument("--mlflow_ui", default="", help="address of the MLflow UI, for links to runs")
    options = parser.parse_args(arguments)
    require_extra("dashboard")
    from dashboard.security import credentials, is_loopback

    login = credentials(options.host)
    _check_free(options.host, options.port)
    import waitress

    from dashboard.app import create_app
    from dashboard.runs import Runs

    runs = Runs(options.store, Path.cwd())
    runs.start()
    store = options.store if options.store.startswith("http") else ""
    app = create_app(runs, mlflow_ui=options.mlflow_ui or store or "http://127.0.0.1:5000", login=login)
    reach = "this machine only" if is_loopback(options.host) else "other machines too, with user and password"
    print(f"Dashboard: http://{options.host}:{options.port}/ ({reach}). Press Ctrl-C to stop.", flush=True)
    waitress.serve(app.server, host=options.host, port=options.port, **SERVER)


def _check_free(host: str, port: int) -> None:
    """Raise UserError where the port is not free."""
    try:
        socket.create_server((host, port)).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"Port {port} of {host} cannot be used ({error}): choose another with --port.") from error


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(printable(f"error: {error}"))
    except KeyboardInterrupt:
        sys.exit(0)
