"""Figures of a search: history, importances, parallel coordinates, slices and the Pareto front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from dashboard.searches import Search, Trial
from dashboard.theme import layout, no_data, plain_text, whole_numbers

_SYMBOLS: Final = {"complete": "circle", "pruned": "x", "running": "circle-open", "failed": "triangle-down"}
_GREY: Final = "#8A8F98"
_NO_SCORE: Final = "No trial has a score yet"
_SCORES: Final = ["#C9D8E6", "#0B559F"]
_WIDE: Final = 20.0  # highest over lowest, from which an axis is logarithmic


def history(search: Search, colour: str) -> go.Figure:
    """Return each trial's score in the order they began, and the best so far of the complete ones."""
    if all(trial.score is None for trial in search.trials):
        return no_data(_NO_SCORE)
    figure = go.Figure()
    complete = [trial for trial in search.trials if trial.state == "complete" and trial.score is not None]
    if complete:
        best = np.maximum.accumulate([trial.score or 0.0 for trial in complete])
        line = {"color": colour, "width": 2, "shape": "hv"}
        figure.add_scatter(x=[trial.number for trial in complete], y=best, mode="lines", line=line, name="best so far")
    for state, symbol in _SYMBOLS.items():
        trials = [trial for trial in search.trials if trial.state == state and trial.score is not None]
        if trials:
            marker = {"symbol": symbol, "size": 10, "color": colour if state == "complete" else _GREY}
            figure.add_scatter(
                x=[trial.number for trial in trials],
                y=[trial.score for trial in trials],
                mode="markers",
                marker=marker,
                name=state,
                hovertemplate="trial %{x}<br>macro-F1 %{y:.4f}<extra>" + state + "</extra>",
            )
    figure.update_layout(
        **layout(
            xaxis={"title": {"text": "trial"}, **whole_numbers(len(search.trials))},
            yaxis={"title": {"text": "validation macro-F1"}},
        )
    )
    return figure


def importance_bars(shares: Mapping[str, float], colour: str) -> go.Figure:
    """Return each setting's share of the score's variance."""
    names = list(shares)[::-1]
    texts = [plain_text(name) for name in names]
    figure = go.Figure(go.Bar(x=[shares[name] for name in names], y=texts, orientation="h", marker_color=colour))
    figure.update_traces(hovertemplate="%{y}: %{x:.1%}<extra></extra>", texttemplate="%{x:.0%}", textposition="auto")
    figure.update_layout(**layout(xaxis={"tickformat": ".0%", "title": {"text": "share of the score's variance"}}))
    return figure


def parallel(search: Search) -> go.Figure:
    """Return a line per trial through its settings, each from lowest to highest value, to its score; dark is high."""
    trials = [
        trial for trial in search.trials if trial.score is not None and len(trial.settings) == len(search.searched)
    ]
    if not trials:
        return no_data(_NO_SCORE)
    names = [*map(plain_text, search.searched), "macro-F1"]
    columns = [[trial.settings[name] for trial in trials] for name in search.searched]
    columns.append([trial.score or 0.0 for trial in trials])
    places = np.array([_places(column) for column in columns])  # (axes, trials)
    figure = go.Figure()
    for number, trial in enumerate(trials):
        figure.add_scatter(
            x=names,
            y=places[:, number],
            mode="lines+markers",
            line={
                "color": sample_colorscale(_SCORES, [places[-1, number]])[0],
                "width": 2,
                "dash": "solid" if trial.state == "complete" else "dot",
            },
            marker={"size": 6},
            customdata=[_text(column[number]) for column in columns],
            hovertemplate=f"trial {trial.number} ({trial.state})<br>%{{x}} %{{customdata}}<extra></extra>",
            showlegend=False,
        )
    for name, column in zip(names, columns, strict=True):
        for end, shift in ((0, -16), (-1, 16)):
            text = _text(sorted(column, key=_order)[end])
            figure.add_annotation(x=name, y=float(end == -1), text=text, yshift=shift, showarrow=False)
    figure.update_layout(**layout(yaxis={"visible": False, "range": [-0.15, 1.15]}, xaxis={"side": "top"}))
    return figure


