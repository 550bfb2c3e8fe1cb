"""One cluster for all tests of this folder."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.engine.clusters import running_cluster


@pytest.fixture(scope="package")
def cluster() -> Iterator[Any]:
    """A Ray cluster of three nodes with a core each."""
    with running_cluster() as started:
        yield started
