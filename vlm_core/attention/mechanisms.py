"""The attention mechanisms that distinguish the families, compared on equal terms, and their controls.

All start from the same tokens (B, 1 + N, D), the class token first, and share the parts around the mechanism: a norm
and a projection to WIDTH, DEPTH pre-norm residual blocks, a norm and a linear head. The MLPs' width is chosen to give
every mechanism the same number of weights.

A tower that was pretrained through its class token has put into it what pretraining asked for, so the mechanisms of the
main comparison read all tokens, as BLIP and GIT do. Controls, each named for what it asks: patches alone (is it the
class token?), the tokens before the tower's last block (is it the tower's own attention?), uniform and shuffled weights
(is it where attention looks?), and one head row for all categories beside random and exchanged category names (is it
what the names say? with a head row for each category they are learned queries).

All of them treat a picture's patches as a set: positions are encoded in the tower's own position embeddings alone, so
reordering the tokens changes nothing and would be no control. The shuffled controls permute instead which token's
value each attention weight applies to.
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
# learned: softmax of q k^T; uniform: equal weights on all tokens; shuffled: learned weights that are applied to the
# values of other tokens of the same picture.
Weighting = Literal["learned", "uniform", "shuffled"]
# all: the class token and the patches; penultimate: the same, before the tower's last block.
Source = Literal["all", "patches", "penultimate"]
# per category: a row of the head for each category; the others have one row for all, so that a category's score can
# differ from another's by its name alone: its own, a random vector, or the name of another category.
Scoring = Literal["per category", "own names", "random names", "exchanged names"]

POOLED: Final[tuple[MechanismKind, ...]] = (
    "mean-pool",
    "class-token",
)  # before the blocks, which look at no patch then


@dataclass(frozen=True)
class MechanismSpec:
    """A kind of mechanism, what it reads, how its attention is weighted, and what tells categories apart."""

    kind: MechanismKind
    weighting: Weighting = "learned"
    source: Source = "all"
    scoring: Scoring = "per category"

    @property
    def label(self) -> str:
        """The mechanism in words."""
        parts = {"patches": "patches only", "penultimate": "penultimate layer"}
        weights = f"{self.weighting} weights" if self.weighting != "learned" else ""
        scoring = f"one head row, {self.scoring}" if self.scoring != "per category" else ""
        return ", ".join(filter(None, (self.kind, parts.get(self.source, ""), weights, scoring)))


# The main comparison. Earlier versions' mechanisms read patches alone, and are named without "-all".
MAIN: Final[dict[str, MechanismSpec]] = {
    "mean-pool-all": MechanismSpec("mean-pool"),
    "class-token": MechanismSpec("class-token"),
    "attention-pool-all": MechanismSpec("attention-pool"),
    "cross-attention-all": MechanismSpec("cross-attention"),
    "joint-self-attention-all": MechanismSpec("joint-self-attention"),
}
# Each beside the mechanism that it is the control of. Joint self-attention has no controls of its weights: its MLPs see
# each patch regardless.
CONTROLS: Final[dict[str, MechanismSpec]] = {
    "mean-pool": MechanismSpec("mean-pool", source="patches"),
    "attention-pool": MechanismSpec("attention-pool", source="patches"),
    "cross-attention": MechanismSpec("cross-attention", source="patches"),
    "joint-self-attention": MechanismSpec("joint-self-attention", source="patches"),
    "mean-pool-penultimate": MechanismSpec("mean-pool", source="penultimate"),
    "class-token-penultimate": MechanismSpec("class-token", source="penultimate"),
    "attention-pool-penultimate": MechanismSpec("attention-pool", source="penultimate"),
    "cross-attention-penultimate": MechanismSpec("cross-attention", source="penultimate"),
    "joint-self-attention-penultimate": MechanismSpec("joint-self-attention", source="penultimate"),
    "attention-pool-all-uniform": MechanismSpec("attention-pool", "uniform"),
    "attention-pool-all-shuffled": MechanismSpec("attention-pool", "shuffled"),
    "cross-attention-all-uniform": MechanismSpec("cross-attention", "uniform"),
    "cross-attention-all-shuffled": MechanismSpec("cross-attention", "shuffled"),
    **{
        f"{kind}-all-{scoring.replace(' ', '-')}": MechanismSpec(kind, scoring=scoring)
        for kind in ("cross-attention", "joint-self-attention")
        for scoring in ("own names", "random names", "exchanged names")
    },
}
# Of studies by earlier versions, which are still read.
FORMER: Final[dict[str, MechanismSpec]] = {
    f"{kind}-{weighting}": MechanismSpec(kind, weighting, "patches")
    for kind in ("attention-pool", "cross-attention")
    for weighting in ("uniform", "shuffled")
}
MECHANISMS: Final[dict[str, MechanismSpec]] = {**MAIN, **CONTROLS}


def label_of(name: str) -> str:
    """Return a mechanism in words, one of an earlier version too."""
    return {**MECHANISMS, **FORMER}[name].label


def control_of(name: str) -> str:
    """Return the mechanism that this one is a control of, "" for one of the main comparison."""
    spec = MECHANISMS[name]
    if name in MAIN:
        return ""
    if spec.scoring in ("random names", "exchanged names"):
        return f"{spec.kind}-all-own-names"
    return next(main for main, other in MAIN.items() if other.kind == spec.kind)


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, arXiv 1706.03762)."""

    def __init__(self, weighting: Weighting = "learned") -> None:
        super().__init__()
        self.weighting = weighting
        if weighting != "uniform":
            self.q_proj, self.k_proj = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.v_proj, self.out_proj = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, queries: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend from `queries` (B, Q, W) to `context` (B, N, W), image tokens or queries."""
        v = self.v_proj(context)  # (B, N, W)
        if self.weighting == "shuffled":
            v = shuffle(v, resample=self.training)
        if self.weighting == "uniform":
            q, k = torch.zeros_like(queries), v  # all scores are 0, so the softmax is uniform
        else:
            q, k = self.q_proj(queries), self.k_proj(context)  # (B, Q, W), (B, N, W)
        y: Tensor = self.out_proj(multi_head_attention(q, k, v, HEADS, mask))  # (B, Q, W)
        return y


def shuffle(tokens: Tensor, *, resample: bool) -> Tensor:
    """Return tokens (B, N, W) in a random order for each picture; with `resample` false, in one fixed order.

    The fixed order is used in evaluation: no training used it, and predictions stay deterministic.
    """
    batch, count, _ = tokens.shape
    if resample:
        order = torch.rand(batch, count, device=tokens.device).argsort(dim=1)
    else:
        fixed = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        order = fixed.to(tokens.device).expand(batch, -1)
    return tokens.gather(1, order[..., None].expand_as(tokens))


class ResidualMLP(nn.Module):
    """A residual MLP, which ends every block."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, hidden), nn.GELU(), nn.Linear(hidden, WIDTH))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens (B, Q, W) after the MLP and its residual connection."""
        y: Tensor = tokens + self.layers(tokens)
        return y


