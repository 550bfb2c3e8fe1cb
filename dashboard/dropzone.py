"""Where pictures come into a page: dropped, pasted, chosen from a disk, or a sample that is clicked."""

from __future__ import annotations

from functools import partial
from typing import Any

import dash_mantine_components as dmc
from dash import ALL, Dash, Input, Output, State, ctx, dcc, html, no_update
from dash.development.base_component import Component
from flask import Response

from dashboard.components import aria, icon
from dashboard.model_cache import Uploads
from dashboard.predictions import SAMPLES, receive, sample_picture


def dropzone(page: str) -> Component:
    """The place to drop pictures, and the samples below it; what came is in the store `<page>-pictures`."""
    bounds = "JPEG, PNG, WebP or GIF, up to eight, 10 MB and 40 megapixels each"
    words = [
        dmc.Text("Drop pictures here, paste one, or choose files", fw=550, ta="center"),
        dmc.Text(bounds, size="xs", c="dimmed", ta="center"),
    ]
    upload = dcc.Upload(
        dmc.Stack([icon("picture", 36), *words], align="center", gap=6),
        id=f"{page}-upload",
        multiple=True,
        className="dropzone",
        className_active="dropzone active",
    )
    samples = [
        html.Button(
            html.Img(src=f"/sample/{place}.jpg", alt=""),
            id={"type": f"{page}-sample", "index": place},
            className="sample",
            **aria(label=f"Sample picture {place + 1}"),
        )
        for place in range(SAMPLES)
    ]
    hint = dmc.Text("Or try one of these:", size="sm", c="dimmed", mt="md", mb="xs")
    stores = [dcc.Store(id=f"{page}-{name}") for name in ("pictures", "paste", "refused")]
    return html.Div([*stores, upload, hint, html.Div(samples, className="samples")])


def register_dropzone(app: Dash, page: str, uploads: Uploads) -> None:
    """Bind the page's dropzone; uploads live in memory as long as the app."""
    app.callback(
        Output(f"{page}-pictures", "data"),
        Output(f"{page}-upload", "contents"),
        Input(f"{page}-upload", "contents"),
        Input(f"{page}-paste", "data"),
        Input(f"{page}-refused", "data"),
        Input({"type": f"{page}-sample", "index": ALL}, "n_clicks"),
        State(f"{page}-upload", "filename"),
        prevent_initial_call=True,
    )(partial(take_pictures, page, uploads))


def take_pictures(
    page: str, uploads: Uploads, contents: Any, paste: Any, refused: Any, clicks: Any, names: Any
) -> tuple[Any, Any]:
    """The new pictures, whichever way they came; the page then lets go of the upload's bytes."""
    source = ctx.triggered_id
    if source == f"{page}-upload" and contents:
        return receive(uploads, contents, names), None
    if source == f"{page}-paste" and paste:
        return receive(uploads, [paste.get("contents")], ["pasted picture"]), no_update
    if source == f"{page}-refused" and refused:
        said = "The picture is larger than 10 MB."
        return [{"name": str(name), "error": said} for name in refused["names"]], no_update
    if isinstance(source, dict) and any(clicks):
        place = int(source["index"])
        entry = {"name": f"sample {place + 1}", "token": uploads.put(sample_picture(place)), "sample": str(place)}
        return [entry], no_update
    return no_update, no_update


def sample(place: int) -> Response:
    """A sample picture."""
    return Response(sample_picture(place), mimetype="image/jpeg", headers={"Cache-Control": "max-age=86400"})
