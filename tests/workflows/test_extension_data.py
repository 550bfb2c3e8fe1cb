"""What is said of the products that an extension starts from."""

from types import SimpleNamespace

import numpy as np

from tests.messages import collected_messages
from vlm_core.workflows.extension_data import _log_extension


def test_evaluated_products_that_weights_may_have_seen_are_counted_by_category():
    split = SimpleNamespace(
        validation=np.array([0, 1]),
        test=np.array([2, 3]),
        labels=np.array([0, 1, 1, 0, 0]),
        categories=("A", "B"),
        leaking=True,
    )
    nothing = np.empty(0, np.int64)
    extension = SimpleNamespace(
        data=SimpleNamespace(split=split),
        old=SimpleNamespace(validation=nothing, test=nothing),
        new_train=np.array([4]),
        new_categories=("B",),
    )
    with collected_messages() as lines:
        _log_extension(extension, np.array([False, True, True, True, True]))
    assert (
        "pretrained on 3 of the 4 evaluated products: B (2), A (1). Such a version cannot become champion" in lines[-1]
    )
    with collected_messages() as lines:
        _log_extension(extension, np.zeros(5, dtype=bool))
    assert "pretrained on" not in lines[-1]
