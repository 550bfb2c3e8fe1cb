"""Few bytes for each page: responses are compressed, and files whose address names their version are kept for good."""

from __future__ import annotations

from typing import Final

from cachetools import LRUCache
from flask import Flask, Request, Response, request
from flask_compress import Compress

_FILES: Final = ("/_dash-component-suites/", "/assets/")
_YEAR: Final = 31_536_000  # seconds
_MOST_FILES: Final = 96  # compressed files in memory: 3 MB
_SETTINGS: Final = {
    "COMPRESS_REGISTER": False,
    "COMPRESS_ALGORITHM": ["br", "gzip"],
    "COMPRESS_ALGORITHM_STREAMING": ["br"],
    "COMPRESS_BR_LEVEL": 6,
}


class _Compressed:
    """Compressed files by address, as Flask-Compress asks for them."""

    def __init__(self) -> None:
        self._files: LRUCache[str, bytes] = LRUCache(_MOST_FILES)

    def get(self, key: str) -> bytes | None:
        return self._files.get(key)

    def set(self, key: str, value: bytes) -> None:
        self._files[key] = value


def send_compactly(server: Flask) -> None:
    """Compress what the server sends, scripts once, and let browsers keep what never changes under its address."""
    server.config |= _SETTINGS
    of_pages, of_files = Compress(server), Compress(server)
    of_files.cache, of_files.cache_key = _Compressed(), _address

    def compress(response: Response) -> Response:
        is_file = request.path.startswith(_FILES)
        if is_file and response.status_code == 200 and "m" in request.args:  # Dash's mark of a version
            response.cache_control.no_cache = None
            response.cache_control.max_age = _YEAR
        return (of_files if is_file else of_pages).after_request(response)

    server.after_request(compress)


def _address(asked: Request) -> str:
    return asked.full_path
