"""Evaluate a stored run's model on another labelled catalogue, in a run of its own."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vlm_core.catalogue.labels import counted, match_labels
from vlm_core.config import Config
from vlm_core.data import load_catalogue, words_of_labels
from vlm_core.errors import UserError, redact
from vlm_core.inference import evaluate_rows, set_threads
from vlm_core.workflows.run_corrections import fetch_corrections

if TYPE_CHECKING:
    import pandas as pd

    from vlm_core.catalogue.catalogue import Catalogue
    from vlm_core.evaluation.evaluation import Evaluation
    from vlm_core.evaluation.product_texts import TextReading
    from vlm_core.tracking.writer import RunWriter

logger = logging.getLogger(__name__)


def run_evaluation(reference: str, config: Config, root: Path) -> tuple[str, Evaluation]:
    """Evaluate the model of a run id or an address on the catalogue of the settings; return a new run and the result.

    The new run is below the one that trained the model.

    Products that the model was pretrained, trained or selected on are left out. Raises UserError when none remains.
    """
    from vlm_core.catalogue.duplicates import near_duplicate_groups
    from vlm_core.models.saved import load_categoriser
    from vlm_core.tracking.opening import prepare_store
    from vlm_core.tracking.reader import RunReader
    from vlm_core.tracking.registry import resolve, run_of
    from vlm_core.tracking.writer import RunWriter

    prepare_store(config.experiment)
    set_threads(config.threads)
    model = load_categoriser(resolve(reference))
    run_id = run_of(reference)
    fetch_corrections(config, root)
    catalogue = load_catalogue(config, root)
    column = catalogue.products[config.main_label]
    labels = _labels(column, model.categories, catalogue.name)
    has_category = labels >= 0
    reader = RunReader()
    is_new = ~reader.has_seen(run_id, catalogue)
    if exposure := reader.exposure(run_id):
        groups = near_duplicate_groups(catalogue.products, catalogue.pictures)
        is_new &= ~exposure.may_have_seen(catalogue, groups)
    rows = np.flatnonzero(has_category & is_new)
    if not len(rows):
        raise UserError(
            f"The model was pretrained, trained or selected on all {int(has_category.sum()):,} products of "
            f"{catalogue.name} that have one of its categories: evaluate it on others with data=."
        )
    logger.info(
        f"Evaluating on {len(rows):,} products; left out: {int((~has_category).sum()):,} of other categories or none, "
        f"{int((has_category & ~is_new).sum()):,} that the model was pretrained, trained or selected on."
    )
    counts = np.bincount(labels[has_category], minlength=len(model.categories))
    evaluation = evaluate_rows(config, catalogue, model, rows, labels, counts / counts.sum())
    with RunWriter(config.experiment, f"evaluation on {catalogue.name}", parent=run_id, folder=root) as run:
        run.params(
            {"evaluated_run": run_id, "data": redact(config.data), "label": config.label, "seed": str(config.seed)}
        )
        run.tags({"catalogue": catalogue.name, "fingerprint": catalogue.fingerprint})
        run.evaluation(evaluation, name="external")
        if model.reads:
            _log_texts(model.reads, config, catalogue, model.categories, rows, labels, run)
    return run.run_id, evaluation


def _log_texts(
    reads: TextReading,
    config: Config,
    catalogue: Catalogue,
    categories: Sequence[str],
    rows: NDArray[np.int64],
    labels: NDArray[np.int64],
    run: RunWriter,
) -> None:
    """Log how often the texts of the evaluated rows (n,) name their category, and that they may."""
    from vlm_core.evaluation.text_leak import describe_leak, measure_text_leak

    words = words_of_labels(config, catalogue, categories)
    leak = measure_text_leak(reads.texts(catalogue.products.iloc[rows]), labels[rows], words)
    run.params({"inputs": reads.inputs, "mask_label_words": str(bool(reads.masked))})
    run.metrics(leak.metrics())
    logger.info(describe_leak(leak, bool(reads.masked)))


def _labels(column: pd.Series[str], categories: Sequence[str], catalogue: str) -> NDArray[np.int64]:
    """Return the index of each product's category (n,), -1 for another or none; a match of other spelling is logged.

    Raises UserError, with what the column holds, when it has none of the categories.
    """
    counts = {str(name): int(count) for name, count in column[column != ""].value_counts().items()}
    matches = match_labels(counts, categories)
    others = {name: count for name, count in counts.items() if name not in matches}
    if not matches:
        raise UserError(
            f"The column {column.name} of {catalogue} has none of the model's categories ({', '.join(categories)}). It "
            f"has {counted(counts) or 'no category'}: rename these, or use another label= or data=."
        )
    if renamed := [f"{name} to {match}" for name, match in matches.items() if name != match]:
        logger.info(f"Categories of {catalogue} were matched to the model's: {', '.join(renamed)}.")
    if absent := [name for name in categories if name not in matches.values()]:
        logger.info(f"No product of {catalogue} has the model's categories {', '.join(absent)}.")
    if others:
        logger.warning(f"The model does not know these categories, which are left out: {counted(others)}.")
    index = {name: number for number, name in enumerate(categories)}
    found = {name: index[match] for name, match in matches.items()}
    return column.map(found).fillna(-1).to_numpy().astype(np.int64)
