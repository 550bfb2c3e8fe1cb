"""The leaderboard's rows: runs tested on the same products form a group and are ranked within it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pandas as pd

from dashboard.leaks import as_share
from dashboard.live import LIVE, LOST
from dashboard.theme import family_colour
from vlm_core.config.families import family_of
from vlm_core.evaluation.slugs import category_slugs
from vlm_core.tracking.tags import CATEGORIES

SCORE: Final = "metrics.test_macro_f1"
COMPARABLE: Final = ("tags.fingerprint", "tags.label", "tags.split")  # equal: tested on the same products
F1: Final = "metrics.test_f1_"
_PLACE: Final = ("tags.catalogue", "tags.label", "tags.split")
FAILED: Final = ("FAILED", "KILLED")
GROUPINGS: Final = {"preset": "params.preset", "protocol": "tags.protocol", "weights": "tags.weights_source"}
# What a run costs: its column, its name and unit, and the factor from the stored number to that unit.
COSTS: Final = {
    "train": ("metrics.train_seconds_full", "training time, s", 1.0),
    "latency": ("metrics.seconds_per_image", "latency, ms per image", 1000.0),
    "trained_weights": ("tags.weights_trained", "trained weights", 1.0),
}
TRAIN_SECONDS: Final = "metrics.train_seconds"  # with what was read from the feature cache for nothing
_FIELDS: Final = {
    "run_id": "run_id",
    "name": "name",
    "status": "status",
    "model": "params.model",
    "mode": "params.mode",
    "objective": "params.objective",
    "preset": "params.preset",
    "seed": "params.seed",
    "weights": "tags.weights_source",
    "protocol": "tags.protocol",
    "catalogue": "tags.catalogue",
    "label": "tags.label",
    "leaking": "tags.leaking",
    "live": LIVE,
    "lost": LOST,
    # numbers
    "score": SCORE,
    "low": f"{SCORE}_low",
    "high": f"{SCORE}_high",
    "accuracy": "metrics.test_accuracy",
    "validation": "metrics.validation_macro_f1",
    **{name: column for name, (column, _, _) in COSTS.items()},
}
_NUMBERS: Final = frozenset({"score", "low", "high", "accuracy", "validation", *COSTS})


@dataclass(frozen=True)
class TestSet:
    """The products that some runs were tested on."""

    key: str
    name: str  # for the reader
    leaking: bool  # for some of its runs
    in_training: float  # largest share of its products that also appear in a run's training
    in_pretraining: float  # largest share that a run's weights may have seen
    runs: int
    categories: tuple[str, ...]  # slugs of the categories that some run has an F1 for
    names: Mapping[str, str] = field(default_factory=dict)  # of the categories by slug, as far as runs tell them


@dataclass(frozen=True)
class Leaderboard:
    """Rows, honest ones first, of the newest test set first, best first; and the test sets in that order."""

    rows: list[dict[str, Any]]
    sets: tuple[TestSet, ...]


def make_leaderboard(table: pd.DataFrame) -> Leaderboard:
    """Return the leaderboard of a table of `RunReader.runs`, without trials of a search and pretraining runs."""
    if table.empty:
        return Leaderboard([], ())
    table = table[_column(table, "tags.kind").fillna("").eq("") & _column(table, "tags.split").notna()]
    if table.empty:
        return Leaderboard([], ())
    rows = _fields(table)
    order = _set_order(rows)
    rows["place"] = rows["set"].map({key: place for place, key in enumerate(order)})
    honest = rows["leaking"] != "true"
    rows["rank"] = rows[honest].groupby("set")["score"].rank(method="min", ascending=False)
    rows = rows.assign(leaks=~honest).sort_values(
        ["leaks", "place", "score", "started"], ascending=[True, True, False, False], na_position="first"
    )
    sets = tuple(_test_set(key, rows[rows["set"] == key]) for key in order)
    named = {each.key: each.name for each in sets}
    rows["test_set"] = rows["set"].map(named)
    rows["started"] = rows["started"].dt.strftime("%Y-%m-%d %H:%M")
    rows = rows.drop(columns=["leaks", "in_training", "in_pretraining", "categories"])
    plain = rows.astype(object).where(rows.notna(), None)
    return Leaderboard([_compact(row) for row in plain.to_dict("records")], sets)


def select_rows(leaderboard: Leaderboard, chosen: str, *, hide_failed: bool) -> list[dict[str, Any]]:
    """Return the rows of one test set ("" for all), without failed runs where `hide_failed`."""
    return [
        row
        for row in leaderboard.rows
        if (not chosen or row["set"] == chosen) and not (hide_failed and row["status"] in FAILED)
    ]


def largest_test_set(leaderboard: Leaderboard) -> str:
    """Return the key of the test set with most runs, the newest of these; "" without any."""
    return max(leaderboard.sets, key=lambda each: each.runs).key if leaderboard.sets else ""


def with_headings(rows: Sequence[dict[str, Any]], sets: Sequence[TestSet], grouping: str) -> list[dict[str, Any]]:
    """Return the rows with a heading row before each test set, and before each value of the grouping within it.

    Leaking runs of a test set have a heading of their own, after all honest ones.
    """
    known = {each.key: each for each in sets}
    bands: dict[tuple[bool, int, str], list[dict[str, Any]]] = {}
    for row in rows:
        value = str(row.get(grouping) or "") if grouping else ""
        bands.setdefault((row["leaking"] == "true", row["place"], value), []).append(row)
    banded_rows: list[dict[str, Any]] = []
    for number, ((leaks, _, value), members) in enumerate(sorted(bands.items(), key=lambda item: item[0])):
        test_set = known[members[0]["set"]]
        title = f"{test_set.name} · {grouping} {value or 'unknown'}" if grouping else test_set.name
        heading = {"run_id": f"band-{number}", "band": number, "heading": title, "count": len(members)}
        banded_rows.append({**heading, "leaks": leaks})
        banded_rows += [{**row, "band": number} for row in members]
    return banded_rows


def shown_categories(sets: Sequence[TestSet], most: int) -> list[str]:
    """Return the slugs of the categories with a column each: those of one test set in view, or of all where they fit.

    Of several test sets, one with many categories must not crowd out the others: it shows its own when it is chosen.
    """
    if len(sets) == 1:
        return list(sets[0].categories)
    shown: list[str] = []
    for each in sets:
        together = list(dict.fromkeys((*shown, *each.categories)))
        shown = together if len(together) <= most else shown
    return sorted(shown)


def run_choices(table: pd.DataFrame, chosen: Sequence[str] | None = ()) -> list[dict[str, str]]:
    """Return tested runs as value and label, newest first, with chosen ones that are not known yet."""
    named = table.reindex(columns=["run_id", "name", SCORE, "params.model", *_PLACE])
    tested = named[named[SCORE].notna()].fillna("").to_dict("records")
    ids = [str(row["run_id"]) for row in tested]
    labels = distinct_names([" · ".join(filter(None, _described(row))) for row in tested], ids)
    known = [{"value": run_id, "label": label} for run_id, label in zip(ids, labels, strict=True)]
    missing = [run_id for run_id in chosen or () if run_id not in set(ids)]
    return [*known, *({"value": run_id, "label": f"run {short_id(run_id)}"} for run_id in missing)]


def distinct_names(names: Sequence[str], run_ids: Sequence[str]) -> list[str]:
    """Return the runs' names, each with the beginning of its run's id where several runs have that name."""
    counts = Counter(names)
    return [
        name if counts[name] == 1 else f"{name} ({short_id(run_id)})"
        for name, run_id in zip(names, run_ids, strict=True)
    ]


def names_by_run(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the name of each run, by the run's id, told apart where several have the same."""
    names = [str(row.get("name") or f"run {short_id(run_id)}") for run_id, row in rows.items()]
    return dict(zip(rows, distinct_names(names, list(rows)), strict=True))


