"""Evaluate a stored run's model on another labelled catalogue, in a run of its own."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vlm_core.config import Config
from vlm_core.data import load_catalogue
from vlm_core.errors import UserError
from vlm_core.inference import evaluate_rows, set_threads

if TYPE_CHECKING:
    from vlm_core.evaluation.evaluation import Evaluation

logger = logging.getLogger(__name__)


def run_evaluation(run_id: str, config: Config, root: Path) -> tuple[str, Evaluation]:
    """Evaluate the model of `run_id` on the catalogue of the settings; return a new run below it, and the result.

    Products that the model was pretrained, trained or selected on are left out. Raises UserError when none remains.
    """
    from vlm_core.catalogue.duplicates import near_duplicate_groups
    from vlm_core.catalogue.exposure import may_have_seen
    from vlm_core.models.saved import load_categoriser
    from vlm_core.tracking.opening import prepare_store
    from vlm_core.tracking.reader import RunReader
    from vlm_core.tracking.registry import resolve
    from vlm_core.tracking.writer import RunWriter

    prepare_store(config.experiment)
    set_threads(config.threads)
    model = load_categoriser(resolve(run_id))
    catalogue = load_catalogue(config, root)
    index = {name: number for number, name in enumerate(model.categories)}
    labels = catalogue.products[config.label].map(index).fillna(-1).to_numpy().astype(np.int64)
    has_category = labels >= 0
    seen = RunReader().seen_products(run_id, catalogue.fingerprint)
    is_new = ~catalogue.products["product_id"].isin(seen).to_numpy()
    if rule := RunReader().pretraining_rule(run_id, catalogue.fingerprint):
        groups = near_duplicate_groups(catalogue.products, catalogue.pictures)
        is_new &= ~may_have_seen(rule, catalogue.products["product_id"], groups)
    rows = np.flatnonzero(has_category & is_new)
    if not len(rows):
        raise UserError(
            f"Column {config.label} of {catalogue.name} has none of the model's categories "
            f"({', '.join(model.categories)}) on products that it was not trained on: use another label= or data=."
        )
    logger.info(
        f"Evaluating on {len(rows):,} products; left out: {int((~has_category).sum()):,} of other categories, "
        f"{int((~is_new).sum()):,} that the model was trained or selected on."
    )
    counts = np.bincount(labels[has_category], minlength=len(model.categories))
    evaluation = evaluate_rows(config, catalogue, model, rows, labels, counts / counts.sum())
    with RunWriter(config.experiment, f"evaluation on {catalogue.name}", parent=run_id, folder=root) as run:
        run.params({"evaluated_run": run_id, "data": config.data, "label": config.label, "seed": str(config.seed)})
        run.tags({"catalogue": catalogue.name, "fingerprint": catalogue.fingerprint})
        run.evaluation(evaluation, name="external")
    return run.run_id, evaluation
