"""The data of one run: a prepared catalogue, its near-duplicate groups and its split."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from vlm_core.catalogue.label_levels import find_levels
from vlm_core.catalogue.labels import counted
from vlm_core.catalogue.reading import SHORTENED, Refusal, is_shortened, number_of
from vlm_core.catalogue.splitting import KEEPS_PARTS, Split, dataset_info, split_catalogue
from vlm_core.config import CatalogueSettings, PreparationSettings, TextColumns, TrainingSettings
from vlm_core.config.lists import split_list
from vlm_core.errors import UserError
from vlm_core.evaluation.subsets import MEANING
from vlm_core.files.addresses import local_path
from vlm_core.files.atomic import write_atomically

if TYPE_CHECKING:
    import pandas as pd

    from vlm_core.catalogue.catalogue import Catalogue
    from vlm_core.catalogue.exposure import Exposure
    from vlm_core.catalogue.reading import Columns
    from vlm_core.evaluation.product_texts import TextReading

logger = logging.getLogger(__name__)
SAMPLE: Final = "sample"  # the embedded catalogue
CORRECTIONS: Final = "corrections.csv"  # a run's artifact


@dataclass(frozen=True)
class Data:
    """A catalogue, split for training and evaluation."""

    catalogue: Catalogue
    groups: NDArray[np.int64]  # (n_products,) near-duplicate group
    split: Split
    evaluable: NDArray[np.bool_]  # (n_products,) what holdout may validate and test on: no weights known here saw it

    def test_subsets(self) -> dict[str, NDArray[np.bool_]]:
        """Return and log which test products (n,) are new to models, by what to; none where all of them are new to all.

        `unseen`: no weights known here were pretrained on them, or on a near-copy; `new`: nor has training a near-copy.
        """
        split = self.split
        unseen = self.evaluable[split.test]
        new = unseen & ~np.isin(self.groups[split.test], self.groups[split.train])
        subsets = {"unseen": unseen, "new": new}
        if (new == unseen).all():
            del subsets["new"]
        subsets = {name: rows for name, rows in subsets.items() if rows.any() and not rows.all()}
        for name, rows in subsets.items():
            logger.info(f"Scored apart: {int(rows.sum()):,} of {len(rows):,} test products {MEANING[name]}.")
        return subsets

    @property
    def held_out(self) -> NDArray[np.int64]:
        """Return the rows of all evaluable products that neither training nor validation has, nor a near-copy."""
        used = self.groups[np.concatenate([self.split.train, self.split.validation])]
        return np.flatnonzero((self.split.labels >= 0) & self.evaluable & ~np.isin(self.groups, used))

    def exposed(self, exposure: Exposure | None) -> Data:
        """Return the data for weights that were pretrained on some of it; a leak is logged."""
        if exposure is None:
            return self
        split = self.split.exposed(exposure.may_have_seen(self.catalogue, self.groups))
        if share := split.leakage.pretraining:
            logger.info(
                f"LEAKING: {share:.1%} of the evaluated products may have been pretrained on: scores reward memory."
            )
        return replace(self, split=split)


def columns_of(config: CatalogueSettings) -> Columns:
    """Return the columns that the settings name."""
    from vlm_core.catalogue.reading import Columns

    return Columns(
        config.id_column, config.picture_column, config.title_column, config.main_label, split_list(config.attributes)
    )


def load_catalogue(config: CatalogueSettings, root: Path) -> Catalogue:
    """Load the catalogue that the settings name, prepared if need be. Raises UserError for unusable data."""
    from vlm_core.catalogue.catalogue import prepare_catalogue

    catalogue = prepare_catalogue(
        config.data, columns_of(config), root, download=config.download, by_id=config.row_order == "id"
    )
    reading = catalogue.reading
    logger.info(f"Catalogue {catalogue.name}: {reading.summary()}")
    if reading.notes:
        logger.info(f"Assumed: {'; '.join(reading.notes)}.")
    if reasons := reading.first_reasons():
        logger.info(f"Left out: {reasons} All are listed in {catalogue.left_out}.")
    _warn_of_columns(config, catalogue)
    if shortened := next(filter(is_shortened, catalogue.products["product_id"]), ""):
        logger.warning(f"{catalogue.name} has ids {SHORTENED.format(shortened)}")
    catalogue = _correct(config, catalogue, root)
    for label in config.labels:
        catalogue = _normalise(config, catalogue, label)
    _warn_of_pictures(config, catalogue)
    return catalogue


def _warn_of_columns(config: CatalogueSettings, catalogue: Catalogue) -> None:
    """Warn of columns that the user asked for, but the table does not have; the usual ones may be missing.

    Raises UserError for a label without a column.
    """
    from vlm_core.catalogue.catalogue import no_column, own_columns

    asked = {"title_column": [config.title_column], "attributes": split_list(config.attributes)}
    known = own_columns(catalogue)
    for name in config.labels[:-1]:  # reading the table needs the last one
        if name not in catalogue.products:
            raise UserError(no_column("label", name, catalogue.name, known))
    for setting, names in asked.items():
        usual = split_list(type(config).model_fields[setting].default)
        if setting in config.model_fields_set:
            for name in names:
                if name and name not in (*known, *usual):
                    logger.warning(f"{no_column(setting, name, catalogue.name, known)} It is passed over.")


def text_columns(config: TextColumns, catalogue: Catalogue) -> tuple[str, ...]:
    """Return the columns of the prepared catalogue that hold the texts. Raises UserError for none, or the label."""
    from vlm_core.catalogue.catalogue import no_column, own_columns
    from vlm_core.evaluation.product_texts import TITLE

    named = split_list(config.text_columns)
    names = tuple(dict.fromkeys(TITLE if name == config.title_column else name for name in named or (TITLE,)))
    known = own_columns(catalogue)
    for name in names:
        if name in config.labels:
            raise UserError(f"text_columns={name} is the label itself, which a model must not read: leave it out.")
        if name not in known and named:
            raise UserError(no_column("text_columns", name, catalogue.name, known))
    if not any((catalogue.products[name] != "").any() for name in names if name in catalogue.products):
        raise UserError(
            f"{catalogue.name} has no title in the column {config.title_column}: name columns of texts with "
            "text_columns=, or use inputs=image."
        )
    return names


def text_reading(config: TrainingSettings, catalogue: Catalogue, categories: Sequence[str]) -> TextReading | None:
    """Return which texts a model reads, without its tokens; None for pictures alone. Raises UserError."""
    from vlm_core.evaluation.product_texts import TextReading

    if config.inputs == "image":
        return None
    columns = text_columns(config, catalogue)
    words = words_of_labels(config, catalogue, categories) if config.mask_label_words else {}
    return TextReading(config.inputs, columns, tuple(sorted(frozenset().union(*words.values()))))


def words_of_labels(
    config: CatalogueSettings, catalogue: Catalogue, categories: Sequence[str]
) -> dict[str, frozenset[str]]:
    """Return the words that name each category: its own, and those of its article types."""
    from vlm_core.evaluation.text_leak import label_words

    types = "".join(split_list(config.caption_columns)[-1:])
    return label_words(catalogue.products, config.main_label, types, categories)


def run_artifact(address: str) -> tuple[str, str] | None:
    """Return run id and path of an address such as runs:/<run id>/corrections.csv; None for the path of a file.

    runs:/<run id> alone means the corrections that the run was made with.
    """
    match = re.fullmatch(r"runs:/+([\w-]+)(?:/([\w./-]*))?", address)
    return (match[1], match[2] or CORRECTIONS) if match and ".." not in (match[2] or "").split("/") else None


def corrections_file(config: CatalogueSettings, root: Path) -> Path | None:
    """Return the file of the settings' corrections, in `root` for a run's artifact; None where there are none."""
    if not config.corrections:
        return None
    if artifact := run_artifact(config.corrections):
        return root / "data" / "corrections" / artifact[0] / artifact[1]
    return local_path("corrections", config.corrections)


def _correct(config: CatalogueSettings, catalogue: Catalogue, root: Path) -> Catalogue:
    """Return the catalogue with the settings' corrections; those that do not fit it are named."""
    from vlm_core.catalogue.catalogue import with_products
    from vlm_core.catalogue.corrections import apply_corrections, read_corrections

    path = corrections_file(config, root)
    if path is None:
        return catalogue
    ids = [name for name in (config.id_column, config.picture_column) if name]
    corrections, assumed = read_corrections(path)
    if assumed:
        logger.info(f"Assumed of the corrections: {'; '.join(assumed)}.")
    products = catalogue.products
    done = apply_corrections(products, products["product_id"], corrections, ids, config.title_column)
    undecided = f", {done.undecided:,} not decided (new is empty)" if done.undecided else ""
    logger.info(f"Corrections: {done.applied:,} applied, {done.already:,} in the table already{undecided}.")
    if done.stale:
        are_stale = number_of(
            len(done.stale),
            "correction does not fit the table and was not applied",
            "corrections do not fit the table and were not applied",
        )
        reasons = [f"{each.place}: {each.reason}" for each in done.stale]
        logger.warning(
            f"{are_stale}: {_listed(reasons, 5)}. {_list_stale(done.stale, path, root)} lists all. "
            "Take them out of the file, or write what the table holds now as old."
        )
    for label in config.labels:
        made = done.products.loc[~done.products[label].isin(["", *products[label]]), label]
        if created := [
            f"{name!r} ({count:,} product{'s' * (count > 1)})" for name, count in made.value_counts().items()
        ]:
            logger.warning(
                f"{path} creates {'the category' if len(created) == 1 else 'the categories'} {_listed(created)}, which "
                "the table did not have: if that is a slip, mend its column new."
            )
    return with_products(catalogue, done.products)


