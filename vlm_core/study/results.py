"""A study's results as plain values: what its report and the dashboard show, each number with the runs behind it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from vlm_core.attention.faithfulness import Faithfulness
from vlm_core.attention.statistics import LayerStatistics
from vlm_core.evaluation.bootstrap import Estimate
from vlm_core.evaluation.decoding_scores import DecodingScore
from vlm_core.evaluation.gaps import Gap
from vlm_core.evaluation.label_audit import WithoutSuspects
from vlm_core.evaluation.leak import CategoryLeak, ProtocolScore
from vlm_core.evaluation.paired import better_first
from vlm_core.evaluation.seed_comparison import SeedComparison
from vlm_core.study.cost import Cost

FILE: Final = "results.json"  # in the folder `study` of the study's artifacts


@dataclass(frozen=True)
class ScoreRow:
    """One configuration over its seeds: means with their 95 % interval over seeds."""

    configuration: str  # model/mode/objective/protocol
    label: str
    model: str
    kind: str  # family, baseline or mechanism
    protocol: str
    seeds: tuple[int, ...]
    run_ids: tuple[str, ...]  # one a seed
    test_products: int  # of one seed
    headline_macro_f1: Estimate  # of the products of the categories that are not thin
    macro_f1: Estimate  # of all
    accuracy: Estimate
    worst_recall: Estimate
    natural_macro_f1: Estimate
    per_category: dict[str, Estimate]  # F1
    weights: int  # of the whole model, 0 where there are none
    weights_trained: int
    train_seconds: float  # mean over seeds
    learning_rates: tuple[float, ...]  # that validation chose, one a seed; () where there was no choice


def is_simple_baseline(row: ScoreRow) -> bool:
    """Return whether the row is of a baseline on frozen features: the runs that hold its predictions are a probe's."""
    return row.configuration.count("/") > 3  # its name comes before the probe's configuration


@dataclass(frozen=True)
class PairRow:
    """Two configurations compared over the same seeds and products."""

    # families, mechanisms (of one tower), controls, held_out or fusion: p-values are corrected over one group's pairs
    group: str
    a: str  # label
    b: str
    test: SeedComparison
    conclusion: str  # in words

    def better_first(self) -> PairRow:
        """Return the pair with the better configuration as a, as its conclusion names them."""
        a, b, test = better_first(self.a, self.b, self.test)
        return replace(self, a=a, b=b, test=test)


@dataclass(frozen=True)
class HeldOutRow:
    """One configuration on all evaluable products that it was neither trained nor selected on; headline categories."""

    label: str
    run_ids: tuple[str, ...]
    products: int  # of the first seed
    support: dict[str, int]  # of these, by category
    macro_f1: Estimate  # each product counts once
    accuracy: Estimate
    natural_macro_f1: Estimate  # each category has its share of the catalogue
    natural_accuracy: Estimate


@dataclass(frozen=True)
class LeakRow:
    """One model under both protocols: each category and, last, all of them."""

    label: str
    run_ids: tuple[str, ...]  # under the original protocol
    scores: tuple[ProtocolScore, ...]
    leaks: tuple[CategoryLeak, ...]  # under the original protocol, means over seeds


@dataclass(frozen=True)
class RobustnessRow:
    """Relative drop of macro-F1 by corruption, means over seeds and severities, with their interval."""

    label: str
    run_ids: tuple[str, ...]
    mean_drop: Estimate
    drops: dict[str, Estimate]
    by_severity: dict[str, tuple[float, float, float]]


@dataclass(frozen=True)
class CalibrationRow:
    """Calibration before and after temperature scaling, and selective prediction; means over seeds."""

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
    unknown: int  # products of other categories, which no weights known here saw in pretraining
    auroc_unknown: Estimate | None  # of detecting them by confidence, over seeds; None where there are none
    auroc_products: Estimate | None  # of the first seed alone, with DeLong's interval over products


@dataclass(frozen=True)
class GapRow:
    """Subgroup gaps of one configuration, each product counted once over the seeds."""

    label: str
    run_ids: tuple[str, ...]
    gaps: tuple[Gap, ...]


