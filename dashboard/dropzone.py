"""Where pictures enter a page: dropped, pasted, chosen as files, or a sample that is clicked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import dash_mantine_components as dmc
from dash import ALL, Dash, Input, Output, State, ctx, dcc, html, no_update
from dash.development.base_component import Component
from flask import Response

from dashboard.components import aria, icon
from dashboard.model_cache import Uploads
from dashboard.upload_predictions import SAMPLES, receive, sample_picture


def dropzone(page: str, *, in_shell: bool = False) -> Component:
    """Return the place to drop pictures, with samples below; what arrives goes to the store `<page>-pictures`.

    A page whose pictures outlive it has that store `in_shell`.
    """
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
    stores = [dcc.Store(id=f"{page}-{name}") for name in ("paste", "drop", *(() if in_shell else ("pictures",)))]
    return html.Div([*stores, upload, hint, html.Div(samples, className="samples")])


def register_dropzone(app: Dash, page: str, uploads: Uploads) -> None:
    """Bind the page's dropzone; uploads stay in memory."""
    app.callback(
        Output(f"{page}-pictures", "data"),
        Output(f"{page}-upload", "contents"),
        Input(f"{page}-upload", "contents"),
        Input(f"{page}-paste", "data"),
        Input(f"{page}-drop", "data"),
        Input({"type": f"{page}-sample", "index": ALL}, "n_clicks"),
        State(f"{page}-upload", "filename"),
        prevent_initial_call=True,
    )(partial(take_pictures, page, uploads))


def take_pictures(
    page: str, uploads: Uploads, contents: Any, paste: Any, drop: Any, clicks: Any, names: Any
) -> tuple[Any, Any]:
    """Return the new pictures, however they arrived; the page then drops the upload's bytes.

    `drop` names all files of the latest drop in their order, and those among them that are too large to be read.
    """
    source = ctx.triggered_id
    if contents and f"{page}-upload.contents" in ctx.triggered_prop_ids:  # with `drop`, where both came at once
        return in_drop_order(receive(uploads, contents, names), drop), None
    if source == f"{page}-paste" and paste:
        return receive(uploads, [paste.get("contents")], ["pasted image"]), no_update
    if source == f"{page}-drop" and drop and len(drop["large"]) == len(drop["names"]):
        return in_drop_order([], drop), no_update
    if isinstance(source, dict) and any(clicks):
        place = int(source["index"])
        entry = {"name": f"sample {place + 1}", "token": uploads.put(sample_picture(place)), "sample": str(place)}
        return [entry], no_update
    return no_update, no_update


def in_drop_order(entries: Sequence[dict[str, str]], drop: Mapping[str, Any] | None) -> list[dict[str, str]]:
    """Return the entries of a drop, which arrive as they are read, in the order of its files, with the refused ones."""
    if not drop:
        return list(entries)
    refused = [{"name": str(name), "error": "The image is larger than 10 MB."} for name in drop["large"]]
    names = list(drop["names"])
    places = {name: place for place, name in reversed(list(enumerate(names)))}
    return sorted([*entries, *refused], key=lambda entry: places.get(entry["name"], len(names)))


def sample(place: int) -> Response:
    """Return a sample picture."""
    return Response(sample_picture(place), mimetype="image/jpeg", headers={"Cache-Control": "max-age=86400"})
