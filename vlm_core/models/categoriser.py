"""A vision-language model that categorises: an adapter's chain, an answer that reads its end, and how both are kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vlm_core.evaluation.texts import closest_category
from vlm_core.models.blip import Blip
from vlm_core.models.checkpoints import quiet_transformers
from vlm_core.models.clip import Clip
from vlm_core.models.git import Git
from vlm_core.models.heads import Head, LinearHead, PromptHead, SentenceHead, write_texts
from vlm_core.models.lora import ADAPTER, add_adapters
from vlm_core.models.stages import Captioner, Readout, State, run_stages
from vlm_core.pixels.views import plain_view

ADAPTERS: dict[str, type[Clip] | type[Blip] | type[Git]] = {"clip": Clip, "blip": Blip, "git": Git}
AnswerKind = Literal["head", "prompts", "sentences"]
SCHEMA = 1


class Categoriser(Protocol):
    """What every model is once it is trained or loaded, the baseline too."""

    @property
    def categories(self) -> tuple[str, ...]:
        """The categories (C,)."""

    @property
    def canvas(self) -> tuple[int, int]:
        """Height and width that pictures are fitted to."""

    @property
    def writes_text(self) -> bool:
        """Whether `describe` gives texts."""

    def log_probabilities(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Rows (B, C) for pictures (B, H, W, 3) of the canvas's size."""

    def describe(self, pictures: NDArray[np.uint8]) -> tuple[list[str], NDArray[np.int64]] | None:
        """Generated texts and the category (B,) each maps to, -1 for none; None where the model writes nothing."""

    def save(self, folder: Path) -> None:
        """Write safetensors and JSON that `load_categoriser` reads."""


@dataclass(frozen=True)
class Description:
    """What a saved categoriser needs to be made again, beside its weights."""

    family: str
    categories: tuple[str, ...]
    canvas: tuple[int, int]  # (height, width)
    answer: AnswerKind
    readout: Readout
    terms: Mapping[str, str]  # words of the training products that point to one category


