"""Four decoding rules that turn a text-generating model into a classifier, compared on the same images.

Free text may name no category at all; the other three rules always predict one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from vlm_core.errors import UserError
from vlm_core.evaluation.category_matching import closest_category
from vlm_core.models.categoriser import IMAGES_PER_BATCH, VisionLanguageCategoriser
from vlm_core.models.heads import SentenceHead, generate_texts
from vlm_core.models.stages import Captioner
from vlm_core.pixels.arrays import Labels, Pictures
from vlm_core.pixels.picture_store import fit_pictures
from vlm_core.progress import track

FREE_TEXT: Final = "free text"
LIKELIHOOD: Final = "likelihood"
LIKELIHOOD_PER_TOKEN: Final = "likelihood per token"
CONSTRAINED: Final = "constrained"


@dataclass(frozen=True)
class DecodedCategories:
    """The predictions of every rule for n images."""

    texts: tuple[str, ...]  # (n,) as generated freely
    predictions: dict[str, Labels]  # rule -> (n,) index of the category, -1 for Unknown Category


@torch.inference_mode()
def decode_categories(model: VisionLanguageCategoriser, pictures: Pictures) -> DecodedCategories:
    """Return the predictions of every rule for images (n, H, W, 3), n > 0.

    - free text: the category closest to the greedy text (`evaluation.texts.closest_category`);
    - likelihood: the category whose sentence, end token included, is most likely after the prompt;
    - likelihood per token: the same with the mean over the sentence's tokens, which does not favour short names
      (Brown et al. 2020, https://arxiv.org/abs/2005.14165, section 2.4);
    - constrained: greedy among the tokens that lead to one of the sentences (`generate_constrained`).

    Raise UserError for a model without a sentence head.
    """
    if not isinstance(model.head, SentenceHead):
        raise UserError(
            "decoding rules need a model that generates text, and this one does not: train blip or git with "
            "objective=generate."
        )
    model.hf.eval()
    texts: list[str] = []
    batches: list[dict[str, Labels]] = []
    starts = range(0, len(pictures), IMAGES_PER_BATCH)
    for start in track(starts, "decoding", len(starts)):
        batch = fit_pictures(pictures[start : start + IMAGES_PER_BATCH], model.canvas)
        (tokens,) = model.run((model.pixels(batch),))
        generated = generate_texts(model.head.captioner, tokens)
        closest = [closest_category(text, model.categories, model.description.terms) for text in generated]
        texts += generated
        batches.append({FREE_TEXT: np.array(closest, dtype=np.int64), **_closed_vocabulary(model.head, tokens)})
    predictions = {rule: np.concatenate([batch[rule] for batch in batches]) for rule in batches[0]}
    return DecodedCategories(tuple(texts), predictions)


def _closed_vocabulary(head: SentenceHead, tokens: Tensor) -> dict[str, Labels]:
    """Return the predictions (B,) of the rules that choose among the categories' sentences."""
    scores = head.log_likelihoods(tokens)  # (B, C)
    lengths = scores.new_tensor([len(sentence) for sentence in head.sentences])  # (C,)
    indices = {
        LIKELIHOOD: scores.argmax(dim=1),
        LIKELIHOOD_PER_TOKEN: (scores / lengths).argmax(dim=1),
        CONSTRAINED: generate_constrained(head.captioner, tokens, head.sentences),
    }
    return {rule: index.cpu().numpy() for rule, index in indices.items()}


@torch.no_grad()
def generate_constrained(captioner: Captioner, tokens: Tensor, sentences: Sequence[Sequence[int]]) -> Tensor:
    """Return the index (B,) of the sentence that greedy decoding ends in when only these sentences are allowed.

    `sentences` are token ids with the end token, so none is a prefix of another; the first of equal ones is returned.
    This is beam search over a prefix tree (De Cao et al. 2021, https://arxiv.org/abs/2010.00904, section 3.2) with one
    beam. The tree is represented by the sentences that can still be reached; decoding stops when one is left.
    """
    length = max(map(len, sentences))
    padded = [[*sentence, *[sentence[-1]] * (length - len(sentence))] for sentence in sentences]
    ids = torch.tensor(padded, device=tokens.device)  # (C, T)
    reachable = torch.ones(len(tokens), len(sentences), dtype=torch.bool, device=tokens.device)
    logits, cache = captioner.prefill(tokens)  # (B, V)
    for step in range(length):
        scores = logits[:, ids[:, step]].masked_fill(~reachable, -torch.inf)  # (B, C)
        next_ids = ids[scores.argmax(dim=1), step]  # (B,)
        reachable &= ids[:, step] == next_ids[:, None]
        if step + 1 == length or (reachable.sum(dim=1) == 1).all():
            break
        logits = captioner.decode_step(tokens, next_ids[:, None], cache)[:, -1]
    return reachable.int().argmax(dim=1)
