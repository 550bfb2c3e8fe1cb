"""The continual benchmark: article types learnt step by step on each family's frozen features, by every method."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, get_args

import numpy as np

from vlm_core.catalogue.splitting import Split, split_catalogue
from vlm_core.config import Config, StudyConfig
from vlm_core.config.lists import split_list
from vlm_core.data import Data
from vlm_core.errors import UserError
from vlm_core.evaluation.forgetting import SequenceScores, score_sequence
from vlm_core.evaluation.seeds import DIFFERENCE, POSITIVE, SHARE, over_seeds
from vlm_core.progress import track
from vlm_core.study.cells import load_encoder
from vlm_core.study.plan import StudyPlan
from vlm_core.study.results import ContinualRow
from vlm_core.training.continual import Examples, ExtensionTask, HeadWeights, Memory, Method, learn

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vlm_core.training.batches import Features

STEPS: Final = 5
ORDERS: Final = 3  # at most as many as the study has seeds
MOST_CATEGORIES: Final = 70  # the most frequent
FEWEST_PRODUCTS: Final = 10  # of a category
PER_CATEGORY: Final = 200  # products at most
MEMORY: Final = 20  # exemplars of a category
METHODS: Final[tuple[Method, ...]] = get_args(Method)


@dataclass(frozen=True)
class Order:
    """One seed's split, and its categories in the order in which they are learnt."""

    split: Split
    ranks: NDArray[np.int64]  # (C,) place of each of the split's categories in the order
    known: tuple[int, ...]  # categories after each step

    def step_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the step (n,) that learns the category of each catalogue row."""
        return np.searchsorted(self.known, self.ranks[self.split.labels[rows]], side="right")


@dataclass(frozen=True)
class StepByStep:
    """What one method made of the steps of one order."""

    accuracies: NDArray[np.float64]  # (T, T): in row i those on each step's test products, after step i
    seconds: float  # to learn a step, mean over those after the first
    memory_bytes: int  # of old products, kept after the last step

    @property
    def scores(self) -> SequenceScores:
        """Return its scores; a model that has learnt nothing predicts no category."""
        return score_sequence(self.accuracies, np.zeros(len(self.accuracies)))


def article_types(config: StudyConfig, data: Data) -> tuple[str, tuple[str, ...]]:
    """Return the column of article types and the most frequent ones. Raises UserError for none or too few."""
    products = data.catalogue.products
    column = "".join(split_list(config.caption_columns)[-1:])
    if column not in products:
        raise UserError(
            f"parts=continual learns article types, the last of caption_columns={config.caption_columns}, which the "
            f"catalogue {data.catalogue.name} does not have: name another column there."
        )
    counts = products[column][products[column] != ""].value_counts()
    different = products.assign(group=data.groups).groupby(column)["group"].nunique()
    enough = tuple(str(name) for name in counts.index if different[name] >= FEWEST_PRODUCTS)[:MOST_CATEGORIES]
    if len(enough) < 2 * STEPS:
        raise UserError(
            f"parts=continual needs {2 * STEPS} categories of {FEWEST_PRODUCTS} different products in the column "
            f"{column}, which has {len(enough)}: name another one as the last of caption_columns."
        )
    return column, enough


def measure_continual(plan: StudyPlan, config: StudyConfig, data: Data, root: Path) -> tuple[ContinualRow, ...]:
    """Return the scores of every family and method, with intervals over orders. Raises UserError."""
    settings = plan.probe_settings()
    seeds = range(config.seed, config.seed + min(config.seeds, ORDERS))
    orders = [_order(settings, data, *article_types(config, data), seed) for seed in seeds]
    rows = []
    for family in plan.families:
        features = _features(config, settings, family, data, orders, root)
        found: dict[Method, list[StepByStep]] = {method: [] for method in METHODS}
        tasks = [(order, method) for order in orders for method in METHODS]
        for order, method in track(tasks, f"learning step by step, {family}", len(tasks)):
            found[method].append(learn_in_steps(order, features, method))
        rows += [_row(family, method, len(orders[0].ranks), outcomes) for method, outcomes in found.items()]
    return tuple(rows)


def _order(settings: Config, data: Data, column: str, categories: Sequence[str], seed: int) -> Order:
    """Return a seed's split of the article types, and their order."""
    split = split_catalogue(
        data.catalogue.products,
        data.groups,
        label=column,
        categories=categories,
        min_products=FEWEST_PRODUCTS,
        protocol="holdout",
        per_category=min(settings.per_category or PER_CATEGORY, PER_CATEGORY),
        train_per_category=0,
        seed=seed,
        evaluable=data.evaluable,
    )
    ranks = np.random.default_rng([seed, 2]).permutation(len(split.categories))
    sizes = [len(part) for part in np.array_split(ranks, STEPS)]
    return Order(split, ranks, tuple(np.cumsum(sizes).tolist()))


