"""Fine-tuning of a run's model: trainable weights, phases, and the feature cache in front of the frozen prefix."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vlm_core.aliases import former_value
from vlm_core.config import HEAD, Config
from vlm_core.data import Data
from vlm_core.progress import track

if TYPE_CHECKING:
    from vlm_core.evaluation.summary import Summary
    from vlm_core.models.categoriser import VisionLanguageCategoriser
    from vlm_core.models.stages import State
    from vlm_core.pixels.arrays import Rows
    from vlm_core.training.batches import Batches
    from vlm_core.training.checkpoint import Checkpoint, TrainingState
    from vlm_core.training.feature_cache import CachedFeatures, CacheEntry, FeatureCache
    from vlm_core.training.loop import EpochReport

    EpochCallback = Callable[[EpochReport[Summary]], None]

logger = logging.getLogger(__name__)

GIB = 2**30
IMAGES_COMPARED = 8  # to measure the error of an int8 prefix; at most one batch of `Batches.view`


@dataclass(frozen=True)
class Trainer:
    """Trains one model on a run's data; `folder` holds the checkpoints."""

    config: Config
    data: Data
    model: VisionLanguageCategoriser
    folder: Path
    cache: FeatureCache
    log: Callable[[Mapping[str, float]], None] = lambda metrics: None

    def fit(self, on_start: Callable[[int], None], on_epoch: EpochCallback) -> TrainingState:
        """Train as the mode says, load the best epoch's weights into the model and return the final state.

        `on_start` receives the number of trainable weights, `on_epoch` the report of each epoch. Mode `lp-ft` (Kumar
        et al. 2022, arXiv 2202.10054) first trains the head alone: the gradients of a random head would distort
        pretrained features.
        """
        from vlm_core.training.checkpoint import Checkpoint

        config, model = self.config, self.model
        cut = model.cut(config.mode, config.blocks)
        batches = self.feature_batches(self.pixel_batches(), cut, config.views)
        merge_adapters = model.add_adapters(cut, config.lora_rank) if config.mode == "lora" else None
        on_start(sum(weight.numel() for weight in model.freeze_before(cut).values()))
        if config.mode == "lp-ft":
            self._train_head(batches)
        state = self._train(config, cut, batches, Checkpoint(self.folder), on_epoch)
        if merge_adapters:
            merge_adapters()
        return state

    def _train_head(self, batches: Batches) -> None:
        """Train the head alone on frozen features."""
        from vlm_core.training.checkpoint import Checkpoint

        settings = ", ".join(f"{name}={value}" for name, value in HEAD.items())
        logger.info(f"First phase: the head alone, on frozen features, with {settings}.")
        config, cut = self.config.model_copy(update=HEAD), len(self.model.stages)
        features = self.feature_batches(batches, cut, self.config.views if batches.start else 0)
        self._train(config, cut, features, Checkpoint(self.folder / "head"), lambda report: None)

    def pixel_batches(self) -> Batches:
        """Return batches of the model's input."""
        from vlm_core.training.batches import PixelBatches

        config, split = self.config, self.data.split
        return PixelBatches(
            self.data.catalogue.pictures,
            split.labels,
            split.train,
            self.model.image_size,
            config.batch_size,
            config.seed,
            config.augmentation,
        )

    def _train(
        self, config: Config, cut: int, batches: Batches, checkpoint: Checkpoint, on_epoch: EpochCallback
    ) -> TrainingState:
        """Train everything from the cut on, and load the best epoch's weights."""
        from vlm_core.training.finetuning_task import FineTuning
        from vlm_core.training.loop import EpochReport, TrainingArguments, show_steps, train

        batches = batches.with_batch_size(config.batch_size)
        arguments = TrainingArguments(
            **{field.name: getattr(config, field.name) for field in fields(TrainingArguments)}
        )
        reports = train(FineTuning(self.model, cut, batches, self.data.split.validation), arguments, checkpoint)
        done = checkpoint.state().epoch
        for report in show_steps(reports, batches.steps, arguments.epochs, done):
            if isinstance(report, EpochReport):
                on_epoch(report)
        return checkpoint.load_best(self.model.freeze_before(cut))

    def feature_batches(self, source: Batches, cut: int, views: int) -> Batches:
        """Run the frozen prefix once per view into the cache, and return batches of its features at the cut.

        Returns `source` itself if nothing is frozen after its stage, or the cache is too small.
        """
        from vlm_core.training.batches import FeatureBatches

        if cut == source.start:
            if not cut and self.config.prefix != "torch":
                logger.info(f"prefix={self.config.prefix} has no effect: no layer is frozen.")
            return source
        self.model.set_training(False, cut)
        train, validation = np.unique(self.data.split.train), np.unique(self.data.split.validation)
        rows = {0: validation if views else np.union1d(train, validation), **dict.fromkeys(range(1, views + 1), train)}
        fingerprint = self.model.fingerprint(cut)
        entries = {view: self.cache_entry(fingerprint, view, source.start) for view in rows}
        if not self._reserve_space(source, cut, rows, entries):
            return source
        prefix = self.frozen_prefix(source.start, cut)
        for _ in range(3):  # another process may evict an entry between filling and reading
            try:
                features = {
                    view: self.compute_features(source, view, rows[view], entry, prefix)
                    for view, entry in entries.items()
                }
            except KeyError:
                continue
            self._log_prefix_error(source, cut, features[0], rows[0])
            return FeatureBatches(source.pixels, cut, features[0], [features[view] for view in range(1, views + 1)])
        logger.info("Other processes use up the feature cache: frozen layers run in every epoch, by PyTorch.")
        return source

    def frozen_prefix(self, start: int, cut: int) -> Callable[[State], State]:
        """Return the function from the input of the stage `start` to the state at the cut.

        Only a prefix that starts at pixels runs in int8: the stages between two cuts are few, and are trained in
        single precision afterwards.
        """
        from vlm_core.models.onnx_prefix import OnnxPrefix

        if self.config.prefix == "torch" or start:
            return partial(self._run, start, cut)
        return OnnxPrefix(self.model, cut).run

    def cache_entry(self, fingerprint: str, view: int, start: int = 0) -> CacheEntry:
        """Return the cache entry of a view, for the frozen prefix of that fingerprint from the stage `start` on."""
        catalogue, config = self.data.catalogue, self.config
        exact = config.prefix == "torch"
        key = {
            "weights": fingerprint,
            "prefix": config.prefix if exact or not start else f"{config.prefix} up to stage {start}",
            "pictures": catalogue.pictures_fingerprint,
            "image_size": str(self.model.image_size),
            # under the augmentation's former name, so that what older runs cached is found
            "view": f"{former_value('augmentation', config.augmentation)} {config.seed} {view}" if view else "plain",
        }
        return self.cache.entry(key, len(catalogue.products))

    def _reserve_space(self, source: Batches, cut: int, rows: dict[int, Rows], entries: dict[int, CacheEntry]) -> bool:
        """Return whether all views fit into the cache, after evicting older entries for the missing rows."""
        (state,) = (self._run(source.start, cut, batch.state) for batch in source.view(0, rows[0][:1]))
        shapes = [tuple(part.shape[1:]) for part in state]
        needed_bytes = self.cache.size_bytes(shapes, sum(map(len, rows.values())))
        if needed_bytes > self.cache.max_bytes:
            logger.info(
                f"The frozen layers' features of {len(rows)} views take {needed_bytes / GIB:.1f} GiB, more than "
                f"cache_gib={self.config.cache_gib:g}: frozen layers run in every epoch, by PyTorch."
            )
            return False
        missing = sum(len(entry.missing(rows[view])) for view, entry in entries.items())
        self.cache.free_space(self.cache.size_bytes(shapes, missing), list(entries.values()))
        return True

    def compute_features(
        self, source: Batches, view: int, rows: Rows, entry: CacheEntry, prefix: Callable[[State], State]
    ) -> CachedFeatures:
        """Run the prefix on a view's missing rows and return its features. Raise KeyError if they were evicted."""

        def compute(missing: Rows) -> Iterator[tuple[Rows, State]]:
            label = f"frozen layers, view {view}" if view else "frozen layers, plain view"
            batches = track(source.view(view, missing), label, source.count_view_batches(len(missing)))
            for batch in batches:
                yield batch.rows, prefix(batch.state)

        entry.fill(rows, compute)
        return entry.read(rows)

    def _log_prefix_error(self, source: Batches, cut: int, features: CachedFeatures, rows: Rows) -> None:
        """Log the error of int8 features of the plain view against PyTorch in fp32, rounding included.

        It is measured in every run, whichever process filled the entry.
        """
        import torch

        if self.config.prefix == "torch" or source.start:
            return
        (batch,) = source.view(0, rows[:IMAGES_COMPARED])
        reference = torch.cat([part.flatten() for part in self._run(0, cut, batch.state)]).cpu()
        error = torch.cat([part.flatten() for part in features.take(batch.rows)]) - reference
        relative, largest = float(error.norm() / reference.norm()), float(error.abs().max())
        self.log({"prefix_error": relative, "prefix_error_largest": largest})
        logger.info(
            f"Frozen layers ran in {self.config.prefix}: the features of {len(batch.rows)} images differ from "
            f"PyTorch's by {relative:.2%} (relative L2), and by at most {largest:.2g}."
        )

    def _run(self, start: int, cut: int, state: State) -> State:
        import torch

        with torch.inference_mode():
            return self.model.run(state, start, cut)
