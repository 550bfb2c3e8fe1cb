"""Pretraining objectives: each family's losses between images and sentences, as in its paper.

An objective is a module that holds all trainable parameters: the family's Hugging Face model, and for BLIP also the
parts that only pretraining needs. Loss terms are means over the batch; training minimises their sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid, normalize
from transformers import BlipForImageTextRetrieval

from vlm_core.models.blip import Blip
from vlm_core.models.clip import Clip
from vlm_core.models.git import Git
from vlm_core.models.siglip import Siglip
from vlm_core.models.stages import Adapter, Captioner, Readout, State

MAX_LOGIT_SCALE = 100.0  # as in CLIP
INITIAL_LOGIT_SCALE = 1 / 0.07  # as in CLIP and BLIP
MATCHED_SHARE = 4  # one pair in four is used for matching, which costs three cross-attention passes per pair


class Objective(Protocol):
    """A family's pretraining losses."""

    readout: Readout

    def terms(self, state: State, texts: Sequence[str]) -> dict[str, Tensor]:
        """Return named losses () of the images' states at `readout`, and one sentence per image."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield all trainable parameters with the names of `torch.nn.Module`."""


class Contrastive(nn.Module):
    """CLIP: contrastive learning between the images and sentences of a batch.

    Radford et al. 2021, arXiv 2103.00020, with the targets of UniCL (Yang et al. 2022, arXiv 2204.03610): images with
    equal sentences, of which a batch of one shop's products has many, are all positives.
    """

    readout: Readout = "fused"

    def __init__(self, clip: Clip) -> None:
        super().__init__()
        self.clip = clip
        self.hf = clip.hf

    def terms(self, state: State, texts: Sequence[str]) -> dict[str, Tensor]:
        """`contrastive`."""
        scale = self.hf.logit_scale.exp().clamp(max=MAX_LOGIT_SCALE)
        logits = scale * normalize(state[0], dim=-1) @ self.clip.text_embeddings(list(texts)).T
        return {"contrastive": contrastive_loss(logits, texts)}


class Sigmoid(nn.Module):
    """SigLIP: for each image and sentence of a batch, whether they are a pair. Zhai et al. 2023, arXiv 2303.15343.

    As for CLIP, images with equal sentences are all pairs.
    """

    readout: Readout = "fused"

    def __init__(self, siglip: Siglip) -> None:
        super().__init__()
        self.siglip = siglip
        self.hf = siglip.hf

    def terms(self, state: State, texts: Sequence[str]) -> dict[str, Tensor]:
        """Return the loss `sigmoid`."""
        logits = self.siglip.match_logits(normalize(state[0], dim=-1), self.siglip.text_embeddings(list(texts)))
        return {"sigmoid": sigmoid_loss(logits, texts)}


class Captioning(nn.Module):
    """GIT: language modelling of the sentence, given the image. Wang et al. 2022, arXiv 2205.14100."""

    readout: Readout = "tokens"

    def __init__(self, git: Git) -> None:
        super().__init__()
        self.git = git
        self.hf = git.hf

    def terms(self, state: State, texts: Sequence[str]) -> dict[str, Tensor]:
        """Return the loss `captioning`."""
        return {"captioning": captioning_loss(self.git, state[0], texts)}


