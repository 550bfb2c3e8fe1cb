"""Errors whose text is meant for the user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Final

# The extras of pyproject.toml by the names their libraries are imported under. A library of several is looked for in
# the first.
EXTRAS: Final = {
    "data": ("datasets", "kagglehub", "kagglesdk", "requests"),
    "export": ("onnx", "onnxruntime", "onnxscript"),
    "search": ("optuna", "plotly"),
    "study": ("captum", "cleanlab", "fairlearn", "jinja2", "statsmodels", "torchvision"),
    "dashboard": (
        *("captum", "dash", "dash_ag_grid", "dash_auth", "dash_mantine_components", "flask"),
        *("optuna", "plotly", "secure", "statsmodels", "waitress"),
    ),
}


class UserError(Exception):
    """A problem that the user can fix: its text is one sentence that says how."""


class Diverged(UserError):
    """A training whose loss is not finite any more."""


class MissingExtra(UserError):
    """An optional library that is not installed."""

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(
            f"{module} is not installed: run pip install 'vlm-product-categorisation[{extra}]', "
            f"or make setup EXTRAS={extra} in a clone of the project."
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
