"""Values in MLflow's filter language."""

from __future__ import annotations

from vlm_core.errors import UserError


def quoted(text: str) -> str:
    """Return a text as a string of a filter. Raises UserError for what the language, without escapes, cannot express.

    No run has such an id: they come from an address or from the environment.
    """
    if "'" in text or "\\" in text:
        raise UserError(f"There is no run {text!r}.")
    return f"'{text}'"
