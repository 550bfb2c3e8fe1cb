"""The leaderboard's rows: runs tested on the same products form a group and are ranked within it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pandas as pd

from dashboard.theme import family_colour, family_of

SCORE: Final = "metrics.test_macro_f1"
COMPARABLE: Final = ("tags.fingerprint", "tags.label", "tags.split")  # equal: tested on the same products
F1: Final = "metrics.test_f1_"
_PLACE: Final = ("tags.catalogue", "tags.label", "tags.split")
FAILED: Final = ("FAILED", "KILLED")
GROUPINGS: Final = {"preset": "params.preset", "protocol": "tags.protocol", "weights": "tags.weights_source"}
# What a run costs: its column, its name and unit, and the factor from the stored number to that unit.
COSTS: Final = {
    "train": ("metrics.train_seconds", "training time, s", 1.0),
    "latency": ("metrics.seconds_per_image", "latency, ms per image", 1000.0),
    "weights": ("tags.weights_trained", "trained weights", 1.0),
}
_TEXTS: Final = {
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
}
_NUMBERS: Final = {
    "score": SCORE,
    "low": f"{SCORE}_low",
    "high": f"{SCORE}_high",
    "accuracy": "metrics.test_accuracy",
    "validation": "metrics.validation_macro_f1",
    **{name: column for name, (column, _, _) in COSTS.items()},
}


@dataclass(frozen=True)
class TestSet:
    """The products that some runs were tested on."""

    key: str
    name: str  # for the reader
    leaking: bool
    runs: int
    categories: tuple[str, ...]  # slugs of the categories that some run has an F1 for


@dataclass(frozen=True)
class Leaderboard:
    """Rows of the leaderboard, those of the newest test set first, best first; and the test sets, newest first."""

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
    order = rows.groupby("set")["started"].max().sort_values(ascending=False).index.tolist()
    rows["place"] = rows["set"].map({key: place for place, key in enumerate(order)})
    rows["rank"] = rows[rows["leaking"] != "true"].groupby("set")["score"].rank(method="min", ascending=False)
    rows = rows.sort_values(["place", "score", "started"], ascending=[True, False, False], na_position="first")
    sets = tuple(_test_set(key, rows[rows["set"] == key]) for key in order)
    named = {each.key: each.name for each in sets}
    rows["test_set"] = rows["set"].map(named)
    rows["started"] = rows["started"].dt.strftime("%Y-%m-%d %H:%M")
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
    """Return the rows with a heading row before each test set, and before each value of the grouping within it."""
    known = {each.key: each for each in sets}
    bands: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for row in rows:
        bands.setdefault((row["place"], str(row.get(grouping) or "") if grouping else ""), []).append(row)
    banded_rows: list[dict[str, Any]] = []
    for number, ((_, value), members) in enumerate(sorted(bands.items(), key=lambda item: item[0])):
        test_set = known[members[0]["set"]]
        title = f"{test_set.name} · {grouping} {value or 'unknown'}" if grouping else test_set.name
        heading = {"run_id": f"band-{number}", "band": number, "heading": title, "count": len(members)}
        banded_rows.append({**heading, "leaks": test_set.leaking})
        banded_rows += [{**row, "band": number} for row in members]
    return banded_rows


def run_choices(table: pd.DataFrame, chosen: Sequence[str] | None = ()) -> list[dict[str, str]]:
    """Return tested runs as value and label, newest first, with chosen ones that are not known yet."""
    named = table.reindex(columns=["run_id", "name", SCORE, "params.model", *_PLACE])
    tested = named[named[SCORE].notna()].fillna("").to_dict("records")
    known = [{"value": str(row["run_id"]), "label": " · ".join(filter(None, _described(row)))} for row in tested]
    missing = [run_id for run_id in chosen or () if run_id not in {each["value"] for each in known}]
    return [*known, *({"value": run_id, "label": f"run {run_id[:8]}"} for run_id in missing)]


def best_run(leaderboard: Leaderboard, *, excluding: str = "") -> str:
    """Return the id of the best honest run, not of model `excluding`, of the largest test set; "" without one."""
    key = largest_test_set(leaderboard)
    ranked = (row for row in leaderboard.rows if row["set"] == key and row.get("rank") and row["model"] != excluding)
    return next((row["run_id"] for row in ranked), "")


def _described(row: Mapping[Any, Any]) -> list[str]:
    catalogue, label, split = (str(row[name]) for name in _PLACE)
    return [str(row["name"]), str(row["params.model"]), f"{row[SCORE]:.3f}", f"{catalogue} {label} {split[:6]}"]


def _fields(table: pd.DataFrame) -> pd.DataFrame:
    fields = pd.DataFrame({name: _column(table, column) for name, column in _TEXTS.items()}).fillna("")
    for name, column in _NUMBERS.items():
        scale = COSTS[name][2] if name in COSTS else 1.0
        fields[name] = pd.to_numeric(_column(table, column), errors="coerce") * scale
    fields["started"] = table["started"]
    fields["set"] = (
        pd.DataFrame({column: _column(table, column) for column in COMPARABLE}).fillna("").agg("|".join, axis=1)
    )
    fields["family"] = fields["model"].map(family_of)
    fields["colour"] = fields["model"].map(family_colour)
    fields["leaking"] = fields["leaking"].where(fields["leaking"] == "false", "true")
    for column in table.columns:
        if column.startswith(F1):
            fields[f"f1_{column.removeprefix(F1)}"] = pd.to_numeric(table[column], errors="coerce")
    return fields


def _test_set(key: str, rows: pd.DataFrame) -> TestSet:
    first = rows.iloc[0]
    seeds = sorted(set(rows["seed"]) - {""})
    seed = f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds"
    short = key.rsplit("|", 1)[-1][:6]
    scores = [name for name in rows.columns if name.startswith("f1_") and rows[name].notna().any()]
    return TestSet(
        key=key,
        name=" · ".join(filter(None, (first["catalogue"], first["label"], first["protocol"], seed, short))),
        leaking=bool((rows["leaking"] == "true").any()),
        runs=len(rows),
        categories=tuple(sorted(name.removeprefix("f1_") for name in scores)),
    )


def _compact(row: dict[Any, Any]) -> dict[str, Any]:
    """Return the row without empty fields, its numbers rounded to four digits: a page carries thousands of them."""
    return {
        name: round(value, 4) if isinstance(value, float) else value for name, value in row.items() if value is not None
    }


def _column(table: pd.DataFrame, name: str) -> pd.Series:
    return table[name] if name in table else pd.Series(float("nan"), index=table.index, dtype=object)
