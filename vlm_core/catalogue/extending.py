"""The split of a run that learns more: the old run's parts as they are, and the new products divided by themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vlm_core.catalogue.labels import counted
from vlm_core.catalogue.splitting import (
    MIN_GROUPS,
    Protocol,
    Split,
    balance,
    check_names,
    hold_out,
    measure_leakage,
    sample_rows,
    small_categories,
    split_fingerprint,
)
from vlm_core.errors import UserError
from vlm_core.pixels.arrays import Rows


@dataclass(frozen=True)
class OldParts:
    """The parts of an old run's split, as rows of the joined catalogue; empty where its catalogue is not at hand."""

    protocol: Protocol
    categories: tuple[str, ...]
    train: Rows
    validation: Rows
    test: Rows
    counts: NDArray[np.int64]  # (C,) products of each category in the old catalogue


def choose_new_categories(
    column: pd.Series[str], groups: Rows, known: Sequence[str], wanted: Sequence[str], min_products: int
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the categories of new products (n,) that can be learnt, and why others are left out.

    Categories that are `known` come with any number of products. Raises UserError when one that is wanted does not
    exist or is too small, or none is left.
    """
    counts = {str(name): int(count) for name, count in column[column != ""].value_counts().items()}
    check_names(str(column.name), counts, wanted)
    removed = {name: "not in categories=" for name in counts if wanted and name not in wanted}
    strangers = column.where(~column.isin(known), "")
    removed |= small_categories(strangers, groups, [name for name in wanted if name not in known], min_products)
    names = tuple(sorted(name for name in counts if name not in removed))
    if not names:
        raise UserError(
            f"The column {column.name} leaves no new product to learn: it has {counted(counts) or 'none'}. A new "
            f"category  needs {MIN_GROUPS} products with different images and {min_products} products (min_products), "
            "and products that the run knows already do not count."
        )
    return names, {name: f"{reason} ({counts[name]} products)" for name, reason in sorted(removed.items())}


def extend_split(
    old: OldParts,
    products: pd.DataFrame,
    groups: Rows,
    *,
    label: str,
    counts: Mapping[str, int],
    removed: dict[str, str],
    per_category: int,
    train_per_category: int,
    seed: int,
    evaluable: NDArray[np.bool_],
) -> Split:
    """Return the split of a joined catalogue; `counts` are the new catalogue's products of each category it adds.

    New products are held out as in any run, near-duplicates together; only those marked by `evaluable` (n_products,)
    are tested on. A near-copy of an old training product is trained on, one of an old validation or test product is
    not used at all. A category with too few new products to be divided trains on all of them.
    """
    names = (*old.categories, *sorted(name for name in counts if name not in old.categories))
    index_of = {name: index for index, name in enumerate(names)}
    labels = products[label].map(index_of).fillna(-1).to_numpy().astype(np.int64)
    evaluated = np.concatenate([old.validation, old.test])
    rows = np.arange(len(products))
    is_old = np.isin(rows, np.concatenate([old.train, evaluated]))
    usable = ~is_old & ~np.isin(groups, groups[evaluated])
    generator = np.random.default_rng([seed, 1])
    sampled = sample_rows(np.where(usable, labels, -1), len(names), per_category, evaluable, generator)
    copied = np.isin(groups[sampled], groups[old.train])
    different = pd.Series(groups[sampled]).where(~copied).groupby(labels[sampled]).nunique()
    if not len(sampled):
        raise UserError(
            "all new products are near-copies of products that the run was selected or tested on: it has nothing to "
            "learn from them."
        )
    divided = ~copied & np.isin(labels[sampled], different.index[different >= MIN_GROUPS])
    parts = hold_out(sampled[divided], labels, groups, evaluable, generator)
    rest = np.sort(np.concatenate([parts[0], sampled[~divided]])).astype(np.int64)
    new_train = balance(rest, labels, train_per_category, generator)
    train, validation, test = (
        np.concatenate(pair).astype(np.int64)
        for pair in ((old.train, new_train), (old.validation, parts[1]), (old.test, parts[2]))
    )
    totals = np.array([counts.get(name, 0) for name in names])
    totals[: len(old.counts)] += old.counts
    if not len(test):
        raise UserError(
            f"the new products leave none to test on: add some, {MIN_GROUPS} with different images in a category, or "
            "name the run's own catalogue with old_data=."
        )
    originals = np.bincount(labels[is_old | np.isin(rows, sampled)], minlength=len(names))
    return Split(
        protocol=old.protocol,
        label=label,
        seed=seed,
        categories=names,
        labels=labels,
        train=train,
        validation=validation,
        test=test,
        originals=dict(zip(names, originals.tolist(), strict=True)),
        prior=totals / totals.sum(),
        removed=removed,
        leakage=measure_leakage(products["picture_digest"], groups, labels, names, train, validation, test),
        fingerprint=split_fingerprint(products["product_id"], names, old.protocol, validation, test),
        reserved=not bool(evaluable[~is_old].all()),
    )
