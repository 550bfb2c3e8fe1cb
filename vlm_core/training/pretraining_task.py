"""Pretraining as a task for the training loop: images and sampled sentences, through an objective."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vlm_core.catalogue.captions import Captions
from vlm_core.models.arithmetic import Precision, mixed_precision
from vlm_core.models.objectives import Objective
from vlm_core.models.stages import Adapter, State, run_stages
from vlm_core.training.batches import PixelBatches


@dataclass(frozen=True)
class PretrainingMetrics:
    """An epoch's mean loss terms, or the scores on the validation split."""

    metrics: dict[str, float]

    @property
    def macro_f1(self) -> float:
        """Return the linear probe's macro-F1; -1 if it was not measured, as for a training pass."""
        return self.metrics.get("probe_macro_f1", -1.0)


@dataclass
class Pretraining:
    """Trains all weights on views of `batches` and sentences of `captions`; `score` measures the validation scores.

    Each view shows a random share `patches_kept` of its patches, sampled anew for every image: fewer patches cost less
    and augment (FLIP, Li et al. 2022, arXiv 2212.00794).
    """

    adapter: Adapter
    objective: Objective
    batches: PixelBatches
    captions: Captions
    patches_kept: float
    score: Callable[[], dict[str, float]]
    precision: Precision = "fp32"  # of training; scores are in single precision
    _loss_sums: dict[str, float] = field(default_factory=dict, init=False)

    @property
    def steps(self) -> int:
        """Return the number of steps per epoch."""
        return self.batches.steps

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Return all parameters of the objective by name."""
        weights = dict(self.objective.named_parameters())
        for weight in weights.values():
            weight.requires_grad_(True)
        return weights

    def batch_losses(self, epoch: int) -> Iterator[tuple[Tensor, int]]:
        """Yield the sum of the objective's loss terms () and the number of images of each batch."""
        first, *rest = self.adapter.stages(self.objective.readout)
        prefix = self.adapter.prefix_tokens
        self.adapter.hf.train()
        self._loss_sums = {}
        for batch in self.batches.training(epoch):
            pixels = tuple(part.to(self.adapter.hf.device) for part in batch.state)
            captions = self.captions.sample_captions(self.batches.seed, epoch, batch.rows)
            with mixed_precision(self.adapter.hf.device, self.precision):
                state = run_stages(rest, sample_patches(first.run(pixels), self.patches_kept, prefix))
                terms = self.objective.terms(state, captions)
            for name, term in terms.items():
                self._loss_sums[name] = self._loss_sums.get(name, 0.0) + float(term.detach()) * len(batch.rows)
            yield torch.stack(list(terms.values())).sum(), len(batch.rows)

    def training_metrics(self) -> PretrainingMetrics:
        """Return each loss term's mean over the last epoch."""
        return PretrainingMetrics({name: total / len(self.batches.rows) for name, total in self._loss_sums.items()})

    def validation_metrics(self) -> PretrainingMetrics:
        """Return the scores of the current weights."""
        self.adapter.hf.eval()
        return PretrainingMetrics(self.score())


def sample_patches(state: State, share: float, prefix: int = 1) -> State:
    """Return the state with its first `prefix` tokens, such as the class token, and a random share of its patches.

    Patch tokens (B, N - prefix, D) keep their order.
    """
    tokens = state[0]
    total = tokens.shape[1] - prefix
    count = round(total * share)
    if count >= total:
        return state
    patches = torch.rand(len(tokens), total, device=tokens.device).topk(count, dim=1).indices
    first = torch.arange(prefix, device=tokens.device).expand(len(tokens), -1)
    indices = torch.cat([first, patches.sort(dim=1).values + prefix], dim=1)  # (B, prefix + count)
    return (tokens.gather(1, indices[..., None].expand(-1, -1, tokens.shape[2])), *state[1:])