class VisionLanguageCategoriser:
    """CLIP, BLIP or GIT with an answer. `stages[:cut]` are frozen, the rest and the answer learn."""

    def __init__(self, hf: Any, tokenizer: Any, description: Description) -> None:
        self.description = description
        self.categories = description.categories
        self.canvas = description.canvas
        self.adapter = ADAPTERS[description.family](hf, tokenizer)
        self.answer: Head = self._make_answer()
        self.stages = self.adapter.stages(self.answer.readout)
        self.hf = hf
        self.image_size = int(hf.config.vision_config.image_size)

    def _make_answer(self) -> Head:
        kind, adapter = self.description.answer, self.adapter
        if kind == "sentences":
            assert isinstance(adapter, Captioner)
            return SentenceHead(adapter, self.categories)
        if kind == "prompts":
            assert isinstance(adapter, Clip)
            return PromptHead(adapter, self.categories)
        readout = self.description.readout
        return LinearHead(adapter.width(readout), len(self.categories), readout)

    @property
    def writes_text(self) -> bool:
        """Whether the answer is a sentence's likelihood, of a model that also writes freely."""
        return isinstance(self.answer, SentenceHead)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.hf.device  # type: ignore[no-any-return]

    def to(self, device: str) -> VisionLanguageCategoriser:
        """Itself, with all weights moved to a device."""
        self.hf.to(device)
        for module in self.answer.modules_that_learn():
            module.to(device)
        return self

    def cut(self, mode: str, blocks: int) -> int:
        """The first stage that learns: every one in mode `full`, those of the fusion, the last `blocks` blocks and what
        follows them (all for 0, or where there are no more), or none but the answer (`probe`).
        """
        if mode == "probe":
            return len(self.stages)
        if mode == "fusion":
            return next((n for n, stage in enumerate(self.stages) if stage.part == "fusion"), len(self.stages))
        found = [n for n, stage in enumerate(self.stages) if ".block." in stage.name]
        return 0 if mode == "full" or not 0 < blocks < len(found) else found[-blocks]

    def fingerprint(self, cut: int) -> str:
        """32 hex of all that decides what `stages[:cut]` compute: weights, the model's configuration, the prompt."""
        config = self.hf.config.to_dict()
        config.pop("_name_or_path", None)
        names = [stage.name for stage in self.stages[:cut]]
        prompt = self.adapter.prompt_ids() if isinstance(self.adapter, Captioner) else []
        digest = hashlib.blake2b(
            json.dumps([names, config, prompt], sort_keys=True, default=str).encode(), digest_size=16
        )
        for stage in self.stages[:cut]:
            for module in stage.modules:
                for name, tensor in module.state_dict().items():
                    digest.update(name.encode())
                    digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def learning_modules(self, cut: int) -> list[nn.Module]:
        """The modules of all stages from `cut` on, and the answer's."""
        chain = [module for stage in self.stages[cut:] for module in stage.modules]
        return chain + list(self.answer.modules_that_learn())

    def learn_from(self, cut: int) -> dict[str, nn.Parameter]:
        """Freeze everything but the stages from `cut` on and the answer: the parameters left to learn, by name.

        A weight that a frozen stage owns as well stays frozen. Where adapters were added, they and a head learn alone.
        """
        self.hf.requires_grad_(False)
        for module in self.learning_modules(cut):
            module.requires_grad_(True)
        for stage in self.stages[:cut]:
            for module in stage.modules:
                module.requires_grad_(False)
        named = dict(self.hf.named_parameters())
        if any(ADAPTER in name for name in named):
            for name, weight in named.items():
                weight.requires_grad_(ADAPTER in name)
        if isinstance(self.answer, nn.Module):
            named |= {f"head.{name}": weight for name, weight in self.answer.named_parameters()}
        return {name: weight for name, weight in named.items() if weight.requires_grad}

    def add_adapters(self, cut: int, rank: int) -> Callable[[], None]:
        """Low-rank adapters in the attention of what learns; what comes back merges them into the weights."""
        return add_adapters(self.hf, self.learning_modules(cut), rank)

    def set_training(self, training: bool, cut: int) -> None:
        """Dropout on or off in what learns; always off in what is frozen."""
        self.hf.eval()
        for module in self.learning_modules(cut):
            module.train(training)

    def run(self, state: State, start: int = 0, end: int | None = None) -> State:
        """The state after `stages[start:end]`, on the model's device."""
        return run_stages(self.stages[start:end], tuple(part.to(self.device) for part in state))

    def _pixels(self, pictures: NDArray[np.uint8]) -> Iterator[Tensor]:
        for start in range(0, len(pictures), 32):
            yield plain_view(pictures[start : start + 32], self.image_size)

    @torch.inference_mode()
    def log_probabilities(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Rows (B, C) for pictures (B, H, W, 3)."""
        self.hf.eval()
        rows = [self.answer.log_probabilities(self.run((pixels,))) for pixels in self._pixels(pictures)]
        return torch.cat(rows).cpu().numpy() if rows else np.empty((0, len(self.categories)), np.float32)

    @torch.inference_mode()
    def describe(self, pictures: NDArray[np.uint8]) -> tuple[list[str], NDArray[np.int64]] | None:
        """Greedy texts and the category (B,) each comes closest to, -1 for none; None for CLIP and heads."""
        if not (self.writes_text and isinstance(self.adapter, Captioner)):
            return None
        self.hf.eval()
        texts = [text for pixels in self._pixels(pictures) for text in write_texts(self.adapter, *self.run((pixels,)))]
        closest = [closest_category(text, self.categories, self.description.terms) for text in texts]
        return texts, np.array(closest, dtype=np.int64)

    def save(self, folder: Path) -> None:
        """Write `categoriser.json`, the Hugging Face model and tokenizer in `model/`, and `head.safetensors`."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        with quiet_transformers():
            self.hf.save_pretrained(folder / "model")
        self.adapter.tokenizer.save_pretrained(folder / "model")
        if isinstance(self.answer, LinearHead):
            save_file(
                {name: weight.contiguous() for name, weight in self.answer.state_dict().items()},
                folder / "head.safetensors",
            )
        content = {"schema": SCHEMA, **asdict(self.description)}
        (folder / "categoriser.json").write_text(json.dumps(content, indent=2))

    @classmethod
    def load(cls, folder: Path) -> VisionLanguageCategoriser:
        """The categoriser that `save` wrote."""
        import transformers
        from safetensors.torch import load_file

        content = json.loads((folder / "categoriser.json").read_text())
        content.pop("schema")
        description = Description(
            **{**content, "categories": tuple(content["categories"]), "canvas": tuple(content["canvas"])}
        )
        hf_class = getattr(transformers, ADAPTERS[description.family].hf_class)
        with quiet_transformers():
            hf = hf_class.from_pretrained(folder / "model", dtype=torch.float32, local_files_only=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model", local_files_only=True)
        categoriser = cls(hf, tokenizer, description)
        if isinstance(categoriser.answer, LinearHead):
            categoriser.answer.load_state_dict(load_file(folder / "head.safetensors"))
        hf.eval()
        return categoriser