def _list_stale(stale: Sequence[Refusal], corrections: Path, root: Path) -> Path:
    """Write why each of these corrections was not applied into a CSV file, and return its path."""
    import pandas as pd

    from vlm_core.evaluation.spreadsheets import spreadsheet_text

    path = root / "data" / "corrections" / f"{corrections.stem}-not_applied.csv"
    rows = [(str(corrections), each.line, spreadsheet_text(each.reason)) for each in stale]
    text = pd.DataFrame(rows, columns=["file", "line", "reason"]).to_csv(index=False)
    write_atomically(path, lambda file: file.write(text.encode("utf-8", "backslashreplace")))
    return path


def _normalise(config: CatalogueSettings, catalogue: Catalogue, label: str) -> Catalogue:
    """Return the catalogue with one name for each category of a column, if the settings say so; otherwise warn."""
    from vlm_core.catalogue.catalogue import with_products
    from vlm_core.catalogue.labels import label_variants, misread_names, missing_texts, normalised, visible

    column = catalogue.products[label]
    counts = {str(name): int(count) for name, count in column.value_counts().items()}
    variants, missing = label_variants(column), missing_texts(column)
    if misread := [f"{name} is perhaps {meant}" for name, meant in misread_names(column).items()]:
        logger.warning(
            f"The column {label} was saved in a wrong encoding: {_listed(misread)}. Export the table again, as UTF-8."
        )
    found = [
        f"{counted({visible(name): counts[name] for name in names})} are written differently" for names in variants
    ]
    if missing:
        found.append(f"{counted({visible(name): counts[name] for name in missing})} may say that there is no category")
    if config.normalise_labels:
        catalogue = with_products(catalogue, catalogue.products.assign(**{label: normalised(column)}))
        done = [f"{', '.join(map(visible, names[1:]))} to {visible(names[0])}" for names in variants]
        done += [f"{', '.join(map(visible, missing))} to no category"] if missing else []
        if done:
            logger.info(f"Categories were merged in the column {label}: {_listed(done)}.")
    elif found:
        logger.warning(
            f"Each of these is a category of its own in the column {label}: {_listed(found)}. "
            "normalise_labels=true merges them."
        )
    if label == config.main_label and (without := int((catalogue.products[label] == "").sum())):
        logger.info(f"{number_of(without, 'product has', 'products have')} no category: neither trained nor tested on.")
    return catalogue


