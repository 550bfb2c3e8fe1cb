"""Pretraining as the loop's task: pictures and drawn sentences, through an objective."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vlm_core.catalogue.captions import Captions
from vlm_core.models.objectives import Objective
from vlm_core.models.stages import Adapter, State, run_stages
from vlm_core.training.batches import PixelBatches


@dataclass(frozen=True)
class PretrainingFigures:
    """Mean loss terms of an epoch, or scores on products that are not learnt from."""

    figures: dict[str, float]

    @property
    def macro_f1(self) -> float:
        """The linear probe's; -1 where there is none, as after an epoch's training pass."""
        return self.figures.get("probe_macro_f1", -1.0)


@dataclass
class Pretraining:
    """All weights learn from views of `batches` and sentences of `captions`; `score` tells how well.

    Of each view, `patches_kept` of the patches are shown, drawn anew for every picture: fewer cost less and augment
    (FLIP, Li et al. 2022, arXiv 2212.00794).
    """

    adapter: Adapter
    objective: Objective
    batches: PixelBatches
    captions: Captions
    patches_kept: float
    score: Callable[[], dict[str, float]]
    _sums: dict[str, float] = field(default_factory=dict, init=False)

    @property
    def steps(self) -> int:
        """Steps an epoch."""
        return self.batches.steps

    def weights(self) -> dict[str, nn.Parameter]:
        """All of the objective's."""
        weights = dict(self.objective.named_parameters())
        for weight in weights.values():
            weight.requires_grad_(True)
        return weights

    def losses(self, epoch: int) -> Iterator[tuple[Tensor, int]]:
        """The sum of the objective's terms on each batch."""
        first, *rest = self.adapter.stages(self.objective.readout)
        self.adapter.hf.train()
        self._sums = {}
        for batch in self.batches.training(epoch):
            pixels = tuple(part.to(self.adapter.hf.device) for part in batch.state)
            state = run_stages(rest, keep_patches(first.run(pixels), self.patches_kept))
            terms = self.objective.terms(state, self.captions.sample_captions(self.batches.seed, epoch, batch.rows))
            for name, term in terms.items():
                self._sums[name] = self._sums.get(name, 0.0) + float(term.detach()) * len(batch.rows)
            yield torch.stack(list(terms.values())).sum(), len(batch.rows)

    def trained(self) -> PretrainingFigures:
        """Each term's mean over the last epoch."""
        return PretrainingFigures({name: total / len(self.batches.rows) for name, total in self._sums.items()})

    def validated(self) -> PretrainingFigures:
        """The scores of the weights as they are."""
        self.adapter.hf.eval()
        return PretrainingFigures(self.score())


def keep_patches(state: State, share: float) -> State:
    """The state's image tokens (B, N, D) with the class token and `share` of the others, in their order."""
    tokens = state[0]
    count = round((tokens.shape[1] - 1) * share)
    if count >= tokens.shape[1] - 1:
        return state
    drawn = torch.rand(len(tokens), tokens.shape[1] - 1, device=tokens.device).topk(count, dim=1).indices
    kept = torch.cat([drawn.new_zeros(len(tokens), 1), drawn.sort(dim=1).values + 1], dim=1)  # (B, 1 + count)
    return (tokens.gather(1, kept[..., None].expand(-1, -1, tokens.shape[2])), *state[1:])
