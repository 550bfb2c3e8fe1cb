"""What a model says that predicts a category and nothing else."""

from __future__ import annotations

from vlm_core.pixels.arrays import Pictures


class CategoryOnly:
    """A model without label levels and without generated text."""

    @property
    def hierarchy(self) -> None:
        """Return None: it predicts one label."""
        return None

    def levels(self, pictures: Pictures) -> None:
        """Return None: it predicts one label."""
        return None

    @property
    def writes_text(self) -> bool:
        """Return False, even if the head scores sentences."""
        return False

    def describe(self, pictures: Pictures) -> None:
        """Return None: it generates no text."""
        return None
