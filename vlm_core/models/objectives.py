"""What each family is pretrained by: its own paper's losses between pictures and sentences.

Every objective is a module whose named parameters are all that learns: the family's Hugging Face model, and for BLIP
the parts that only pretraining needs. Terms are means over the batch; their sum is descended.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from transformers import BlipForImageTextRetrieval

from vlm_core.models.blip import Blip
from vlm_core.models.clip import Clip
from vlm_core.models.git import Git
from vlm_core.models.stages import Adapter, Captioner, Readout, State

LARGEST_SCALE = 100.0  # of cosines, as CLIP bounds it
FIRST_SCALE = 1 / 0.07  # as CLIP and BLIP begin
MATCHED_SHARE = 4  # one pair in four is matched: matching costs three passes through the cross-attention


class Objective(Protocol):
    """A family's pretraining losses."""

    readout: Readout

    def terms(self, state: State, texts: Sequence[str]) -> dict[str, Tensor]:
        """Named losses () of pictures' states, as the chain to `readout` ends, and a sentence about each picture."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Everything that learns, as `torch.nn.Module` names it."""


class Contrastive(nn.Module):
    """CLIP: each picture finds its sentence among the batch's, and each sentence its picture.

    Radford et al. 2021, arXiv 2103.00020, with the targets of UniCL (Yang et al. 2022, arXiv 2204.03610): pictures of
    equal sentences are no mistakes, and a batch of one shop's products has many.
    """

    readout: Readout = "fused"

    def __init__(self, clip: Clip) -> None:
        super().__init__()
        self.clip = clip
        self.hf = clip.hf

    def terms(self, state: State, texts: Sequence[str]) -> dict[str, Tensor]:
        """`contrastive`."""
        scale = self.hf.logit_scale.exp().clamp(max=LARGEST_SCALE)
        logits = scale * normalize(state[0], dim=-1) @ self.clip.text_embeddings(list(texts)).T
        return {"contrastive": contrastive_loss(logits, texts)}


class Captioning(nn.Module):
    """GIT: the sentence is written about the picture, token by token. Wang et al. 2022, arXiv 2205.14100."""

    readout: Readout = "tokens"

    def __init__(self, git: Git) -> None:
        super().__init__()
        self.git = git
        self.hf = git.hf

    def terms(self, state: State, texts: Sequence[str]) -> dict[str, Tensor]:
        """`captioning`."""
        return {"captioning": captioning_loss(self.git, state[0], texts)}


