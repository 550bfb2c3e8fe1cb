"""Where pictures enter a page: dropped, pasted, chosen as files, or a sample that is clicked."""

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
    """Return the place to drop pictures, with samples below; what arrives goes to the store `<page>-pictures`."""
    limits = "JPEG, PNG, WebP or GIF; up to eight images, each up to 10 MB"
    words = [
        dmc.Text("Drop images here, paste one, or choose files", fw=550, ta="center"),
        dmc.Text(limits, size="xs", c="dimmed", ta="center"),
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
            **aria(label=f"Sample image {place + 1}"),
        )
        for place in range(SAMPLES)
    ]
    hint = dmc.Text("Or try a sample:", size="sm", c="dimmed", mt="md", mb="xs")
    stores = [dcc.Store(id=f"{page}-{name}") for name in ("pictures", "paste", "refused")]
    return html.Div([*stores, upload, hint, html.Div(samples, className="samples")])


def register_dropzone(app: Dash, page: str, uploads: Uploads) -> None:
    """Bind the page's dropzone; uploads stay in memory."""
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
    """Return the new pictures, however they arrived; the page then drops the upload's bytes."""
    source = ctx.triggered_id
    if source == f"{page}-upload" and contents:
        return receive(uploads, contents, names), None
    if source == f"{page}-paste" and paste:
        return receive(uploads, [paste.get("contents")], ["pasted image"]), no_update
    if source == f"{page}-refused" and refused:
        error = "The image is larger than 10 MB."
        return [{"name": str(name), "error": error} for name in refused["names"]], no_update
    if isinstance(source, dict) and any(clicks):
        place = int(source["index"])
        entry = {"name": f"sample {place + 1}", "token": uploads.put(sample_picture(place)), "sample": str(place)}
        return [entry], no_update
    return no_update, no_update


def sample(place: int) -> Response:
    """Return a sample picture."""
    return Response(sample_picture(place), mimetype="image/jpeg", headers={"Cache-Control": "max-age=86400"})
