"""A vision tower without language, from transformers: the features are its own pooled ones.

Nothing is fused, so that both readouts are the same. Beside the other families it shows what language pretraining adds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from torch import Tensor, nn

from vlm_core.errors import UserError
from vlm_core.models.blocks import ALL_TOKENS, FIRST_TOKEN, scaled_block, vision_stages
from vlm_core.models.stages import Readout, Stage, State
from vlm_core.pixels.views import Preprocessing

_NO_LANGUAGE: Final = "a vision tower reads no text"
Block = Callable[[Any, Tensor, slice], Tensor]


@dataclass(frozen=True)
class Transformer:
    """Where a vision transformer keeps its parts; its first token is the class token."""

    blocks: str
    norm: str
    settings: Mapping[str, Any] = field(default_factory=dict)  # of `from_pretrained`


@dataclass(frozen=True)
class Convolutional:
    """Where a convolutional network keeps its parts, which run one after another, and what pools their output."""

    blocks: str
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()  # modules between the blocks and the pooling
    pool: tuple[str, ...] = ()  # "": the mean over places


# By `model_type` of the configuration. ViT is read without its pooler, which checkpoints for features lack.
TOWERS: Final[Mapping[str, Transformer | Convolutional]] = {
    "vit": Transformer("layers", "layernorm", {"add_pooling_layer": False}),
    "dinov2": Transformer("encoder.layer", "layernorm"),
    "dinov2_with_registers": Transformer("encoder.layer", "layernorm"),
    "dinov3_vit": Transformer("model.layer", "norm"),
    "convnext": Convolutional("encoder.stages", ("embeddings",), pool=("", "layernorm")),
    "convnextv2": Convolutional("encoder.stages", ("embeddings",), pool=("", "layernorm")),
    "dinov3_convnext": Convolutional("model.stages", pool=("", "layer_norm")),
    "efficientnet": Convolutional(
        "encoder.blocks",
        ("embeddings",),
        ("encoder.top_conv", "encoder.top_bn", "encoder.top_activation"),
        ("pooler",),
    ),
    "resnet": Convolutional("encoder.stages", ("embedder",), pool=("pooler",)),
}


class Vision:
    """Adapter of `transformers.AutoModel` for the towers in TOWERS. There is no tokenizer."""

    family = "vision"
    hf_class = "AutoModel"
    pools_patches = False  # but the class token
    preprocessing = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic")  # of ImageNet

    def __init__(self, hf: Any, tokenizer: Any = None) -> None:
        self.hf = hf
        self.tokenizer = tokenizer
        self._tower = TOWERS[hf.config.model_type]

    @property
    def has_attention(self) -> bool:
        """Return whether the tower is a transformer."""
        return isinstance(self._tower, Transformer)

    @property
    def prefix_tokens(self) -> int:
        """Return the number of tokens before the patches: the class token and registers."""
        return 1 + int(getattr(self.hf.config, "num_register_tokens", 0))

    def width(self, readout: Readout) -> int:
        """Return the width of the tower's last features."""
        config = self.hf.config
        if config.model_type == "efficientnet":
            return int(config.hidden_dim)
        return int(config.hidden_size if isinstance(self._tower, Transformer) else config.hidden_sizes[-1])

    def stages(self, readout: Readout) -> tuple[Stage, ...]:
        """Return the chain from pixels to pooled features (B, D); for `tokens` to a transformer's (B, 1 + N, D)."""
        if isinstance(self._tower, Transformer):
            return self._transformer_stages(self._tower, readout)
        return self._convolutional_stages(self._tower)

    def text_ends(self) -> tuple[list[int], list[int]]:
        """Raise TypeError: there is no language."""
        raise TypeError(_NO_LANGUAGE)

    def text_stages(self, pooled: bool) -> tuple[Stage, ...]:
        """Raise TypeError: there is no language."""
        raise TypeError(_NO_LANGUAGE)

    def own_stages(self) -> tuple[Stage, ...]:
        """Raise TypeError: there is no language."""
        raise TypeError(_NO_LANGUAGE)

    def _transformer_stages(self, tower: Transformer, readout: Readout) -> tuple[Stage, ...]:
        embeddings, norm, prefix = self.hf.embeddings, self._part(tower.norm), self.prefix_tokens
        outputs = ALL_TOKENS if readout == "tokens" else FIRST_TOKEN

        def read(state: State) -> State:
            tokens = norm(state[0])
            # Registers say nothing of a place, and no mechanism after this expects them.
            return (tokens[:, [0, *range(prefix, tokens.shape[1])]] if readout == "tokens" else tokens[:, 0],)

        return (
            Stage("vision.embed", "vision", (embeddings,), lambda state: (embeddings(state[0]),)),
            *vision_stages(self._part(tower.blocks), outputs, self._block()),
            Stage("vision.pool", "vision", (norm,), read),
        )

    def _block(self) -> Block:
        """Return the function of a block; DINOv3 rotates its patches' queries and keys by their places."""
        if self.hf.config.model_type != "dinov3_vit":
            return scaled_block
        places = self.hf.rope_embeddings
        size = self.hf.config.image_size

        def rotated_block(block: Any, x: Tensor, outputs: slice) -> Tensor:
            return scaled_block(block, x, outputs, places(x.new_empty(1, 3, size, size)))

        return rotated_block

    def _convolutional_stages(self, tower: Convolutional) -> tuple[Stage, ...]:
        before = [self._part(name) for name in tower.before]
        after = [self._part(name) for name in tower.after]
        pool = [self._part(name) if name else _MeanOverPlaces() for name in tower.pool]
        chain = [_sequence("vision.embed", before)] if before else []
        chain += [
            _sequence(f"vision.block.{number}", [block])
            for number, block in enumerate(self._part(tower.blocks), start=1)
        ]
        if after:
            chain.append(_sequence("vision.top", after))
        return (*chain, _sequence("vision.pool", [*pool, nn.Flatten()]))

    def _part(self, name: str) -> Any:
        part = self.hf
        for attribute in name.split("."):
            part = getattr(part, attribute)
        return part


def vision_class(config: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return transformers' class for a tower's `config.json`, and what its `from_pretrained` takes.

    Raise UserError for a tower that is not one of TOWERS.
    """
    from transformers import CONFIG_MAPPING, MODEL_MAPPING

    kind = str(config.get("model_type") or "unknown")
    if kind not in TOWERS:
        raise UserError(
            f"The checkpoint is of the kind {kind}, and model=vision reads {', '.join(TOWERS)}: choose another "
            "checkpoint= or model=."
        )
    tower = TOWERS[kind]
    return MODEL_MAPPING[CONFIG_MAPPING[kind]], dict(tower.settings if isinstance(tower, Transformer) else {})


class _MeanOverPlaces(nn.Module):
    """The mean (B, D) of a feature map (B, D, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((-2, -1))


def _sequence(name: str, modules: list[nn.Module]) -> Stage:
    return Stage(name, "vision", tuple(modules), partial(_run, modules))


def _run(modules: list[nn.Module], state: State) -> State:
    x = state[0]
    for module in modules:
        x = module(x)
    return (x,)
