"""What attention contributes: one frozen vision tower with cached tokens, where only the mechanism differs."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlm_core.attention.mechanisms import Mechanism
from vlm_core.config import Config
from vlm_core.data import Data
from vlm_core.evaluation.predictions import Predictions
from vlm_core.models.categoriser import Description, VisionLanguageCategoriser
from vlm_core.models.clip import Clip
from vlm_core.models.heads import Head
from vlm_core.models.loading import LoadedWeights
from vlm_core.models.stages import Adapter, Captioner
from vlm_core.training.batches import PLAIN_BATCH, chunks
from vlm_core.training.feature_cache import FeatureCache
from vlm_core.training.fit import Trainer

# Every mechanism is trained once with each, and the best on validation is kept.
LEARNING_RATES: Final = (3e-4, 1e-3, 3e-3)


@dataclass(frozen=True)
class MechanismResult:
    """One mechanism with one seed, at the learning rate and epoch that were best on validation."""

    mechanism: str
    seed: int
    weights: int  # that were trained
    learning_rate: float  # chosen
    validation_macro_f1: dict[float, float]  # learning rate -> best epoch's
    best_epoch: int  # of the chosen learning rate's training, from 1
    seconds: float  # of training with all learning rates, without the tower
    validation: Predictions
    test: Predictions


class MechanismCategoriser(VisionLanguageCategoriser):
    """A family's vision tower, all of it frozen and shared, under a mechanism. It is compared, never served."""

    def __init__(
        self, mechanism: str, hf: Any, tokenizer: Any, family: str, categories: tuple[str, ...], canvas: tuple[int, int]
    ) -> None:
        self.mechanism = mechanism
        super().__init__(hf, tokenizer, Description(family, categories, canvas, "linear", "tokens", {}))

    def make_head(self) -> Head:
        """Return the mechanism as a head."""
        names = name_vectors(self.adapter, self.categories)
        return Mechanism(self.mechanism, names, self.adapter.width("tokens")).eval()

    def save(self, folder: Path) -> None:
        """Nothing: raises TypeError, for what it would write could not be loaded."""
        raise TypeError("a mechanism of the ablation is not kept")


@dataclass(frozen=True)
class Ablation:
    """What all mechanisms share under one seed, that of the settings, which has drawn the data as well.

    The vision tower of a family's model, and from it the tokens of each product; the order of products, their views,
    the optimiser, the number of steps and the learning rates to choose from.
    """

    config: Config
    data: Data
    tower: LoadedWeights
    cache: FeatureCache

    def run(self, mechanism: str, learning_rates: Sequence[float] = LEARNING_RATES) -> MechanismResult:
        """The result of one of DESIGNS; the same call gives the same.

        Validation chooses the epoch of each learning rate's training, and the first of the best learning rates. The
        test split is read once, by what was chosen.
        """
        with tempfile.TemporaryDirectory() as folder:
            trainers = [self._trainer(mechanism, rate, Path(folder) / str(rate)) for rate in learning_rates]
            first, cut = trainers[0], len(trainers[0].model.stages)
            first.feature_batches(
                first.pixel_batches(), cut, self.config.views
            )  # fills the cache before the clock runs
            started = time.perf_counter()
            weights: list[int] = []
            states = [trainer.fit(weights.append, lambda report: None) for trainer in trainers]
            seconds = time.perf_counter() - started
        scores = [state.best_macro_f1 for state in states]
        chosen = scores.index(max(scores))
        return MechanismResult(
            mechanism=mechanism,
            seed=self.config.seed,
            weights=weights[chosen],
            learning_rate=learning_rates[chosen],
            validation_macro_f1=dict(zip(learning_rates, scores, strict=True)),
            best_epoch=states[chosen].best_epoch,
            seconds=seconds,
            validation=_predict(trainers[chosen], self.data.split.validation),
            test=_predict(trainers[chosen], self.data.split.test),
        )

    def _trainer(self, mechanism: str, learning_rate: float, folder: Path) -> Trainer:
        """A training of a fresh mechanism alone."""
        config = self.config.model_copy(update={"mode": "probe", "learning_rate": learning_rate})
        torch.manual_seed(config.seed)
        model = MechanismCategoriser(
            mechanism,
            self.tower.hf,
            self.tower.tokenizer,
            config.family,
            self.data.split.categories,
            self.data.catalogue.pictures.canvas,
        )
        return Trainer(config, self.data, model, folder, self.cache)


@torch.inference_mode()
def _predict(trainer: Trainer, rows: NDArray[np.int64]) -> Predictions:
    """Return a trained mechanism's predictions on plain views of catalogue rows (n,), from cached tokens."""
    model, cut = trainer.model, len(trainer.model.stages)
    model.set_training(False, cut)
    entry, run = trainer.cache_entry(model.fingerprint(cut), 0), trainer.frozen_prefix(0, cut)
    tokens = trainer.compute_features(trainer.pixel_batches(), 0, rows, entry, run)
    answers = [model.head.log_probabilities(tokens.take(chosen)) for chosen in chunks(rows, PLAIN_BATCH)]
    return Predictions(
        product_ids=trainer.data.catalogue.products["product_id"].to_numpy(str)[rows],
        labels=trainer.data.split.labels[rows],
        log_probabilities=torch.cat(answers).cpu().numpy(),
        categories=model.categories,
    )


@torch.no_grad()
def name_vectors(adapter: Adapter, categories: Sequence[str]) -> Tensor:
    """A frozen vector (C, T) a category's name: of CLIP's text tower, else the mean of its pieces' embeddings."""
    names = [name.lower() for name in categories]
    if isinstance(adapter, Clip):
        return adapter.text_embeddings(names).clone()
    assert isinstance(adapter, Captioner)
    embeddings = adapter.hf.get_input_embeddings().weight
    return torch.stack([embeddings[adapter.sentence_ids(name)[:-1]].mean(dim=0) for name in names])
