"""Splits into training, validation and test, under a leak-free protocol, the original paper's, or as given."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vlm_core.catalogue.label_levels import Level
from vlm_core.catalogue.labels import counted
from vlm_core.catalogue.parts import OWN_COLUMNS, PARTS, TEST, TRAIN, VALIDATION, unknown_parts
from vlm_core.catalogue.reading import number_of
from vlm_core.config.aliases import former_value
from vlm_core.errors import UserError
from vlm_core.pixels.arrays import Rows

Protocol = Literal["holdout", "original", "given", "condition-cnn"]
KEEPS_PARTS = ("given", "condition-cnn")  # protocols that divide nothing
LEAKING_BY_DESIGN = ("original", "condition-cnn")

ORIGINAL_CATEGORIES = ("Accessories", "Apparel", "Footwear", "Free Items", "Personal Care")
TEST_SHARE = 0.20
VALIDATION_SHARE = 0.16
ORIGINAL_TRAINING_SHARE = 0.8
MIN_RESERVED_GROUPS = 4  # of a category, for it to be evaluated on reserved products alone
MIN_GROUPS = 5  # of a category, for three splits with several training products


@dataclass(frozen=True)
class Leakage:
    """The share of the evaluation rows whose picture is in training as well."""

    exact: float  # the same bytes
    near: float  # the same near-duplicate group, exact copies included
    near_by_category: dict[str, float]
    pretraining: float = 0.0  # share that pretraining may have seen, themselves or as a near-copy


@dataclass(frozen=True)
class Split:
    """Rows of the catalogue for each use; under `original` validation and test are the same rows."""

    protocol: Protocol
    label: str
    seed: int
    categories: tuple[str, ...]
    labels: Rows  # (n_products,) index into categories, -1 outside of them
    train: Rows  # (n,), with repeats where a category was oversampled
    validation: Rows
    test: Rows
    originals: dict[str, int]  # products per category before any oversampling
    prior: NDArray[np.float64]  # (C,) each category's share of the catalogue
    removed: dict[str, str]  # category -> reason
    leakage: Leakage
    fingerprint: str  # 16 hex digits, equal for runs whose test scores are comparable
    reserved: bool = True  # whether only some products may be validated and tested on
    levels: tuple[Level, ...] = ()  # of further label columns, from coarse to fine; `label` is below them

    @property
    def leaking(self) -> bool:
        """Return whether scores on this split reward memory: always under a published protocol that leaks."""
        return self.protocol in LEAKING_BY_DESIGN or self.leakage.near > 0 or self.leakage.pretraining > 0

    @property
    def trained(self) -> Rows:
        """Return how many products of each category (C,) are trained on, each counted once."""
        return np.bincount(self.labels[np.unique(self.train)], minlength=len(self.categories))

    @property
    def level_labels(self) -> Rows:
        """Return the category of each product at each level (n_products, L), the split's own label last."""
        return np.stack([*(level.labels for level in self.levels), self.labels], axis=1)

    def exposed(self, seen: NDArray[np.bool_]) -> Split:
        """Return the split for weights whose pretraining may have seen the products marked by `seen` (n_products,)."""
        share = float(seen[np.concatenate([self.validation, self.test])].mean())
        return replace(self, leakage=replace(self.leakage, pretraining=share))


