"""Validation metrics of pretrained weights before any fine-tuning: linear probe, zero-shot and captions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from vlm_core.catalogue.captions import Captions
from vlm_core.evaluation.caption_scores import caption_scores
from vlm_core.evaluation.probe import probe_macro_f1
from vlm_core.models.heads import PromptHead, generate_texts
from vlm_core.models.stages import Adapter, Captioner, Matcher, Readout, State, run_stages
from vlm_core.pixels.arrays import Rows
from vlm_core.training.batches import PixelBatches

MAX_CAPTIONS = 500
IMAGES_PER_GENERATION = 100


def evaluate_adapter(
    adapter: Adapter, batches: PixelBatches, captions: Captions, labels: NDArray[np.str_], things: Sequence[str]
) -> dict[str, float]:
    """Return `probe_macro_f1` of the fused features for `labels` (n,), one per row of `batches`, and zero-shot metrics.

    CLIP and SigLIP predict each product's thing among `things` by prompts: `zero_shot_accuracy`. A captioner describes
    the first 500 rows: `caption_<column>` is the share that names the right value, beside `caption_all` and
    `caption_bleu`. A metric that needs more rows than there are is left out.
    """
    rows = batches.rows
    truths = [captions.words[row] for row in rows]
    with torch.inference_mode():
        (features,) = _states(adapter, "fused", batches, rows)
        metrics = {"probe_macro_f1": probe_macro_f1(features.numpy(), labels)}
        if isinstance(adapter, Matcher) and things:
            metrics["zero_shot_accuracy"] = _zero_shot_accuracy(
                adapter, features, [words[-1] for words in truths], things
            )
        if isinstance(adapter, Captioner) and captions.columns:
            (tokens,) = _states(adapter, "tokens", batches, rows[:MAX_CAPTIONS])
            texts = [
                text
                for part in torch.split(tokens, IMAGES_PER_GENERATION)
                for text in generate_texts(adapter, part.to(adapter.hf.device))
            ]
            scores = caption_scores(texts, truths[:MAX_CAPTIONS], captions.columns)
            metrics |= {f"caption_{name}": value for name, value in scores.items()}
    return {name: value for name, value in metrics.items() if not math.isnan(value)}


def _states(adapter: Adapter, readout: Readout, batches: PixelBatches, rows: Rows) -> State:
    """Return the chain's last state (n, ...) for the rows' plain views, on the CPU."""
    stages = adapter.stages(readout)
    states = [
        run_stages(stages, tuple(part.to(adapter.hf.device) for part in batch.state)) for batch in batches.plain(rows)
    ]
    return tuple(torch.cat(parts).cpu() for parts in zip(*states, strict=True))


def _zero_shot_accuracy(
    matcher: Matcher, features: torch.Tensor, truths: Sequence[str], things: Sequence[str]
) -> float:
    """Return the accuracy over the rows whose thing is among `things`."""
    predictions = PromptHead(matcher, things).log_probabilities((features.to(matcher.hf.device),)).argmax(dim=1)
    rows = [row for row, truth in enumerate(truths) if truth in things]
    return sum(things[int(predictions[row])] == truths[row] for row in rows) / max(1, len(rows))
