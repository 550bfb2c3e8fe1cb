"""What a page shows, as text, and how often to look: for tests that hold it against a store."""

import json

from hypothesis import HealthCheck, settings

FEW = settings(
    max_examples=2, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def text_of(component):
    """The whole component as JSON."""
    return json.dumps(component, default=lambda part: part.to_plotly_json(), ensure_ascii=False)


def said_by(component):
    """All texts that a reader sees in a component, joined."""
    if isinstance(component, str | int | float):
        return str(component)
    if isinstance(component, list | tuple):
        return " | ".join(filter(None, map(said_by, component)))
    parts = [getattr(component, name, None) for name in ("children", "title", "data")] if component is not None else []
    return " | ".join(
        said_by(part) for part in parts if isinstance(part, str | list | tuple | int) or hasattr(part, "to_plotly_json")
    )
