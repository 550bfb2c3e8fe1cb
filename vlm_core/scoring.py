"""What a categoriser answers on labelled catalogue rows, and how good that is."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from vlm_core.config import Config
from vlm_core.data import Say, load_catalogue, words
from vlm_core.errors import UserError
from vlm_core.progress import Progress

if TYPE_CHECKING:
    import pandas as pd

    from vlm_core.catalogue.catalogue import Catalogue
    from vlm_core.evaluation.evaluation import Evaluation
    from vlm_core.evaluation.predictions import Predictions
    from vlm_core.models.categoriser import Categoriser
    from vlm_core.pixels.store import PictureStore

PREDICTION_BATCH: Final = 64


def set_threads(threads: int) -> None:
    """Let PyTorch use so many threads, and no more than there are cores."""
    import torch

    torch.set_num_threads(min(threads, os.cpu_count() or 1))


def seconds_a_picture(model: Categoriser, pictures: NDArray[np.uint8]) -> float:
    """From decoded picture to answer: the median of three passes over `pictures` (n, H, W, 3), a picture."""
    passes = []
    for _ in range(3):
        started = time.perf_counter()
        model.log_probabilities(pictures)
        passes.append((time.perf_counter() - started) / len(pictures))
    return statistics.median(passes)


def evaluate_rows(
    config: Config,
    catalogue: Catalogue,
    model: Categoriser,
    rows: NDArray[np.int64],
    labels: NDArray[np.int64],
    prior: NDArray[np.float64],
    progress: Progress,
) -> Evaluation:
    """The evaluation of the model on catalogue rows (n,); labels (n_products,) are indices of its categories."""
    ids = catalogue.products["product_id"].to_numpy(str)
    predictions = _predict_rows(model, catalogue.pictures, rows, ids, labels, progress)
    return evaluate_answers(config, catalogue, predictions, rows, prior)


def evaluate_answers(
    config: Config, catalogue: Catalogue, predictions: Predictions, rows: NDArray[np.int64], prior: NDArray[np.float64]
) -> Evaluation:
    """The evaluation of a model's answers on catalogue rows (n,), by the subgroups that the settings name."""
    from vlm_core.evaluation.evaluation import evaluate

    attributes = [name for name in words(config.attributes) if name in catalogue.products.columns]
    subgroups = catalogue.products[attributes].iloc[rows].reset_index(drop=True)
    return evaluate(predictions, subgroups, prior, resamples=config.resamples, seed=config.seed)


def _predict_rows(
    model: Categoriser,
    pictures: PictureStore,
    rows: NDArray[np.int64],
    ids: NDArray[np.str_],
    labels: NDArray[np.int64],
    progress: Progress,
) -> Predictions:
    """The model's answers for catalogue rows (n,); ids and labels (n_products,) are the whole catalogue's."""
    from vlm_core.evaluation.predictions import Predictions
    from vlm_core.pixels.store import fit_pictures

    scores, texts, closest = [], [], []
    starts = range(0, len(rows), PREDICTION_BATCH)
    for start in progress(starts, "predicting", len(starts)):
        batch = fit_pictures(pictures.take(rows[start : start + PREDICTION_BATCH]), model.canvas)
        scores.append(model.log_probabilities(batch))
        if described := model.describe(batch):
            texts.extend(described[0])
            closest.append(described[1])
    return Predictions(
        product_ids=ids[rows],
        labels=labels[rows],
        log_probabilities=np.concatenate(scores),
        categories=model.categories,
        texts=tuple(texts) if texts else None,
        text_categories=np.concatenate(closest) if closest else None,
    )


def run_evaluation(run_id: str, config: Config, root: Path, progress: Progress, say: Say) -> tuple[str, Evaluation]:
    """The id of a new run below `run_id`, and the evaluation of that run's model on the catalogue of the settings.

    Products that the model learnt from, before or in its training, or was selected on are left out. Raises UserError
    when nothing remains.
    """
    from vlm_core.catalogue.duplicates import near_duplicate_groups
    from vlm_core.catalogue.exposure import may_have_seen
    from vlm_core.models.saved import load_categoriser
    from vlm_core.tracking.reader import RunReader
    from vlm_core.tracking.registry import resolve
    from vlm_core.tracking.writer import RunWriter

    set_threads(config.threads)
    model = load_categoriser(resolve(run_id))
    catalogue = load_catalogue(config, root, progress, say)
    index = {name: number for number, name in enumerate(model.categories)}
    labels = catalogue.products[config.label].map(index).fillna(-1).to_numpy().astype(np.int64)
    known = labels >= 0
    seen = RunReader().seen_products(run_id, catalogue.fingerprint)
    fresh = ~catalogue.products["product_id"].isin(seen).to_numpy()
    if rule := RunReader().pretraining_rule(run_id, catalogue.fingerprint):
        groups = near_duplicate_groups(catalogue.products, catalogue.pictures, progress)
        fresh &= ~may_have_seen(rule, catalogue.products["product_id"], groups)
    rows = np.flatnonzero(known & fresh)
    if not len(rows):
        raise UserError(
            f"{catalogue.name} has no product of the model's categories ({', '.join(model.categories)}) in the column "
            f"{config.label} that the model has not learnt from: choose another label or catalogue."
        )
    say(
        f"{len(rows):,} products; left out: {int((~known).sum()):,} of other categories, "
        f"{int((~fresh).sum()):,} that the model has learnt from or was selected on."
    )
    counts = np.bincount(labels[known], minlength=len(model.categories))
    evaluation = evaluate_rows(config, catalogue, model, rows, labels, counts / counts.sum(), progress)
    with RunWriter(config.experiment, f"evaluation on {catalogue.name}", parent=run_id, folder=root) as run:
        run.params({"evaluated_run": run_id, "data": config.data, "label": config.label, "seed": str(config.seed)})
        run.tags({"catalogue": catalogue.name, "fingerprint": catalogue.fingerprint})
        run.evaluation(evaluation, name="external")
    return run.run_id, evaluation


def caption_metrics(texts: Sequence[str], products: pd.DataFrame, columns: Sequence[str]) -> dict[str, float]:
    """How well the test products' written texts name their attributes, where the catalogue has them."""
    from vlm_core.evaluation.captions import caption_scores

    columns = [name for name in columns if name in products]
    if not columns:
        return {}
    truths = [tuple(map(str.lower, row)) for row in products[columns].itertuples(index=False)]
    scores = caption_scores(texts, truths, columns)
    return {f"test_caption_{name}": score for name, score in scores.items() if not math.isnan(score)}
