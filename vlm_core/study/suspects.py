"""The label audit of a study, on frozen features of the weights before fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vlm_core.config import StudyConfig
from vlm_core.data import Data
from vlm_core.evaluation.predictions import Predictions
from vlm_core.study.cells import ENCODER, load_encoder
from vlm_core.study.results import LabelAuditResult, Suspect

MOST_AUDITED: Final = 10_000  # products; those of the first seed's split are always among them


def find_suspects(predictions: Mapping[str, Predictions], data: Data, config: StudyConfig) -> LabelAuditResult:
    """Audit up to 10,000 labelled products; with it comes macro-F1 of the predictions (by label) without the suspects.

    Raises UserError as `audit_labels` does.
    """
    from vlm_core.evaluation.label_audit import audit_labels, macro_f1_without

    split, rows = data.split, _rows(data, config.seed)
    audit = audit_labels(
        _features(rows, data, config), split.labels[rows], data.groups[rows], split.categories, seed=config.seed
    )
    products = data.catalogue.products.iloc[rows[list(audit.rows)]]
    parts = (products["product_id"], audit.given, audit.suggested, audit.scores, products["title"])
    suspects = tuple(Suspect(*each) for each in zip(*parts, strict=True))
    flagged = {suspect.product_id for suspect in suspects}
    without = {label: macro_f1_without(of_label, flagged) for label, of_label in predictions.items()}
    return LabelAuditResult(ENCODER, audit.audited, audit.macro_f1, suspects, without)


def _rows(data: Data, seed: int) -> NDArray[np.int64]:
    """Return catalogue rows (n,): those of the split, and a sample of the others up to the most that are audited."""
    split = data.split
    own = np.unique(np.concatenate([split.train, split.validation, split.test]))
    others = np.setdiff1d(np.flatnonzero(split.labels >= 0), own)
    sampled = np.random.default_rng(seed).permutation(others)[: max(0, MOST_AUDITED - len(own))]
    return np.concatenate([own, sampled])


def _features(rows: NDArray[np.int64], data: Data, config: StudyConfig) -> NDArray[np.float32]:
    """Return fused features (n, D) of the encoder before any fine-tuning."""
    from vlm_core.models.categoriser import Description, VisionLanguageCategoriser
    from vlm_core.models.simple_baselines import frozen_features

    tower = load_encoder(config)
    pictures = data.catalogue.pictures
    categories, canvas = data.split.categories, pictures.canvas
    description = Description(
        ENCODER, categories, canvas, "linear", "fused", {}, tower.resized_as(config.resize, "probe")
    )
    model = VisionLanguageCategoriser(tower.hf, tower.tokenizer, description)
    return frozen_features(model, pictures, rows)
