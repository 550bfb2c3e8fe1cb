"""Three ways from a chain's last state to log-probabilities (B, C); after them no family can be told from another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlm_core.models.clip import Clip
from vlm_core.models.onednn_linear import use_onednn_linear
from vlm_core.models.stages import Captioner, Readout, State

# Prompt ensemble in the manner of CLIP's own (Radford et al. 2021, section 3.1.4), worded for a shop's pictures.
TEMPLATES = (
    "a photo of {}.",
    "a product photo of {}.",
    "a photo of {}, a type of fashion product.",
    "{} on a white background.",
    "a catalogue picture of {}.",
)
LONGEST_TEXT_TOKENS = 20


class Head(Protocol):
    """What reads the chain's last state."""

    readout: Readout

    def log_probabilities(self, state: State) -> Tensor:
        """Rows (B, C) whose exponentials sum to one."""

    def loss(self, state: State, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """The mean loss () to descend, and the detached log-probabilities (B, C) where the same pass gives them."""

    def modules_that_learn(self) -> tuple[nn.Module, ...]:
        """Modules beyond the chain's own whose weights the answer needs."""


class LinearHead(nn.Module):
    """A linear layer on the fused or the vision state."""

    def __init__(self, width: int, categories: int, readout: Readout) -> None:
        super().__init__()
        self.linear = nn.Linear(width, categories)
        self.readout: Readout = readout

    def log_probabilities(self, state: State) -> Tensor:
        """Log-softmax (B, C) of the layer's logits."""
        return functional.log_softmax(self.linear(state[0]), dim=-1)

    def loss(self, state: State, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy, and the log-probabilities (B, C)."""
        log_probabilities = self.log_probabilities(state)
        return functional.nll_loss(log_probabilities, labels), log_probabilities.detach()

    def modules_that_learn(self) -> tuple[nn.Module, ...]:
        """The layer itself."""
        return (self.linear,)


class PromptHead:
    """CLIP's zero-shot answer: cosine to the mean embedding of each category's prompts."""

    readout: Readout = "fused"

    def __init__(self, clip: Clip, categories: Sequence[str]) -> None:
        self.clip = clip
        self.categories = categories
        self._directions: Tensor | None = None

    @torch.inference_mode(False)  # what is kept must also serve a pass with gradients
    @torch.no_grad()
    def _category_directions(self) -> Tensor:
        if self._directions is None:
            means = [
                self.clip.text_embeddings([template.format(name.lower()) for template in TEMPLATES]).mean(dim=0)
                for name in self.categories
            ]
            self._directions = functional.normalize(torch.stack(means), dim=-1)  # (C, D)
        return self._directions

    def log_probabilities(self, state: State) -> Tensor:
        """Log-softmax (B, C) of the scaled cosines."""
        pictures = functional.normalize(state[0], dim=-1)
        return functional.log_softmax(self.clip.temperature() * pictures @ self._category_directions().T, dim=-1)

    def loss(self, state: State, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood of the zero-shot answer: it is measured, never trained."""
        log_probabilities = self.log_probabilities(state)
        return functional.nll_loss(log_probabilities, labels), log_probabilities

    def modules_that_learn(self) -> tuple[nn.Module, ...]:
        """None."""
        return ()


class SentenceHead:
    """A captioner's answer: how likely each category's name is after the prompt, by the chain rule over its tokens."""

    readout: Readout = "tokens"

    def __init__(self, captioner: Captioner, categories: Sequence[str]) -> None:
        self.captioner = captioner
        self.prompt = captioner.prompt_ids()
        self.sentences = [captioner.sentence_ids(name.lower()) for name in categories]

    @torch.no_grad()
    def log_probabilities(self, state: State) -> Tensor:
        """Log of p(sentence | picture), normalised over the categories' sentences (B, C)."""
        return functional.log_softmax(self.log_likelihoods(state[0]), dim=1)

    @torch.no_grad()
    @use_onednn_linear()
    def log_likelihoods(self, tokens: Tensor) -> Tensor:
        """Log of p(sentence | picture) among all texts (B, C), the end token included, for image tokens (B, N, D)."""
        first, cache = self.captioner.read_prompt(tokens)
        return torch.stack([self._score(tokens, first, cache, sentence) for sentence in self.sentences], dim=1)

    def _score(self, tokens: Tensor, first: Tensor, cache: Any, sentence: list[int]) -> Tensor:
        score = functional.log_softmax(first, dim=-1)[:, sentence[0]]  # (B,)
        ids = torch.tensor(sentence, device=tokens.device)
        logits = self.captioner.read_more(tokens, ids[:-1].expand(tokens.shape[0], -1), cache)
        self.captioner.forget(cache, len(sentence) - 1)
        steps = functional.log_softmax(logits, dim=-1)  # (B, T - 1, V)
        return score + steps[:, torch.arange(len(ids) - 1), ids[1:]].sum(dim=1)

    @use_onednn_linear()
    def loss(self, state: State, labels: Tensor) -> tuple[Tensor, None]:
        """Cross-entropy per token of the right sentence, prompt and padding left out: it knows of no other sentence."""
        (tokens,) = state
        ids, targets = self.teacher_forcing(labels)
        logits = self.captioner.token_logits(tokens, ids)
        loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
        return loss, None

    def teacher_forcing(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Input ids (B, T) and the target after each of them (B, T), -100 where none is asked for."""
        chosen = [self.sentences[label] for label in labels.tolist()]
        length = max(map(len, chosen))
        ids = [self.prompt + text[:-1] + [0] * (length - len(text)) for text in chosen]
        unasked = [-100] * (len(self.prompt) - 1)
        targets = [unasked + text + [-100] * (length - len(text)) for text in chosen]
        return torch.tensor(ids, device=labels.device), torch.tensor(targets, device=labels.device)

    def modules_that_learn(self) -> tuple[nn.Module, ...]:
        """The parts of the family that write text."""
        return self.captioner.writing_modules()


def write_texts(captioner: Captioner, tokens: Tensor) -> list[str]:
    """The most likely text after the prompt for each picture, token by token (greedy), without the prompt."""
    written = write_ids(captioner, tokens)
    return [captioner.tokenizer.decode(row, skip_special_tokens=True).strip() for row in written]


@torch.no_grad()
@use_onednn_linear()
def write_ids(captioner: Captioner, tokens: Tensor) -> list[list[int]]:
    """Token numbers of that text, filled up with the end token to one length."""
    end = captioner.sentence_ids("")[-1]
    logits, cache = captioner.read_prompt(tokens)
    written: list[Tensor] = []
    alive = torch.ones(len(tokens), dtype=torch.bool, device=tokens.device)
    for _ in range(LONGEST_TEXT_TOKENS):
        chosen = torch.where(alive, logits.argmax(dim=-1), end)
        alive &= chosen != end
        if not alive.any():
            break
        written.append(chosen)
        logits = captioner.read_more(tokens, chosen[:, None], cache)[:, -1]
    return torch.stack(written, dim=1).tolist() if written else [[]] * len(tokens)