def slices(search: Search, ranges: Mapping[str, Mapping[str, Any]], colour: str) -> go.Figure:
    """Return the score over each searched setting, on a log axis where the setting is searched on a log scale."""
    if all(trial.score is None for trial in search.trials):
        return no_data(_NO_SCORE)
    names = list(search.searched) or [""]
    figure = make_subplots(cols=len(names), shared_yaxes=True, horizontal_spacing=0.03)
    for column, name in enumerate(names, start=1):
        for state in ("complete", "pruned"):
            trials = [trial for trial in search.trials if trial.state == state and name in trial.settings]
            figure.add_scatter(
                x=[trial.settings[name] for trial in trials],
                y=[trial.score for trial in trials],
                mode="markers",
                marker={"color": colour if state == "complete" else _GREY, "size": 9, "symbol": _SYMBOLS[state]},
                name=state,
                legendgroup=state,
                showlegend=column == 1,
                customdata=[trial.number for trial in trials],
                hovertemplate="trial %{customdata}<br>%{x}<br>macro-F1 %{y:.4f}<extra></extra>",
                row=1,
                col=column,
            )
        numbers = all(not isinstance(trial.settings.get(name), str) for trial in search.trials)
        axis: dict[str, Any] = {"nticks": 5}
        values = [float(trial.settings[name]) for trial in search.trials if name in trial.settings] if numbers else []
        if values and ranges.get(name, {}).get("log") and min(values) > 0:
            ticks = np.geomspace(min(values), max(values), 4)
            texts = [f"{tick:.0f}" if tick >= 10 else f"{tick:.2g}" for tick in ticks]
            axis = {"type": "log", "tickvals": ticks, "ticktext": texts}
        figure.update_xaxes(title_text=plain_text(name), title_font_size=13, row=1, col=column, **axis)
    figure.update_layout(**layout())
    figure.update_yaxes(title_text="validation macro-F1", title_font_size=13, col=1)
    return figure


def pareto(search: Search, colour: str) -> go.Figure:
    """Return score against seconds per image, and the trials on the Pareto front."""
    trials = [
        trial for trial in search.trials if trial.state == "complete" and None not in (trial.score, trial.seconds)
    ]
    if not trials:
        return no_data("No trial is complete yet")
    front: list[Trial] = []
    for trial in sorted(trials, key=lambda trial: (trial.seconds or 0, -(trial.score or 0))):
        if not front or (trial.score or 0) > (front[-1].score or 0):
            front.append(trial)
    figure = go.Figure()
    line = {"color": _GREY, "dash": "dot", "shape": "hv"}
    figure.add_scatter(
        x=[t.seconds for t in front], y=[t.score for t in front], mode="lines", line=line, name="Pareto front"
    )
    figure.add_scatter(
        x=[trial.seconds for trial in trials],
        y=[trial.score for trial in trials],
        mode="markers",
        marker={"color": colour, "size": 10},
        name="trials",
        customdata=[trial.number for trial in trials],
        hovertemplate="trial %{customdata}<br>%{x:.4f} s per image<br>macro-F1 %{y:.4f}<extra></extra>",
    )
    figure.update_layout(
        **layout(xaxis={"title": {"text": "latency, s per image"}}, yaxis={"title": {"text": "validation macro-F1"}})
    )
    return figure


def _places(values: Sequence[float | str]) -> list[float]:
    """Return each value's place (0 to 1) on its axis: words alphabetically, wide ranges of numbers by logarithm."""
    if any(isinstance(value, str) for value in values):
        words = sorted(set(map(str, values)))
        return [words.index(str(value)) / max(1, len(words) - 1) for value in values]
    numbers = np.array(values, dtype=float)
    if len(numbers) and numbers.min() > 0 and numbers.max() / numbers.min() > _WIDE:
        numbers = np.log(numbers)
    span = float(np.ptp(numbers)) if len(numbers) else 0.0
    return [float(value) for value in (numbers - numbers.min()) / span] if span else [0.5] * len(numbers)


def _order(value: float | str) -> tuple[bool, float, str]:
    return (True, 0.0, value) if isinstance(value, str) else (False, value, "")


def _text(value: float | str) -> str:
    return plain_text(value) if isinstance(value, str) else f"{value:.4g}"
