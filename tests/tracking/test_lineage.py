"""Which products a run was tested on, as files."""

from types import SimpleNamespace

import numpy as np
import pandas as pd

from vlm_core.tracking.lineage import write_subsets


def test_which_test_products_are_new_to_the_model_is_a_table(tmp_path):
    catalogue = SimpleNamespace(products=pd.DataFrame({"product_id": ["=1", "2", "3"]}))
    split = SimpleNamespace(test=np.array([2, 0]))
    write_subsets(catalogue, split, {"unseen": np.array([True, False])}, tmp_path)
    assert (tmp_path / "test_products.csv").read_text() == "id,unseen\n3,1\n'=1,0\n"
