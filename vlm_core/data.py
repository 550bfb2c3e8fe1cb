"""The data of one run: a prepared catalogue, its near-duplicate groups and its split."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vlm_core.atomic import write_atomically
from vlm_core.catalogue.splitting import Split, dataset_info, split_catalogue
from vlm_core.config import CatalogueSettings, SplitSettings

if TYPE_CHECKING:
    from vlm_core.catalogue.catalogue import Catalogue
    from vlm_core.catalogue.exposure import Exposure
    from vlm_core.catalogue.reading import Columns

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Data:
    """A catalogue, split for training and evaluation."""

    catalogue: Catalogue
    groups: NDArray[np.int64]  # (n_products,) near-duplicate group
    split: Split

    def exposed(self, exposure: Exposure | None) -> Data:
        """Return the data for weights that were pretrained on some of it; a leak is logged."""
        if exposure is None:
            return self
        split = self.split.exposed(exposure.may_have_seen(self.catalogue.products, self.groups))
        if share := split.leakage.pretraining:
            logger.info(
                f"LEAKING: {share:.1%} of the evaluated products may have been pretrained on: scores reward memory."
            )
        return replace(self, split=split)


def columns_of(config: CatalogueSettings) -> Columns:
    """Return the columns that the settings name."""
    from vlm_core.catalogue.reading import Columns

    return Columns(
        config.id_column, config.picture_column, config.title_column, config.label, split_list(config.attributes)
    )


def load_catalogue(config: CatalogueSettings, root: Path) -> Catalogue:
    """Load the catalogue that the settings name, prepared if need be. Raises UserError for unusable data."""
    from vlm_core.catalogue.catalogue import prepare_catalogue

    catalogue = prepare_catalogue(config.data, columns_of(config), root)
    logger.info(f"Catalogue {catalogue.name}: {catalogue.reading.summary()}")
    return catalogue


def load_data(config: SplitSettings, root: Path, catalogue: Catalogue | None = None) -> Data:
    """Load the catalogue that the settings name, unless it is given, and split it. Raises UserError for bad data."""
    from vlm_core.catalogue.duplicates import near_duplicate_groups

    catalogue = catalogue or load_catalogue(config, root)
    groups = near_duplicate_groups(catalogue.products, catalogue.pictures)
    split = split_catalogue(
        catalogue.products,
        groups,
        label=config.label,
        categories=split_list(config.categories),
        min_products=config.min_products,
        protocol=config.protocol,
        per_category=config.per_category,
        train_per_category=config.train_per_category,
        seed=config.seed,
    )
    for name, reason in split.removed.items():
        logger.info(f"Left out category {name}: {reason}.")
    logger.info(
        f"Protocol {split.protocol}: {len(split.train):,} training rows, {len(split.validation):,} for validation, "
        f"{len(split.test):,} for test, {len(split.categories)} categories."
    )
    if split.leaking:
        logger.info(
            f"LEAKING: {split.leakage.near:.1%} of the evaluated images are in the training set, too: "
            "scores reward memory."
        )
    return Data(catalogue, groups, split)


def split_list(text: str) -> tuple[str, ...]:
    """Return the parts of a comma-separated setting."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def write_dataset_info(data: Data, folder: Path) -> Path:
    """Write `dataset_info.json` into a folder and return its path."""
    catalogue = data.catalogue
    info = dataset_info(catalogue.products, data.split, catalogue.fingerprint, catalogue.reading.rows_read)
    path = folder / "dataset_info.json"
    write_atomically(path, lambda file: file.write(json.dumps(info, indent=2, ensure_ascii=False).encode()))
    return path
