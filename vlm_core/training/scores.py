"""What pretrained weights can do before any fine-tuning: probe, zero-shot and captions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from vlm_core.catalogue.captions import Captions
from vlm_core.evaluation.caption_scores import caption_scores
from vlm_core.evaluation.probe import probe_macro_f1
from vlm_core.models.clip import Clip
from vlm_core.models.heads import PromptHead, write_texts
from vlm_core.models.stages import Adapter, Captioner, State, run_stages
from vlm_core.training.batches import PixelBatches

CAPTIONS_WRITTEN = 500


def score_adapter(
    adapter: Adapter, batches: PixelBatches, captions: Captions, labels: NDArray[np.str_], things: Sequence[str]
) -> dict[str, float]:
    """`probe_macro_f1` of the fused features for `labels` (n,), one a row of `batches`, and what is told untrained.

    CLIP chooses each product's thing among `things` by its prompts: `zero_shot_accuracy`. A captioner writes about
    the first 500 rows: `caption_<column>`, the share that names the right value, `caption_all` and `caption_bleu`.
    A score that the rows are too few for is left out.
    """
    rows = batches.rows
    truths = [captions.words[row] for row in rows]
    with torch.inference_mode():
        (features,) = _states(adapter, "fused", batches, rows)
        scores = {"probe_macro_f1": probe_macro_f1(features.numpy(), labels)}
        if isinstance(adapter, Clip) and things:
            scores["zero_shot_accuracy"] = _zero_shot(adapter, features, [truth[-1] for truth in truths], things)
        if isinstance(adapter, Captioner) and captions.columns:
            (tokens,) = _states(adapter, "tokens", batches, rows[:CAPTIONS_WRITTEN])
            texts = [
                text for part in torch.split(tokens, 100) for text in write_texts(adapter, part.to(adapter.hf.device))
            ]
            named = caption_scores(texts, truths[:CAPTIONS_WRITTEN], captions.columns)
            scores |= {f"caption_{name}": value for name, value in named.items()}
    return {name: score for name, score in scores.items() if not math.isnan(score)}


def _states(adapter: Adapter, readout: str, batches: PixelBatches, rows: NDArray[np.int64]) -> State:
    """The chain's last state for the rows' plain views, on the CPU."""
    stages = adapter.stages(readout)  # type: ignore[arg-type]
    states = [
        run_stages(stages, tuple(part.to(adapter.hf.device) for part in batch.state)) for batch in batches.plain(rows)
    ]
    return tuple(torch.cat(parts).cpu() for parts in zip(*states, strict=True))


def _zero_shot(clip: Clip, features: torch.Tensor, truths: Sequence[str], things: Sequence[str]) -> float:
    """Accuracy over the rows whose thing is one of those to choose from."""
    chosen = PromptHead(clip, things).log_probabilities((features.to(clip.hf.device),)).argmax(dim=1)
    asked = [number for number, truth in enumerate(truths) if truth in things]
    return sum(things[int(chosen[number])] == truths[number] for number in asked) / max(1, len(asked))
