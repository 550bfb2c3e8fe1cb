"""The model families by name: what settings, pages and reports need to know of them, without PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal


@dataclass(frozen=True)
class PublishedModel:
    """A published model: its hub name, and an input size that suits images of 60x80 pixels."""

    checkpoint: str
    image_size: int  # pixels per side; BLIP's own 384 costs 3.9 times as much and adds no detail


@dataclass(frozen=True)
class Family:
    """A family of models that share an architecture; `vlm_core.models` has an adapter of the same name."""

    name: str  # of the setting `model`, without a size
    label: str
    colour: str  # of Okabe and Ito's palette, told apart by colour-blind readers too: https://jfly.uni-koeln.de/color/
    zero_shot: Literal["prompts", "sentences", ""]  # the head that needs no training; "" for none
    models: Mapping[str, PublishedModel] = field(default_factory=dict)  # by the values of the setting `model`
    fuses: bool = True  # whether something comes after the vision tower, for mode=fusion
    has_tiny_weights: bool = True  # whether pretrained ones come with the package

    @property
    def has_language(self) -> bool:
        """Return whether the family reads text."""
        return bool(self.zero_shot)

    @property
    def generates(self) -> bool:
        """Return whether the family generates text."""
        return self.zero_shot == "sentences"


FAMILIES: Final[Mapping[str, Family]] = {
    family.name: family
    for family in (
        Family(
            "clip",
            "CLIP",
            "#0072B2",
            "prompts",
            {
                "clip": PublishedModel("openai/clip-vit-base-patch32", 224),
                "clip-large": PublishedModel("openai/clip-vit-large-patch14", 224),
            },
        ),
        Family(
            "blip",
            "BLIP",
            "#D55E00",
            "sentences",
            {
                "blip": PublishedModel("Salesforce/blip-image-captioning-base", 224),
                "blip-large": PublishedModel("Salesforce/blip-image-captioning-large", 224),
            },
        ),
        Family(
            "git",
            "GIT",
            "#009E73",
            "sentences",
            {"git": PublishedModel("microsoft/git-base", 224), "git-large": PublishedModel("microsoft/git-large", 224)},
        ),
        Family(
            "siglip",
            "SigLIP",
            "#CC79A7",
            "prompts",
            {
                "siglip": PublishedModel("google/siglip-base-patch16-224", 224),
                "siglip-2": PublishedModel("google/siglip2-base-patch16-224", 224),
            },
            has_tiny_weights=False,
        ),
        Family(
            "vision",
            "Vision only",
            "#E69F00",
            "",
            {"vision": PublishedModel("facebook/dinov2-small", 224)},
            fuses=False,
            has_tiny_weights=False,
        ),
    )
}
PUBLISHED_MODELS: Final[Mapping[str, PublishedModel]] = {
    name: published for family in FAMILIES.values() for name, published in family.models.items()
}


if TYPE_CHECKING:
    Model = str
else:
    Model = Literal[(*PUBLISHED_MODELS, "baseline")]  # the choices of the setting `model`

Pooling = Literal["class-token", "mean"]  # of CLIP's image tokens: what its embedding of a picture is made from


def family_problem(name: str, settings: Mapping[str, object]) -> str:
    """Return why a family, or the baseline, cannot do what the settings ask for; "" if it can."""
    model, mode, inputs = (settings[setting] for setting in ("model", "mode", "inputs"))
    family = FAMILIES.get(name)
    if settings["objective"] == "generate" and not (family and family.generates):
        return f"objective=generate needs a generative model (blip or git), not {model}"
    if not family:
        return "the baseline has no zero-shot mode: use clip, blip, git or siglip" if mode == "zero-shot" else ""
    if mode == "zero-shot" and not family.has_language:
        return f"model={model} has no language, and so no zero-shot mode: use mode=probe"
    if inputs != "image" and not family.has_language:
        return f"model={model} has no language, and reads no text: use inputs=image"
    if mode == "fusion" and not family.fuses:
        return f"model={model} has nothing after its vision tower: use mode=probe or mode=last-blocks"
    return ""


def family_of(model: str) -> str:
    """Return the family of a model's name: "clip" for "clip-large"."""
    return model.split("-")[0]
