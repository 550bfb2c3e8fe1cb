"""Values in MLflow's filter language."""

import pytest

from vlm_core.errors import UserError
from vlm_core.tracking.filters import quoted


def test_a_value_cannot_end_its_string() -> None:
    assert quoted("abc-1") == "'abc-1'"
    for text in ("it's", "x' or '1' = '1", "a\\"):
        with pytest.raises(UserError, match="There is no run"):
            quoted(text)
