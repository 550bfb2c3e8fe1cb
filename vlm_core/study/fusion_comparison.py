"""The part on pictures with texts: one input, the other and both, in every way, on each family's frozen towers."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from vlm_core.config import Config, StudyConfig
from vlm_core.data import Data, load_data, text_reading, words_of_labels
from vlm_core.evaluation.predictions import Predictions
from vlm_core.evaluation.seeds import SHARE, over_seeds
from vlm_core.evaluation.subgroups import well_tested
from vlm_core.evaluation.summary import macro_f1
from vlm_core.evaluation.text_leak import TextLeak, measure_text_leak
from vlm_core.inference import predict_rows
from vlm_core.progress import quiet
from vlm_core.study.cell_results import finished_runs
from vlm_core.study.cells import load_encoder
from vlm_core.study.plan import READER, StudyPlan
from vlm_core.study.readers import BASELINE, Reader
from vlm_core.study.results import FusionResults, FusionRow, PairRow, TextLeakRow
from vlm_core.tracking.reader import RunReader

if TYPE_CHECKING:
    from vlm_core.evaluation.bootstrap import Estimate
    from vlm_core.models.categoriser import Categoriser
    from vlm_core.models.loading import LoadedWeights

MISSING: Final = (0.0, 0.25, 0.5, 1.0)  # shares of titles that are left out in tests
WITHOUT_TEXT: Final = "without_text"
WITHOUT_PICTURE: Final = "without_picture"


@dataclass(frozen=True)
class ReaderPredictions:
    """What a reader predicts for the test products of one seed, and what it does with an input withheld."""

    complete: Predictions
    without_text: Predictions
    without_picture: Predictions | None = None  # of a reader of both

    @property
    def withheld(self) -> dict[str, Predictions]:
        """The predictions with an input withheld, by their names in a run; none of a reader of pictures alone."""
        named = {WITHOUT_TEXT: self.without_text, WITHOUT_PICTURE: self.without_picture}
        return {name: each for name, each in named.items() if each is not None and each is not self.complete}

    @classmethod
    def read(cls, store: RunReader, run_id: str, reader: Reader) -> ReaderPredictions:
        """Read them from the reader's run."""
        complete = store.predictions(run_id)
        if reader.inputs == "image":
            return cls(complete, complete)
        without_text = store.predictions(run_id, WITHOUT_TEXT)
        if reader.inputs == "text":
            return cls(complete, without_text)
        return cls(complete, without_text, store.predictions(run_id, WITHOUT_PICTURE))

    def missing(self, share: float, seed: int) -> Predictions:
        """Return the predictions where a share of the products has no text: more of them with a larger share."""
        missing = np.random.default_rng([seed, 3]).random(len(self.complete)) < share
        rows = np.where(missing[:, None], self.without_text.log_probabilities, self.complete.log_probabilities)
        return replace(self.complete, log_probabilities=rows)


def compare_readers(parent: str, plan: StudyPlan, config: StudyConfig, data: Data, root: Path) -> FusionResults | None:
    """Return the results of the readers that have finished with every seed, None where there is none.

    Their runs are children of the run `parent`.
    """
    tested = _read_finished(parent, plan)
    if not tested:
        return None
    seeds = range(config.seed, config.seed + config.seeds)
    leaks = []
    for seed in seeds:
        settings = plan.probe_settings().model_copy(update={"seed": seed, "inputs": "text"})
        with quiet():
            leaks.append(_leak(settings, load_data(settings, root, data.catalogue)))
    headline = _headline(next(iter(tested.values())))
    rows = [_row(reader, each, headline, seeds) for reader, each in tested.items()]
    return FusionResults(tuple(rows), _pairs(tested, headline), _leak_rows(leaks))


def _read_finished(parent: str, plan: StudyPlan) -> dict[Reader, list[ReaderPredictions]]:
    """Return what the readers predicted, seed by seed, of those that have finished with every seed."""
    store = RunReader()
    cells = [cell for cell in plan.cells if cell.model == READER]
    tested: dict[Reader, list[ReaderPredictions]] = defaultdict(list)
    for cell, row in finished_runs(store, parent, cells):
        tested[cell.reader].append(ReaderPredictions.read(store, str(row["run_id"]), cell.reader))
    seeds = len({cell.seed for cell in cells})
    return {reader: each for reader, each in tested.items() if len(each) == seeds}


def _leak(settings: Config, data: Data) -> TextLeak:
    """Return how often the unmasked texts of all categorised products name their category."""
    reads = text_reading(settings, data.catalogue, data.split.categories)
    assert reads
    rows = np.concatenate([np.unique(data.split.train), data.split.validation, data.split.test])
    words = words_of_labels(settings, data.catalogue, data.split.categories)
    texts = reads.texts(data.catalogue.products.iloc[rows])
    return measure_text_leak(texts, data.split.labels[rows], words)


