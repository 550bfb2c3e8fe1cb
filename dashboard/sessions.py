"""Which browser asks: a random name in a cookie, so that uploads belong to the browser that sent them."""

from __future__ import annotations

import re
import secrets
from typing import Final

from flask import Flask, Response, g, has_request_context, request

COOKIE: Final = "dashboard-session"
_NAME: Final = re.compile(r"[\w-]{43}")


def name_visitors(server: Flask) -> None:
    """Give each browser a name for as long as it is open."""

    def read_name() -> None:
        name = request.cookies.get(COOKIE, "")
        g.visitor = name if _NAME.fullmatch(name) else secrets.token_urlsafe(32)

    def send_name(response: Response) -> Response:
        if "visitor" in g and request.cookies.get(COOKIE) != g.visitor:
            response.set_cookie(COOKIE, g.visitor, httponly=True, samesite="Lax", secure=request.is_secure)
        return response

    server.before_request(read_name)
    server.after_request(send_name)


def visitor() -> str:
    """Return the name of the browser whose request is answered; "" outside of a request."""
    return str(g.get("visitor", "")) if has_request_context() else ""
