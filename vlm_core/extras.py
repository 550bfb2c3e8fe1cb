"""Optional libraries: which extra of pyproject.toml brings each, and the sentence that says so where one is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Final

from vlm_core.errors import UserError

PROJECT: Final = "vlm-product-categorisation"
# By the names they are imported under. A library of two extras stands in both.
MODULES: Final = {
    "dashboard": (
        *("captum", "dash", "dash_ag_grid", "dash_auth", "dash_mantine_components", "flask"),
        *("optuna", "plotly", "secure", "statsmodels", "waitress"),
    ),
    "data": ("datasets", "kagglehub", "kagglesdk", "requests"),
    "export": ("onnx", "onnxruntime", "onnxscript"),
    "search": ("optuna",),
    "study": ("captum", "cleanlab", "fairlearn", "jinja2", "statsmodels", "torchvision"),
}


def require_extra(extra: str) -> None:
    """Raise UserError when a library of the extra is missing, before work begins that would need it at its end."""
    for module in MODULES[extra]:
        if find_spec(module) is None:
            raise UserError(_sentence(module, extra))


@contextmanager
def named_extras(preferred: str = "") -> Iterator[None]:
    """Turn the ModuleNotFoundError of an optional library into a UserError that names its extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        extras = [extra for extra, modules in MODULES.items() if module in modules]
        if not extras:
            raise
        raise UserError(_sentence(module, preferred if preferred in extras else extras[0])) from error


def _sentence(module: str, extra: str) -> str:
    return (
        f"{module} is not installed: run pip install '{PROJECT}[{extra}]', "
        f"or in a clone of the project make setup EXTRAS={extra}."
    )
