"""A study's results as plain values: what its report and the dashboard show, each figure with the runs behind it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Final

from vlm_core.benchmark.cost import Cost
from vlm_core.evaluation.bootstrap import Estimate
from vlm_core.evaluation.decoding_scores import DecodingScore
from vlm_core.evaluation.gaps import Gap
from vlm_core.evaluation.label_audit import WithoutSuspects
from vlm_core.evaluation.leak import CategoryLeak, ProtocolScore
from vlm_core.evaluation.seed_comparison import SeedComparison

SCHEMA: Final = 1
FILE: Final = "results.json"  # in the folder `study` of the study's artifacts


@dataclass(frozen=True)
class ScoreRow:
    """One configuration over its seeds: means with Student's interval of 95 % over seeds."""

    configuration: str  # model/mode/objective/protocol
    label: str
    model: str
    kind: str  # family, baseline or mechanism
    protocol: str
    seeds: tuple[int, ...]
    run_ids: tuple[str, ...]  # one a seed
    test_products: int  # of one seed
    macro_f1: Estimate
    accuracy: Estimate
    worst_recall: Estimate
    natural_macro_f1: Estimate
    per_category: dict[str, Estimate]  # F1
    weights: int  # of the whole model, 0 where there are none
    weights_trained: int
    train_seconds: float  # mean over seeds


@dataclass(frozen=True)
class Pair:
    """Two configurations compared over the same seeds and products."""

    group: str  # families or mechanisms: Holm's correction is over the pairs of one group
    a: str  # label
    b: str
    test: SeedComparison
    words: str


@dataclass(frozen=True)
class LeakRow:
    """One model under both protocols, by category and, last, as a whole."""

    label: str
    run_ids: tuple[str, ...]  # under `study`
    scores: tuple[ProtocolScore, ...]
    leaks: tuple[CategoryLeak, ...]  # under `study`, means over seeds


@dataclass(frozen=True)
class RobustnessRow:
    """Relative drop of macro-F1 by corruption, means over seeds and severities, with Student's interval."""

    label: str
    run_ids: tuple[str, ...]
    mean_drop: Estimate
    drops: dict[str, Estimate]
    by_severity: dict[str, tuple[float, float, float]]


@dataclass(frozen=True)
class CalibrationRow:
    """Calibration before and after temperature scaling, and what confidence is worth; means over seeds."""

    label: str
    run_ids: tuple[str, ...]
    temperature: Estimate
    ece: Estimate
    ece_scaled: Estimate
    nll: Estimate
    nll_scaled: Estimate
    aurc: Estimate  # area under the risk-coverage curve
    coverage: tuple[float, ...]  # of the first seed's curve
    risk: tuple[float, ...]
    unknown: int  # products of categories that no model was trained on
    auroc_unknown: Estimate | None  # of telling them by confidence, over seeds; None where there are none
    auroc_products: Estimate | None  # of the first seed alone, with DeLong's interval over products


@dataclass(frozen=True)
class GapRow:
    """Subgroup gaps of one configuration, each product counted once over the seeds."""

    label: str
    run_ids: tuple[str, ...]
    gaps: tuple[Gap, ...]


@dataclass(frozen=True)
class RulesRow:
    """Decision rules of one writing model, means over seeds."""

    label: str
    run_ids: tuple[str, ...]
    rules: dict[str, DecodingScore]


@dataclass(frozen=True)
class CostRow:
    """What one configuration's first model costs to ask."""

    label: str
    run_id: str
    cost: Cost
    macro_f1: float
    on_front: bool  # no other is both cheaper (p50) and better


@dataclass(frozen=True)
class Suspect:
    """A product whose label looks wrong."""

    product_id: str
    given: str
    suggested: str
    score: float  # probability of the given category by models that did not learn from it
    title: str


@dataclass(frozen=True)
class LabelRow:
    """What the label audit found."""

    encoder: str  # family whose frozen features were looked at
    audited: int
    macro_f1: float  # of the models that look
    suspects: tuple[Suspect, ...]  # the most suspicious first
    without: dict[str, WithoutSuspects]  # label of a configuration -> macro-F1 of its first seed


@dataclass(frozen=True)
class Results:
    """All of a study that its report tells."""

    study: str
    run_id: str
    settings: dict[str, str]
    machine: dict[str, str]
    catalogue: str
    categories: tuple[str, ...]
    cells: int
    done: int
    failed: dict[str, str]
    rows: tuple[ScoreRow, ...]
    pairs: tuple[Pair, ...]
    leak: tuple[LeakRow, ...]
    robustness: tuple[RobustnessRow, ...]
    calibration: tuple[CalibrationRow, ...]
    gaps: tuple[GapRow, ...]
    rules: tuple[RulesRow, ...]
    cost: tuple[CostRow, ...]
    labels: LabelRow | None
    faithfulness: dict[str, Any]  # label -> what vlm_core.attention.faithfulness measured
    mechanism: dict[str, Any]  # label -> what vlm_core.attention.statistics measured

    def to_json(self) -> str:
        """All of it as JSON text."""
        return json.dumps({"schema": SCHEMA, **plain(self)}, allow_nan=False, ensure_ascii=False, indent=1)


def plain(value: Any) -> Any:
    """The value in terms of JSON: dataclasses as objects, None for what is not a number."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value