@dataclass(frozen=True)
class DecodingRow:
    """One generative model's scores by each decoding rule, means over seeds."""

    label: str
    run_ids: tuple[str, ...]
    scores: dict[str, DecodingScore]  # decoding rule -> its scores


@dataclass(frozen=True)
class CostRow:
    """The cost of a prediction by one configuration's first model."""

    label: str
    run_id: str
    cost: Cost
    macro_f1: float
    on_front: bool  # on the Pareto front: no other is both faster (p50) and better


@dataclass(frozen=True)
class Suspect:
    """A product whose label looks wrong."""

    product_id: str
    label: str
    suggested: str
    score: float  # out-of-fold probability of the label
    title: str


@dataclass(frozen=True)
class LabelAuditResult:
    """The outcome of the label audit."""

    encoder: str  # family whose frozen features were used
    audited: int  # products
    macro_f1: float  # of the auditing classifiers, out of fold
    suspects: tuple[Suspect, ...]  # the most suspicious first
    without: dict[str, WithoutSuspects]  # label of a configuration -> macro-F1 of its first seed


@dataclass(frozen=True)
class ContinualRow:
    """One family and method of the continual benchmark: means over orders with their 95 % interval."""

    family: str
    method: str
    categories: int
    orders: int
    average_accuracy: Estimate  # mean over steps of the accuracy on what was learnt so far
    final_accuracy: Estimate
    forgetting: Estimate
    backward_transfer: Estimate
    forward_transfer: Estimate
    seconds: Estimate  # to learn a step after the first, without the frozen layers
    memory_bytes: int  # of old products
    accuracies: tuple[tuple[float, ...], ...]  # (T, T): in row i those on each step's test products, after step i

    @property
    def label(self) -> str:
        """The family and the method."""
        return f"{self.family} {self.method}"


@dataclass(frozen=True)
class FusionRow:
    """One reader of pictures, texts or both, on frozen towers: means over seeds with their 95 % interval."""

    label: str
    family: str  # or baseline
    inputs: str  # image, text or image+text
    fusion: str  # of both inputs
    masked: bool  # whether the words of categories and article types were removed from the texts
    seeds: int
    test_products: int  # of one seed
    headline_macro_f1: Estimate
    accuracy: Estimate
    missing: dict[str, Estimate]  # share of test products whose text is left out -> headline macro-F1


@dataclass(frozen=True)
class TextLeakRow:
    """The share of a category's texts that have a word of it or of its article types; of all products in the last."""

    category: str
    share: float  # mean over seeds


@dataclass(frozen=True)
class FusionResults:
    """Pictures, texts and both, in every way: scores, fusion against one input alone, how far texts leak."""

    rows: tuple[FusionRow, ...]
    pairs: tuple[PairRow, ...]
    leaks: tuple[TextLeakRow, ...]  # of unmasked texts


@dataclass(frozen=True)
class Results:
    """All results of a study."""

    study: str
    run_id: str
    settings: dict[str, str]
    machine: dict[str, str]
    catalogue: str
    categories: tuple[str, ...]
    cells_planned: int
    cells_finished: int
    failed: dict[str, str]  # key of a cell -> its error
    thin: dict[str, int]  # category -> its test products a seed, of those with too few for the headline
    scores: tuple[ScoreRow, ...]
    pairs: tuple[PairRow, ...]
    held_out: tuple[HeldOutRow, ...]
    leak: tuple[LeakRow, ...]
    robustness: tuple[RobustnessRow, ...]
    calibration: tuple[CalibrationRow, ...]
    gaps: tuple[GapRow, ...]
    decoding: tuple[DecodingRow, ...]
    cost: tuple[CostRow, ...]
    label_audit: LabelAuditResult | None
    faithfulness: dict[str, Faithfulness]  # label -> of its first seed's attention maps
    layers: dict[str, tuple[LayerStatistics, ...]]  # label -> of each layer's attention, of its first seed
    continual: tuple[ContinualRow, ...] = ()
    fusion: FusionResults | None = None
