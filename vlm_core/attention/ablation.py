"""Ablation of attention: one frozen vision tower with cached tokens, under different mechanisms."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlm_core.attention.mechanisms import MECHANISMS, Mechanism
from vlm_core.config import Config
from vlm_core.config.presets import MECHANISM_LEARNING_RATES
from vlm_core.data import Data
from vlm_core.evaluation.predictions import Predictions
from vlm_core.inference import choose_device
from vlm_core.models.categoriser import Description, VisionLanguageCategoriser
from vlm_core.models.heads import Head
from vlm_core.models.loading import LoadedWeights
from vlm_core.models.stages import Adapter, Captioner, Matcher
from vlm_core.pixels.views import DEFAULT, Preprocessing
from vlm_core.training.batches import PLAIN_BATCH, chunks
from vlm_core.training.feature_cache import FeatureCache
from vlm_core.training.fit import Trainer


@dataclass(frozen=True)
class MechanismResult:
    """One mechanism with one seed, at the learning rate and epoch that were best on validation."""

    mechanism: str
    seed: int
    weights: int  # trained ones
    learning_rate: float  # the best one
    validation_macro_f1: dict[float, float]  # learning rate -> its best epoch's
    best_epoch: int  # with the best learning rate, from 1
    seconds: float  # of training with all learning rates, the tower excluded
    validation: Predictions
    test: Predictions


class MechanismCategoriser(VisionLanguageCategoriser):
    """A family's frozen, shared vision tower with a mechanism as its head. It is compared, never served."""

    def __init__(
        self,
        mechanism: str,
        hf: Any,
        tokenizer: Any,
        family: str,
        categories: tuple[str, ...],
        canvas: tuple[int, int],
        preprocessing: Preprocessing = DEFAULT,
    ) -> None:
        self.mechanism = mechanism
        super().__init__(hf, tokenizer, Description(family, categories, canvas, "linear", "tokens", {}, preprocessing))
        if MECHANISMS[mechanism].source == "penultimate":
            # What comes after the last block, a norm, stays: mechanisms read tokens as the tower hands them on.
            last = max(place for place, stage in enumerate(self.stages) if stage.name.startswith("vision.block"))
            self.stages = (*self.stages[:last], *self.stages[last + 1 :])

    def make_head(self) -> Head:
        """Return the mechanism as a head."""
        names = name_vectors(self.adapter, self.categories)
        return Mechanism(self.mechanism, names, self.adapter.width("tokens")).eval()

    def save(self, folder: Path) -> None:
        """Raise TypeError: a mechanism cannot be loaded again."""
        raise TypeError("a mechanism of the ablation cannot be saved")


@dataclass(frozen=True)
class Ablation:
    """What all mechanisms share under the seed of the settings, which the data's split has as well.

    They share a family's vision tower and its tokens of each product, the order of products, their views, the
    optimiser, the number of steps and the learning rates to choose from.
    """

    config: Config
    data: Data
    tower: LoadedWeights
    cache: FeatureCache

    def run(self, mechanism: str, learning_rates: Sequence[float] = MECHANISM_LEARNING_RATES) -> MechanismResult:
        """Train and test one of MECHANISMS, reproducibly.

        Validation chooses each learning rate's epoch, and the learning rate (the first of equally good ones). The test
        split is used once, by the chosen weights.
        """
        with tempfile.TemporaryDirectory() as folder:
            trainers = [self._trainer(mechanism, rate, Path(folder) / str(rate)) for rate in learning_rates]
            first, cut = trainers[0], len(trainers[0].model.stages)
            # The cache is filled before the clock starts.
            first.feature_batches(first.pixel_batches(), cut, self.config.views)
            started = time.perf_counter()
            weights: list[int] = []
            states = [trainer.fit(weights.append) for trainer in trainers]
            seconds = time.perf_counter() - started
        scores = [state.best_macro_f1 for state in states]
        best = scores.index(max(scores))
        return MechanismResult(
            mechanism=mechanism,
            seed=self.config.seed,
            weights=weights[best],
            learning_rate=learning_rates[best],
            validation_macro_f1=dict(zip(learning_rates, scores, strict=True)),
            best_epoch=states[best].best_epoch,
            seconds=seconds,
            validation=_predict(trainers[best], self.data.split.validation),
            test=_predict(trainers[best], self.data.split.test),
        )

    def _trainer(self, mechanism: str, learning_rate: float, folder: Path) -> Trainer:
        """Return the trainer of a fresh mechanism on the frozen tower."""
        config = self.config.model_copy(update={"mode": "probe", "learning_rate": learning_rate})
        torch.manual_seed(config.seed)
        model = MechanismCategoriser(
            mechanism,
            self.tower.hf,
            self.tower.tokenizer,
            config.family,
            self.data.split.categories,
            self.data.catalogue.pictures.canvas,
            self.tower.resized_as(config.resize, "probe"),
        )
        return Trainer(config, self.data, model.to(choose_device(config.device)), folder, self.cache)


@torch.inference_mode()
def _predict(trainer: Trainer, rows: NDArray[np.int64]) -> Predictions:
    """Return a trained mechanism's predictions on plain views of catalogue rows (n,), from cached tokens."""
    model, cut = trainer.model, len(trainer.model.stages)
    tokens = trainer.features(trainer.pixel_batches(), cut, {0: np.unique(rows)})[0]
    batches = [model.head.log_probabilities(model.run(tokens.take(batch), cut)) for batch in chunks(rows, PLAIN_BATCH)]
    return Predictions(
        product_ids=trainer.data.catalogue.products["product_id"].to_numpy(str)[rows],
        labels=trainer.data.split.labels[rows],
        log_probabilities=torch.cat(batches).cpu().numpy(),
        categories=model.categories,
    )


@torch.no_grad()
def name_vectors(adapter: Adapter, categories: Sequence[str]) -> Tensor:
    """Return frozen vectors (C, T) of category names: CLIP's text embeddings, else the mean of token embeddings."""
    names = [name.lower() for name in categories]
    if isinstance(adapter, Matcher):
        return adapter.text_embeddings(names).clone()
    assert isinstance(adapter, Captioner)
    embeddings = adapter.hf.get_input_embeddings().weight
    return torch.stack([embeddings[adapter.sentence_ids(name)[:-1]].mean(dim=0) for name in names])
