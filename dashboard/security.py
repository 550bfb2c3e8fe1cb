"""Security headers for every response, and a login wherever other machines can reach the dashboard."""

from __future__ import annotations

import hmac
import ipaddress
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import urlsplit

from dash import Dash
from dash.exceptions import DashException, DependencyException
from flask import Response, request

from vlm_core.errors import UserError

USER: Final = "DASHBOARD_USER"
PASSWORD: Final = "DASHBOARD_PASSWORD"  # the name of a variable
SHORTEST_PASSWORD: Final = 8
CALLBACKS: Final = "/_dash-update-component"
# What a callback raises when it is sent values of another type or shape than its page's
_ODD_REQUESTS: Final = (
    *(TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError),
    *(DashException, UserError),
)
_log = logging.getLogger(__name__)


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach what listens there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def credentials(host: str, environment: Mapping[str, str] = os.environ) -> tuple[str, str] | None:
    """Return user and password; None on loopback where none are set. Raises UserError where they are missing."""
    user, password = environment.get(USER, ""), environment.get(PASSWORD, "")
    if is_loopback(host) and not (user or password):
        return None
    if not user or len(password) < SHORTEST_PASSWORD:
        raise UserError(
            f"--host {host} opens the dashboard to other machines: set {USER} and {PASSWORD} (of at least "
            f"{SHORTEST_PASSWORD} characters) in the environment, or omit --host to listen on 127.0.0.1 only."
        )
    return user, password


def protect(app: Dash, login: tuple[str, str] | None) -> None:
    """Refuse strangers before anything of a request is read, and send security headers with every response.

    With a login, its user and password are asked for. Without one, only this machine can connect, but a web page in its
    browser could, too, under a name that is made to mean this machine (DNS rebinding): the name must be a loopback one.
    """

    def refuse_strangers() -> Response | None:
        if login and not _is_authorised(login):
            challenge = {"WWW-Authenticate": 'Basic realm="dashboard", charset="UTF-8"'}
            return Response("Log in with user and password.", 401, challenge)
        if not login and not is_loopback(_host_name()):
            text = f"Open http://127.0.0.1, or set {USER} and {PASSWORD} to reach the dashboard under another name."
            return Response(text, 400)
        return None

    server = app.server
    server.before_request_funcs.setdefault(None, []).insert(0, refuse_strangers)  # Dash's own parse the body
    for kind in _ODD_REQUESTS:
        server.register_error_handler(kind, _refuse_odd_callback)
    headers: dict[str, str] = {}

    def add_headers(response: Response) -> Response:
        if not headers:  # Dash adds its own inline scripts with the first request
            headers.update(_headers(app.csp_hashes()))
        response.headers.update(headers)
        return response

    server.after_request(add_headers)


def _is_authorised(login: tuple[str, str]) -> bool:
    """Return whether the request has user and password; a header that cannot be read has neither."""
    given = request.authorization
    if given is None or given.type != "basic":
        return False
    return hmac.compare_digest(f"{given.username}:{given.password}".encode(), ":".join(login).encode())


def _host_name() -> str:
    """Return the name under which the request asks for the dashboard, without its port; "" where it is broken."""
    try:
        return urlsplit(f"//{request.headers.get('Host', '')}").hostname or ""
    except ValueError:
        return ""


def _refuse_odd_callback(error: Exception) -> Response:
    """Answer a callback that fails over what it was sent; the log has the traceback. Other errors are raised again."""
    if isinstance(error, DependencyException):  # a script or style sheet that no component has
        return Response("There is no such file.", 404)
    if request.path != CALLBACKS:
        raise error
    _log.warning("a callback could not be answered", exc_info=error)
    return Response("This request has another form than the dashboard's own.", 400)


def _headers(script_hashes: Sequence[str]) -> dict[str, str]:
    from secure import ContentSecurityPolicy, Secure, XFrameOptions

    policy = (
        ContentSecurityPolicy()
        .default_src("'self'")
        .script_src("'self'", *script_hashes)
        .style_src("'self'", "'unsafe-inline'")  # Mantine, Plotly and AG Grid style their elements in place
        .img_src("'self'", "data:", "blob:")
        .font_src("'self'", "data:")
        .connect_src("'self'")
        .object_src("'none'")
        .base_uri("'none'")
        .form_action("'self'")
        .frame_ancestors("'none'")
    )
    headers = {**Secure.with_default_headers().headers, **Secure(csp=policy, xfo=XFrameOptions().deny()).headers}
    headers.pop(
        "Strict-Transport-Security", None
    )  # the dashboard itself speaks http; a proxy that adds https adds this
    return headers