def _features(
    config: StudyConfig, settings: Config, family: str, data: Data, orders: Sequence[Order], root: Path
) -> Features:
    """Return the family's fused features of all rows of all orders, before any fine-tuning, from the cache."""
    from vlm_core.models.categoriser import Description, VisionLanguageCategoriser
    from vlm_core.training.feature_cache import FeatureCache
    from vlm_core.training.fit import GIB, Trainer

    weights = load_encoder(config, family)
    split, canvas = orders[0].split, data.catalogue.pictures.canvas
    description = Description(
        family.split("-")[0],
        split.categories,
        canvas,
        "linear",
        "fused",
        {},
        weights.resized_as(config.resize, "probe"),
    )
    model = VisionLanguageCategoriser(weights.hf, weights.tokenizer, description)
    cache = FeatureCache(root / "cache", int(settings.cache_gib * GIB), settings.cache_precision)
    trainer = Trainer(settings, replace(data, split=split), model, root / "checkpoints", cache)
    parts = [part for order in orders for part in (order.split.train, order.split.validation, order.split.test)]
    return trainer.head_features(np.unique(np.concatenate(parts)))


def learn_in_steps(order: Order, features: Features, method: Method) -> StepByStep:
    """Learn one step's categories after another, and test each step's after each; the first step has no old ones."""
    parts = {name: _by_step(order, features, getattr(order.split, name)) for name in ("train", "validation", "test")}
    train, test = parts["train"], parts["test"]
    width = train[0].features.shape[1]
    head = HeadWeights(np.empty((0, width), np.float32), np.empty(0, np.float32))
    memory, accuracies, seconds = Memory.empty(width), np.zeros((STEPS, STEPS)), list[float]()
    for step, known in enumerate(order.known):
        validation, old = _joined(parts["validation"][: step + 1]), _joined(train[:step], width)
        began = time.perf_counter()
        joined = memory.joined(train[step], known, MEMORY)
        head = learn(method, head, ExtensionTask(train[step], validation, known, memory, old), joined)
        seconds.append(time.perf_counter() - began)
        memory = joined
        accuracies[step] = [_accuracy(head, each) for each in test]
    return StepByStep(accuracies, float(np.mean(seconds[1:])), _bytes_kept(method, memory, _joined(train)))


def _by_step(order: Order, features: Features, rows: NDArray[np.int64]) -> list[Examples]:
    steps = order.step_of(rows)
    return [
        Examples(features.take(some)[0].numpy(), order.ranks[order.split.labels[some]])
        for some in (rows[steps == step] for step in range(STEPS))
    ]


def _joined(parts: Sequence[Examples], width: int = 0) -> Examples:
    none = Examples(np.empty((0, width), np.float32), np.empty(0, np.int64))
    return sum(parts[1:], start=parts[0]) if parts else none


def _accuracy(head: HeadWeights, examples: Examples) -> float:
    return float((head.log_probabilities(examples.features).argmax(axis=1) == examples.labels).mean())


def _bytes_kept(method: Method, memory: Memory, products: Examples) -> int:
    """Return the bytes of what a method needs of old products: means, exemplars, all of them or nothing."""
    kept = {"naive": 0, "joint": products.bytes, "prototypes": memory.bytes - memory.exemplars.bytes}
    return kept.get(method, memory.exemplars.bytes)


def _row(family: str, method: str, categories: int, outcomes: Sequence[StepByStep]) -> ContinualRow:
    scores = [each.scores for each in outcomes]
    matrix = np.mean([each.accuracies for each in outcomes], axis=0)
    return ContinualRow(
        family=family,
        method=method,
        categories=categories,
        orders=len(outcomes),
        average_accuracy=over_seeds([each.average_accuracy for each in scores], SHARE),
        final_accuracy=over_seeds([each.final_accuracy for each in scores], SHARE),
        forgetting=over_seeds([each.forgetting for each in scores], DIFFERENCE),
        backward_transfer=over_seeds([each.backward_transfer for each in scores], DIFFERENCE),
        forward_transfer=over_seeds([each.forward_transfer for each in scores], DIFFERENCE),
        seconds=over_seeds([each.seconds for each in outcomes], POSITIVE),
        memory_bytes=int(np.mean([each.memory_bytes for each in outcomes])),
        accuracies=tuple(tuple(line) for line in matrix.tolist()),
    )
