"""The splits that runs used: their counts, leaks and products."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dashboard.components import counted
from dashboard.picture_server import find_catalogue
from dashboard.runs import Runs
from vlm_core.config.aliases import current_value

if TYPE_CHECKING:
    from vlm_core.catalogue.catalogue import Catalogue
    from vlm_core.catalogue.duplicates import LabelConflict

PARTS = ("training", "validation", "test")


@dataclass(frozen=True)
class SplitView:
    """A split as a run logged it and, where the catalogue is on this machine, its products."""

    info: dict[str, Any]  # dataset_info.json: see vlm_core.catalogue.splitting
    fingerprint: str
    catalogue: Catalogue | None

    @property
    def categories(self) -> tuple[str, ...]:
        """Return the categories, in the models' order."""
        return tuple(self.info["class_mapping"])

    def ids(self, part: str) -> list[str]:
        """Return the product ids of training (without repeats), validation or test."""
        return list(dict.fromkeys(self.info["ids"]["train" if part == "training" else part]))

    def products(self, part: str, category: str) -> pd.DataFrame:
        """Return the catalogue's rows of a part and a category ("" for all); empty where the catalogue is not here."""
        if self.catalogue is None:
            return pd.DataFrame()
        table = self.catalogue.products
        chosen = table["product_id"].isin(set(self.ids(part)))
        return table[chosen & (table[self.info["label"]] == category)] if category else table[chosen]

    def counts(self) -> dict[str, NDArray[np.int64]]:
        """Return products per category (C,): of the catalogue, of training before and after balancing, of the rest."""
        applied = self.info["augmentation_applied"]
        originals = self.info["selected_categories_original_counts"]
        counts = {
            "catalogue": np.array([originals[name] for name in self.categories]),
            "training, products": np.array([applied[name]["original"] for name in self.categories]),
            "training, balanced": np.array([applied[name]["total_after_aug"] for name in self.categories]),
        }
        if self.catalogue is not None:
            for part in ("validation", "test"):
                of_part = self.products(part, "")[self.info["label"]].value_counts()
                counts[part] = np.array([int(of_part.get(name, 0)) for name in self.categories])
        return counts


def split_choices(runs: Runs) -> list[dict[str, str]]:
    """Return one run of each test set as value and label, newest first."""
    leaderboard = runs.view().leaderboard
    newest: dict[str, str] = {}
    for row in sorted(leaderboard.rows, key=lambda row: row["started"], reverse=True):
        newest.setdefault(row["set"], row["run_id"])
    return [
        {"value": newest[each.key], "label": f"{each.name} · {counted(each.runs, 'run')}"} for each in leaderboard.sets
    ]


def read_split(runs: Runs, run_id: str) -> SplitView | None:
    """Return the split that the run used; None if it logged none."""
    text = runs.text(run_id, "dataset_info.json")
    if not text:
        return None
    info = json.loads(text)
    info["protocol"] = current_value("protocol", info["protocol"])
    fingerprint = str(info["catalogue_fingerprint"])
    return SplitView(info, fingerprint, find_catalogue(runs.root, fingerprint))


@lru_cache(maxsize=4)
def duplicate_report(
    root: Path, fingerprint: str, label: str
) -> tuple[int, int, tuple[LabelConflict, ...], NDArray[np.int64]] | None:
    """Return the numbers of near-duplicate groups and of products in them, label conflicts, and groups (n,) by product.

    None where the catalogue is not on this machine.
    """
    from vlm_core.catalogue.duplicates import label_conflicts, near_duplicate_groups

    catalogue = find_catalogue(root, fingerprint)
    if catalogue is None:
        return None
    groups = near_duplicate_groups(catalogue.products, catalogue.pictures)
    _, sizes = np.unique(groups, return_counts=True)
    several = sizes[sizes > 1]
    return len(several), int(several.sum()), tuple(label_conflicts(catalogue.products, groups, label)), groups


def page_rows(rows: pd.DataFrame, number: int, size: int) -> Sequence[dict[Any, Any]]:
    """Return the rows of a page, counted from 1."""
    return rows.iloc[(number - 1) * size : number * size].to_dict("records")
