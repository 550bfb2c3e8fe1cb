"""Ways from a picture's tokens to its category: what the families differ in, on equal terms, and controls.

All start from the same tokens (B, 1 + N, D), the class token first, and have the same parts around the mechanism: a
norm and a projection to WIDTH, DEPTH residual blocks that normalise first, a norm and a linear head. The MLPs are as
wide as it takes to give every mechanism the same number of weights.

A picture's patches are a set to all of them: where a patch lies is known from the tower's own position embeddings
alone, so another order of the tokens changes nothing, and would be no control. What is shuffled instead is which
patch's value an attention weight falls on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlm_core.models.blocks import multi_head_attention
from vlm_core.models.stages import Readout, State, causal_mask

WIDTH: Final = 64
HEADS: Final = 2
DEPTH: Final = 2

MechanismKind = Literal["mean-pool", "class-token", "attention-pool", "cross-attention", "joint-self-attention"]
# learned: as the mechanism has it; uniform: the same weight on all tokens; shuffled: learned, but the weight of each
# patch falls on the value of another one of the same picture.
Weighting = Literal["learned", "uniform", "shuffled"]

POOLED: Final[tuple[MechanismKind, ...]] = (
    "mean-pool",
    "class-token",
)  # before the blocks, which look at no patch then


@dataclass(frozen=True)
class MechanismSpec:
    """A mechanism, and where the weights of its attention to patches come from."""

    kind: MechanismKind
    weighting: Weighting = "learned"


MECHANISMS: Final[dict[str, MechanismSpec]] = {
    "mean-pool": MechanismSpec("mean-pool"),
    "class-token": MechanismSpec("class-token"),
    "attention-pool": MechanismSpec("attention-pool"),
    "attention-pool-uniform": MechanismSpec("attention-pool", "uniform"),
    "attention-pool-shuffled": MechanismSpec("attention-pool", "shuffled"),
    "cross-attention": MechanismSpec("cross-attention"),
    "cross-attention-uniform": MechanismSpec("cross-attention", "uniform"),
    "cross-attention-shuffled": MechanismSpec("cross-attention", "shuffled"),
    "joint-self-attention": MechanismSpec(
        "joint-self-attention"
    ),  # no controls: its MLPs see each patch whatever attends
}


class Attention(nn.Module):
    """Multi-head attention of some tokens to others (Vaswani et al. 2017, arXiv 1706.03762)."""

    def __init__(self, weighting: Weighting = "learned") -> None:
        super().__init__()
        self.weighting = weighting
        if weighting != "uniform":
            self.query, self.key = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.value, self.output = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, reading: Tensor, read: Tensor, mask: Tensor | None = None) -> Tensor:
        """What `reading` (B, R, W) gets from `read` (B, N, W), a picture's patches where weights are not learned."""
        value = self.value(read)
        if self.weighting == "uniform":  # scores of zero
            return self._mix(torch.zeros_like(reading), value, value, mask)
        if self.weighting == "shuffled":
            value = shuffle(value, self.training)
        return self._mix(self.query(reading), self.key(read), value, mask)

    def _mix(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        mixed: Tensor = self.output(multi_head_attention(query, key, value, HEADS, mask))
        return mixed


def shuffle(tokens: Tensor, anew: bool) -> Tensor:
    """The tokens (B, N, W) in an order drawn for each picture; not `anew`, in one that never changes.

    An order that nothing was learnt with is as strange to every picture, and leaves answers free of chance.
    """
    batch, count, _ = tokens.shape
    if anew:
        order = torch.rand(batch, count, device=tokens.device).argsort(dim=1)
    else:
        fixed = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        order = fixed.to(tokens.device).expand(batch, -1)
    return tokens.gather(1, order[..., None].expand_as(tokens))


class ResidualMLP(nn.Module):
    """A residual MLP, as every block ends in."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, hidden), nn.GELU(), nn.Linear(hidden, WIDTH))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, R, W)."""
        mixed: Tensor = tokens + self.layers(tokens)
        return mixed


class PooledBlock(nn.Module):
    """A block that looks at the picture no more: the control of all attention that is learnt here."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.mixing = ResidualMLP(hidden)

    def forward(self, patches: Tensor, reading: Tensor) -> tuple[Tensor, Tensor]:
        """The patches (B, N, W) as they are, and the reading tokens (B, R, W)."""
        return patches, self.mixing(reading)


class CrossBlock(nn.Module):
    """Reading tokens attend to patches, after each other where there are several, as in BLIP's decoder."""

    def __init__(self, weighting: Weighting, hidden: int, among_each_other: bool) -> None:
        super().__init__()
        self.among_each_other = among_each_other
        if among_each_other:
            self.own_norm, self.own_attention = nn.LayerNorm(WIDTH), Attention()
        self.norm = nn.Identity() if weighting == "uniform" else nn.LayerNorm(WIDTH)  # of queries, where there are any
        self.attention = Attention(weighting)
        self.mixing = ResidualMLP(hidden)

    def forward(self, patches: Tensor, reading: Tensor) -> tuple[Tensor, Tensor]:
        """The patches (B, N, W) as they are, and the reading tokens (B, R, W)."""
        if self.among_each_other:
            normed = self.own_norm(reading)
            reading = reading + self.own_attention(normed, normed)
        reading = reading + self.attention(self.norm(reading), patches)
        return patches, self.mixing(reading)


class JointBlock(nn.Module):
    """One self-attention over patches and text, as in GIT: patches see patches, text sees patches and earlier text.

    Of the last block only the last text token is read, and computed.
    """

    def __init__(self, hidden: int, last: bool) -> None:
        super().__init__()
        self.last = last
        self.norm, self.attention = nn.LayerNorm(WIDTH), Attention()
        self.mixing = ResidualMLP(hidden)

    def forward(self, patches: Tensor, reading: Tensor) -> tuple[Tensor, Tensor]:
        """Patches (B, N, W) and text (B, T, W); of the last block the patches as they are and the last token."""
        count = patches.shape[1]
        joint = self.norm(torch.cat((patches, reading), dim=1))
        if self.last:
            return patches, self.mixing(reading[:, -1:] + self.attention(joint[:, -1:], joint))
        seen = joint[:, :count]
        mask = causal_mask(reading.shape[1], count, joint)
        patches = patches + self.attention(seen, seen)
        reading = reading + self.attention(joint[:, count:], joint, mask)
        return self.mixing(patches), self.mixing(reading)


class Mechanism(nn.Module):
    """The answer of a mechanism on the tokens of a vision tower that all share.

    `attention-pool`: a learned query attends to the patches (Lee et al. 2019, arXiv 1810.00825, section 3.2; Yu et al.
    2022, arXiv 2205.01917). `cross-attention`: one token for the name of each category attends to the others and to
    the patches, and gives the category's score: BLIP's matching of a text with a picture (Li et al. 2022, arXiv
    2201.12086), for all categories at once (Liu et al. 2021, arXiv 2107.10834). `joint-self-attention`: the names and a
    learned token that reads stand behind the patches in one sequence (Wang et al. 2022, arXiv 2205.14100).
    `class-token` keeps what the tower's own attention has pooled; the others read the patches alone, without it.
    """

    readout: Readout = "tokens"
    names: Tensor

    def __init__(self, name: str, names: Tensor, token_width: int) -> None:
        """`name` is one of MECHANISMS, `names` (C, T) are frozen vectors of the categories' names."""
        super().__init__()
        self.design = MECHANISMS[name]
        self.head = nn.Linear(WIDTH, len(names))  # drawn first: for one seed all mechanisms start with the same
        self.project = nn.Linear(token_width, WIDTH)
        self.register_buffer("names", _normalise(names), persistent=False)
        if self.reads_names:
            self.project_names = nn.Linear(names.shape[1], WIDTH)
        if self.has_query:
            self.query = nn.Parameter(0.02 * torch.randn(1, 1, WIDTH))
        self.blocks = nn.ModuleList(self._block(last=number == DEPTH) for number in range(1, DEPTH + 1))
        self.norm = nn.LayerNorm(WIDTH)

    @property
    def reads_names(self) -> bool:
        """Whether the names of the categories are among the tokens."""
        return self.design.kind in ("cross-attention", "joint-self-attention")

    @property
    def has_query(self) -> bool:
        """Whether a learned token reads."""
        return self.design.kind in ("attention-pool", "joint-self-attention")

    def _block(self, last: bool) -> nn.Module:
        kind = self.design.kind
        hidden = self._hidden_units()
        if kind == "joint-self-attention":
            return JointBlock(hidden, last)
        if kind in POOLED:
            return PooledBlock(hidden)
        return CrossBlock(self.design.weighting, hidden, among_each_other=kind == "cross-attention")

    def _hidden_units(self) -> int:
        """Width of an MLP's hidden layer with which a mechanism has about 12 DEPTH WIDTH^2 + T WIDTH weights in all.

        The second term is a projection of names. A hidden unit has 2 WIDTH weights, an attention 4 WIDTH^2, and half
        of them where it has no queries and keys.
        """
        attentions = {"cross-attention": 2, "attention-pool": 1, "joint-self-attention": 1}.get(self.design.kind, 0)
        units = 6 * WIDTH - 2 * WIDTH * attentions
        if self.design.weighting == "uniform":
            units += WIDTH
        return units if self.reads_names else units + self.names.shape[1] // (2 * DEPTH)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (B, C) for tokens (B, 1 + N, D), the class token first."""
        patches, reading = self._start(_normalise(tokens))
        for block in self.blocks:
            patches, reading = block(patches, reading)
        state = self.norm(reading)  # (B, 1, W), or (B, C, W): a category's own
        logits: Tensor = (state * self.head.weight).sum(dim=-1) + self.head.bias
        return logits

    def _start(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Patches (B, N, W), none where blocks look at none, and the tokens (B, R, W) that read."""
        if self.design.kind in POOLED:
            pooled = tokens[:, 0] if self.design.kind == "class-token" else tokens[:, 1:].mean(dim=1)
            return tokens[:, :0], self.project(pooled)[:, None]
        parts = []
        if self.reads_names:
            parts.append(self.project_names(self.names)[None])
        if self.has_query:
            parts.append(self.query)
        return self.project(tokens[:, 1:]), torch.cat(parts, dim=1).expand(len(tokens), -1, -1)

    def log_probabilities(self, state: State) -> Tensor:
        """Log-softmax (B, C) of the logits."""
        return functional.log_softmax(self(state[0]), dim=-1)

    def loss(self, state: State, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy, and the detached log-probabilities (B, C)."""
        log_probabilities = self.log_probabilities(state)
        return functional.nll_loss(log_probabilities, labels), log_probabilities.detach()

    def trainable_modules(self) -> tuple[nn.Module, ...]:
        """Itself."""
        return (self,)


def _normalise(vectors: Tensor) -> Tensor:
    """Each vector (..., D) with mean 0 and variance 1: gains and shifts are the next layer's."""
    return functional.layer_norm(vectors, vectors.shape[-1:])
