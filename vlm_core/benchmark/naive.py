"""What the platform is measured against: published architectures, fine-tuned the way a first script does it.

Pictures are decoded and augmented one by one with Pillow, the model's own classes compute every token, and all
weights learn with PyTorch's AdamW as it comes.
"""

from __future__ import annotations

import io
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from vlm_core.models.categoriser import ADAPTERS
from vlm_core.models.tiny import build_tiny
from vlm_core.pixels.views import MEAN, STD

Read = Callable[[Tensor], Tensor]  # pixels (B, 3, S, S) to the fused state (B, D)


def full_size(family: str, image_size: int) -> tuple[Any, Any]:
    """A family's published base architecture with random weights, and a small tokenizer."""
    import transformers

    _, tokenizer = build_tiny(family, ["men navy blue shirts"])
    config_class = {"clip": "CLIPConfig", "blip": "BlipConfig", "git": "GitConfig"}[family]
    config = getattr(transformers, config_class)()
    config.vision_config.image_size = image_size
    config.vision_config.initializer_range = 0.02
    torch.manual_seed(0)
    hf = getattr(transformers, ADAPTERS[family].hf_class)(config)
    return hf.float().eval(), tokenizer


def fused_state(family: str, hf: Any, prompt: Sequence[int]) -> tuple[Read, int]:
    """What the family's own classes compute of pixels up to the state that a head reads, and that state's width."""

    def clip(pixels: Tensor) -> Tensor:
        return hf.get_image_features(pixels).pooler_output  # type: ignore[no-any-return]

    def blip(pixels: Tensor) -> Tensor:
        images = hf.vision_model(pixels).last_hidden_state
        ids = torch.tensor([list(prompt)]).expand(len(pixels), -1)
        text = hf.text_decoder.bert(ids, encoder_hidden_states=images, is_decoder=True)
        return text.last_hidden_state[:, -1]  # type: ignore[no-any-return]

    def git(pixels: Tensor) -> Tensor:
        ids = torch.tensor([list(prompt)]).expand(len(pixels), -1)
        return hf.git(input_ids=ids, pixel_values=pixels).last_hidden_state[:, -1]  # type: ignore[no-any-return]

    if family == "clip":
        return clip, int(hf.config.projection_dim)
    if family == "blip":
        return blip, int(hf.config.text_config.hidden_size)
    return git, int(hf.config.hidden_size)


def jpegs(pictures: NDArray[np.uint8]) -> list[bytes]:
    """Pictures (n, H, W, 3) as files, as a catalogue keeps them."""
    from PIL import Image

    files = []
    for picture in pictures:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


def decode(file: bytes) -> Any:
    """A file's picture."""
    from PIL import Image

    return Image.open(io.BytesIO(file)).convert("RGB")


def augment(image_size: int) -> Callable[[Any], Tensor]:
    """The study's augmentations, picture by picture."""
    from torchvision import transforms

    return transforms.Compose(  # type: ignore[no-any-return]
        [
            transforms.RandomResizedCrop(image_size, scale=(0.7, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(0.2, 0.2, 0.2, 0.05),
            transforms.RandomRotation(10),
            transforms.RandomPerspective(0.2),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )


def naive_steps(
    read: Read, width: int, hf: Any, files: Sequence[bytes], labels: Tensor, image_size: int, batch: int
) -> Iterator[tuple[float, float]]:
    """Seconds of each step of fine-tuning everything, and of these the seconds in decoding and augmentation."""
    head = nn.Linear(width, int(labels.max()) + 1)
    hf.train()
    optimiser = torch.optim.AdamW([*hf.parameters(), *head.parameters()], lr=2e-5)
    view, count = augment(image_size), 0
    while True:
        started = time.perf_counter()
        rows = [(count + n) % len(files) for n in range(batch)]
        pixels = torch.stack([view(decode(files[row])) for row in rows])
        prepared = time.perf_counter()
        loss = cross_entropy(head(read(pixels)), labels[rows])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        count += batch
        yield time.perf_counter() - started, prepared - started


def trainer_steps(
    read: Read, width: int, hf: Any, files: Sequence[bytes], labels: Tensor, image_size: int, batch: int, steps: int
) -> list[float]:
    """Seconds of each step of Hugging Face's Trainer on the same task."""
    import tempfile

    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hf, self.head = hf, nn.Linear(width, int(labels.max()) + 1)

        def forward(self, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.head(read(pixels))
            return {"loss": cross_entropy(logits, labels), "logits": logits}

    view, seconds = augment(image_size), list[float]()

    class Pictures(torch.utils.data.Dataset[dict[str, Tensor]]):
        def __len__(self) -> int:
            return steps * batch

        def __getitem__(self, row: int) -> dict[str, Tensor]:
            row %= len(files)
            return {"pixels": view(decode(files[row])), "labels": labels[row]}

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, per_device_train_batch_size=batch, num_train_epochs=1, report_to=[], disable_tqdm=True,
            save_strategy="no", logging_strategy="no", use_cpu=True, learning_rate=2e-5,
        )  # fmt: skip
        Trainer(Classifier(), arguments, train_dataset=Pictures(), callbacks=[Clock()]).train()
    return [later - earlier for earlier, later in itertools.pairwise(seconds)]
