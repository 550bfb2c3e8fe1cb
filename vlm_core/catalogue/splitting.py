"""Which products a model learns from and which it is judged on, under an honest protocol or the original one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vlm_core.arrays import Rows
from vlm_core.catalogue.exposure import reserved_for_evaluation
from vlm_core.errors import UserError

Protocol = Literal["holdout", "study"]

ORIGINAL_CATEGORIES = ("Accessories", "Apparel", "Footwear", "Free Items", "Personal Care")
TEST_SHARE = 0.20
VALIDATION_SHARE = 0.16
ORIGINAL_TRAINING_SHARE = 0.8
FEWEST_JUDGING_GROUPS = 4  # of the reserved quarter, for a category to be judged on it alone
FEWEST_GROUPS = 5  # that three splits with several training products can be drawn from


@dataclass(frozen=True)
class Leakage:
    """Share of the evaluation rows whose picture stands in training as well."""

    exact: float  # the same bytes
    near: float  # the same near-duplicate group, exact copies included
    near_by_category: dict[str, float]
    pretraining: float = 0.0  # that the weights may have seen, themselves or as a near-copy, before training


@dataclass(frozen=True)
class Split:
    """Rows of the catalogue for each use; under `study` validation and test are the same rows."""

    protocol: Protocol
    label: str
    seed: int
    categories: tuple[str, ...]
    labels: Rows  # (n_products,) index into categories, -1 outside of them
    train: Rows  # (n,) with repeats where a category was oversampled
    validation: Rows
    test: Rows
    originals: dict[str, int]  # products a category that were drawn before any oversampling
    prior: NDArray[np.float64]  # (C,) each category's share of the catalogue
    removed: dict[str, str]  # category -> why it is left out
    leakage: Leakage
    fingerprint: str  # 16 hex: equal for runs whose test scores may be compared

    @property
    def leaking(self) -> bool:
        """Whether scores on this split reward memory: always under `study`."""
        return self.protocol == "study" or self.leakage.near > 0 or self.leakage.pretraining > 0

    def exposed(self, seen: NDArray[np.bool_]) -> Split:
        """The split for weights that may have seen the products (n_products,) before training."""
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
) -> Split:
    """The split that a seed draws; settings are those of the same names.

    Raises UserError when a named category does not exist, one has too few products, or fewer than two are left.
    """
    kept, removed = choose_categories(products[label], categories, min_products)
    index_of = {name: index for index, name in enumerate(kept)}
    labels = products[label].map(index_of).fillna(-1).to_numpy().astype(np.int64)
    for index, name in enumerate(kept):
        _check_size(name, np.flatnonzero(labels == index), groups)
    generator = np.random.default_rng([seed, 1])
    if protocol == "study":
        train, validation, drawn = _split_as_the_study(labels, len(kept), train_per_category, generator)
        test = validation
    else:
        may_judge = reserved_for_evaluation(products["product_id"], groups)
        chosen = _draw(labels, len(kept), per_category, may_judge, generator)
        drawn = chosen
        train, validation, test = _hold_out(chosen, labels, groups, may_judge, generator)
        train = balance(train, labels, train_per_category, generator)
    counts = np.bincount(labels[labels >= 0], minlength=len(kept))
    return Split(
        protocol=protocol,
        label=label,
        seed=seed,
        categories=kept,
        labels=labels,
        train=train,
        validation=validation,
        test=test,
        originals=dict(zip(kept, np.bincount(labels[drawn], minlength=len(kept)).tolist(), strict=True)),
        prior=counts / counts.sum(),
        removed=removed,
        leakage=measure_leakage(products["picture_digest"], groups, labels, kept, train, validation, test),
        fingerprint=_fingerprint(products["product_id"], kept, protocol, validation, test),
    )


def choose_categories(
    column: pd.Series[str], wanted: Sequence[str], min_products: int
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Categories to learn, in alphabetical order, and why each other one is left out."""
    counts = {str(name): int(count) for name, count in column[column != ""].value_counts().items()}
    if missing := [name for name in wanted if name not in counts]:
        known = ", ".join(sorted(counts)[:20])
        raise UserError(f"categories={','.join(missing)} is not in the column {column.name}, which has: {known}.")
    study = not wanted and set(ORIGINAL_CATEGORIES) <= set(counts)
    candidates = ORIGINAL_CATEGORIES if study else tuple(wanted) or tuple(counts)
    removed = {
        name: "not asked for" if wanted else "not one of the study's" for name in counts if name not in candidates
    }
    removed |= {name: f"fewer than min_products={min_products}" for name in counts if counts[name] < min_products}
    removed |= {name: "a single product" for name in counts if counts[name] == 1}
    kept = tuple(sorted(name for name in candidates if name not in removed))
    if len(kept) < 2:
        raise UserError(
            f"The column {column.name} leaves {len(kept)} categories to learn, and two are the least: "
            "choose another label, or lower min_products."
        )
    return kept, {name: f"{reason} ({counts[name]} products)" for name, reason in sorted(removed.items())}


def _check_size(name: str, rows: Rows, groups: Rows) -> None:
    distinct = len(np.unique(groups[rows]))
    if distinct < FEWEST_GROUPS:
        raise UserError(
            f"The category {name} has {len(rows)} products that show {distinct} different pictures, too few to split: "
            f"leave such categories out with min_products={len(rows) + 1}, or choose with categories=."
        )


def _draw(
    labels: Rows, count: int, per_category: int, may_judge: NDArray[np.bool_], generator: np.random.Generator
) -> Rows:
    """Up to `per_category` rows of each category (0: all), in random order, enough of them such as may judge."""
    shuffled = [generator.permutation(np.flatnonzero(labels == index)) for index in range(count)]
    if per_category == 0:
        return np.concatenate(shuffled)
    return np.concatenate([_with_judges(rows, per_category, may_judge) for rows in shuffled])


