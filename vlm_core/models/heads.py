"""Three heads from a chain's last state to log-probabilities (B, C), and greedy text generation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlm_core.models.onednn_linear import use_onednn_linear
from vlm_core.models.stages import Captioner, Matcher, Readout, State

# A prompt ensemble as in CLIP (Radford et al. 2021, section 3.1.4), worded for product photos.
TEMPLATES = (
    "a photo of {}.",
    "a product photo of {}.",
    "a photo of {}, a type of fashion product.",
    "{} on a white background.",
    "a catalogue picture of {}.",
)
MAX_NEW_TOKENS = 20
IGNORE_INDEX = -100  # PyTorch's default target that cross-entropy leaves out


class Head(Protocol):
    """Maps the chain's last state to log-probabilities."""

    readout: Readout

    def log_probabilities(self, state: State) -> Tensor:
        """Return log-probabilities (B, C); their exponentials sum to one."""

    def loss(self, state: State, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the mean loss (), and detached log-probabilities (B, C) if the same forward pass gives them."""

    def trainable_modules(self) -> tuple[nn.Module, ...]:
        """Return the modules outside the chain whose weights the head uses."""


class LinearHead(nn.Module):
    """A linear layer on the fused or the vision features."""

    def __init__(self, width: int, categories: int, readout: Readout) -> None:
        super().__init__()
        self.linear = nn.Linear(width, categories)
        self.readout: Readout = readout

    def log_probabilities(self, state: State) -> Tensor:
        """Return the log-softmax (B, C) of the layer's logits."""
        return functional.log_softmax(self.linear(state[0]), dim=-1)

    def loss(self, state: State, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy () and the log-probabilities (B, C)."""
        log_probabilities = self.log_probabilities(state)
        return functional.nll_loss(log_probabilities, labels), log_probabilities.detach()

    def trainable_modules(self) -> tuple[nn.Module, ...]:
        """Return the layer."""
        return (self.linear,)


class PromptHead:
    """CLIP's and SigLIP's zero-shot classifier: the match with the mean embedding of each category's prompts.

    SigLIP learns each match by itself, with a sigmoid. Here one category is right, and given that exactly one is, the
    odds of independent matches are the softmax of their logits: so rows sum to one for both families.
    """

    readout: Readout = "fused"

    def __init__(self, matcher: Matcher, categories: Sequence[str]) -> None:
        self.matcher = matcher
        self.categories = categories
        self._prompt_embeddings: Tensor | None = None

    def _category_embeddings(self) -> Tensor:
        """Return a unit vector (C, D) per category, computed once; later calls leave no trace in an exported graph."""
        if self._prompt_embeddings is None:
            self._prompt_embeddings = self._embed_prompts()
        return self._prompt_embeddings

    @torch.inference_mode(False)  # the cached embeddings must also serve a pass with gradients
    @torch.no_grad()
    def _embed_prompts(self) -> Tensor:
        means = [
            self.matcher.text_embeddings([template.format(name.lower()) for template in TEMPLATES]).mean(dim=0)
            for name in self.categories
        ]
        return functional.normalize(torch.stack(means), dim=-1)

    def log_probabilities(self, state: State) -> Tensor:
        """Return the log-softmax (B, C) of the match's logits."""
        image_embeddings = functional.normalize(state[0], dim=-1)  # (B, D)
        return functional.log_softmax(self.matcher.match_logits(image_embeddings, self._category_embeddings()), dim=-1)

    def loss(self, state: State, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the negative log-likelihood () and the log-probabilities (B, C); for evaluation, never trained."""
        log_probabilities = self.log_probabilities(state)
        return functional.nll_loss(log_probabilities, labels), log_probabilities

    def trainable_modules(self) -> tuple[nn.Module, ...]:
        """Return no module."""
        return ()


class SentenceHead:
    """Scores each category by the likelihood of its name after a captioner's prompt."""

    readout: Readout = "tokens"

    def __init__(self, captioner: Captioner, categories: Sequence[str]) -> None:
        self.captioner = captioner
        self.prompt = captioner.prompt_ids()
        self.sentences = [captioner.sentence_ids(name.lower()) for name in categories]

    @torch.no_grad()
    def log_probabilities(self, state: State) -> Tensor:
        """Return log p(sentence | image), normalised over the categories' sentences (B, C)."""
        return functional.log_softmax(self.log_likelihoods(state[0]), dim=1)

    @torch.no_grad()
    def log_likelihoods(self, tokens: Tensor) -> Tensor:
        """Return log p(sentence | image) among all texts (B, C), end token included, for image tokens (B, N, D)."""
        with use_onednn_linear(tokens.device):
            first_logits, cache = self.captioner.prefill(tokens)
            scores = [self._score(tokens, first_logits, cache, sentence) for sentence in self.sentences]
        return torch.stack(scores, dim=1)

    def _score(self, tokens: Tensor, first_logits: Tensor, cache: Any, sentence: list[int]) -> Tensor:
        """Return the log-likelihood (B,) of one sentence of T tokens by the chain rule; the KV cache stays the same."""
        score = functional.log_softmax(first_logits, dim=-1)[:, sentence[0]]  # (B,)
        ids = torch.tensor(sentence, device=tokens.device)  # (T,)
        logits = self.captioner.decode_step(tokens, ids[:-1].expand(tokens.shape[0], -1), cache)
        self.captioner.crop_cache(cache, len(sentence) - 1)
        steps = functional.log_softmax(logits, dim=-1)  # (B, T - 1, V)
        return score + steps[:, torch.arange(len(ids) - 1), ids[1:]].sum(dim=1)

    def loss(self, state: State, labels: Tensor) -> tuple[Tensor, None]:
        """Return the cross-entropy () per token of the true category's sentence, without prompt and padding.

        No log-probabilities are returned, because the other categories' sentences are not scored.
        """
        (tokens,) = state
        ids, targets = self.teacher_forcing(labels)
        with use_onednn_linear(tokens.device):
            logits = self.captioner.token_logits(tokens, ids)
        loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX)
        return loss, None

    def teacher_forcing(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return input ids (B, T) and the target after each (B, T), -100 at the prompt and the padding."""
        sentences = [self.sentences[label] for label in labels.tolist()]
        length = max(map(len, sentences))
        ids = [self.prompt + sentence[:-1] + [0] * (length - len(sentence)) for sentence in sentences]
        before = [IGNORE_INDEX] * (len(self.prompt) - 1)
        targets = [before + sentence + [IGNORE_INDEX] * (length - len(sentence)) for sentence in sentences]
        return torch.tensor(ids, device=labels.device), torch.tensor(targets, device=labels.device)

    def trainable_modules(self) -> tuple[nn.Module, ...]:
        """Return the family's text modules."""
        return self.captioner.text_modules()


def generate_texts(captioner: Captioner, tokens: Tensor) -> list[str]:
    """Return the greedy text after the prompt for each image, given image tokens (B, N, D)."""
    return [
        captioner.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in generate_ids(captioner, tokens)
    ]


@torch.no_grad()
def generate_ids(captioner: Captioner, tokens: Tensor) -> list[list[int]]:
    """Return the token ids of the greedy texts, padded with the end token to one length."""
    with use_onednn_linear(tokens.device):
        return _generate_ids(captioner, tokens)


def _generate_ids(captioner: Captioner, tokens: Tensor) -> list[list[int]]:
    end = captioner.sentence_ids("")[-1]
    logits, cache = captioner.prefill(tokens)
    steps: list[Tensor] = []
    unfinished = torch.ones(len(tokens), dtype=torch.bool, device=tokens.device)
    for _ in range(MAX_NEW_TOKENS):
        next_ids = torch.where(unfinished, logits.argmax(dim=-1), end)  # (B,)
        unfinished &= next_ids != end
        if not unfinished.any():
            break
        steps.append(next_ids)
        logits = captioner.decode_step(tokens, next_ids[:, None], cache)[:, -1]
    return torch.stack(steps, dim=1).tolist() if steps else [[]] * len(tokens)