class Bootstrapping(nn.Module):
    """BLIP: contrast, matching with hard negatives, and captioning. Li et al. 2022, arXiv 2201.12086, section 3.

    Hugging Face's retrieval model is the encoder; as in the paper it shares with the decoder everything but the
    self-attention, which looks both ways. Left out are the momentum encoder, its queue and its soft labels: batches
    of small pictures are large, and equal sentences are told apart from mistakes instead.
    """

    readout: Readout = "tokens"

    def __init__(self, blip: Blip) -> None:
        super().__init__()
        self.blip = blip
        self.hf = blip.hf
        self.retrieval: Any = BlipForImageTextRetrieval(blip.hf.config)
        self._share()
        self.logit_scale = nn.Parameter(torch.tensor(FIRST_SCALE).log())

    def _share(self) -> None:
        encoder, decoder = self.retrieval.text_encoder, self.hf.text_decoder.bert
        self.retrieval.vision_model = self.hf.vision_model
        encoder.embeddings = decoder.embeddings
        for own, shared in zip(encoder.encoder.layer, decoder.encoder.layer, strict=True):
            own.attention.load_state_dict(shared.attention.state_dict())
            own.crossattention, own.intermediate, own.output = shared.crossattention, shared.intermediate, shared.output
        self.retrieval.to(self.hf.device)

    def terms(self, state: State, texts: Sequence[str]) -> dict[str, Tensor]:
        """`contrastive`, `matching` and `captioning`."""
        (tokens,) = state
        written = self.blip.tokenizer(
            list(texts), padding=True, truncation=True, max_length=longest_text(self.hf), return_tensors="pt"
        ).to(tokens.device)
        ids, seen = written["input_ids"], written["attention_mask"]
        pictures = normalize(self.retrieval.vision_proj(tokens[:, 0]), dim=-1)
        sentences = normalize(self.retrieval.text_proj(self._read(ids, seen)), dim=-1)
        cosines = pictures @ sentences.T
        logits = self.logit_scale.exp().clamp(max=LARGEST_SCALE) * cosines
        # At the learnt scale nearly every drawn negative is as true as the pair itself: a shop has many alike.
        wrong = hard_negatives(FIRST_SCALE * cosines.detach(), texts)
        return {
            "contrastive": contrastive_loss(logits, texts),
            "matching": self._matching(tokens, ids, seen, *wrong),
            "captioning": captioning_loss(self.blip, tokens, texts),
        }

    def _read(self, ids: Tensor, seen: Tensor, tokens: Tensor | None = None) -> Tensor:
        """The first token's state (B, D) of sentences, that see pictures' tokens where these are given."""
        encoded = self.retrieval.text_encoder(
            input_ids=ids, attention_mask=seen, encoder_hidden_states=tokens, is_decoder=False
        )
        return encoded.last_hidden_state[:, 0]  # type: ignore[no-any-return]

    def _matching(self, tokens: Tensor, ids: Tensor, seen: Tensor, wrong_text: Tensor, wrong_picture: Tensor) -> Tensor:
        """Cross-entropy () of telling some of the true pairs from as many wrong texts and as many wrong pictures."""
        count = max(1, len(ids) // MATCHED_SHARE)
        some = torch.arange(count, device=ids.device)
        texts = torch.cat([some, wrong_text[:count], some])
        pictures = torch.cat([some, some, wrong_picture[:count]])
        logits = self.retrieval.itm_head(self._read(ids[texts], seen[texts], tokens[pictures]))
        return cross_entropy(logits, (torch.arange(3 * count, device=ids.device) < count).long())


def make_objective(adapter: Adapter) -> Objective:
    """The family's own objective."""
    if isinstance(adapter, Clip):
        return Contrastive(adapter)
    if isinstance(adapter, Blip):
        return Bootstrapping(adapter)
    assert isinstance(adapter, Git)
    return Captioning(adapter)


@torch.no_grad()
def hard_negatives(logits: Tensor, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """For each picture a wrong sentence (B,), and for each sentence a wrong picture (B,), likelier the more alike.

    Where all sentences of a batch are equal, any other stands in.
    """
    same = _same(texts, logits.device)
    alike = logits.masked_fill(same, float("-inf"))
    alike = torch.where(same.all(dim=1, keepdim=True), torch.zeros_like(logits), alike)
    wrong_text = torch.multinomial(alike.softmax(dim=1), 1)[:, 0]
    wrong_picture = torch.multinomial(alike.T.softmax(dim=1), 1)[:, 0]
    return wrong_text, wrong_picture


def _same(texts: Sequence[str], device: torch.device) -> Tensor:
    """Whether two sentences are equal: (B, B)."""
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    places = torch.tensor([numbers[text] for text in texts], device=device)
    return places[:, None] == places[None, :]


def contrastive_loss(logits: Tensor, texts: Sequence[str]) -> Tensor:
    """The symmetric loss () of logits (pictures, sentences): targets are shared among equal sentences."""
    targets = _same(texts, logits.device).to(logits.dtype)
    targets = targets / targets.sum(dim=1, keepdim=True)
    return (cross_entropy(logits, targets) + cross_entropy(logits.T, targets)) / 2


def captioning_loss(captioner: Captioner, tokens: Tensor, texts: Sequence[str]) -> Tensor:
    """Cross-entropy () a token of the sentences, given image tokens (B, N, D); the start and padding are not asked."""
    start, longest = captioner.prompt_ids()[0], longest_text(captioner.hf)
    sentences = [[start, *captioner.sentence_ids(text)][:longest] for text in texts]
    length = max(map(len, sentences))
    ids = torch.tensor([ids + [-100] * (length - len(ids)) for ids in sentences], device=tokens.device)
    logits = captioner.token_logits(tokens, ids[:, :-1].clamp(min=0))
    return cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=-100)


def longest_text(hf: Any) -> int:
    """Tokens that a model's text positions reach to."""
    return int(hf.config.get_text_config().max_position_embeddings)