class Bootstrapping(nn.Module):
    """BLIP: contrastive, matching (with hard negatives) and captioning losses. Li et al. 2022, arXiv 2201.12086.

    Hugging Face's retrieval model is the text encoder. As in the paper, it shares all but its bidirectional
    self-attention with the decoder. The momentum encoder with its queue and soft labels is left out: small images
    allow large batches, and equal sentences count as positives instead.
    """

    readout: Readout = "tokens"

    def __init__(self, blip: Blip) -> None:
        super().__init__()
        self.blip = blip
        self.hf = blip.hf
        self.retrieval: Any = BlipForImageTextRetrieval(blip.hf.config)
        self._share()
        self.logit_scale = nn.Parameter(torch.tensor(INITIAL_LOGIT_SCALE, device=blip.hf.device).log())

    def _share(self) -> None:
        encoder, decoder = self.retrieval.text_encoder, self.hf.text_decoder.bert
        self.retrieval.vision_model = self.hf.vision_model
        encoder.embeddings = decoder.embeddings
        for own, shared in zip(encoder.encoder.layer, decoder.encoder.layer, strict=True):
            own.attention.load_state_dict(shared.attention.state_dict())
            own.crossattention, own.intermediate, own.output = shared.crossattention, shared.intermediate, shared.output
        self.retrieval.to(self.hf.device)

    def terms(self, state: State, texts: Sequence[str]) -> dict[str, Tensor]:
        """Return the losses `contrastive`, `matching` and `captioning`."""
        (tokens,) = state
        encoding = self.blip.tokenizer(
            list(texts), padding=True, truncation=True, max_length=max_text_length(self.hf), return_tensors="pt"
        ).to(tokens.device)
        ids, mask = encoding["input_ids"], encoding["attention_mask"]
        image_embeddings = normalize(self.retrieval.vision_proj(tokens[:, 0]), dim=-1)  # (B, D)
        text_embeddings = normalize(self.retrieval.text_proj(self._encode(ids, mask)), dim=-1)  # (B, D)
        cosines = image_embeddings @ text_embeddings.T  # (B, B)
        logits = self.logit_scale.exp().clamp(max=MAX_LOGIT_SCALE) * cosines
        # At the learnt scale, nearly all sampled negatives would be near-copies of the pair: a shop has many.
        negatives = hard_negatives(INITIAL_LOGIT_SCALE * cosines.detach(), texts)
        return {
            "contrastive": contrastive_loss(logits, texts),
            "matching": self._matching(tokens, ids, mask, *negatives),
            "captioning": captioning_loss(self.blip, tokens, texts),
        }

    def _encode(self, ids: Tensor, mask: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Return the first token's features (B, D) of sentences, with cross-attention to image tokens if given."""
        encoded = self.retrieval.text_encoder(
            input_ids=ids, attention_mask=mask, encoder_hidden_states=tokens, is_decoder=False
        )
        return encoded.last_hidden_state[:, 0]  # type: ignore[no-any-return]

    def _matching(
        self, tokens: Tensor, ids: Tensor, mask: Tensor, negative_texts: Tensor, negative_images: Tensor
    ) -> Tensor:
        """Return the cross-entropy () of pairs, an equal number of negative texts and as many negative images."""
        count = max(1, len(ids) // MATCHED_SHARE)
        pairs = torch.arange(count, device=ids.device)
        texts = torch.cat([pairs, negative_texts[:count], pairs])
        images = torch.cat([pairs, pairs, negative_images[:count]])
        logits = self.retrieval.itm_head(self._encode(ids[texts], mask[texts], tokens[images]))
        return cross_entropy(logits, (torch.arange(3 * count, device=ids.device) < count).long())


def make_objective(adapter: Adapter) -> Objective:
    """Return the family's own objective."""
    if isinstance(adapter, Siglip):
        return Sigmoid(adapter)
    if isinstance(adapter, Clip):
        return Contrastive(adapter)
    if isinstance(adapter, Blip):
        return Bootstrapping(adapter)
    assert isinstance(adapter, Git)
    return Captioning(adapter)


@torch.no_grad()
def hard_negatives(logits: Tensor, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Sample a negative sentence (B,) for each image, and a negative image (B,) for each sentence, by similarity.

    If all sentences of a batch are equal, any of them can be sampled.
    """
    same = _equal_texts(texts, logits.device)
    scores = logits.masked_fill(same, float("-inf"))
    scores = torch.where(same.all(dim=1, keepdim=True), torch.zeros_like(logits), scores)
    negative_texts = torch.multinomial(scores.softmax(dim=1), 1)[:, 0]
    negative_images = torch.multinomial(scores.T.softmax(dim=1), 1)[:, 0]
    return negative_texts, negative_images


def _equal_texts(texts: Sequence[str], device: torch.device) -> Tensor:
    """Return which pairs of sentences are equal (B, B)."""
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    ids = torch.tensor([numbers[text] for text in texts], device=device)
    return ids[:, None] == ids[None, :]


def contrastive_loss(logits: Tensor, texts: Sequence[str]) -> Tensor:
    """Return the symmetric loss () of logits (images, sentences); equal sentences share the target."""
    targets = _equal_texts(texts, logits.device).to(logits.dtype)
    targets = targets / targets.sum(dim=1, keepdim=True)
    return (cross_entropy(logits, targets) + cross_entropy(logits.T, targets)) / 2


def sigmoid_loss(logits: Tensor, texts: Sequence[str]) -> Tensor:
    """Return the loss () of logits (images, sentences), summed over sentences: equation 1 of the paper."""
    signs = 2 * _equal_texts(texts, logits.device).to(logits.dtype) - 1
    return -logsigmoid(signs * logits).sum(dim=1).mean()


def captioning_loss(captioner: Captioner, tokens: Tensor, texts: Sequence[str]) -> Tensor:
    """Return the cross-entropy () per token of sentences, given image tokens (B, N, D), without start and padding."""
    start, max_length = captioner.prompt_ids()[0], max_text_length(captioner.hf)
    sentences = [[start, *captioner.sentence_ids(text)][:max_length] for text in texts]
    length = max(map(len, sentences))
    ids = torch.tensor([ids + [-100] * (length - len(ids)) for ids in sentences], device=tokens.device)
    logits = captioner.token_logits(tokens, ids[:, :-1].clamp(min=0))
    return cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=-100)


def max_text_length(hf: Any) -> int:
    """Return the number of a model's text positions."""
    return int(hf.config.get_text_config().max_position_embeddings)
