"""How a run's model learns: which weights, in which phases, from pixels or from the kept states of what is frozen."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vlm_core.config import Config
from vlm_core.data import Data
from vlm_core.presets import HEAD
from vlm_core.progress import track

if TYPE_CHECKING:
    from vlm_core.evaluation.summary import Summary
    from vlm_core.models.categoriser import VisionLanguageCategoriser
    from vlm_core.models.stages import State
    from vlm_core.training.batches import Batches, Rows
    from vlm_core.training.checkpoint import Checkpoint, Position
    from vlm_core.training.feature_cache import CacheEntry, FeatureCache, StoredStates
    from vlm_core.training.loop import EpochReport

    OnEpoch = Callable[[EpochReport[Summary]], None]

logger = logging.getLogger(__name__)

GIB = 2**30
PICTURES_COMPARED = 8  # whose states tell how far int8 is from single precision; no more than a batch of `view`


@dataclass(frozen=True)
class Fit:
    """One training of a model on a run's data; checkpoints are kept in `folder`."""

    config: Config
    data: Data
    model: VisionLanguageCategoriser
    folder: Path
    cache: FeatureCache
    log: Callable[[Mapping[str, float]], None] = lambda figures: None

    def run(self, on_start: Callable[[int], None], on_epoch: OnEpoch) -> Position:
        """Train as the mode says; the model then holds its best epoch's weights, whose position comes back.

        `on_start` is told how many weights learn. `lp-ft` (Kumar et al. 2022, arXiv 2202.10054) trains the head to its
        end before anything else may move: a random head's gradients would pull pretrained features apart.
        """
        from vlm_core.training.checkpoint import Checkpoint

        config, model = self.config, self.model
        cut = model.cut(config.mode, config.blocks)
        batches = self.stored(self.pixels(), cut, config.views)
        merge = model.add_adapters(cut, config.lora_rank) if config.mode == "lora" else None
        on_start(sum(weight.numel() for weight in model.learn_from(cut).values()))
        if config.mode == "lp-ft":
            self._learn_head(batches)
        best = self._learn(config, cut, batches, Checkpoint(self.folder), on_epoch)
        if merge:
            merge()
        return best

    def _learn_head(self, batches: Batches) -> None:
        from vlm_core.training.checkpoint import Checkpoint

        logger.info(
            "First the head, on frozen features: " + ", ".join(f"{name}={value}" for name, value in HEAD.items())
        )
        head, end = self.config.model_copy(update=HEAD), len(self.model.stages)
        features = self.stored(batches, end, self.config.views if batches.start else 0)
        self._learn(head, end, features, Checkpoint(self.folder / "head"), lambda report: None)

    def pixels(self) -> Batches:
        """Batches of what the model sees when nothing is frozen."""
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

    def _learn(self, config: Config, cut: int, batches: Batches, checkpoint: Checkpoint, on_epoch: OnEpoch) -> Position:
        """Train everything from the cut on."""
        from vlm_core.training.finetuning_task import FineTuning
        from vlm_core.training.loop import EpochReport, TrainingArguments, show_steps, train

        batches = batches.sized(config.batch_size)
        plan = TrainingArguments(**{field.name: getattr(config, field.name) for field in fields(TrainingArguments)})
        reports = train(FineTuning(self.model, cut, batches, self.data.split.validation), plan, checkpoint)
        for report in show_steps(reports, batches.steps, plan.epochs, checkpoint.position().epoch):
            if isinstance(report, EpochReport):
                on_epoch(report)
        return checkpoint.load_best(self.model.learn_from(cut))

    def stored(self, source: Batches, cut: int, views: int) -> Batches:
        """Batches at the cut, run through the frozen stages once a view and kept; `source` where there is no room."""
        from vlm_core.training.batches import StoredBatches

        if cut == source.start:
            if not cut and self.config.prefix != "torch":
                logger.info(f"prefix={self.config.prefix} changes nothing here: no layer is frozen.")
            return source
        self.model.set_training(False, cut)
        train, validation = np.unique(self.data.split.train), np.unique(self.data.split.validation)
        rows = {0: validation if views else np.union1d(train, validation), **dict.fromkeys(range(1, views + 1), train)}
        weights = self.model.fingerprint(cut)
        entries = {view: self.entry(weights, view, source.start) for view in rows}
        if not self._make_room(source, cut, rows, entries):
            return source
        run = self.frozen(source.start, cut)
        for _ in range(3):  # another process may make room for itself between filling and reading
            try:
                states = {view: self.fill(source, view, rows[view], entry, run) for view, entry in entries.items()}
            except KeyError:
                continue
            self._note_error(source, cut, states[0], rows[0])
            return StoredBatches(source.source, cut, states[0], [states[view] for view in range(1, views + 1)])
        logger.info(
            "Other processes take the cache's room: frozen layers are computed anew in every epoch, by PyTorch."
        )
        return source

    def frozen(self, start: int, cut: int) -> Callable[[State], State]:
        """What computes the state at the cut from that before the stage `start`.

        Only what begins at pixels runs in int8: the stages after a cut are few, and learn in single precision later.
        """
        from vlm_core.models.onnx_prefix import OnnxPrefix

        if self.config.prefix == "torch" or start:
            return partial(self._run, start, cut)
        return OnnxPrefix(self.model, cut).run

    def entry(self, weights: str, view: int, start: int = 0) -> CacheEntry:
        """Where the states of a view are kept, of frozen stages with that fingerprint, computed from `start` on."""
        catalogue, config = self.data.catalogue, self.config
        exact = config.prefix == "torch"
        key = {
            "weights": weights,
            "prefix": config.prefix if exact or not start else f"{config.prefix} up to stage {start}",
            "pictures": catalogue.pictures_fingerprint,
            "image_size": str(self.model.image_size),
            "view": f"{config.augmentation} {config.seed} {view}" if view else "plain",
        }
        return self.cache.entry(key, len(catalogue.products))

    def _make_room(self, source: Batches, cut: int, rows: dict[int, Rows], entries: dict[int, CacheEntry]) -> bool:
        """Whether what is missing has room in the cache, in which older entries then make way."""
        (state,) = (self._run(source.start, cut, batch.state) for batch in source.view(0, rows[0][:1]))
        shapes = [tuple(part.shape[1:]) for part in state]
        needed = self.cache.bytes_of(shapes, sum(map(len, rows.values())))
        if needed > self.cache.limit_bytes:
            logger.info(
                f"The frozen layers' states of {len(rows)} views take {needed / GIB:.1f} GiB, more than cache_gib="
                f"{self.config.cache_gib:g}: they are computed anew in every epoch, by PyTorch."
            )
            return False
        missing = sum(len(entry.missing(rows[view])) for view, entry in entries.items())
        self.cache.make_room(self.cache.bytes_of(shapes, missing), list(entries.values()))
        return True

    def fill(
        self, source: Batches, view: int, rows: Rows, entry: CacheEntry, run: Callable[[State], State]
    ) -> StoredStates:
        """The view's states, after `run` has computed those that were missing. Raises KeyError when they went again."""

        def compute(missing: Rows) -> Iterator[tuple[Rows, State]]:
            name = f"frozen layers, view {view}" if view else "frozen layers, plain view"
            for batch in track(source.view(view, missing), name, source.view_batches(len(missing))):
                yield batch.rows, run(batch.state)

        entry.fill(rows, compute)
        return entry.read(rows)

    def _note_error(self, source: Batches, cut: int, kept: StoredStates, rows: Rows) -> None:
        """Log how far kept states of the plain view are from those of PyTorch in fp32, rounding included.

        Measured in every run, whoever filled the entry.
        """
        import torch

        if self.config.prefix == "torch" or source.start:
            return
        (batch,) = source.view(0, rows[:PICTURES_COMPARED])
        wanted = torch.cat([part.flatten() for part in self._run(0, cut, batch.state)]).cpu()
        error = torch.cat([part.flatten() for part in kept.take(batch.rows)]) - wanted
        relative, largest = float(error.norm() / wanted.norm()), float(error.abs().max())
        self.log({"prefix_error": relative, "prefix_error_largest": largest})
        logger.info(
            f"Frozen layers ran in {self.config.prefix}: states of {len(batch.rows)} pictures are {relative:.2%} off "
            f"PyTorch's (relative L2), by {largest:.2g} at most."
        )

    def _run(self, start: int, cut: int, state: State) -> State:
        import torch

        with torch.inference_mode():
            return self.model.run(state, start, cut)
