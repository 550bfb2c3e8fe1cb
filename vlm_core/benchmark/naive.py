"""The naive baseline of the benchmark: published architectures, fine-tuned as in a first script.

Images are decoded and augmented one by one with Pillow, Hugging Face's classes compute every token, and PyTorch's
default AdamW trains all weights.
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

FusedFeatures = Callable[[Tensor], Tensor]  # pixels (B, 3, S, S) to fused features (B, D)


def full_size(family: str, image_size: int, patch_size: int = 0) -> tuple[Any, Any]:
    """Return a family's published base architecture with random weights, and a small tokenizer.

    `patch_size` in pixels is the architecture's own where it is 0.
    """
    import transformers

    _, tokenizer = build_tiny(family, ["men navy blue shirts"])
    config_class = {"clip": "CLIPConfig", "blip": "BlipConfig", "git": "GitConfig"}[family]
    config = getattr(transformers, config_class)()
    config.vision_config.image_size = image_size
    config.vision_config.patch_size = patch_size or config.vision_config.patch_size
    config.vision_config.initializer_range = 0.02
    torch.manual_seed(0)
    hf = getattr(transformers, ADAPTERS[family].hf_class)(config)
    return hf.float().eval(), tokenizer


def fused_features(family: str, hf: Any, prompt: Sequence[int]) -> tuple[FusedFeatures, int]:
    """Return the function from pixels to fused features, by Hugging Face's own classes, and the features' width."""

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
    """Return images (n, H, W, 3) as JPEG files."""
    from PIL import Image

    files = []
    for picture in pictures:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


def decode(file: bytes) -> Any:
    """Return a file's image."""
    from PIL import Image

    return Image.open(io.BytesIO(file)).convert("RGB")


def augment(image_size: int) -> Callable[[Any], Tensor]:
    """Return the `standard` augmentation of one Pillow image, by torchvision."""
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
    compute: FusedFeatures, width: int, hf: Any, files: Sequence[bytes], labels: Tensor, image_size: int, batch: int
) -> Iterator[tuple[float, float]]:
    """Yield the seconds of each step of full fine-tuning, and of these the seconds of decoding and augmentation."""
    head = nn.Linear(width, int(labels.max()) + 1)
    hf.train()
    optimiser = torch.optim.AdamW([*hf.parameters(), *head.parameters()], lr=2e-5)
    view, count = augment(image_size), 0
    while True:
        started = time.perf_counter()
        rows = [(count + n) % len(files) for n in range(batch)]
        pixels = torch.stack([view(decode(files[row])) for row in rows])
        prepared = time.perf_counter()
        loss = cross_entropy(head(compute(pixels)), labels[rows])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        count += batch
        yield time.perf_counter() - started, prepared - started


def trainer_steps(
    compute: FusedFeatures,
    width: int,
    hf: Any,
    files: Sequence[bytes],
    labels: Tensor,
    image_size: int,
    batch: int,
    steps: int,
) -> list[float]:
    """Return the seconds of each step of Hugging Face's Trainer on the same task, without the first."""
    import tempfile

    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hf, self.head = hf, nn.Linear(width, int(labels.max()) + 1)

        def forward(self, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.head(compute(pixels))
            return {"loss": cross_entropy(logits, labels), "logits": logits}

    view, seconds = augment(image_size), list[float]()

    class JpegDataset(torch.utils.data.Dataset[dict[str, Tensor]]):
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
        Trainer(Classifier(), arguments, train_dataset=JpegDataset(), callbacks=[Clock()]).train()
    return [later - earlier for earlier, later in itertools.pairwise(seconds)]