def short_id(run_id: str) -> str:
    """Return the beginning of a run's id, by which people tell runs of one name apart."""
    return run_id[:6]


def best_run(leaderboard: Leaderboard, *, to_explain: bool = False) -> str:
    """Return the id of the best honest run of the largest test set; "" without one.

    One `to_explain` has attention over images: it is no baseline, and reads no texts.
    """
    key = largest_test_set(leaderboard)
    ranked = (row for row in leaderboard.rows if row["set"] == key and row.get("rank"))
    suiting = (row for row in ranked if not to_explain or (row["model"] != "baseline" and not row.get("reads_texts")))
    return next((row["run_id"] for row in suiting), "")


def training_seconds(row: Mapping[str, Any]) -> float | None:
    """Return a run's training time, frozen layers counted as if nothing had come from the feature cache.

    Of a run that did not log what did, that is what it took; None if it was not trained.
    """
    seconds = row.get(COSTS["train"][0], row.get(TRAIN_SECONDS))
    return None if seconds is None else float(seconds)


def _described(row: Mapping[Any, Any]) -> list[str]:
    catalogue, label, split = (str(row[name]) for name in _PLACE)
    return [str(row["name"]), str(row["params.model"]), f"{row[SCORE]:.3f}", f"{catalogue} {label} {split[:6]}"]


