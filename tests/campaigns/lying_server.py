"""A server in the place of MLflow's that lies."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

MIB: Final = 1 << 20


class Liar(BaseHTTPRequestHandler):
    """A server that answers as MLflow's would not; `lie` says how."""

    lie = ""

    def _answer(self) -> None:
        run = {
            "info": {"run_id": "a" * 32, "run_uuid": "a" * 32, "experiment_id": "0", "status": "FINISHED"},
            "data": {"metrics": [{"key": "test_macro_f1", "value": 7e300, "timestamp": -1, "step": -1}], "tags": []},
        }
        experiment = {"experiment_id": "0", "name": "<script>window.owned=1</script>", "lifecycle_stage": "active"}
        bodies: dict[str, bytes] = {
            "HTML": b"<html><script>window.owned=1</script></html>",
            "other JSON": b"[1, 2, 3]",
            "other types": json.dumps({"runs": 7, "experiments": {"a": 1}}).encode(),
            "deep JSON": b"[" * 1_000_000,
            "endless pages": json.dumps(
                {"runs": [run] * 250, "experiments": [experiment], "next_page_token": "x"}
            ).encode(),
            "gzip that swells": gzip.compress(bytes(300 * MIB), 1),
        }
        if self.lie in ("drip", "endless"):
            return self._go_on_for_ever()
        if self.lie == "elsewhere":
            self.send_response(302)
            self.send_header("Location", "file:///etc/passwd")
            return self.end_headers()
        if self.lie == "itself":
            self.send_response(302)
            self.send_header("Location", self.path)
            return self.end_headers()
        self.send_response(500 if self.lie == "500" else 200)
        body = bodies.get(self.lie, b"{}")
        self.send_header("Content-Type", "application/json")
        if self.lie.startswith("gzip"):
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _go_on_for_ever(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        ended = time.monotonic() + 80
        while time.monotonic() < ended:
            self.wfile.write(b" " if self.lie == "drip" else b" " * MIB)
            time.sleep(0.5 if self.lie == "drip" else 0.005)

    do_GET = do_POST = _answer  # noqa: N815

    def handle(self) -> None:
        with suppress(OSError):
            super().handle()

    def log_message(self, *_: object) -> None:
        pass


LIES: Final = {
    **dict.fromkeys(
        ("HTML", "other JSON", "other types", "deep JSON", "500", "elsewhere", "itself"), "store unreachable"
    ),
    **dict.fromkeys(("drip", "endless", "endless pages", "gzip that swells"), r"store unreachable|\d runs?\b"),
}


@contextmanager
def lying_server(lie: str) -> Iterator[str]:
    """Run a server that lies in this way; give its address."""
    liar = ThreadingHTTPServer(("127.0.0.1", 0), type("Lying", (Liar,), {"lie": lie}))
    liar.daemon_threads = True
    threading.Thread(target=liar.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{liar.server_port}"
    finally:
        liar.shutdown()
        liar.server_close()
