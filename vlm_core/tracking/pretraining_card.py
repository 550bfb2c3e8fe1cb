"""The model card of pretrained weights: README.md beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vlm_core.config import PretrainingConfig
from vlm_core.files.atomic import write_atomically
from vlm_core.tracking.card import markdown_code, markdown_table
from vlm_core.tracking.reader import RunReader

if TYPE_CHECKING:
    from vlm_core.catalogue.exposure import Exposure

# Settings that name a place or this machine, and those that the command below spells out.
_NOT_SHOWN: Final = frozenset(
    {"model", "preset", "output", "resume", "run_name", "experiment", "data", "checkpoint", "weights", "tower"}
)
_METRICS: Final = {
    "probe_macro_f1": "macro-F1 of a logistic regression on frozen fused features, half of the rows fitted",
    "zero_shot_accuracy": "accuracy of the prompts over the article names, without training",
    "caption_all": "share of captions in which all of the below are correct",
    "caption_bleu": "BLEU-2 of the captions",
}


def write_pretraining_card(
    folder: Path, run_id: str, config: PretrainingConfig, exposure: Exposure, metrics: Mapping[str, float]
) -> None:
    """Write the card: how the weights were made, what they saw, what they can do untrained, and what they cannot."""
    family = config.family
    text = "\n\n".join(
        [
            f"---\nlicense: other\ntags: [product-categorisation, {family}]\n---",
            f"# {family.upper()}, pretrained on a catalogue",
            "A model in Hugging Face's format (fp16), pretrained on a shop's images, titles and attributes: a start "
            "for fine-tuning where no published checkpoint is available.",
            "## How it was made\n\n" + _recipe(config) + "\n\n" + _curve(run_id),
            *([_MEAN_POOLED] if config.pooling == "mean" else []),
            "## What it saw\n\n" + _data(exposure, config),
            "## What it can do before fine-tuning\n\n" + _scores(metrics),
            "## Limits\n\n" + _LIMITS,
            "## Licence\n\n" + _LICENCE,
        ]
    )
    write_atomically(folder / "README.md", lambda file: file.write((text + "\n").encode()))


def _recipe(config: PretrainingConfig) -> str:
    start = PretrainingConfig.build({"model": config.model}).to_params()
    arguments = {
        name: text for name, text in config.to_params().items() if name not in _NOT_SHOWN and text != start[name]
    }
    command = " ".join(["python -m experiments.pretrain", f"--model {config.model}", "--data <catalogue>"])
    command += "".join(f" --{name} {text}" for name, text in arguments.items())
    command += " --tower <folder of the CLIP model that lent its vision tower>" if config.tower else ""
    command += " --checkpoint <folder or hub name>" if config.checkpoint else ""
    return f"```\n{command}\n```"


def _curve(run_id: str) -> str:
    reader = RunReader()
    with_values = [name for name in sorted(reader.metrics(run_id)) if name.startswith(("train_", "validation_"))]
    names = [*with_values, "seconds"]
    columns = [reader.history(run_id, name)["value"].tolist() for name in names]
    rows = [
        (epoch, *(f"{value:.3f}" for value in values)) for epoch, values in enumerate(zip(*columns, strict=True), 1)
    ]
    return markdown_table(("epoch", *names), rows)


def _data(exposure: Exposure, config: PretrainingConfig) -> str:
    return (
        f"{exposure.products:,} products of {markdown_code(exposure.catalogue)} (fingerprint "
        f"`{exposure.catalogue_fingerprint}`), all with `{exposure.rule}`; fingerprint of their ids "
        f"`{exposure.products_fingerprint}`. Sentences came from the titles and the columns "
        f"{config.caption_columns} and {config.attributes}. Products outside of that rule "
        "were never shown: validation and test of every split here come from these alone, without those that have a "
        "near-duplicate inside. `exposure.json` says the same for programs."
    )


def _scores(metrics: Mapping[str, float]) -> str:
    rows = [
        (
            name,
            _METRICS.get(name, f"share of captions with correct {name.removeprefix('caption_')}"),
            f"{value:.4f}",
        )
        for name, value in metrics.items()
    ]
    table = markdown_table(("metric", "what it is", "value"), rows)
    return (
        f"On products of the same catalogue that it was not trained on, with the weights as they are stored.\n\n{table}"
    )


_MEAN_POOLED: Final = (
    "## How it pools\n\nThe embedding of an image is the projection of the norm of the mean over its patches, not of "
    "the class token, which is a register: other tokens attend to it, and nothing else reads it. `pooling` in the "
    "`vision_config` of `config.json` says so, and this platform honours it. Hugging Face's own `CLIPModel` does not: "
    "it would read the class token instead, whose embedding was never trained."
)
_LIMITS: Final = "\n".join(
    [
        "- It knows this catalogue's images and words; others are untested.",
        "- Its scores say nothing about larger models of its family.",
        "- Genders, colours and usages are the catalogue's own labels, with its errors and stereotypes.",
        "- One seed.",
    ]
)
_LICENCE: Final = (
    "The weights contain no image. They were trained on a catalogue whose images and texts belong to its owners: ask "
    "them before you use the weights for anything but research and evaluation."
)
