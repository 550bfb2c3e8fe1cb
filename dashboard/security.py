"""Security headers for every response, and a login wherever other machines can reach the dashboard."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping, Sequence
from typing import Final

from dash import Dash
from flask import Response

from vlm_core.errors import UserError

USER: Final = "DASHBOARD_USER"
PASSWORD: Final = "DASHBOARD_PASSWORD"  # the name of a variable
SHORTEST_PASSWORD: Final = 8


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
    """Ask for the login, if there is one, and send security headers with every response."""
    if login:
        import dash_auth

        dash_auth.BasicAuth(app, {login[0]: login[1]}, secret_key=os.urandom(32).hex())
    headers: dict[str, str] = {}

    def add_headers(response: Response) -> Response:
        if not headers:  # Dash adds its own inline scripts with the first request
            headers.update(_headers(app.csp_hashes()))
        response.headers.update(headers)
        return response

    app.server.after_request(add_headers)


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
