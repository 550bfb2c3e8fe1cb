"""Results and measurements as JSON; files that earlier versions wrote are read too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from functools import lru_cache
from math import isnan
from types import NoneType, UnionType
from typing import Any, Final, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python

from vlm_core.config.aliases import current_configuration, current_key, current_settings, current_value
from vlm_core.evaluation.bootstrap import Estimate
from vlm_core.evaluation.seeds import SHARE, within
from vlm_core.study.results import Results, ScoreRow

SCHEMA: Final = 2
# What schema 1 called a field.
_OLD_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "cells_planned": ("cells",),
    "cells_finished": ("done",),
    "conclusion": ("words",),
    "correct_with_copy": ("right_by_copy",),
    "decoding": ("rules",),
    "images_per_second": ("pictures_a_second",),
    "label": ("given",),
    "label_audit": ("labels",),
    "layers": ("mechanism",),
    "only_a_correct": ("only_a_right",),
    "only_b_correct": ("only_b_right",),
    "original": ("study",),
    "scores": ("rows", "rules"),
}
_OLD_KEYS: Final[Mapping[str, str]] = {"likelihood a token": "likelihood per token"}  # of a decoding rule
_MISSING: Final[Mapping[Any, Any]] = {float: float("nan"), int: 0, str: "", bool: False}


def to_json(value: Any) -> str:
    """Return the value as JSON text: dataclasses as objects, null for what is not a number."""
    plain = to_jsonable_python(value, inf_nan_mode="null")
    return json.dumps(plain, allow_nan=False, ensure_ascii=False, indent=1)


def results_to_json(results: Results) -> str:
    """Return the text of `results.json`."""
    return to_json({"schema": SCHEMA, **vars(results)})


def read_results(text: str) -> Results:
    """Return the results that `results_to_json` wrote, in schema 1 too, under the protocols' names of today.

    Raises ValueError where there are none.
    """
    results: Results = read_json(Results, text)
    scores = (
        replace(
            row,
            configuration=current_configuration(row.configuration),
            protocol=current_value("protocol", row.protocol),
        )
        for row in results.scores
    )
    return replace(
        results,
        settings=current_settings(results.settings),
        failed={current_key(key): error for key, error in results.failed.items()},
        scores=tuple(map(_within_bounds, scores)),
    )


def _within_bounds(row: ScoreRow) -> ScoreRow:
    """Return the scores with possible intervals: earlier versions stored Student's, which may end outside 0 to 1."""

    def mend(estimate: Estimate) -> Estimate:
        return within(estimate, SHARE) if estimate.low < 0 or estimate.high > 1 else estimate

    if isnan(row.headline_macro_f1.value):  # earlier versions had no other headline
        row = replace(row, headline_macro_f1=row.macro_f1)
    names = ("headline_macro_f1", "macro_f1", "accuracy", "worst_recall", "natural_macro_f1")
    per_category = {name: mend(score) for name, score in row.per_category.items()}
    means: dict[str, Any] = {name: mend(getattr(row, name)) for name in names}
    return replace(row, per_category=per_category, **means)


def read_json(kind: Any, text: str) -> Any:
    """Return the value of type `kind` that `to_json` wrote.

    Fields may be missing or have their old names; a number that is missing or null is nan, a sequence empty.
    Raises ValueError where the text holds no such value.
    """
    return _adapter(kind).validate_python(_complete(kind, json.loads(text)))


@lru_cache(maxsize=16)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


@lru_cache(maxsize=64)
def _fields(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _complete(kind: Any, value: Any) -> Any:
    """Return the JSON value with every field that its type has, by its present name."""
    origin, arguments = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and is_dataclass(kind):
        if not isinstance(value, Mapping | None):
            raise ValueError(f"{value!r:.40} is no {kind}")
        return {name: _complete(part, _look_up(value or {}, name)) for name, part in _fields(kind).items()}
    if origin is UnionType and NoneType in arguments:
        return None if value is None else _complete(arguments[0], value)
    if origin is tuple and arguments[-1] is Ellipsis and isinstance(value, list | None):
        return [_complete(arguments[0], part) for part in value or ()]
    if origin is dict and isinstance(value, Mapping | None):
        return {_OLD_KEYS.get(key, key): _complete(arguments[1], part) for key, part in (value or {}).items()}
    return _MISSING.get(kind) if value is None else value


def _look_up(value: Mapping[str, Any], name: str) -> Any:
    known = (value[each] for each in (name, *_OLD_NAMES.get(name, ())) if each in value)
    return next(known, None)