def _fields(table: pd.DataFrame) -> pd.DataFrame:
    fields = pd.DataFrame({name: _column(table, column) for name, column in _FIELDS.items()})
    for name in _NUMBERS:
        scale = COSTS[name][2] if name in COSTS else 1.0
        fields[name] = pd.to_numeric(fields[name], errors="coerce") * scale
    texts = [name for name in _FIELDS if name not in _NUMBERS]
    fields[texts] = fields[texts].astype(object).where(fields[texts].notna(), "")
    fields.loc[fields["model"] == "baseline", "mode"] = "–"  # no weights of it are fine-tuned
    seconds = pd.to_numeric(_column(table, TRAIN_SECONDS), errors="coerce")
    fields["train_partial"] = (fields["train"].isna() & seconds.notna()).map({True: True, False: None})
    fields["train"] = fields["train"].fillna(seconds)
    fields["reads_texts"] = _column(table, "params.inputs").isin(["text", "image+text"]).map({True: True, False: None})
    fields["lost"] = fields["lost"].eq(True).map({True: True, False: None})
    fields["started"] = table["started"]
    fields["set"] = (
        pd.DataFrame({column: _column(table, column) for column in COMPARABLE}).fillna("").agg("|".join, axis=1)
    )
    fields["family"] = fields["model"].map(family_of)
    fields["colour"] = fields["model"].map(family_colour)
    fields["leaking"] = fields["leaking"].where(fields["leaking"] == "false", "true")
    fields["in_training"] = _column(table, "tags.leakage").map(as_share)
    fields["in_pretraining"] = _column(table, "tags.leakage_pretraining").map(as_share)
    fields["categories"] = _column(table, f"tags.{CATEGORIES}")
    fields["twin"] = [
        short_id(run_id) if twin else None
        for run_id, twin in zip(fields["run_id"], fields.duplicated(["name", "set"], keep=False), strict=True)
    ]
    for column in table.columns:
        if column.startswith(F1):
            fields[f"f1_{column.removeprefix(F1)}"] = pd.to_numeric(table[column], errors="coerce")
    return fields


def _set_order(rows: pd.DataFrame) -> list[str]:
    """Return the keys of the test sets, the newest first, those of which every run leaks last."""
    newest = rows.groupby("set")["started"].max()
    honest = rows[rows["leaking"] != "true"]["set"].unique()
    order = pd.DataFrame({"newest": newest, "leaks": ~newest.index.isin(honest)})
    return order.sort_values(["leaks", "newest"], ascending=[True, False]).index.tolist()


def _test_set(key: str, rows: pd.DataFrame) -> TestSet:
    first = rows.iloc[0]
    seeds = sorted(set(rows["seed"]) - {""})
    seed = f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds"
    short = key.rsplit("|", 1)[-1][:6]
    scores = [name for name in rows.columns if name.startswith("f1_") and rows[name].notna().any()]
    leaking = rows[rows["leaking"] == "true"]
    return TestSet(
        key=key,
        name=" · ".join(filter(None, (first["catalogue"], first["label"], first["protocol"], seed, short))),
        leaking=len(leaking) > 0,
        in_training=float(leaking["in_training"].max()),
        in_pretraining=float(leaking["in_pretraining"].max()),
        runs=len(rows),
        categories=tuple(sorted(name.removeprefix("f1_") for name in scores)),
        names=_category_names(rows["categories"].dropna()),
    )


def _category_names(stored: pd.Series[str]) -> dict[str, str]:
    """Return the categories by slug of the first run that tells them; runs of earlier versions do not."""
    try:
        names = json.loads(stored.iloc[0]) if len(stored) else []
    except ValueError:  # cut, or not written by us
        return {}
    known = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return dict(zip(category_slugs(names), names, strict=True)) if known else {}


def _compact(row: dict[Any, Any]) -> dict[str, Any]:
    """Return the row without empty fields, its numbers rounded to four digits: a page carries thousands of them."""
    return {
        name: round(value, 4) if isinstance(value, float) else value for name, value in row.items() if value is not None
    }


def _column(table: pd.DataFrame, name: str) -> pd.Series:
    return table[name] if name in table else pd.Series(float("nan"), index=table.index, dtype=object)