def _with_judges(rows: Rows, count: int, may_judge: NDArray[np.bool_]) -> Rows:
    """The first `count` of the rows, after those that may judge were put to the front as far as they are needed."""
    count = min(count, len(rows))
    judges = rows[may_judge[rows]][: round((TEST_SHARE + VALIDATION_SHARE) * count)]
    return np.concatenate([judges, rows[~np.isin(rows, judges)]])[:count]


def _hold_out(
    chosen: Rows, labels: Rows, groups: Rows, may_judge: NDArray[np.bool_], generator: np.random.Generator
) -> tuple[Rows, Rows, Rows]:
    """Training, validation and test rows; a near-duplicate group stays whole, on one side.

    A group counts for the category of its first row. It goes to the emptier of test and validation while it fits into
    the category's quota there, so that large groups end up in training. Only groups that may judge are taken for
    either; a category that has few of them shares these, and one that has hardly any is judged on all its groups.
    """
    table = pd.DataFrame({"row": chosen, "group": groups[chosen], "label": labels[chosen]})
    table["home"] = table.groupby("group")["label"].transform("first")
    table["judges"] = may_judge[chosen]
    sides = pd.Series("train", index=table.index)
    for _, members in table.groupby("home"):
        judging = members[members["judges"]]
        if judging["group"].nunique() < FEWEST_JUDGING_GROUPS:
            judging = members
        sizes = judging.groupby("group").size()
        wanted = min((TEST_SHARE + VALIDATION_SHARE) * len(members), len(judging))
        test = max(1, round(wanted * TEST_SHARE / (TEST_SHARE + VALIDATION_SHARE)))
        quotas = {"test": test, "validation": max(1, round(wanted) - test)}
        placed = _fill(sizes.iloc[generator.permutation(len(sizes))], quotas)
        sides[judging.index] = judging["group"].map(placed)
    return tuple(np.sort(table.loc[sides == side, "row"].to_numpy()) for side in ("train", "validation", "test"))  # type: ignore[return-value]


def _fill(sizes: pd.Series[int], quotas: dict[str, int]) -> dict[int, str]:
    """The side of each group, given in the order of drawing."""
    room = dict(quotas)
    placed: dict[int, str] = {}
    for group, size in sizes.items():
        fitting = [name for name in room if size <= room[name]]
        side = max(fitting, key=lambda name: room[name] / quotas[name], default="train")
        placed[int(group)] = side  # type: ignore[call-overload]
        if side != "train":
            room[side] -= int(size)
    for name in quotas:
        if name not in placed.values():
            smallest = min((group for group in placed if placed[group] == "train"), key=lambda group: sizes[group])
            placed[smallest] = name
    return placed


def balance(rows: Rows, labels: Rows, per_category: int, generator: np.random.Generator) -> Rows:
    """`per_category` rows of each category (0: as they are): large ones undersampled, small ones repeated."""
    if per_category == 0:
        return rows
    return np.concatenate(
        [_resample(rows[labels[rows] == index], per_category, generator) for index in np.unique(labels[rows])]
    )


def _resample(rows: Rows, count: int, generator: np.random.Generator) -> Rows:
    """`count` of the rows: drawn without repeats where there are enough, else all of them and random repeats."""
    if len(rows) >= count:
        return np.sort(generator.choice(rows, count, replace=False))
    return np.concatenate([rows, generator.choice(rows, count - len(rows), replace=True)])


def _split_as_the_study(
    labels: Rows, count: int, train_per_category: int, generator: np.random.Generator
) -> tuple[Rows, Rows, Rows]:
    """Balance first, split afterwards, so that copies of one product fall on both sides: the original's leak."""
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


def measure_leakage(
    digests: pd.Series[str],
    groups: Rows,
    labels: Rows,
    categories: Sequence[str],
    train: Rows,
    validation: Rows,
    test: Rows,
) -> Leakage:
    """How much of validation and test stands in training as well."""
    evaluated = test if validation is test else np.concatenate([validation, test])
    exact = digests.iloc[evaluated].isin(digests.iloc[train]).to_numpy()
    near = np.isin(groups[evaluated], groups[train]) | exact
    by_category = pd.Series(near).groupby(labels[evaluated]).mean()
    return Leakage(
        exact=float(exact.mean()),
        near=float(near.mean()),
        near_by_category={name: float(by_category.get(index, 0.0)) for index, name in enumerate(categories)},
    )


def _fingerprint(ids: pd.Series[str], categories: Sequence[str], protocol: str, validation: Rows, test: Rows) -> str:
    parts = [protocol, *categories, "|validation", *sorted(ids.iloc[validation]), "|test", *sorted(ids.iloc[test])]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def dataset_info(products: pd.DataFrame, split: Split, catalogue_fingerprint: str, rows_read: int) -> dict[str, Any]:
    """The original's `dataset_info.json`, and what it takes to draw the split again and to trust it."""
    # The original balances before it splits, so its counts are of both sides; under holdout training alone is balanced.
    balanced = np.concatenate([split.train, split.validation]) if split.protocol == "study" else split.train
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
    evaluation_rows = len(split.test) if split.protocol == "study" else len(split.validation) + len(split.test)
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
        "catalogue_fingerprint": catalogue_fingerprint,
        "split_fingerprint": split.fingerprint,
        "ids": {side: ids.iloc[getattr(split, side)].tolist() for side in ("train", "validation", "test")},
    }