def train_and_test(config: Config, data: Data, root: Path) -> ReaderPredictions:
    """Train a reader's head on frozen towers, and return what it predicts for the test products."""
    from vlm_core.workflows.train import fit_baseline_of

    if config.model == BASELINE:
        return _test(fit_baseline_of(config, data), data)
    return _test(_fit_probe(config, data, load_encoder(config, config.model), root), data)


def _fit_probe(config: Config, data: Data, weights: LoadedWeights, root: Path) -> Categoriser:
    """Return a family with its head trained on frozen features."""
    from vlm_core.training.feature_cache import FeatureCache
    from vlm_core.training.fit import GIB, Trainer
    from vlm_core.workflows.train import adapt_settings, build_model

    config = adapt_settings(config, weights.source)
    cache = FeatureCache(root / "cache", int(config.cache_gib * GIB), config.cache_precision)
    model = build_model(config, data, weights)
    with tempfile.TemporaryDirectory() as folder:
        Trainer(config, data, model, Path(folder), cache).fit()
    return model


def _test(model: Categoriser, data: Data) -> ReaderPredictions:
    """Return what a model predicts for the test products, with each of its inputs and without."""
    place = data.catalogue, data.split.test, data.split.labels
    complete = predict_rows(model, *place)
    if model.reads is None:
        return ReaderPredictions(complete, complete)
    without_text = predict_rows(model, *place, without="text")
    if model.reads.inputs == "text":
        return ReaderPredictions(complete, without_text)
    return ReaderPredictions(complete, without_text, predict_rows(model, *place, without="picture"))


def _headline(seeds: Sequence[ReaderPredictions]) -> frozenset[str]:
    """Return the categories with at least 20 test products in every seed; all where fewer than two have."""
    categories = seeds[0].complete.categories
    counts = [np.bincount(each.complete.labels, minlength=len(categories)).tolist() for each in seeds]
    return well_tested([dict(zip(categories, each, strict=True)) for each in counts])


def _row(
    reader: Reader, seeds: Sequence[ReaderPredictions], headline: frozenset[str], numbers: Sequence[int]
) -> FusionRow:
    def score(predictions: Sequence[Predictions]) -> Estimate:
        chosen = [each.of_categories(headline) for each in predictions]
        return over_seeds([macro_f1(each.labels, each.predicted) for each in chosen], SHARE)

    complete = [each.complete for each in seeds]
    reads_text = reader.inputs != "image"
    return FusionRow(
        label=reader.label,
        family=reader.family,
        inputs=reader.inputs,
        fusion=reader.fusion,
        masked=reader.masked,
        seeds=len(seeds),
        test_products=len(complete[0]),
        headline_macro_f1=score(complete),
        accuracy=over_seeds([float((each.predicted == each.labels).mean()) for each in complete], SHARE),
        missing={
            f"{share:.0%}": score([each.missing(share, seed) for each, seed in zip(seeds, numbers, strict=True)])
            for share in MISSING
            if reads_text
        },
    )


def _pairs(tested: Mapping[Reader, Sequence[ReaderPredictions]], headline: frozenset[str]) -> tuple[PairRow, ...]:
    """Test each fusion against the best of one input alone, by their means.

    One input alone is the picture or the text under a linear layer, or the fused model itself with the other withheld:
    its head may have a hidden layer, whose gain is none of fusion.
    """
    from vlm_core.study.collecting import pair_rows

    predictions: dict[str, list[Predictions]] = {}
    for reader, seeds in tested.items():
        predictions[reader.label] = [each.complete.of_categories(headline) for each in seeds]
        if reader.inputs == "image+text":
            predictions[f"{reader.label}, texts withheld"] = [
                each.without_text.of_categories(headline) for each in seeds
            ]
            predictions[f"{reader.label}, pictures withheld"] = [
                each.without_picture.of_categories(headline) for each in seeds if each.without_picture
            ]
    scores = {
        label: np.mean([macro_f1(each.labels, each.predicted) for each in found])
        for label, found in predictions.items()
    }
    pairs = []
    for reader in tested:
        if reader.inputs == "image+text":
            alone = (Reader(reader.family, "image"), Reader(reader.family, "text", masked=reader.masked))
            withheld = (f"{reader.label}, {what} withheld" for what in ("texts", "pictures"))
            pairs.append(
                (reader.label, max((*(each.label for each in alone), *withheld), key=lambda name: scores[name]))
            )
    return tuple(pair_rows("fusion", predictions, pairs))


def _leak_rows(leaks: Sequence[TextLeak]) -> tuple[TextLeakRow, ...]:
    """Return the mean shares over seeds by category, all of them last."""
    by_category = {name: float(np.nanmean([each.by_category[name] for each in leaks])) for name in leaks[0].by_category}
    by_category["all"] = float(np.mean([each.share for each in leaks]))
    return tuple(TextLeakRow(name, share) for name, share in by_category.items())
