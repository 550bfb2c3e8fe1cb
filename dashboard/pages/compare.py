"""Compare."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from dash import Dash
from dash.development.base_component import Component

from dashboard.components import page_header
from dashboard.runs import Runs

NAME: Final = "Compare"
PATH: Final = "/compare"
ICON: Final = "compare"
IN_NAVIGATION: Final = True


def layout(runs: Runs, query: Mapping[str, str]) -> Component:
    return page_header("Compare", "")


def register(app: Dash, runs: Runs) -> None:
    pass
