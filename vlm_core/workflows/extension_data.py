"""What an extension starts from: the old run, its model and parts, and its catalogue joined with the new products."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import numpy as np
import pandas as pd

from vlm_core.catalogue.catalogue import find_prepared, joined_catalogue, load_prepared
from vlm_core.catalogue.duplicates import near_duplicate_groups
from vlm_core.catalogue.extending import OldParts, choose_new_categories, extend_split
from vlm_core.catalogue.labels import match_labels
from vlm_core.config import Config, ExtensionConfig
from vlm_core.config.aliases import current_value
from vlm_core.config.lists import split_list
from vlm_core.data import Data, evaluable_products, load_catalogue, log_removed
from vlm_core.errors import UserError
from vlm_core.workflows.run_corrections import fetch_corrections

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vlm_core.catalogue.catalogue import Catalogue
    from vlm_core.catalogue.exposure import Exposure
    from vlm_core.catalogue.splitting import Protocol
    from vlm_core.evaluation.predictions import Predictions
    from vlm_core.models.categoriser import VisionLanguageCategoriser
    from vlm_core.pixels.arrays import Rows
    from vlm_core.tracking.lineage import SplitPart
    from vlm_core.training.continual import Memory

logger = logging.getLogger(__name__)
PARTS: Final = ("training", "validation", "test")
# Settings that are the old run's unless others are given.
_INHERITED: Final = (
    *("label", "normalise_labels", "id_column", "picture_column", "title_column", "attributes", "caption_columns"),
    *("per_category", "train_per_category", "seed"),
)


@dataclass(frozen=True)
class OldRun:
    """A finished run with a classification head, and what is kept of its training."""

    run_id: str
    config: Config
    params: dict[str, str]
    tags: dict[str, str]
    model: VisionLanguageCategoriser
    memory: Memory | None
    parts: dict[str, SplitPart]
    exposure: Exposure | None
    predictions: Predictions  # for its test products


@dataclass(frozen=True)
class ExtensionData:
    """The joined catalogue and its split; `old` has empty parts where the old catalogue is not at hand."""

    data: Data
    old: OldParts
    new: Catalogue
    new_train: Rows  # (n,) distinct rows of the joined catalogue
    new_categories: tuple[str, ...]


def open_old_run(reference: str) -> OldRun:
    """Return the run that a setting names. Raises UserError for one that cannot learn more, with the way out."""
    from vlm_core.models.categoriser import VisionLanguageCategoriser
    from vlm_core.models.fusion import FusionHead
    from vlm_core.models.heads import LinearHead
    from vlm_core.models.saved import load_categoriser
    from vlm_core.tracking.reader import RunReader
    from vlm_core.tracking.registry import resolve, run_of
    from vlm_core.training.continual import Memory

    if not reference:
        raise UserError("run= is missing: name the run that learns more, such as models:/categoriser-clip@champion.")
    run_id = run_of(reference)
    folder = resolve(run_id)
    model = load_categoriser(folder)
    if not isinstance(model, VisionLanguageCategoriser):
        raise UserError(
            f"run={reference} is the baseline, whose features are not kept: train it again on all products."
        )
    if isinstance(model.head, FusionHead):
        raise UserError(
            f"run={reference} fuses picture and text by fusion={model.description.fusion}, whose head cannot be "
            "extended: train one with fusion=own, inputs=text or inputs=image to extend it."
        )
    if model.hierarchy:
        raise UserError(
            f"run={reference} predicts several labels ({', '.join(model.hierarchy.labels)}), and an extension adds "
            "categories of one: train it again on all products, or extend a run of one label."
        )
    if not isinstance(model.head, LinearHead):
        raise UserError(
            f"run={reference} has no classification head, but reads the categories' names: it knows new ones from "
            "mode=zero-shot with categories=; train one with objective=classify to extend it."
        )
    reader = RunReader()
    params = reader.params(run_id)
    return OldRun(
        run_id=run_id,
        config=Config.from_params(params),
        params=params,
        tags=reader.tags(run_id),
        model=model,
        memory=Memory.read(folder),
        parts={part: reader.split_part(run_id, part) for part in PARTS},
        exposure=reader.exposure(run_id),
        predictions=reader.predictions(run_id),
    )


def inherit(config: ExtensionConfig, old: OldRun) -> ExtensionConfig:
    """Return the settings, with the old run's where none was given. Raises UserError without a catalogue."""
    if "data" not in config.model_fields_set:
        raise UserError("data= is missing: name the table, folder or zip of the new products.")
    given = config.model_fields_set
    stored = {name: getattr(old.config, name) for name in _INHERITED if name not in given}
    return config.model_copy(update={**stored, "run": old.run_id})