def split_catalogue(
    products: pd.DataFrame,
    groups: Rows,
    *,
    label: str,
    categories: Sequence[str],
    min_products: int,
    protocol: Protocol,
    per_category: int,
    train_per_category: int,
    seed: int,
    evaluable: NDArray[np.bool_] | None = None,
    given: pd.Series[str] | None = None,
) -> Split:
    """Return the split of a seed; the arguments are the settings of the same names.

    `evaluable` (n_products,) marks what `holdout` may validate and test on; without it, that is any product. `given`
    (n_products,) has the part of each product for the protocols that keep them.

    Raises UserError when a named category does not exist, one has too few products, or fewer than two are left.
    """
    names, removed = choose_categories(products[label], groups, categories, min_products)
    if protocol in KEEPS_PARTS:
        parts = _check_parts(given, products, protocol)
        names = _in_all_parts(names, products[label], parts, groups, removed)
    evaluable = np.ones(len(products), dtype=bool) if evaluable is None else evaluable
    index_of = {name: index for index, name in enumerate(names)}
    labels = products[label].map(index_of).fillna(-1).to_numpy().astype(np.int64)
    generator = np.random.default_rng([seed, 1])
    if protocol == "original":
        train, validation, sampled = _split_as_original(labels, len(names), train_per_category, generator)
        test = validation
    elif protocol in KEEPS_PARTS:
        train, validation, test = _split_as_given(parts, labels, groups, generator)
        sampled = np.concatenate([train, validation, test])
        train = balance(train, labels, train_per_category, generator)
    else:
        sampled = sample_rows(labels, len(names), per_category, evaluable, generator)
        train, validation, test = hold_out(sampled, labels, groups, evaluable, generator)
        train = balance(train, labels, train_per_category, generator)
    counts = np.bincount(labels[labels >= 0], minlength=len(names))
    return Split(
        protocol=protocol,
        label=label,
        seed=seed,
        categories=names,
        labels=labels,
        train=train,
        validation=validation,
        test=test,
        originals=dict(zip(names, np.bincount(labels[sampled], minlength=len(names)).tolist(), strict=True)),
        prior=counts / counts.sum(),
        removed=removed,
        leakage=measure_leakage(products["picture_digest"], groups, labels, names, train, validation, test),
        fingerprint=split_fingerprint(products["product_id"], names, protocol, validation, test),
        reserved=protocol not in KEEPS_PARTS and not bool(evaluable.all()),
    )


