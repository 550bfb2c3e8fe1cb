"""What the frozen layers of a training cost, computed in it or read from the feature cache."""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan


@dataclass
class PrefixCost:
    """Rows and seconds of the frozen layers, over all views of a run."""

    computed_rows: int = 0
    computed_seconds: float = 0.0
    cached_rows: int = 0
    cached_seconds: float = 0.0  # what computing the cached rows took when they were filled; nan where not recorded

    def metrics(self, train_seconds: float) -> dict[str, float]:
        """Return what a run logs beside its `train_seconds`, which hold no cost of what came from the cache.

        `prefix_seconds` and `train_seconds_full` count cached rows as if they had been computed; both are left out
        where an earlier version filled the cache, without a record of its time.
        """
        spent = {"prefix_seconds_computed": self.computed_seconds}
        if isnan(self.cached_seconds):
            return spent
        prefix, full = self.computed_seconds + self.cached_seconds, train_seconds + self.cached_seconds
        return {**spent, "prefix_seconds": prefix, "train_seconds_full": full}

    def tags(self) -> dict[str, str]:
        """Return how many rows of features were computed, and how many came from the cache."""
        return {"prefix_rows_computed": str(self.computed_rows), "prefix_rows_cached": str(self.cached_rows)}
