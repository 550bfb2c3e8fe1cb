"""A vision-language model that categorises: an adapter's chain of stages and a head, and how both are saved."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import AliasChoices, BeforeValidator, Field, TypeAdapter
from torch import Tensor, nn

from vlm_core.config.families import FAMILIES
from vlm_core.errors import UserError
from vlm_core.evaluation.category_matching import closest_category
from vlm_core.evaluation.hierarchy import Hierarchy
from vlm_core.evaluation.level_scores import LevelPredictions
from vlm_core.evaluation.product_texts import TextReading
from vlm_core.files.atomic import write_atomically
from vlm_core.models.arithmetic import Precision, mixed_precision
from vlm_core.models.blip import Blip
from vlm_core.models.checkpoint_forms import read_json
from vlm_core.models.clip import Clip
from vlm_core.models.fusion import Fusion, make_fusion_head, reading_stages, text_width
from vlm_core.models.git import Git
from vlm_core.models.heads import Head, LinearHead, PromptHead, SentenceHead, generate_texts
from vlm_core.models.level_heads import LevelScores, LevelsHead
from vlm_core.models.lora import ADAPTER, add_adapters
from vlm_core.models.positions import input_size
from vlm_core.models.preprocessing import write_preprocessing
from vlm_core.models.pretrained import mismatched_weights, quiet_transformers, read_tokenizer
from vlm_core.models.siglip import Siglip
from vlm_core.models.stages import Adapter, Captioner, Matcher, Readout, State, encode_texts, run_stages
from vlm_core.models.vision import Vision, vision_class
from vlm_core.pixels.arrays import Float32Array, Labels, Pictures
from vlm_core.pixels.views import DEFAULT, Preprocessing, plain_view

# One line for each of `vlm_core.config.families`.
ADAPTERS: dict[str, type[Clip] | type[Blip] | type[Git] | type[Siglip] | type[Vision]] = {
    "clip": Clip,
    "blip": Blip,
    "git": Git,
    "siglip": Siglip,
    "vision": Vision,
}


def model_class(family: str, config: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return transformers' class for a family's `config.json`, and what its `from_pretrained` takes.

    Raise UserError for a vision tower of a kind that is not read.
    """
    import transformers

    if family == Vision.family:
        return vision_class(config)
    return getattr(transformers, ADAPTERS[family].hf_class), {}


HeadKind = Literal["linear", "prompts", "sentences"]
SCHEMA = 1
IMAGES_PER_BATCH = 32


class Categoriser(Protocol):
    """The interface of every trained or loaded model, including the baseline."""

    @property
    def categories(self) -> tuple[str, ...]:
        """Return the categories (C,)."""

    @property
    def canvas(self) -> tuple[int, int]:
        """Return the height and width that images are fitted to."""

    @property
    def writes_text(self) -> bool:
        """Return whether `describe` generates texts."""

    @property
    def reads(self) -> TextReading | None:
        """Return which texts of products the model reads; None for pictures alone."""

    def log_probabilities(
        self, pictures: Pictures, texts: Sequence[str] | None = None, has_picture: NDArray[np.bool_] | None = None
    ) -> Float32Array:
        """Return log-probabilities (B, C) of images (B, H, W, 3) of the canvas's size.

        A model that reads `texts` (B,) takes an empty one, or None, as missing, and a picture where `has_picture` (B,)
        is false.
        """

    def describe(self, pictures: Pictures) -> tuple[list[str], Labels] | None:
        """Return generated texts and the category (B,) each maps to, -1 for none; None for a model without text."""

    @property
    def hierarchy(self) -> Hierarchy | None:
        """Return the label levels that the model predicts, of which `categories` is the last; None for one label."""

    def levels(self, pictures: Pictures) -> tuple[Float32Array, LevelPredictions] | None:
        """Return the log-probabilities, and the categories of all levels; None for a model of one label."""

    def save(self, folder: Path) -> None:
        """Write safetensors and JSON that `load_categoriser` reads."""


@dataclass(frozen=True)
class Description:
    """The content of `categoriser.json`: what rebuilds a saved categoriser around its weights.

    Files of earlier versions call the head `answer`, and a linear one `head`.
    """

    family: str
    categories: tuple[str, ...]
    canvas: tuple[int, int]  # (height, width)
    head: Annotated[
        HeadKind,
        BeforeValidator(lambda kind: "linear" if kind == "head" else kind),
        Field(validation_alias=AliasChoices("head", "answer")),
    ]
    readout: Readout
    terms: Mapping[str, str]  # words of the training products that point to one category
    preprocessing: Preprocessing = DEFAULT  # not in files of earlier versions
    reads: TextReading | None = None  # None for pictures alone, as in files of earlier versions
    fusion: Fusion = "own"  # of picture and text, if it reads both
    hierarchy: Hierarchy | None = None  # of several label levels; None for one, as in files of earlier versions


