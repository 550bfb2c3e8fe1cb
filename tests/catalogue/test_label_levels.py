"""Further labels of a split's products."""

import numpy as np
import pandas as pd
import pytest

from vlm_core.catalogue.label_levels import find_levels
from vlm_core.errors import UserError

PRODUCTS = pd.DataFrame({"department": ["B", "A", "", "C", "A"], "shop": ["x", "x", "x", "y", "x"]})


def test_a_levels_categories_are_those_of_training_products():
    (level,) = find_levels(PRODUCTS, ["department"], np.array([0, 1, 1, 2]))
    assert level.categories == ("A", "B") and level.labels.tolist() == [1, 0, -1, -1, 0]


def test_a_level_of_one_category_teaches_nothing():
    with pytest.raises(UserError, match=r"label column shop has x \(3\) among the training products"):
        find_levels(PRODUCTS, ["shop"], np.array([0, 1, 2]))
