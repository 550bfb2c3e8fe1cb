"""Caches of this process: loaded models, and uploads, which are kept in memory alone. Both are bounded."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from cachetools import FIFOCache, LRUCache

from dashboard.sessions import visitor

if TYPE_CHECKING:
    from vlm_core.models.categoriser import Categoriser

T = TypeVar("T")
MOST_MODELS: Final = 4
MOST_UPLOADED_BYTES: Final = 96_000_000  # of all visitors together
BYTES_BESIDE: Final = 1000  # that a kept upload takes beside its own: names, and the tables that find it
MOST_MADE: Final = 128  # thumbnails, fitted pictures and predictions of uploads, some 100 KB each


class ModelCache:
    """The most recently used models, four at most. One works at a time: they share the processor's cores."""

    def __init__(self, resolve: Callable[[str], Path], most: int = MOST_MODELS) -> None:
        self._resolve = resolve
        self._models: LRUCache[str, Categoriser] = LRUCache(most)
        self._turn = threading.Lock()

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._models

    def use(self, run_id: str, act: Callable[[Categoriser], T]) -> T:
        """Return what `act` makes of the run's model, one caller at a time. Raises UserError for a run without one."""
        with self._turn:
            return act(self._model(run_id))

    def _model(self, run_id: str) -> Categoriser:
        from vlm_core.models.saved import load_categoriser

        if run_id not in self._models:
            folder = self._resolve(run_id)
            if len(self._models) >= self._models.maxsize:  # before loading, so that memory never holds one too many
                self._models.popitem()
            self._models[run_id] = load_categoriser(folder)
        return self._models[run_id]


class Uploads:
    """Bytes of uploads in memory, and what was made of them; the oldest are dropped first.

    They have names that nobody can guess, and only the browser that sent them is given them.
    """

    def __init__(self, most_bytes: int = MOST_UPLOADED_BYTES) -> None:
        self._uploads: FIFOCache[tuple[str, str], bytes] = FIFOCache(
            most_bytes, getsizeof=lambda data: len(data) + BYTES_BESIDE
        )
        self._made: LRUCache[tuple[str, str, Hashable], Any] = LRUCache(MOST_MADE)
        self._lock = threading.Lock()

    def put(self, data: bytes) -> str:
        """Store the bytes and return their name."""
        name = secrets.token_urlsafe(16)
        with self._lock:
            self._uploads[visitor(), name] = data
        return name

    def get(self, name: str) -> bytes | None:
        """Return the bytes of that name; None if they have been dropped, or another browser sent them."""
        with self._lock:
            return self._uploads.get((visitor(), name))

    def made(self, name: str, what: Hashable, make: Callable[[], T]) -> T:
        """Return what `make` made of an upload, which is remembered: a large picture is decoded once, not per model."""
        key = (visitor(), name, what)
        with self._lock:
            if key in self._made:
                remembered: T = self._made[key]
                return remembered
        value = make()
        with self._lock:
            self._made[key] = value
        return value
