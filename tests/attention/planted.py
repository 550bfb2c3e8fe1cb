"""A planted cue: the label is the colour of one square at a random place among grey ones, and models that learnt it."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from tests.stores import make_once
from vlm_core.models import tiny
from vlm_core.models.categoriser import Description, VisionLanguageCategoriser
from vlm_core.pixels.views import plain_view

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (40, 40, 230)}
CATEGORIES = (*COLOURS, "grey")  # the last has no cue: without it one colour could be known by the others' absence
SIDE, PATCH = 4, 8  # patches a side, pixels a patch: 32 pixels


def draw_pictures(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """Pictures (n, 32, 32, 3), which colour (n,) and at which patch (n,) row by row: grey squares but for one."""
    generator = np.random.default_rng(seed)
    greys = np.repeat(generator.integers(20, 236, (count, SIDE, SIDE, 1)), 3, axis=3)
    pictures = greys.repeat(PATCH, axis=1).repeat(PATCH, axis=2).astype(np.uint8)
    labels, places = generator.integers(0, len(CATEGORIES), count), generator.integers(0, SIDE * SIDE, count)
    return draw_cues(pictures, labels, places), labels, places


def draw_cues(pictures: NDArray[np.uint8], labels: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Copies of pictures (n, 32, 32, 3) with each label's square at its place (n,); grey ones get none."""
    drawn, colours = pictures.copy(), list(COLOURS.values())
    for picture, label, (row, column) in zip(drawn, labels, zip(*np.divmod(places, SIDE), strict=True), strict=True):
        if label < len(colours):
            picture[row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH] = colours[label]
    return drawn


def mass_on_cue(maps: NDArray[np.float32], places: NDArray[np.int64]) -> NDArray[np.float64]:
    """The share (n,) of each map (n, 32, 32) that lies on the coloured square."""
    blocks = maps.reshape(len(maps), SIDE, PATCH, SIDE, PATCH).sum(axis=(2, 4)).reshape(len(maps), -1)
    return blocks[np.arange(len(maps)), places].astype(np.float64)


@cache
def learnt(family: str, answer: str = "linear") -> VisionLanguageCategoriser:
    """A small model of the family that names the colour: two blocks of width 64, trained for seconds."""
    # Weights of 0.02 are for wide models: with them, these need twice the steps.
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    small |= {"initializer_range": 0.1}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**small, "image_size": SIDE * PATCH, "patch_size": PATCH}.items():
            patch.setitem(tiny.VISION, name, value)
        for name, value in small.items():
            patch.setitem(tiny.TEXT, name, value)
        torch.manual_seed(0)
        hf, tokenizer = tiny.build_tiny(family, list(CATEGORIES) * 3)
    readout = "tokens" if answer == "sentences" else "fused"
    description = Description(family, CATEGORIES, (32, 32), answer, readout, {})  # type: ignore[arg-type]
    model = VisionLanguageCategoriser(hf, tokenizer, description)

    def train(folder: Path) -> None:
        _train(model)
        save_file({name: weight.detach() for name, weight in model.freeze_before(0).items()}, folder / "learnt")

    weights = load_file(make_once(f"planted-{family}-{answer}", train) / "learnt")
    with torch.no_grad():
        for name, weight in model.freeze_before(0).items():
            weight.copy_(weights[name])
    model.hf.eval()
    return model


def _train(model: VisionLanguageCategoriser) -> None:
    steps, batch = 120, 32
    pictures, labels, _ = draw_pictures(steps * batch, seed=1)
    weights = list(model.freeze_before(0).values())
    optimiser = torch.optim.AdamW(weights, lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, total_steps=steps, pct_start=0.2)
    model.set_training(True, 0)
    for start in range(0, len(pictures), batch):
        rows = slice(start, start + batch)
        loss, _ = model.head.loss(model.run((plain_view(pictures[rows], 32),)), torch.from_numpy(labels[rows]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