def load_extension(config: ExtensionConfig, old: OldRun, root: Path) -> ExtensionData:
    """Load both catalogues and join what the old run used with the new products that it can learn. Raises UserError."""
    before = _old_catalogue(config, old, root)
    _check_old_products(config, old, before)
    new = _new_products(config, old, root)
    names, removed = choose_new_categories(
        new.column, new.groups, old.model.categories, split_list(config.categories), config.min_products
    )
    log_removed(removed)
    new = replace(new, column=new.column.where(new.column.isin(names), ""))
    old_rows = _rows_of(before, old) if before else {}
    used: Rows = np.unique(np.concatenate([np.empty(0, np.int64), *old_rows.values()]))
    label = old.parts["test"].label
    added = new.catalogue.products.drop(columns=[config.label]).assign(**{label: new.column}).iloc[new.rows]
    joined = joined_catalogue(before, used, new.catalogue, added, old.model.canvas, root)
    groups = near_duplicate_groups(joined.products, joined.pictures)
    parts = _old_parts(before, old, {part: np.searchsorted(used, rows) for part, rows in old_rows.items()})
    settings, seen = old.config.model_copy(update={"test_ids": config.test_ids}), _seen(old, before, used, new)
    may_test = evaluable_products(settings, new.catalogue, new.groups)[new.rows]
    evaluable = np.concatenate([~seen[: len(used)], may_test])
    split = extend_split(
        parts,
        joined.products,
        groups,
        label=label,
        counts=Counter(str(name) for name in new.column[new.rows]),
        removed=removed,
        per_category=config.per_category,
        train_per_category=config.train_per_category,
        seed=config.seed,
        evaluable=evaluable,
    ).exposed(seen)
    extension = ExtensionData(
        data=Data(joined, groups, split, evaluable),
        old=parts,
        new=new.catalogue,
        new_train=np.setdiff1d(split.train, parts.train),
        new_categories=split.categories[len(parts.categories) :],
    )
    _log_extension(extension, seen)
    return extension


@dataclass(frozen=True)
class _NewProducts:
    """The new catalogue, its near-duplicate groups, and each product's category; "" for what is not learnt."""

    catalogue: Catalogue
    groups: Rows
    column: pd.Series[str]  # under the old run's spelling

    @property
    def rows(self) -> Rows:
        """Return the rows that are learnt."""
        return np.flatnonzero(self.column != "")


def _new_products(config: ExtensionConfig, old: OldRun, root: Path) -> _NewProducts:
    """Load the new catalogue, without the products that the old run knows already. Raises UserError."""
    from vlm_core.tracking.reader import RunReader

    fetch_corrections(config, root)
    new = load_catalogue(config, root)
    label = old.parts["test"].label
    if config.label != label and label in new.products:
        raise UserError(
            f"label={config.label} is another column than that of run {old.run_id}, {label}, which {new.name} has as "
            f"well: use label={label}, or train a run on {config.label}."
        )
    column = _matched(new.products[config.label], old.model.categories)
    known = RunReader().has_seen(old.run_id, new, PARTS)
    if known.any():
        logger.info(f"{int((known & (column != '')).sum()):,} products that the run knows already are left out.")
    return _NewProducts(new, near_duplicate_groups(new.products, new.pictures), column.mask(known, ""))


def _seen(old: OldRun, before: Catalogue | None, used: Rows, new: _NewProducts) -> NDArray[np.bool_]:
    """Return whether the old run's weights may have been pretrained on each product (n,) of the joined catalogue."""
    if old.exposure is None:
        return np.zeros(len(used) + len(new.rows), dtype=bool)
    seen = [old.exposure.may_have_seen(new.catalogue, new.groups)[new.rows]]
    if before:
        groups = near_duplicate_groups(before.products, before.pictures)
        seen.insert(0, old.exposure.may_have_seen(before, groups)[used])
    return np.concatenate(seen)


