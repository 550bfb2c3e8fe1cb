"""How much one visitor may send."""

from __future__ import annotations

from typing import Final

MOST_PICTURES: Final = 8  # uploaded at once
LARGEST_REQUEST: Final = 120_000_000  # bytes: eight pictures of 10 MB in base64
