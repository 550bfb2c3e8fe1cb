"""Leaderboard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from dash import Dash
from dash.development.base_component import Component

from dashboard.components import page_header
from dashboard.runs import Runs

NAME: Final = "Leaderboard"
PATH: Final = "/"
ICON: Final = "trophy"
IN_NAVIGATION: Final = True


def layout(runs: Runs, query: Mapping[str, str]) -> Component:
    return page_header("Leaderboard", "")


def register(app: Dash, runs: Runs) -> None:
    pass
