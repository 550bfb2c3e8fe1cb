"""What a model of one label says of label levels."""

from __future__ import annotations

from vlm_core.pixels.arrays import Pictures


class OneLabel:
    """A model without label levels."""

    @property
    def hierarchy(self) -> None:
        """Return None: it predicts one label."""
        return None

    def levels(self, pictures: Pictures) -> None:
        """Return None: it predicts one label."""
        return None
