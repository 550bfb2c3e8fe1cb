"""The cards of what models say of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import dash_mantine_components as dmc
from dash import dcc, html
from dash.development.base_component import Component

from dashboard.components import family_dot, icon, notice
from dashboard.predictions import answer_shown
from dashboard.runs import Runs
from dashboard.theme import family_colour
from vlm_core.evaluation.texts import UNKNOWN_CATEGORY


def result_cards(runs: Runs, results: Sequence[Mapping[str, Any]], threshold: float) -> Component | None:
    """A card a picture, with a column a model; a download below the heading."""
    if not results:
        return None
    rows = {run_id: runs.row(run_id) or {} for result in results for run_id in result.get("answers", {})}
    download = dmc.Button(
        "Download CSV", id="categorise-csv", leftSection=icon("download", 16), variant="default", size="sm"
    )
    head = dmc.Group([dmc.Title("Results", order=2, size="h4"), download], justify="space-between", mt="xl", mb="md")
    return html.Div([head, dmc.Stack([_card(rows, result, threshold) for result in results])])


def _card(rows: Mapping[str, Mapping[str, Any]], result: Mapping[str, Any], threshold: float) -> Component:
    name = html.Div(str(result["name"]), className="file-name truncate", title=str(result["name"]))
    if "error" in result:
        return dmc.Paper(
            [name, dmc.Box(notice("Not a picture we can take", result["error"], "error"), mt="xs")],
            withBorder=True,
            p="lg",
        )
    picture = html.Img(src=result["thumbnail"], alt=f"Uploaded picture {result['name']}", className="uploaded")
    columns = [
        _answer(rows[run_id], answer, threshold, run_id, result["source"])
        for run_id, answer in result["answers"].items()
    ]
    if not columns:
        columns = [dmc.Text("Choose a model.", c="dimmed")]
    answers = html.Div(columns, className="answers")
    return dmc.Paper(
        html.Div([html.Div([picture, name], className="upload"), answers], className="result"), withBorder=True, p="lg"
    )


def _answer(row: Mapping[str, Any], answer: Mapping[str, Any], threshold: float, run_id: str, source: str) -> Component:
    model = str(row.get("params.model", ""))
    title = dmc.Group(
        [family_dot(model), dmc.Text(str(row.get("name", "model")), size="sm", fw=600)], gap=6, wrap="nowrap"
    )
    if "error" in answer:
        return html.Div([title, notice("This model cannot answer", answer["error"], "error")])
    shown = answer_shown(answer, threshold)
    unknown = " unknown" if shown == UNKNOWN_CATEGORY else ""
    parts = [
        title,
        dmc.Text(shown, size="lg", fw=650, className=f"answer{unknown}"),
        html.Div([_bar(name, value, family_colour(model)) for name, value in answer["top"]], className="bars"),
    ]
    if "text" in answer:
        parts.append(
            html.Div([html.Q(str(answer["text"])), " → ", html.B(str(answer["text_category"]))], className="written")
        )
    parts.append(_looks(answer, run_id, source))
    return html.Div(parts)


def _looks(answer: Mapping[str, Any], run_id: str, source: str) -> Component:
    """The picture as the model saw it and, where that can be said, what spoke for its answer."""
    looks = [_captioned(answer["seen"], "The picture as the model saw it", "as the model saw it")]
    if answer["map"]:
        shown = _captioned(answer["map"], "Where the model looked for its answer", "where it looked")
        looks.append(dcc.Link(shown, href=f"/attention?models={quote(run_id)}&picture={quote(source)}"))
    time = dmc.Text(f"{answer['ms']:.0f} ms", size="xs", c="dimmed", className="figures", mt="xs")
    return html.Div([html.Div(looks, className="looks"), time])


def _captioned(source: str, alt: str, caption: str) -> Component:
    return html.Figure([html.Img(src=source, alt=alt, className="seen"), html.Figcaption(caption)])


def _bar(name: str, value: float, colour: str) -> Component:
    return html.Div(
        [
            html.Span(name, className="truncate", title=name),
            html.Span(html.Span(style={"width": f"{value:.2%}", "background": colour}), className="track"),
            html.Span(f"{value:.1%}", className="figures"),
        ],
        className="bar",
    )