def choose_categories(
    column: pd.Series[str], groups: Rows, wanted: Sequence[str], min_products: int
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the categories to train on, in alphabetical order, and why each other one is left out.

    Raises UserError when one that is wanted does not exist or is too small, or fewer than two are left.
    """
    counts = {str(name): int(count) for name, count in column[column != ""].value_counts().items()}
    check_names(str(column.name), counts, wanted)
    original = not wanted and set(ORIGINAL_CATEGORIES) <= set(counts)
    candidates = ORIGINAL_CATEGORIES if original else tuple(wanted) or tuple(counts)
    removed = {
        name: "not in categories=" if wanted else "not one of the original paper's categories"
        for name in counts
        if name not in candidates
    }
    small = small_categories(column, groups, wanted, min_products)
    removed |= small
    names = tuple(sorted(name for name in candidates if name not in removed))
    if len(names) < 2:
        raise UserError(
            f"The column {column.name} leaves {number_of(len(names), 'category', 'categories')}, and training "
            f"needs at least two, each with {MIN_GROUPS} products with different images and {min_products} "
            f"products (min_products). It has {counted(counts) or 'no category'}: choose another label, or add "
            "products."
        )
    return names, {
        name: f"{reason} ({counts[name]} product{'s' * (counts[name] != 1)})"
        for name, reason in sorted(removed.items())
    }


def small_categories(column: pd.Series[str], groups: Rows, wanted: Sequence[str], min_products: int) -> dict[str, str]:
    """Return why categories of a column are too small to be split. Raises UserError when one that is wanted is."""
    counts = {str(name): int(count) for name, count in column[column != ""].value_counts().items()}
    different = pd.Series(groups).groupby(column.to_numpy()).nunique().to_dict()
    small = {
        name: f"fewer than {MIN_GROUPS} products with different images"
        for name in counts
        if different[name] < MIN_GROUPS
    }
    small |= {
        name: f"fewer than min_products={min_products}"
        for name in counts
        if name not in small and counts[name] < min_products
    }
    if too_small := {name: counts[name] for name in wanted if name in small}:
        raise UserError(
            f"These categories of categories= are too small: {counted(too_small)}. Each needs {MIN_GROUPS} products "
            f"with different images, and {min_products} products (min_products): leave them out of categories=."
        )
    return small


def check_names(column: str, counts: Mapping[str, int], wanted: Sequence[str]) -> None:
    """Raise UserError for wanted categories that the column does not have, with the way to name those it has."""
    missing = [name for name in wanted if name not in counts]
    if not missing:
        return
    with_comma = next((name for name in counts if "," in name), "")
    raise UserError(
        f"categories={','.join(missing)} is not in the column {column}, which has {counted(counts)}."
        + (f" A name with a comma stands in double quotes: categories='\"{with_comma}\"'." if with_comma else "")
    )


def sample_rows(
    labels: Rows, count: int, per_category: int, eligible: NDArray[np.bool_], generator: np.random.Generator
) -> Rows:
    """Sample up to `per_category` rows of each category (0: all), with enough rows eligible for evaluation."""
    shuffled = [generator.permutation(np.flatnonzero(labels == index)) for index in range(count)]
    if per_category == 0:
        return np.concatenate(shuffled)
    return np.concatenate([_prefer_eligible(rows, per_category, eligible) for rows in shuffled])


def _prefer_eligible(rows: Rows, count: int, eligible: NDArray[np.bool_]) -> Rows:
    """Return `count` rows in order, but first as many eligible ones as validation and test need."""
    count = min(count, len(rows))
    first = rows[eligible[rows]][: round((TEST_SHARE + VALIDATION_SHARE) * count)]
    return np.concatenate([first, rows[~np.isin(rows, first)]])[:count]


def hold_out(
    rows: Rows, labels: Rows, groups: Rows, eligible: NDArray[np.bool_], generator: np.random.Generator
) -> tuple[Rows, Rows, Rows]:
    """Return training, validation and test rows; a near-duplicate group is never divided.

    A group belongs to the category of its first row. It goes to the emptier of test and validation while it fits into
    the category's quota there, so that large groups end up in training. Only groups eligible for evaluation are used
    for either; a category with few of them divides these, and one with hardly any is evaluated on all its groups.
    """
    table = _with_homes(rows, labels, groups)
    table["eligible"] = eligible[rows]
    sides = pd.Series("train", index=table.index)
    for _, members in table.groupby("home"):
        candidates = members[members["eligible"]]
        if candidates["group"].nunique() < MIN_RESERVED_GROUPS:
            candidates = members
        sizes = candidates.groupby("group").size()
        evaluated = min((TEST_SHARE + VALIDATION_SHARE) * len(members), len(candidates))
        test = max(1, round(evaluated * TEST_SHARE / (TEST_SHARE + VALIDATION_SHARE)))
        quotas = {"test": test, "validation": max(1, round(evaluated) - test)}
        side_of_group = _assign_groups(sizes.iloc[generator.permutation(len(sizes))], quotas)
        sides[candidates.index] = candidates["group"].map(side_of_group)
    return tuple(np.sort(table.loc[sides == side, "row"].to_numpy()) for side in ("train", "validation", "test"))  # type: ignore[return-value]


def _with_homes(rows: Rows, labels: Rows, groups: Rows) -> pd.DataFrame:
    """Return rows with their group, their category, and the category that their group belongs to."""
    table = pd.DataFrame({"row": rows, "group": groups[rows], "label": labels[rows]})
    return table.assign(home=table.groupby("group")["label"].transform("first"))


def _assign_groups(sizes: pd.Series[int], quotas: dict[str, int]) -> dict[int, str]:
    """Return the side of each group; groups are assigned in order."""
    room = dict(quotas)
    sides: dict[int, str] = {}
    for group, size in sizes.items():
        fitting = [name for name in room if size <= room[name]]
        side = max(fitting, key=lambda name: room[name] / quotas[name], default="train")
        sides[int(group)] = side  # type: ignore[call-overload]
        if side != "train":
            room[side] -= int(size)
    for name in quotas:
        if name not in sides.values():
            trained = [group for group in sides if sides[group] == "train"]
            sides |= dict.fromkeys(sorted(trained, key=lambda group: sizes[group])[:1], name)
    return sides


def balance(rows: Rows, labels: Rows, per_category: int, generator: np.random.Generator) -> Rows:
    """Return `per_category` rows of each category (0: unchanged): large ones undersampled, small ones repeated."""
    if per_category == 0:
        return rows
    return np.concatenate(
        [_resample(rows[labels[rows] == index], per_category, generator) for index in np.unique(labels[rows])]
    )


def _resample(rows: Rows, count: int, generator: np.random.Generator) -> Rows:
    """Sample `count` of the rows, without repeats where there are enough, else all of them and random repeats."""
    if len(rows) >= count:
        return np.sort(generator.choice(rows, count, replace=False))
    return np.concatenate([rows, generator.choice(rows, count - len(rows), replace=True)])


def _split_as_original(
    labels: Rows, count: int, train_per_category: int, generator: np.random.Generator
) -> tuple[Rows, Rows, Rows]:
    """Balance first and split afterwards, which puts copies of one product on both sides: the original's leak."""
    from sklearn.model_selection import train_test_split

    per_category = round((train_per_category or 480) / ORIGINAL_TRAINING_SHARE)
    rows = balance(np.flatnonzero(labels >= 0), labels, per_category, generator)
    assert len(np.unique(labels[rows])) == count
    train, validation = train_test_split(
        rows,
        train_size=ORIGINAL_TRAINING_SHARE,
        stratify=labels[rows],
        random_state=int(generator.integers(2**31)),
    )
    return train, validation, np.unique(rows)


def _check_parts(given: pd.Series[str] | None, products: pd.DataFrame, protocol: str) -> NDArray[np.str_]:
    """Return the parts (n,); where there is no part for the test, that for validation is. Raises UserError for none."""
    parts = np.array([] if given is None else given, dtype=str)
    if TEST not in parts:
        parts = np.where(parts == VALIDATION, TEST, parts)
    column, others = unknown_parts(products) if given is None else ("", {})
    if column:
        raise UserError(
            f"protocol={protocol} keeps the parts of a catalogue, and its column {column} also has {counted(others)}, "
            f"neither {TRAIN}, {VALIDATION} nor {TEST}: name these so, or empty the cells of products in no part."
        )
    if TRAIN not in parts or TEST not in parts:
        raise UserError(
            f"protocol={protocol} keeps the parts of a catalogue that is divided already, and this one is not: it "
            f"needs folders or files called train and test, a column {' or '.join(OWN_COLUMNS)} with train and test, "
            "or a file of ids and parts, named with split=."
        )
    return parts


def _in_all_parts(
    names: Sequence[str], column: pd.Series[str], parts: NDArray[np.str_], groups: Rows, removed: dict[str, str]
) -> tuple[str, ...]:
    """Return the categories with images to train and to test on; add to `removed` why each other one is left out.

    Raises UserError when fewer than two are left.
    """
    fewest = {TRAIN: 1 if VALIDATION in parts else 2, TEST: 1}
    for name in names:
        rows = np.flatnonzero(column == name)
        few = [part for part, least in fewest.items() if len(np.unique(groups[rows[parts[rows] == part]])) < least]
        if few:
            removed[name] = f"too few different images in the given {' and '.join(few)} part ({len(rows)} products)"
    left = tuple(name for name in names if name not in removed)
    if len(left) < 2:
        raise UserError(
            f"The given parts leave {number_of(len(left), 'category', 'categories')} of {len(names)} with products to "
            "train and to test on, and training needs at least two: use protocol=holdout, which divides the "
            "catalogue anew."
        )
    return left


def _split_as_given(
    parts: NDArray[np.str_], labels: Rows, groups: Rows, generator: np.random.Generator
) -> tuple[Rows, Rows, Rows]:
    """Return training, validation and test rows as the catalogue has them.

    Without a part for validation a share of training becomes one, never of the test; no near-duplicate group of
    training is divided by it.
    """
    train, validation, test = (np.flatnonzero((labels >= 0) & (parts == part)) for part in PARTS)
    if VALIDATION in parts:
        return train, validation, test
    table = _with_homes(train, labels, groups)
    chosen = pd.Series(False, index=table.index)
    for _, members in table.groupby("home"):
        sizes = members.groupby("group").size()
        quota = max(1, round(VALIDATION_SHARE / (1 - TEST_SHARE) * len(members)))
        sides = _assign_groups(sizes.iloc[generator.permutation(len(sizes))], {"validation": quota})
        chosen[members.index] = members["group"].map(sides) == "validation"
    return train[~chosen], train[chosen], test


def measure_leakage(
    digests: pd.Series[str],
    groups: Rows,
    labels: Rows,
    categories: Sequence[str],
    train: Rows,
    validation: Rows,
    test: Rows,
) -> Leakage:
    """Return how much of validation and test is in training as well."""
    evaluated = test if validation is test else np.concatenate([validation, test])
    exact = digests.iloc[evaluated].isin(digests.iloc[train]).to_numpy()
    near = np.isin(groups[evaluated], groups[train]) | exact
    by_category = pd.Series(near).groupby(labels[evaluated]).mean()
    return Leakage(
        exact=float(exact.mean()),
        near=float(near.mean()),
        near_by_category={name: float(by_category.get(index, 0.0)) for index, name in enumerate(categories)},
    )


def split_fingerprint(
    ids: pd.Series[str], categories: Sequence[str], protocol: str, validation: Rows, test: Rows
) -> str:
    """Return 16 hex digits that runs share whose test scores are comparable."""
    # hashed under its former name, so that old and new runs on the same test products share a fingerprint
    parts = [
        former_value("protocol", protocol),
        *categories,
        "|validation",
        *sorted(ids.iloc[validation]),
        "|test",
        *sorted(ids.iloc[test]),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def dataset_info(products: pd.DataFrame, split: Split, catalogue_fingerprint: str, rows_read: int) -> dict[str, Any]:
    """Return the original's `dataset_info.json` content, and what it takes to reproduce and verify the split."""
    # The original balances before it splits, so its counts are of both sides; under holdout training alone is balanced.
    balanced = np.concatenate([split.train, split.validation]) if split.protocol == "original" else split.train
    totals = np.bincount(split.labels[balanced], minlength=len(split.categories))
    singles = np.bincount(split.labels[np.unique(balanced)], minlength=len(split.categories))
    augmented = {
        name: {
            "original": int(singles[index]),
            "augmented_added": int(totals[index] - singles[index]),
            "total_after_aug": int(totals[index]),
        }
        for index, name in enumerate(split.categories)
    }
    ids = products["product_id"]
    evaluation_rows = len(split.test) if split.protocol == "original" else len(split.validation) + len(split.test)
    return {
        "total_original_csv_entries": rows_read,
        "selected_categories_original_counts": {
            name: int((split.labels == index).sum()) for index, name in enumerate(split.categories)
        },
        "target_samples_per_class": int(totals.max()),
        "total_samples_after_augmentation": len(split.train) + evaluation_rows,
        "training_samples": len(split.train),
        "validation_samples": len(split.validation),
        "test_samples": len(split.test),
        "augmentation_applied": augmented,
        "ethical_considerations": {
            "balanced_sampling": len(set(totals.tolist())) == 1,
            "stratified_split": True,
            "data_augmentation_for_imbalance": any(entry["augmented_added"] for entry in augmented.values()),
            "fairness_metrics_tracked": ["precision", "recall", "f1"],
        },
        "class_mapping": {name: index for index, name in enumerate(split.categories)},
        "protocol": split.protocol,
        "leaking": split.leaking,
        "leakage": {
            "exact": split.leakage.exact,
            "near": split.leakage.near,
            "near_by_category": split.leakage.near_by_category,
            "pretraining": split.leakage.pretraining,
        },
        "label": split.label,
        "seed": split.seed,
        "removed_categories": split.removed,
        "test_ids": "reserved" if split.reserved else "any",
        "catalogue_fingerprint": catalogue_fingerprint,
        "split_fingerprint": split.fingerprint,
        "ids": {side: ids.iloc[getattr(split, side)].tolist() for side in ("train", "validation", "test")},
    }
