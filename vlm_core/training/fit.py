"""Fine-tuning of a run's model: trainable weights, phases, and the feature cache in front of the frozen prefix."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vlm_core.config import Config
from vlm_core.config.presets import HEAD
from vlm_core.data import Data
from vlm_core.pixels.views import DEFAULT
from vlm_core.progress import track
from vlm_core.training.prefix_cost import PrefixCost

if TYPE_CHECKING:
    from vlm_core.evaluation.summary import Summary
    from vlm_core.models.categoriser import VisionLanguageCategoriser
    from vlm_core.models.stages import State
    from vlm_core.pixels.arrays import Rows
    from vlm_core.training.batches import Batches, Features
    from vlm_core.training.checkpoint import Checkpoint, TrainingState
    from vlm_core.training.feature_cache import CachedFeatures, CacheEntry, FeatureCache
    from vlm_core.training.frozen_features import FrozenFeatures
    from vlm_core.training.loop import EpochReport
    from vlm_core.training.parallel import Group

    EpochCallback = Callable[[EpochReport[Summary]], None]

logger = logging.getLogger(__name__)

GIB = 2**30
IMAGES_COMPARED = 8  # to measure the error of an int8 prefix; at most one batch of `Batches.view`


def ignore(_: object = None) -> None:
    """Do nothing: the default of what may be called back."""


@dataclass(frozen=True)
class Trainer:
    """Trains one model on a run's data; `folder` holds the checkpoints."""

    config: Config
    data: Data
    model: VisionLanguageCategoriser
    folder: Path
    cache: FeatureCache
    log: Callable[[Mapping[str, float]], None] = ignore
    cost: PrefixCost = field(default_factory=PrefixCost)  # of the frozen layers so far
    on_save: Callable[[], None] = ignore  # called when an epoch's checkpoint is whole
    group: Group | None = None  # of processes that train together; None for this one alone

    def fit(self, on_start: Callable[[int], None] = ignore, on_epoch: EpochCallback = ignore) -> TrainingState:
        """Train as the mode says, load the best epoch's weights into the model and return the final state.

        `on_start` receives the number of trainable weights, `on_epoch` the report of each epoch. Mode `lp-ft` (Kumar
        et al. 2022, arXiv 2202.10054) first trains the head alone: the gradients of a random head would distort
        pretrained features.
        """
        config, model = self.config, self.model
        cut = model.cut(config.mode, config.blocks)
        batches = self.feature_batches(self.pixel_batches(), cut, config.views)
        merge_adapters = model.add_adapters(cut, config.lora_rank) if config.mode == "lora" else None
        on_start(sum(weight.numel() for weight in model.freeze_before(cut).values()))
        if config.mode == "lp-ft":
            self._train_head(batches)
        state = self._train(config, cut, batches, self._checkpoint(self.folder), on_epoch)
        if merge_adapters:
            merge_adapters()
        self._fit_fusion(batches)
        return state

    def _fit_fusion(self, batches: Batches) -> None:
        """Fit the weight of late fusion on the validation products."""
        import torch

        from vlm_core.models.fusion import LateHead

        head = self.model.head
        if not isinstance(head, LateHead):
            return
        states, labels = [], []
        with torch.inference_mode():
            for batch in batches.plain(self.data.split.validation):
                states.append(self.model.run(batch.state, batches.start))
                labels.append(batch.labels.to(self.model.device))
            state = tuple(torch.cat(parts) for parts in zip(*states, strict=True))
            weight = head.fit_weight(state, torch.cat(labels))
        self.log({"late_picture_weight": weight})
        logger.info(f"Late fusion: the picture has {weight:.2f} of the weight, which fits validation best.")

    def _train_head(self, batches: Batches) -> None:
        """Train the head alone on frozen features."""
        settings = ", ".join(f"{name}={value}" for name, value in HEAD.items())
        logger.info(f"First phase: the head alone, on frozen features, with {settings}.")
        config, cut = self.config.model_copy(update=HEAD), len(self.model.stages)
        features = self.feature_batches(batches, cut, self.config.views if batches.start else 0)
        self._train(config, cut, features, self._checkpoint(self.folder / "head"))

    def _checkpoint(self, folder: Path) -> Checkpoint:
        from vlm_core.training.checkpoint import Checkpoint
        from vlm_core.training.parallel import GroupCheckpoint

        if self.group is None:
            return Checkpoint(folder, self.on_save)
        return GroupCheckpoint(folder, self.on_save, self.group)

    def pixel_batches(self) -> Batches:
        """Return batches of the model's input."""
        from vlm_core.training.batches import PixelBatches
        from vlm_core.training.parallel import ALONE
        from vlm_core.training.texts import ProductTexts

        config, split = self.config, self.data.split
        return PixelBatches(
            self.data.catalogue.pictures,
            split.labels,
            split.train,
            self.model.image_size,
            config.batch_size,
            config.seed,
            config.augmentation,
            self.model.description.preprocessing,
            ProductTexts(self.data.catalogue.products, self.model) if self.model.reads else None,
            config.modality_dropout,
            group=self.group or ALONE,
        )

    def _train(
        self, config: Config, cut: int, batches: Batches, checkpoint: Checkpoint, on_epoch: EpochCallback = ignore
    ) -> TrainingState:
        """Train everything from the cut on, and load the best epoch's weights."""
        from vlm_core.training.balance import LevelTargets, balanced_loss
        from vlm_core.training.finetuning_task import FineTuning
        from vlm_core.training.loop import EpochReport, TrainingArguments, show_steps, train

        batches = batches.with_batch_size(config.batch_size)
        arguments = TrainingArguments(
            **{field.name: getattr(config, field.name) for field in fields(TrainingArguments)}
        )
        split = self.data.split
        balanced = balanced_loss(config.balance, split.labels[split.train], len(self.model.categories))
        hierarchy, levels = self.model.description.hierarchy, None
        if hierarchy:
            counts = [len(names) for names in hierarchy.categories]
            levels = LevelTargets.of(config.balance, split.level_labels, split.train, counts)
        task = FineTuning(self.model, cut, batches, split.validation, balanced, levels)
        reports = train(task, arguments, checkpoint)
        done = checkpoint.state().epoch
        for report in show_steps(reports, batches.steps, arguments.epochs, done):
            if isinstance(report, EpochReport):
                on_epoch(report)
        return checkpoint.load_best(self.model.freeze_before(cut))

    def feature_batches(self, source: Batches, cut: int, views: int) -> Batches:
        """Return batches of the frozen prefix's features at the cut; `source` itself if nothing is frozen after it.

        What they hold depends on the settings alone: the features come from the cache, where each is computed once, or
        are computed in every step if the cache has no room.
        """
        from vlm_core.training.batches import WITHOUT_PICTURE, WITHOUT_TEXT, FeatureBatches, MaskedFeatures

        if cut == source.start:
            if not cut and self.config.prefix != "torch":
                logger.info(f"prefix={self.config.prefix} has no effect: no layer is frozen.")
            return source
        train, validation = np.unique(self.data.split.train), np.unique(self.data.split.validation)
        rows = {0: validation if views else np.union1d(train, validation), **dict.fromkeys(range(1, views + 1), train)}
        drops = not views and self.config.modality_dropout > 0 and self.model.reads_both
        if drops and not self.model.has_input_mask(cut):
            rows |= {WITHOUT_TEXT: train, WITHOUT_PICTURE: train}
            if source.start < (towers := self.model.cut("fusion", 0)):  # which need not run again for what is left out
                source = self.feature_batches(source, towers, 0)
        features = self.features(source, cut, rows)
        self._log_prefix_error(source, cut, features[0], rows[0])
        dropped: tuple[Features, Features] | None = None
        if WITHOUT_TEXT in features:
            dropped = features[WITHOUT_TEXT], features[WITHOUT_PICTURE]
        elif drops:
            dropped = MaskedFeatures(features[0], 1), MaskedFeatures(features[0], 0)
        of_views = [features[view] for view in range(1, views + 1)]
        return FeatureBatches(source.pixels, cut, features[0], of_views, dropped)

    def features(self, source: Batches, cut: int, rows: Mapping[int, Rows]) -> dict[int, Features]:
        """Return the frozen prefix's features at the cut of the sorted, unique rows of each view."""
        from vlm_core.training.frozen_features import FrozenFeatures

        self.model.set_training(False, cut)
        prefix, precision = self.frozen_prefix(source.start, cut), self.cache.precision
        computed = [FrozenFeatures(source, view, some, prefix, precision) for view, some in rows.items()]
        fingerprint = self.model.fingerprint(cut)
        kept = [self._entries(features, fingerprint) for features in computed]
        if not self._reserve_space(source, cut, kept):
            return dict(zip(rows, computed, strict=True))
        return {
            features.view: self._cached(features, entries) for features, entries in zip(computed, kept, strict=True)
        }

    def head_features(self, rows: Rows) -> Features:
        """Return what the head reads, of the plain view of sorted, unique rows."""
        return self.features(self.pixel_batches(), len(self.model.stages), {0: rows})[0]

    def frozen_prefix(self, start: int, cut: int) -> Callable[[State], State]:
        """Return the function from the input of the stage `start` to the state at the cut.

        Only a prefix that starts at pixels runs in int8: the stages between two cuts are few, and are trained in
        single precision afterwards.
        """
        from vlm_core.models.onnx_prefix import OnnxPrefix

        if self.config.prefix == "torch" or start:
            return partial(self._run, start, cut)
        return OnnxPrefix(self.model, cut).run

    def cache_entry(self, fingerprint: str, view: int, start: int = 0, rest: Rows | None = None) -> CacheEntry:
        """Return the cache entry of a view, for the frozen prefix of that fingerprint from the stage `start` on.

        Runs share it, but for the `rest` that only a run of the same rows computes as one batch.
        """
        catalogue, config = self.data.catalogue, self.config
        engine = config.prefix if self.model.precision == "fp32" else f"{config.prefix} in {self.model.precision}"
        key = {
            "weights": fingerprint,
            "prefix": f"{engine} up to stage {start}" if start else engine,
            "pictures": catalogue.pictures_fingerprint,
            "image_size": str(self.model.image_size),
            "view": f"{config.augmentation} {config.seed} {view}" if view > 0 else "plain",
            "rest": "" if rest is None else ",".join(map(str, rest)),
        }
        if reads := self.model.reads:
            dropout = f"dropout {config.modality_dropout:g}" if view > 0 else str(view)
            key["texts"] = f"{catalogue.fingerprint} {reads} {dropout}"
        preprocessing = self.model.description.preprocessing
        if preprocessing != DEFAULT:  # otherwise as in the entries of earlier versions
            key["preprocessing"] = str(preprocessing)
        if preprocessing.resize != "stretch":
            key["resize"] = f"{preprocessing.resize} {preprocessing.shorter_side:g}"
        return self.cache.entry(key, len(catalogue.products))

    def _entries(self, features: FrozenFeatures, fingerprint: str) -> list[tuple[Rows, CacheEntry]]:
        """Return the rows that fill batches and those that do not, if there are any, each with their cache entry."""
        view, start, rest = features.view, features.source.start, features.rest
        parts = [
            (features.whole, self.cache_entry(fingerprint, view, start)),
            (rest, self.cache_entry(fingerprint, view, start, rest)),
        ]
        return [(rows, entry) for rows, entry in parts if len(rows)]

    def _reserve_space(self, source: Batches, cut: int, kept: Sequence[Sequence[tuple[Rows, CacheEntry]]]) -> bool:
        """Return whether all views fit into the cache, after evicting older entries for the missing rows."""
        parts = [part for view in kept for part in view]
        (state,) = (self._run(source.start, cut, batch.state) for batch in source.view(0, parts[0][0][:1]))
        shapes = [tuple(part.shape[1:]) for part in state]
        needed_bytes = self.cache.size_bytes(shapes, sum(len(rows) for rows, _ in parts))
        if needed_bytes > self.cache.max_bytes:
            logger.info(
                f"The frozen layers' features of {len(kept)} views take {needed_bytes / GIB:.1f} GiB, more than "
                f"cache_gib={self.config.cache_gib:g}: frozen layers run in every epoch, to the same result."
            )
            return False
        missing = sum(len(entry.missing(rows)) for rows, entry in parts)
        self.cache.free_space(self.cache.size_bytes(shapes, missing), [entry for _, entry in parts])
        return True

    def _cached(self, features: FrozenFeatures, entries: Sequence[tuple[Rows, CacheEntry]]) -> Features:
        """Return the features from the cache, computed where they are missing; as they are if it does not keep them."""
        from vlm_core.training.frozen_features import JoinedFeatures

        def compute(missing: Rows) -> Iterator[tuple[Rows, State]]:
            label = f"frozen layers, view {features.view}" if features.view > 0 else "frozen layers, plain view"
            yield from track(features.compute(missing), label, -(-len(missing) // features.source.view_batch))

        for _ in range(3):  # another process, or its user, may remove an entry before it is read
            try:
                whole, *rest = [self._fill(rows, entry, compute) for rows, entry in entries]
            except KeyError:
                continue
            return JoinedFeatures(whole, rest[0], features.rest) if rest else whole
        logger.info("The feature cache does not keep what is put into it: frozen layers run in every epoch.")
        return features

    def _fill(
        self, rows: Rows, entry: CacheEntry, compute: Callable[[Rows], Iterator[tuple[Rows, State]]]
    ) -> CachedFeatures:
        """Return the entry's features of the rows, which are computed where they are missing; count what that cost."""
        computed, began = 0, time.perf_counter()

        def counted(missing: Rows) -> Iterator[tuple[Rows, State]]:
            nonlocal computed, began
            computed, began = len(missing), time.perf_counter()  # not the wait for a process that fills the entry
            yield from compute(missing)

        entry.fill(rows, counted)
        if computed:
            seconds = time.perf_counter() - began
            entry.add_cost(computed, seconds)
            self.cost.computed_rows += computed
            self.cost.computed_seconds += seconds
        features = entry.read(rows)
        if cached := len(rows) - computed:
            self.cost.cached_rows += cached
            self.cost.cached_seconds += cached * entry.seconds_per_row()
        return features

    def _log_prefix_error(self, source: Batches, cut: int, features: Features, rows: Rows) -> None:
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

        with torch.inference_mode(), self.model.training_arithmetic():
            return tuple(part.float() for part in self.model.run(state, start, cut))