def _warn_of_pictures(config: CatalogueSettings, catalogue: Catalogue) -> None:
    """Warn of pictures that stand under many products."""
    from vlm_core.catalogue.duplicates import find_placeholders

    found = [
        f"one under {len(each.product_ids):,} products of {len(each.categories):,} "
        f"{'category' if len(each.categories) == 1 else 'categories'} (such as {', '.join(each.product_ids[:3])})"
        for each in find_placeholders(catalogue.products, config.main_label)
    ]
    if found:
        logger.warning(
            f"The same picture stands under many products: {_listed(found, 3)}. If it only says that there is none, "
            "leave these products out of the table."
        )


def _listed(texts: Sequence[str], most: int = 10) -> str:
    return "; ".join([*texts[:most], *([f"and {len(texts) - most:,} more"] if len(texts) > most else [])])


def load_data(config: PreparationSettings, root: Path, catalogue: Catalogue | None = None) -> Data:
    """Load the catalogue that the settings name, unless it is given, and split it. Raises UserError for bad data."""
    from vlm_core.catalogue.duplicates import near_duplicate_groups
    from vlm_core.catalogue.parts import given_parts

    catalogue = catalogue or load_catalogue(config, root)
    given = _parts_of_file(config, catalogue) if config.split else given_parts(catalogue.products)
    groups = near_duplicate_groups(catalogue.products, catalogue.pictures)
    evaluable = evaluable_products(config, catalogue, groups)
    split = split_catalogue(
        catalogue.products,
        groups,
        label=config.main_label,
        categories=split_list(config.categories),
        min_products=config.min_products,
        protocol=config.protocol,
        per_category=config.per_category,
        train_per_category=config.train_per_category if config.balance == "oversample" else 0,
        seed=config.seed,
        evaluable=evaluable,
        given=given,
    )
    split = replace(split, levels=find_levels(catalogue.products, config.labels[:-1], split.train))
    log_removed(split.removed)
    for level in split.levels:
        logger.info(f"Label {level.label}: {len(level.categories)} categories among the training products.")
    if given is not None:
        _log_parts(given, config)
    else:
        _log_unknown_parts(catalogue)
    logger.info(
        f"Protocol {split.protocol}: {len(split.train):,} training rows, {len(split.validation):,} for validation, "
        f"{len(split.test):,} for test, {len(split.categories)} categories."
    )
    if config.balance != "oversample":
        logger.info(f"balance={config.balance}: each training product stands once in an epoch.")
    if split.protocol == "holdout" and not split.reserved:
        logger.info("Any product may be tested on: no weights known here were pretrained on this catalogue.")
    elif split.protocol == "holdout":
        logger.info(
            f"{int(evaluable.sum()):,} of {len(evaluable):,} products may be tested on: weights may be, or have been, "
            "pretrained on the others."
        )
        evaluated = evaluable[np.concatenate([split.validation, split.test])]
        if seen := int((~evaluated).sum()):
            logger.info(
                f"{seen:,} of the {len(evaluated):,} evaluated products are among the others, as their categories have "
                "too few that may be tested on: a run whose weights were pretrained on them is marked as LEAKING."
            )
    if split.leaking:
        logger.info(
            f"LEAKING: {split.leakage.near:.1%} of the evaluated images are in the training set, too: "
            "scores reward memory."
        )
    return Data(catalogue, groups, split, evaluable)