_DESCRIPTION = TypeAdapter(Description)


class VisionLanguageCategoriser:
    """A family's model with a head. `stages[:cut]` are frozen; the later stages and the head are trainable."""

    def __init__(self, hf: Any, tokenizer: Any, description: Description) -> None:
        self.description = description
        self.categories = description.categories
        self.canvas = description.canvas
        self.adapter: Adapter = ADAPTERS[description.family](hf, tokenizer)
        self.head: Head = self.make_head()
        reads = self.reads
        self.stages = (
            reading_stages(self.adapter, reads.inputs, description.fusion)
            if reads
            else self.adapter.stages(self.head.readout)
        )
        self.hf = hf
        self.image_size = input_size(hf)
        self.precision: Precision = "fp32"  # of training and of frozen layers; predictions are in fp32

    def make_head(self) -> Head:
        """Return a new head of the kind that the description names; a linear one has random weights."""
        kind, adapter = self.description.head, self.adapter
        if kind == "sentences":
            assert isinstance(adapter, Captioner)
            return SentenceHead(adapter, self.categories)
        if kind == "prompts":
            assert isinstance(adapter, Matcher)
            return PromptHead(adapter, self.categories)
        reads, fusion, count = self.reads, self.description.fusion, len(self.categories)
        if reads and reads.inputs == "text":
            return LinearHead(text_width(adapter), count, "fused")
        if reads and fusion != "own":
            return make_fusion_head(adapter, fusion, count)
        readout = self.description.readout
        if self.hierarchy:
            return LevelsHead(adapter.width(readout), self.hierarchy, readout)
        return LinearHead(adapter.width(readout), count, readout)

    @property
    def reads(self) -> TextReading | None:
        """Return which texts of products the model reads; None for pictures alone."""
        return self.description.reads

    def has_input_mask(self, cut: int) -> bool:
        """Return whether the state at the cut still says which inputs are given, because nothing fused them yet."""
        return self.reads_both and not any(stage.part == "fusion" for stage in self.stages[:cut])

    @property
    def reads_both(self) -> bool:
        """Return whether the model reads pictures and texts."""
        return self.reads is not None and self.reads.inputs == "image+text"

    @property
    def hierarchy(self) -> Hierarchy | None:
        """Return the label levels that the model predicts; None for one label."""
        return self.description.hierarchy

    @property
    def writes_text(self) -> bool:
        """Return whether the head scores sentences; such a model also generates text freely."""
        return isinstance(self.head, SentenceHead)

    @property
    def device(self) -> torch.device:
        """Return the device that holds the weights."""
        return self.hf.device  # type: ignore[no-any-return]

    def to(self, device: str) -> VisionLanguageCategoriser:
        """Move all weights to a device and return the categoriser itself."""
        self.hf.to(device)
        for module in self.head.trainable_modules():
            module.to(device)
        return self

    def with_head(
        self, categories: tuple[str, ...], weights: Float32Array, bias: Float32Array
    ) -> VisionLanguageCategoriser:
        """Return a categoriser of the same chain with a linear head of weights (C, D) and bias (C,)."""
        description = replace(self.description, categories=categories)
        other = VisionLanguageCategoriser(self.hf, self.adapter.tokenizer, description)
        assert isinstance(other.head, LinearHead)
        other.head.load_state_dict({"linear.weight": torch.from_numpy(weights), "linear.bias": torch.from_numpy(bias)})
        return other.to(str(self.device))

    def cut(self, mode: str, blocks: int) -> int:
        """Return the index of the first trainable stage, which is also the length of the frozen prefix.

        - `full`: 0, everything is trainable;
        - `fusion`: the first fusion stage;
        - `probe`: behind the last stage, only the head is trainable;
        - otherwise: the first of the last `blocks` blocks; 0 if `blocks` is 0 or there are no more blocks than that.
          Of two towers side by side, those are the last blocks of both.
        """
        if mode == "probe":
            return len(self.stages)
        if mode == "fusion":
            return next((index for index, stage in enumerate(self.stages) if stage.part == "fusion"), len(self.stages))
        block_stages = [index for index, stage in enumerate(self.stages) if ".block." in stage.name]
        of_pictures = [index for index in block_stages if self.stages[index].part != "text"]
        block_stages = of_pictures or block_stages  # the text's blocks stand beside them
        return 0 if mode == "full" or not 0 < blocks < len(block_stages) else block_stages[-blocks]

    def fingerprint(self, cut: int) -> str:
        """Return 32 hex digits of all that determines the output of `stages[:cut]`: weights, configuration, prompt."""
        config = self.hf.config.to_dict()
        config.pop("_name_or_path", None)
        names = [stage.name for stage in self.stages[:cut]]
        prompt = self.adapter.prompt_ids() if isinstance(self.adapter, Captioner) else []
        content = [names, config, prompt, *([self.reads.inputs, self._tokenizer()] if self.reads else [])]
        digest = hashlib.blake2b(json.dumps(content, sort_keys=True, default=str).encode(), digest_size=16)
        for stage in self.stages[:cut]:
            for module in stage.modules:
                for name, tensor in module.state_dict().items():
                    digest.update(name.encode())
                    digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _tokenizer(self) -> str:
        """Return the tokenizer's whole content as text."""
        return str(self.adapter.tokenizer.backend_tokenizer.to_str())

    def trainable_modules(self, cut: int) -> list[nn.Module]:
        """Return the modules of all stages from `cut` on, and those of the head."""
        chain = [module for stage in self.stages[cut:] for module in stage.modules]
        return chain + list(self.head.trainable_modules())

    def freeze_before(self, cut: int) -> dict[str, nn.Parameter]:
        """Freeze all but the stages from `cut` on and the head; return the trainable parameters by name.

        A weight that a frozen stage shares stays frozen. Once adapters were added, they and the head alone are
        trainable.
        """
        self.hf.requires_grad_(False)
        for module in self.trainable_modules(cut):
            module.requires_grad_(True)
        for stage in self.stages[:cut]:
            for module in stage.modules:
                module.requires_grad_(False)
        named = dict(self.hf.named_parameters())
        if any(ADAPTER in name for name in named):
            for name, weight in named.items():
                weight.requires_grad_(ADAPTER in name)
        if isinstance(self.head, nn.Module):
            named |= {f"head.{name}": weight for name, weight in self.head.named_parameters()}
        return {name: weight for name, weight in named.items() if weight.requires_grad}

    def add_adapters(self, cut: int, rank: int) -> Callable[[], None]:
        """Add low-rank adapters to the attention of what is trainable; return a function that merges them."""
        return add_adapters(self.hf, self.trainable_modules(cut), rank)

    def training_arithmetic(self) -> torch.autocast:
        """Return the context in which training steps and frozen layers run in the model's `precision`."""
        return mixed_precision(self.device, self.precision)

    def set_training(self, training: bool, cut: int) -> None:
        """Set training mode (dropout) in what is trainable, and evaluation mode in what is frozen.

        Batch norms keep the statistics of pretraining, which small batches would spoil: an image's features do not
        depend on the images beside it.
        """
        self.hf.eval()
        for module in self.trainable_modules(cut):
            module.train(training)
        for layer in self.hf.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.eval()

    def run(self, state: State, start: int = 0, end: int | None = None) -> State:
        """Return the state after `stages[start:end]`, on the model's device."""
        return run_stages(self.stages[start:end], tuple(part.to(self.device) for part in state))

    def pixels(self, pictures: Pictures) -> Tensor:
        """Return the input (B, 3, S, S) for images (B, H, W, 3)."""
        return plain_view(pictures, self.image_size, self.description.preprocessing)

    def text_ids(self, texts: Sequence[str]) -> Tensor:
        """Return the token ids (B, T) of texts, padded with -1."""
        assert self.reads
        return encode_texts(self.adapter, texts, self.reads.tokens)

    def input_state(
        self, pixels: Tensor, texts: Sequence[str] | None = None, has_picture: NDArray[np.bool_] | None = None
    ) -> State:
        """Return the input of the chain for pixels (B, 3, S, S), and the texts (B,) if the model reads any."""
        if not self.reads:
            return (pixels,)
        texts = [""] * len(pixels) if texts is None else texts
        ids = self.text_ids(texts)
        if self.reads.inputs == "text":
            return (ids,)
        pictures = torch.ones(len(pixels)) if has_picture is None else torch.from_numpy(has_picture).float()
        given = torch.stack([pictures, torch.tensor([float(bool(text)) for text in texts])], dim=1)
        return pixels, ids, given

    def _batches(self, pictures: Pictures) -> Iterator[tuple[slice, Tensor]]:
        for start in range(0, len(pictures), IMAGES_PER_BATCH):
            rows = slice(start, start + IMAGES_PER_BATCH)
            yield rows, self.pixels(pictures[rows])

    @torch.inference_mode()
    def log_probabilities(
        self, pictures: Pictures, texts: Sequence[str] | None = None, has_picture: NDArray[np.bool_] | None = None
    ) -> Float32Array:
        """Return log-probabilities (B, C) of images (B, H, W, 3), and of texts (B,) if the model reads any.

        An empty text is missing, and so is a picture where `has_picture` (B,) is false.
        """
        self.hf.eval()
        batches = []
        for rows, pixels in self._batches(pictures):
            some = None if texts is None else texts[rows]
            state = self.input_state(pixels, some, None if has_picture is None else has_picture[rows])
            batches.append(self.head.log_probabilities(self.run(state)))
        return torch.cat(batches).cpu().numpy() if batches else np.empty((0, len(self.categories)), np.float32)

    @torch.inference_mode()
    def levels(self, pictures: Pictures) -> tuple[Float32Array, LevelPredictions] | None:
        """Return log-probabilities (B, C) of the last level, and the categories of all levels; None for one label."""
        head, hierarchy = self.head, self.hierarchy
        if not isinstance(head, LevelsHead) or hierarchy is None:
            return None
        self.hf.eval()
        return joined_scores([head.scores(self.run((pixels,))) for _, pixels in self._batches(pictures)], hierarchy)

    @torch.inference_mode()
    def describe(self, pictures: Pictures) -> tuple[list[str], Labels] | None:
        """Return greedy texts and the closest category (B,) of each, -1 for none; None without a sentence head."""
        if not (self.writes_text and isinstance(self.adapter, Captioner)):
            return None
        self.hf.eval()
        texts = [
            text for _, pixels in self._batches(pictures) for text in generate_texts(self.adapter, *self.run((pixels,)))
        ]
        closest = [closest_category(text, self.categories, self.description.terms) for text in texts]
        return texts, np.array(closest, dtype=np.int64)

    def save(self, folder: Path) -> None:
        """Write a Hugging Face model with all that belongs to it to `model/`, the head, then `categoriser.json`."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        with quiet_transformers():
            self.hf.save_pretrained(folder / "model")
        if self.adapter.tokenizer is not None:
            self.adapter.tokenizer.save_pretrained(folder / "model")
        write_preprocessing(self.description.preprocessing, self.image_size, folder / "model")
        if isinstance(self.head, nn.Module):
            save_file(
                {name: weight.contiguous() for name, weight in self.head.state_dict().items()},
                folder / "head.safetensors",
            )
        content = {"schema": SCHEMA, **_DESCRIPTION.dump_python(self.description, mode="json")}
        write_atomically(folder / "categoriser.json", lambda file: file.write(json.dumps(content, indent=2).encode()))

    @classmethod
    def load(cls, folder: Path) -> VisionLanguageCategoriser:
        """Return the categoriser that `save` wrote, in evaluation mode. Raise UserError where its files do not fit."""
        from safetensors.torch import load_file

        description = _DESCRIPTION.validate_json((folder / "categoriser.json").read_bytes())
        hf_class, settings = model_class(description.family, read_json(folder / "model" / "config.json"))
        with quiet_transformers():
            hf, report = hf_class.from_pretrained(
                folder / "model",
                dtype=torch.float32,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # reported
                output_loading_info=True,
                **settings,
            )
        tokenizer = read_tokenizer(folder / "model") if FAMILIES[description.family].has_language else None
        wrong = [*report["missing_keys"], *mismatched_weights(report)]
        categoriser = cls(hf, tokenizer, description)
        if isinstance(categoriser.head, nn.Module):
            saved = load_file(folder / "head.safetensors")
            shapes = {name: weight.shape for name, weight in categoriser.head.state_dict().items()}
            wrong += [name for name in {*shapes, *saved} if name not in saved or saved[name].shape != shapes.get(name)]
            if not wrong:
                categoriser.head.load_state_dict(saved)
        if wrong:
            raise UserError(
                f"{folder} does not fit its configuration: {len(wrong)} weights are missing or of another shape, the "
                f"first is {min(wrong)}. Log or export the model again."
            )
        hf.eval()
        return categoriser


def joined_scores(batches: Sequence[LevelScores], hierarchy: Hierarchy) -> tuple[Float32Array, LevelPredictions]:
    """Return the log-probabilities of batches, and their predictions at all levels."""
    names = ("log_probabilities", "own", "chosen", "confidence")
    joined = {name: torch.cat([getattr(batch, name) for batch in batches]).cpu().numpy() for name in names}
    scores = joined.pop("log_probabilities")
    return scores, LevelPredictions(hierarchy, **joined)