class PooledBlock(nn.Module):
    """A block without attention: the control for all attention that is learned here."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.mlp = ResidualMLP(hidden)

    def forward(self, patches: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Return the patches (B, N, W) unchanged, and the queries (B, Q, W) after the MLP."""
        return patches, self.mlp(queries)


class CrossBlock(nn.Module):
    """Cross-attention from queries to patches, after self-attention among several queries, as in BLIP's decoder."""

    def __init__(self, weighting: Weighting, hidden: int, self_attention: bool) -> None:
        super().__init__()
        self.has_self_attention = self_attention
        if self_attention:
            self.self_norm, self.self_attention = nn.LayerNorm(WIDTH), Attention()
        self.norm = nn.Identity() if weighting == "uniform" else nn.LayerNorm(WIDTH)  # uniform weights need no q
        self.attention = Attention(weighting)
        self.mlp = ResidualMLP(hidden)

    def forward(self, patches: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Return the patches (B, N, W) unchanged, and the queries (B, Q, W) after the block."""
        if self.has_self_attention:
            x = self.self_norm(queries)
            queries = queries + self.self_attention(x, x)
        queries = queries + self.attention(self.norm(queries), patches)
        return patches, self.mlp(queries)


class JointBlock(nn.Module):
    """Self-attention over patches and text, as in GIT: patches see patches, text sees patches and earlier text.

    The last block computes only what the head reads: the last text token, or with `every` all of them.
    """

    def __init__(self, hidden: int, last: bool, every: bool = False) -> None:
        super().__init__()
        self.last, self.every = last, every
        self.norm, self.attention = nn.LayerNorm(WIDTH), Attention()
        self.mlp = ResidualMLP(hidden)

    def forward(self, patches: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return patches (B, N, W) and text (B, T, W); from the last block what the head reads of the text."""
        count = patches.shape[1]
        x = self.norm(torch.cat((patches, text), dim=1))  # (B, N + T, W)
        if self.last and not self.every:
            return patches, self.mlp(text[:, -1:] + self.attention(x[:, -1:], x))
        x_patches, x_text = x[:, :count], x[:, count:]
        text = text + self.attention(x_text, x, causal_mask(text.shape[1], count, x))
        if self.last:
            return patches, self.mlp(text)
        patches = patches + self.attention(x_patches, x_patches)
        return self.mlp(patches), self.mlp(text)


class Mechanism(nn.Module):
    """A head with one mechanism, on the tokens of a vision tower that all mechanisms share.

    `attention-pool`: a learned query attends to the patches (Lee et al. 2019, arXiv 1810.00825, section 3.2; Yu et al.
    2022, arXiv 2205.01917). `cross-attention`: one token per category name attends to the others and to the patches,
    and gives the category's score: BLIP's image-text matching (Li et al. 2022, arXiv 2201.12086), for all categories
    at once (Liu et al. 2021, arXiv 2107.10834). `joint-self-attention`: the names and a learned query follow the
    tokens in one sequence (Wang et al. 2022, arXiv 2205.14100). `class-token` uses the class token, pooled by the
    tower's own attention. With one head row for all categories a category's score is read from its own name's state.
    """

    readout: Readout = "tokens"
    names: Tensor

    def __init__(self, name: str, names: Tensor, token_width: int) -> None:
        """Build the mechanism `name` of MECHANISMS; `names` (C, T) are frozen embeddings of the category names."""
        super().__init__()
        self.spec = MECHANISMS[name]
        # created first: with one seed all mechanisms start from the same head
        self.head = nn.Linear(WIDTH, len(names) if self.spec.scoring == "per category" else 1)
        self.project = nn.Linear(token_width, WIDTH)
        self.register_buffer("names", _normalise(self._given_names(names)), persistent=False)
        if self.has_names:
            self.project_names = nn.Linear(names.shape[1], WIDTH)
        if self.has_query:
            self.query = nn.Parameter(0.02 * torch.randn(1, 1, WIDTH))
        self.blocks = nn.ModuleList(self._block(last=number == DEPTH) for number in range(1, DEPTH + 1))
        self.norm = nn.LayerNorm(WIDTH)

    @property
    def has_names(self) -> bool:
        """Return whether the category names are among the tokens."""
        return self.spec.kind in ("cross-attention", "joint-self-attention")

    @property
    def has_query(self) -> bool:
        """Return whether there is a learned query."""
        if self.spec.scoring != "per category":
            return False
        return self.spec.kind in ("attention-pool", "joint-self-attention")

    def _given_names(self, names: Tensor) -> Tensor:
        """Return the vectors (C, T) that stand for the categories: their names', or those of a control."""
        if self.spec.scoring == "random names":
            # other ones for each seed of the run, without taking from the numbers that its weights start from
            return torch.randn(names.shape, generator=torch.Generator().manual_seed(torch.initial_seed()))
        return names.roll(1, dims=0) if self.spec.scoring == "exchanged names" else names

    def _block(self, last: bool) -> nn.Module:
        kind = self.spec.kind
        hidden = self._hidden_units()
        if kind == "joint-self-attention":
            return JointBlock(hidden, last, every=self.spec.scoring != "per category")
        if kind in POOLED:
            return PooledBlock(hidden)
        return CrossBlock(self.spec.weighting, hidden, self_attention=kind == "cross-attention")

    def _hidden_units(self) -> int:
        """Return the MLP width that gives a mechanism about 12 DEPTH WIDTH^2 + (T + C) WIDTH weights in all.

        The second term is the projection of names and the head. A hidden unit has 2 WIDTH weights, an attention
        4 WIDTH^2, or half as many where it has no queries and keys.
        """
        attentions = {"cross-attention": 2, "attention-pool": 1, "joint-self-attention": 1}.get(self.spec.kind, 0)
        units = 6 * WIDTH - 2 * WIDTH * attentions
        if self.spec.weighting == "uniform":
            units += WIDTH
        if self.spec.scoring != "per category":
            units += (len(self.names) - 1) // (2 * DEPTH)
        return units if self.has_names else units + self.names.shape[1] // (2 * DEPTH)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (B, C) for tokens (B, 1 + N, D), the class token first."""
        patches, queries = self._embed(_normalise(tokens))
        for block in self.blocks:
            patches, queries = block(patches, queries)
        state = self.norm(queries)  # (B, 1, W), or (B, C, W) with one token per category
        # one head row is the same for all categories, and one state the same for all rows
        logits: Tensor = (state * self.head.weight).sum(dim=-1) + self.head.bias
        return logits

    def _embed(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return image tokens (B, N, W), none of them for pooled mechanisms, and queries (B, Q, W)."""
        read = tokens[:, 1:] if self.spec.source == "patches" else tokens
        if self.spec.kind in POOLED:
            pooled = tokens[:, 0] if self.spec.kind == "class-token" else read.mean(dim=1)
            return tokens[:, :0], self.project(pooled)[:, None]
        queries = []
        if self.has_names:
            queries.append(self.project_names(self.names)[None])
        if self.has_query:
            queries.append(self.query)
        return self.project(read), torch.cat(queries, dim=1).expand(len(tokens), -1, -1)

    def log_probabilities(self, state: State) -> Tensor:
        """Return the log-softmax (B, C) of the logits."""
        return functional.log_softmax(self(state[0]), dim=-1)

    def loss(self, state: State, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy, and the detached log-probabilities (B, C)."""
        log_probabilities = self.log_probabilities(state)
        return functional.nll_loss(log_probabilities, labels), log_probabilities.detach()

    def trainable_modules(self) -> tuple[nn.Module, ...]:
        """Return the mechanism itself."""
        return (self,)


def _normalise(vectors: Tensor) -> Tensor:
    """Return vectors (..., D) with mean 0 and variance 1: the next layer has the gain and bias."""
    return functional.layer_norm(vectors, vectors.shape[-1:])
