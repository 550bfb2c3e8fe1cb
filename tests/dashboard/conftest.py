"""What pages read in their tests."""

import pytest

from dashboard.runs import Runs


@pytest.fixture
def runs(filled_store):
    """The runs of a store with trained models."""
    made = Runs(f"sqlite:///{filled_store}/mlflow.db", filled_store)
    made.refresh()
    return made