def _log_extension(extension: ExtensionData, seen: NDArray[np.bool_]) -> None:
    split, parts = extension.data.split, extension.old
    logger.info(
        f"{len(extension.new_train):,} new products to learn from, {len(split.validation) - len(parts.validation):,} "
        f"for validation, {len(split.test) - len(parts.test):,} for test; new categories: "
        f"{', '.join(extension.new_categories) or 'none, more products of the old ones'}."
    )
    if split.leaking:
        logger.info("LEAKING: evaluated products are in training or pretraining, too: scores reward memory.")
    evaluated = np.concatenate([split.validation, split.test])
    counts = Counter(split.categories[place] for place in split.labels[evaluated[seen[evaluated]]])
    if counts:
        named = ", ".join(f"{name} ({count})" for name, count in counts.most_common())
        logger.info(
            f"The weights may have been pretrained on {sum(counts.values()):,} of the {len(evaluated):,} evaluated "
            f"products: {named}. Such a version cannot become champion; categories= names others to learn."
        )


def _old_catalogue(config: ExtensionConfig, old: OldRun, root: Path) -> Catalogue | None:
    """Return the old run's catalogue, as prepared here or as the settings name it; None if it is not at hand."""
    fingerprint = old.parts["test"].fingerprint
    if config.old_data:
        settings = old.config.model_copy(update={"data": config.old_data})
        fetch_corrections(settings, root)
        catalogue = load_catalogue(settings, root)
        if catalogue.fingerprint != fingerprint:
            raise UserError(
                f"old_data={config.old_data} is not the catalogue of run {old.run_id} ({old.parts['test'].catalogue}, "
                f"fingerprint {fingerprint}), but another or a changed one (fingerprint {catalogue.fingerprint})."
            )
        return catalogue
    folder = find_prepared(root, fingerprint)
    return load_prepared(folder) if folder else None


def _check_old_products(config: ExtensionConfig, old: OldRun, before: Catalogue | None) -> None:
    """Raise UserError where a method needs more of the old products than is at hand."""
    if before or (config.method != "joint" and old.memory) or config.method == "naive":
        return
    why = "needs all of its products" if config.method == "joint" else "needs them, and its model keeps no exemplars"
    raise UserError(
        f"The catalogue of run {old.run_id} ({old.parts['test'].catalogue}) is not prepared on this machine, and "
        f"method={config.method} {why}: name the catalogue with old_data=, or learn from the new products alone with "
        "method=naive."
    )


def _matched(column: pd.Series[str], categories: tuple[str, ...]) -> pd.Series[str]:
    """Return the column with the run's own spelling of its categories; what changes is logged."""
    matches = match_labels([str(name) for name in column.unique() if name], categories)
    if renamed := [f"{name} to {match}" for name, match in matches.items() if name != match]:
        logger.info(f"Categories were matched to the run's: {', '.join(renamed)}.")
    return column.map(lambda name: matches.get(name, name))


def _rows_of(catalogue: Catalogue, old: OldRun) -> dict[str, Rows]:
    """Return the catalogue rows (n,) of each part of the old run's split."""
    index = pd.Index(catalogue.products["product_id"])
    return {name: index.get_indexer(list(part.products)).astype(np.int64) for name, part in old.parts.items()}


def _old_parts(before: Catalogue | None, old: OldRun, places: dict[str, Rows]) -> OldParts:
    categories = old.model.categories
    counts = before.products[old.parts["test"].label].value_counts() if before else pd.Series(dtype=np.int64)
    none = np.empty(0, np.int64)
    return OldParts(
        protocol=cast("Protocol", current_value("protocol", old.parts["test"].protocol)),
        categories=categories,
        train=places.get("training", none),
        validation=places.get("validation", none),
        test=places.get("test", none),
        counts=counts.reindex(list(categories)).fillna(0).to_numpy().astype(np.int64),
    )
