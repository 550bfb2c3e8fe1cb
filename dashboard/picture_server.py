"""Pictures of prepared catalogues for the pages, by catalogue and product: `/picture/<fingerprint>?product=<id>`."""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import numpy as np
from flask import Flask, Response, abort, request

if TYPE_CHECKING:
    from vlm_core.catalogue.catalogue import Catalogue


def picture_address(fingerprint: str, product: str) -> str:
    """Return the address of a product's picture."""
    return f"/picture/{fingerprint}?{urlencode({'product': product})}"


def has_pictures(root: Path, fingerprint: str) -> bool:
    """Return whether the catalogue lies prepared on this machine."""
    return find_catalogue(root, fingerprint) is not None


def find_catalogue(root: Path, fingerprint: str) -> Catalogue | None:
    """Return the prepared catalogue of that fingerprint below `root`; None where there is none."""
    from vlm_core.catalogue.catalogue import find_prepared

    folder = find_prepared(root, fingerprint)
    return _load(folder)[0] if folder else None


@lru_cache(maxsize=4)
def _load(folder: Path) -> tuple[Catalogue, dict[str, int]]:
    """Return the catalogue, and the row of each product."""
    from vlm_core.catalogue.catalogue import load_prepared

    catalogue = load_prepared(folder)
    return catalogue, {product: row for row, product in enumerate(catalogue.products["product_id"])}


def read_picture(root: Path, fingerprint: str, product: str) -> bytes | None:
    """Return the product's picture as PNG; None where the catalogue or the product is not on this machine."""
    from vlm_core.catalogue.catalogue import find_prepared

    folder = find_prepared(root, fingerprint)
    if folder is None:
        return None
    catalogue, rows = _load(folder)
    row = rows.get(product)
    return None if row is None else encode_picture(catalogue.pictures.take(np.array([row]))[0])


def serve_pictures(server: Flask, root: Path) -> None:
    """Add the route to the server."""

    @server.get("/picture/<fingerprint>")
    def picture(fingerprint: str) -> Response:
        data = read_picture(root, fingerprint, request.args.get("product", ""))
        if data is None:
            abort(404)
        return Response(data, mimetype="image/png", headers={"Cache-Control": "private, max-age=86400"})


def encode_picture(pixels: np.ndarray) -> bytes:
    """Return a picture (H, W, 3) as PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
