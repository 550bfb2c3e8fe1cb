"""Four ways to read a category from a model that writes text, side by side on the same pictures.

What is written freely may name no category at all; the other three always answer with one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlm_core.errors import UserError
from vlm_core.evaluation.texts import closest_category
from vlm_core.models.categoriser import VisionLanguageCategoriser
from vlm_core.models.heads import SentenceHead, write_texts
from vlm_core.models.stages import Captioner
from vlm_core.pixels.picture_store import fit_pictures
from vlm_core.pixels.views import plain_view
from vlm_core.progress import track

FREE_TEXT: Final = "free text"
LIKELIHOOD: Final = "likelihood"
LIKELIHOOD_A_TOKEN: Final = "likelihood a token"
CONSTRAINED: Final = "constrained"
_PICTURES_A_BATCH: Final = 32


@dataclass(frozen=True)
class DecodedCategories:
    """What each rule makes of n pictures."""

    texts: tuple[str, ...]  # (n,) as written freely
    answers: dict[str, NDArray[np.int64]]  # rule -> (n,) index of the category, -1 for Unknown Category


@torch.inference_mode()
def decode_categories(model: VisionLanguageCategoriser, pictures: NDArray[np.uint8]) -> DecodedCategories:
    """The answers of every rule for pictures (n, H, W, 3), n > 0.

    - free text: greedy, and the category that it comes closest to (`evaluation.texts.closest_category`);
    - likelihood: the category whose sentence, with its end token, is most likely after the prompt;
    - likelihood a token: the same by the mean over the sentence's tokens, or long names would lose for being long
      (Brown et al. 2020, https://arxiv.org/abs/2005.14165, section 2.4);
    - constrained: greedy, of the tokens that lead to one of the sentences alone (`write_constrained`).

    Raises UserError for a model that writes nothing.
    """
    if not isinstance(model.answer, SentenceHead):
        raise UserError(
            "decision rules compare what a model writes, and this one has no sentences: train blip or git "
            "with objective=generate."
        )
    model.hf.eval()
    texts: list[str] = []
    found: list[dict[str, NDArray[np.int64]]] = []
    starts = range(0, len(pictures), _PICTURES_A_BATCH)
    for start in track(starts, "deciding", len(starts)):
        batch = fit_pictures(pictures[start : start + _PICTURES_A_BATCH], model.canvas)
        (tokens,) = model.run((plain_view(batch, model.image_size),))
        written = write_texts(model.answer.captioner, tokens)
        closest = [closest_category(text, model.categories, model.description.terms) for text in written]
        texts += written
        found.append({FREE_TEXT: np.array(closest, dtype=np.int64), **_closed(model.answer, tokens)})
    return DecodedCategories(tuple(texts), {rule: np.concatenate([part[rule] for part in found]) for rule in found[0]})


def _closed(answer: SentenceHead, tokens: Tensor) -> dict[str, NDArray[np.int64]]:
    """Answers (B,) of the rules that know nothing but the categories."""
    scores = answer.log_likelihoods(tokens)  # (B, C)
    lengths = scores.new_tensor([len(sentence) for sentence in answer.sentences])
    chosen = {
        LIKELIHOOD: scores.argmax(dim=1),
        LIKELIHOOD_A_TOKEN: (scores / lengths).argmax(dim=1),
        CONSTRAINED: write_constrained(answer.captioner, tokens, answer.sentences),
    }
    return {rule: indices.cpu().numpy() for rule, indices in chosen.items()}


@torch.no_grad()
def write_constrained(captioner: Captioner, tokens: Tensor, sentences: Sequence[Sequence[int]]) -> Tensor:
    """Index (B,) of the sentence that greedy writing ends in when each token must lead on to one of the sentences.

    SentenceHead are token numbers with the end token, so that none begins another; of equal ones the first is meant.
    This is beam search over a prefix tree (De Cao et al. 2021, https://arxiv.org/abs/2010.00904, section 3.2) with one
    beam; the tree is held as the sentences that are still in reach. Where one is left, what follows is settled.
    """
    longest = max(map(len, sentences))
    ids = torch.tensor([[*text, *[text[-1]] * (longest - len(text))] for text in sentences], device=tokens.device)
    reachable = torch.ones(len(tokens), len(sentences), dtype=torch.bool, device=tokens.device)
    logits, cache = captioner.read_prompt(tokens)
    for step in range(longest):
        scores = logits[:, ids[:, step]].masked_fill(~reachable, -torch.inf)  # (B, C)
        chosen = ids[scores.argmax(dim=1), step]  # (B,)
        reachable &= ids[:, step] == chosen[:, None]
        if step + 1 == longest or (reachable.sum(dim=1) == 1).all():
            break
        logits = captioner.read_more(tokens, chosen[:, None], cache)[:, -1]
    return reachable.int().argmax(dim=1)
