"""How much one visitor may send."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

MOST_PICTURES: Final = 8  # uploaded at once
LARGEST_REQUEST: Final = 120_000_000  # bytes: eight pictures of 10 MB in base64
LARGE_REQUEST: Final = 16_000_000  # of those above, one is read at a time: parsing takes several times its length


def one_large_request_at_a_time(app: WSGIApplication) -> WSGIApplication:
    """Return the application, to which large requests come one after the other, whatever the number of threads."""
    turn = threading.Lock()

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if int(environ.get("CONTENT_LENGTH") or 0) <= LARGE_REQUEST:
            return app(environ, start_response)
        with turn:
            return app(environ, start_response)

    return answer
