"""The part on pictures with texts: one input, the other and both, in every way, on each family's frozen towers."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, get_args

import numpy as np

from vlm_core.config import Config, StudyConfig
from vlm_core.config.families import FAMILIES, family_of
from vlm_core.data import Data, load_data, text_reading, words_of_labels
from vlm_core.evaluation.predictions import Predictions
from vlm_core.evaluation.seeds import SHARE, over_seeds
from vlm_core.evaluation.subgroups import well_tested
from vlm_core.evaluation.summary import macro_f1
from vlm_core.evaluation.text_leak import TextLeak, measure_text_leak
from vlm_core.inference import predict_rows
from vlm_core.progress import quiet, track
from vlm_core.study.cells import load_encoder
from vlm_core.study.plan import StudyPlan
from vlm_core.study.results import FusionResults, FusionRow, PairRow, TextLeakRow

if TYPE_CHECKING:
    from vlm_core.evaluation.bootstrap import Estimate
    from vlm_core.models.categoriser import Categoriser
    from vlm_core.models.loading import LoadedWeights

BASELINE: Final = "baseline"
MISSING: Final = (0.0, 0.25, 0.5, 1.0)  # shares of titles that are left out in tests


@dataclass(frozen=True)
class Reader:
    """What is compared: a family, or the baseline, with its inputs and the way they are fused."""

    family: str
    inputs: str  # image, text or image+text
    fusion: str = ""  # of both
    masked: bool = False  # whether the texts lack the words of labels

    @property
    def label(self) -> str:
        """The reader in words."""
        read = {"image": "picture", "text": "text"}.get(self.inputs, f"both, {self.fusion}")
        return f"{self.family} {read}{' (masked)' if self.masked else ''}"


@dataclass(frozen=True)
class ReaderPredictions:
    """What a reader predicts for the test products of one seed, and what it does with an input withheld."""

    complete: Predictions
    without_text: Predictions
    without_picture: Predictions | None = None  # of a reader of both

    def missing(self, share: float, seed: int) -> Predictions:
        """Return the predictions where a share of the products has no text: more of them with a larger share."""
        missing = np.random.default_rng([seed, 3]).random(len(self.complete)) < share
        rows = np.where(missing[:, None], self.without_text.log_probabilities, self.complete.log_probabilities)
        return replace(self.complete, log_probabilities=rows)


def readers(families: Sequence[str]) -> list[Reader]:
    """Return all that are compared, the baseline first; a family without language reads pictures alone."""
    from vlm_core.models.fusion import Fusion

    found = []
    for family in (BASELINE, *families):
        ways = ("stacked",) if family == BASELINE else get_args(Fusion)
        found.append(Reader(family, "image"))
        if family != BASELINE and not FAMILIES[family_of(family)].has_language:
            continue
        for masked in (False, True):
            found.append(Reader(family, "text", masked=masked))
            found += [Reader(family, "image+text", way, masked) for way in ways]
    return found


def measure_fusion(plan: StudyPlan, config: StudyConfig, data: Data, root: Path) -> FusionResults:
    """Return the results of all readers over the study's seeds. Raises UserError for a catalogue without texts."""
    tested: dict[Reader, list[ReaderPredictions]] = defaultdict(list)
    leaks: list[TextLeak] = []
    encoders = {family: load_encoder(config, family) for family in plan.families}
    seeds = range(config.seed, config.seed + config.seeds)
    for seed in seeds:
        settings = plan.probe_settings().model_copy(
            update={"seed": seed, "inputs": "text", "text_columns": config.text_columns}
        )
        with quiet():
            split = load_data(settings, root, data.catalogue)
            leaks.append(_leak(settings, split))
        all_readers = readers(plan.families)
        found = _test_seed(all_readers, settings, split, encoders, root)
        for reader, each in track(found, f"picture and text, seed {seed}", len(all_readers)):
            tested[reader].append(each)
    headline = _headline(next(iter(tested.values())))
    rows = [_row(reader, each, headline, seeds) for reader, each in tested.items()]
    return FusionResults(tuple(rows), _pairs(tested, headline), _leak_rows(leaks))


def _leak(settings: Config, data: Data) -> TextLeak:
    """Return how often the unmasked texts of all categorised products name their category."""
    reads = text_reading(settings, data.catalogue, data.split.categories)
    assert reads
    rows = np.concatenate([np.unique(data.split.train), data.split.validation, data.split.test])
    words = words_of_labels(settings, data.catalogue, data.split.categories)
    texts = reads.texts(data.catalogue.products.iloc[rows])
    return measure_text_leak(texts, data.split.labels[rows], words)


def _test_seed(
    all_readers: Sequence[Reader],
    settings: Config,
    data: Data,
    encoders: Mapping[str, LoadedWeights],
    root: Path,
) -> Iterator[tuple[Reader, ReaderPredictions]]:
    """Yield each reader, trained on a seed's split, and what it predicts for the test products."""
    from vlm_core.models.baseline import Baseline
    from vlm_core.workflows.train import fit_baseline_of

    picture: Baseline | None = None
    for reader in all_readers:
        config = settings.model_copy(
            update={
                "model": reader.family,
                "inputs": reader.inputs,
                "mask_label_words": reader.masked,
                **({"fusion": reader.fusion} if reader.family != BASELINE and reader.fusion else {}),
            }
        )
        with quiet():
            if reader.family == BASELINE:
                model = fit_baseline_of(config, data, picture)
                picture = model if isinstance(model, Baseline) else picture
            else:
                model = _fit_probe(config, data, encoders[reader.family], root)
            tested = _test(model, data)
        yield reader, tested


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
