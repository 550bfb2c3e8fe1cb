"""What the tracking room is handed by the others, small and made by their own code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from vlm_core.catalogue.splitting import Split, split_catalogue
from vlm_core.evaluation.evaluation import Evaluation, evaluate
from vlm_core.evaluation.predictions import Predictions
from vlm_core.evaluation.summary import Summary, summarise
from vlm_core.training.loop import EpochReport

CATEGORIES = ("Apparel", "Footwear", "Free Items")


@dataclass(frozen=True)
class MadeCatalogue:
    """The fields of a Catalogue that tracking reads."""

    name: str
    products: pd.DataFrame
    fingerprint: str


def make_catalogue(fingerprint: str = "c0ffee00c0ffee00", products: int = 60) -> Any:
    """Products of three categories, all with pictures of their own."""
    table = pd.DataFrame(
        {
            "product_id": [f"{10_000 + row}" for row in range(products)],
            "title": [f"product {row}" for row in range(products)],
            "masterCategory": [CATEGORIES[row % 3] for row in range(products)],
            "gender": ["Women" if row % 4 else "Men" for row in range(products)],
            "picture_digest": [f"{row:032x}" for row in range(products)],
        }
    )
    return MadeCatalogue("made", table, fingerprint)


def make_split(catalogue: Any, protocol: str = "holdout", seed: int = 0) -> Split:
    """The split that our own code draws of `make_catalogue`'s products."""
    return split_catalogue(
        catalogue.products,
        np.arange(len(catalogue.products)),
        label="masterCategory",
        categories=(),
        min_products=2,
        protocol=protocol,  # type: ignore[arg-type]
        per_category=0,
        train_per_category=24,
        seed=seed,
    )


def make_summary(loss: float, right: int) -> Summary:
    """A pass over nine products, of which the first `right` are answered rightly."""
    labels = np.arange(9) % 3
    return summarise(labels, np.where(np.arange(9) < right, labels, (labels + 1) % 3), CATEGORIES, loss)


def make_report(epoch: int, right: int = 6) -> EpochReport:
    """An epoch's report."""
    return EpochReport(
        epoch=epoch,
        epochs=3,
        training=make_summary(1.0 / epoch, 8),
        validation=make_summary(1.5 / epoch, right),
        learning_rate=1e-4 / epoch,
        seconds=0.5,
        best=True,
        stop=epoch == 3,
        early_stopping=f"epoch {epoch}: kept.",
    )


def make_evaluation(right: int = 20, *, texts: bool = False) -> Evaluation:
    """An evaluation of 30 products, of which the first `right` are answered rightly."""
    labels = np.arange(30) % 3
    answered = np.where(np.arange(30) < right, labels, (labels + 1) % 3)
    probabilities = np.full((30, 3), 0.1)
    probabilities[np.arange(30), answered] = 0.8
    predictions = Predictions(
        product_ids=np.array([f"{10_000 + row}" for row in range(30)]),
        labels=labels,
        log_probabilities=np.log(probabilities).astype(np.float32),
        categories=CATEGORIES,
        texts=tuple("a shirt" for _ in range(30)) if texts else None,
        text_categories=np.zeros(30, np.int64) if texts else None,
    )
    attributes = pd.DataFrame({"gender": ["Women" if row % 4 else "Men" for row in range(30)]})
    return evaluate(predictions, attributes, np.array([0.6, 0.39, 0.01]), resamples=100, seed=0)
