"""PROVISIONAL of the lead, replaced by helper 2."""
import numpy as np, pandas as pd
def near_duplicate_groups(products, pictures, progress):
    return pd.factorize(products["picture_digest"])[0].astype(np.int64)