def evaluable_products(
    config: PreparationSettings, catalogue: Catalogue, groups: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Return which products (n,) may be validated and tested on, whatever weights are used.

    Runs from scratch are tested on the same products as runs from pretrained weights. The sample keeps the rule, so
    that weights can be pretrained on it and compared with published scores.
    """
    from vlm_core.catalogue.exposure import Exposure, reserved_for_evaluation, shipped_exposures
    from vlm_core.catalogue.ordering import published_catalogue

    ids = catalogue.products["product_id"]
    if config.test_ids == "reserved" or published_catalogue(ids.tolist()) == SAMPLE:
        return reserved_for_evaluation(ids, groups)
    try:
        own = Exposure.read(Path(config.checkpoint)) if config.checkpoint else None
    except ValueError:  # loading the weights says so
        own = None
    seen = [known.may_have_seen(catalogue, groups) for known in (own, *shipped_exposures()) if known]
    return np.asarray(~np.any(seen, axis=0))


def _parts_of_file(config: PreparationSettings, catalogue: Catalogue) -> pd.Series[str]:
    """Return the part (n,) of each product in the file of the settings; what does not fit is logged."""
    from vlm_core.catalogue.part_files import parts_of_products

    given, note = parts_of_products(local_path("split", config.split), catalogue.products["product_id"])
    if note:
        logger.warning(f"{note}.")
    return given


def _log_parts(given: pd.Series[str], config: PreparationSettings) -> None:
    """Log the parts that the catalogue is divided into, and whether they are kept."""
    from vlm_core.catalogue.parts import PARTS, TEST, VALIDATION

    sizes = {part: int((given == part).sum()) for part in PARTS}
    parts = ", ".join(f"{part} ({size:,})" for part, size in sizes.items() if size)
    if config.protocol not in KEEPS_PARTS:
        logger.info(f"The catalogue is divided into {parts} and is split anew: protocol=given keeps these parts.")
        return
    if not sizes[TEST]:
        made = f"{VALIDATION} is tested on, and some products of train are validated on"
    elif not sizes[VALIDATION]:
        made = "some products of train are validated on"
    else:
        made = ""
    unused = int((given == "").sum())
    also = [
        *([made] if made else []),
        *([f"{number_of(unused, 'product in no part is', 'products in no part are')} not used"] if unused else []),
    ]
    source = config.split or "the catalogue"
    logger.info(f"The parts are those of {source}: {'; '.join([parts, *also])}.")


def _log_unknown_parts(catalogue: Catalogue) -> None:
    """Log what stands in a column of parts and is none."""
    from vlm_core.catalogue.parts import TEST, TRAIN, VALIDATION, unknown_parts

    column, others = unknown_parts(catalogue.products)
    if column:
        logger.info(
            f"The column {column} divides the catalogue, but also has {counted(others)}: it is split anew. "
            f"protocol=given keeps the parts where each cell is {TRAIN}, {VALIDATION}, {TEST} or empty."
        )


def log_removed(removed: dict[str, str]) -> None:
    """Log the categories that are left out, with their sizes, in one line for each reason."""
    by_reason: dict[str, dict[str, int]] = {}
    for name, text in removed.items():
        reason, _, size = text.rpartition(" (")
        by_reason.setdefault(reason, {})[name] = int(size.split()[0])
    for reason, sizes in by_reason.items():
        logger.info(
            f"Left out {len(sizes):,} {'category' if len(sizes) == 1 else 'categories'} ({reason}): {counted(sizes)}."
        )


def write_dataset_info(data: Data, folder: Path) -> Path:
    """Write `dataset_info.json` into a folder and return its path."""
    catalogue = data.catalogue
    info = dataset_info(catalogue.products, data.split, catalogue.fingerprint, catalogue.reading.rows_read)
    path = folder / "dataset_info.json"
    write_atomically(path, lambda file: file.write(json.dumps(info, indent=2, ensure_ascii=False).encode()))
    return path
