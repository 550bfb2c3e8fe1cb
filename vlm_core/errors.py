"""Errors whose text is meant for the user, and what of an address may be shown in texts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Final

# The extras of pyproject.toml by the names their libraries are imported under. A library of several is looked for in
# the first.
EXTRAS: Final = {
    "data": ("datasets", "kagglehub", "kagglesdk", "requests"),
    "excel": ("openpyxl",),
    "export": ("onnx", "onnxruntime", "onnxscript"),
    "search": ("optuna", "plotly"),
    "study": ("captum", "cleanlab", "fairlearn", "jinja2", "torchvision"),
    "dashboard": (
        *("captum", "dash", "dash_ag_grid", "dash_mantine_components", "flask", "flask_compress"),
        *("optuna", "plotly", "secure", "waitress"),
    ),
    "postgres": ("psycopg", "psycopg_binary"),
    "s3": ("boto3",),
    "ray": ("ray",),
}


# In a web address user and password end before the path; in a database's, a password may hold a slash. The bounds keep
# the time linear in a text's length.
_USERS: Final = re.compile(
    r"(https?://)[^\s/?#]*@|([a-z][a-z0-9+.-]{0,40}(?<!http)(?<!https)://)(?:[^\s:/@]*:\S{0,500}|[^\s/?#@]*)@",
    re.IGNORECASE,
)
_SECRETS: Final = re.compile(
    r"(?<![\w.-])((?:[\w.-]*(?:password|passwd|pwd|secret|token|credential|signature|odbc_connect"
    r"|(?:access|account|api|secret)[_-]?key(?:[_-]?id)?)|sig)=)[^\s&#'\"]+",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """Return a text, such as an address or a message, without the users, passwords and tokens of addresses in it."""
    if "@" in text:
        text = _USERS.sub(lambda match: match[1] or match[2], text)
    return _SECRETS.sub(r"\1***", text) if "=" in text else text


class UserError(Exception):
    """A problem that the user can fix: its text is one sentence that says how, and shows no password."""

    def __str__(self) -> str:
        """Return the sentence."""
        return redact(super().__str__())


class Diverged(UserError):
    """A training whose loss is not finite any more."""


class MissingExtra(UserError):
    """An optional library that is not installed."""

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(f"{module} is not installed: {installing(extra)}.")


def installing(extra: str) -> str:
    """Return, as part of a sentence, how an extra is installed."""
    return (
        f"run pip install 'vlm-product-categorisation[{extra}]', or make setup EXTRAS={extra} in a clone of the project"
    )


def require_extra(extra: str) -> None:
    """Raise MissingExtra unless every library of the extra is installed, before work that would need it at its end."""
    for module in EXTRAS[extra]:
        if find_spec(module) is None:
            raise MissingExtra(module, extra)


@contextmanager
def naming_extras() -> Iterator[None]:
    """Turn the ModuleNotFoundError of an optional library into a MissingExtra."""
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        for extra, modules in EXTRAS.items():
            if module in modules:
                raise MissingExtra(module, extra) from error
        raise
