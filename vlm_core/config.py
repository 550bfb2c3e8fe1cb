"""Every setting once: its default, help, bounds, choices and search range.

`Config` renders to the command line (`add_flags`, `from_flags`), to MLflow params (`to_params`, `from_params`)
and to the MLproject text (`vlm_core.mlproject`). Functions of the library never receive a `Config`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vlm_core.errors import UserError
from vlm_core.presets import PRESETS

Model = Literal["clip", "clip-large", "blip", "blip-large", "git", "git-large", "baseline"]


def _search(low: float, high: float, *, log: bool = False) -> dict[str, Any]:
    return {"search": {"low": low, "high": high, "log": log}}


def _choose(*choices: str) -> dict[str, Any]:
    return {"search": {"choices": list(choices)}}


class Config(BaseModel):
    """One run's settings, checked when made and never changed afterwards.

    `model_fields_set` names those that were given: the others may make way for what suits the weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    preset: Literal["cpu", "study", "demo", "ablation", "pretrain"] = Field(
        "cpu", description="named set of settings to start from"
    )
    model: Model = Field("blip", description="model family and size; `baseline` is HOG + colour + logistic regression")
    checkpoint: str = Field("", description="hub name or local Hugging Face folder to use instead of the model's own")
    weights: Literal["auto", "pretrained", "tiny", "tiny-random"] = Field(
        "auto",
        description="auto: the checkpoint if it can be had, else the tiny pretrained weights that come with this; "
        "pretrained: never fall back; tiny: never ask the network; tiny-random: tiny from nothing",
    )
    mode: Literal["auto", "zero-shot", "probe", "last-blocks", "fusion", "lora", "lp-ft", "full"] = Field(
        "full",
        description="what learns: nothing; the head on frozen features; the last `blocks` blocks; all after the vision "
        "tower; low-rank adapters in the last blocks; first the head, then the last blocks from there; every weight. "
        "auto: lp-ft for pretrained weights, full for models from nothing",
        json_schema_extra=_choose("probe", "last-blocks", "fusion", "lora", "lp-ft", "full"),
    )
    blocks: int = Field(
        2, ge=0, le=100, description="blocks at the chain's end that learn (0: all)", json_schema_extra=_search(1, 4)
    )
    lora_rank: int = Field(
        8, ge=1, le=256, description="rank of mode=lora's adapters", json_schema_extra=_search(2, 32, log=True)
    )
    views: int = Field(
        3, ge=0, le=100, description="augmented views a picture that frozen layers see (0: the plain one alone)"
    )
    cache_gib: float = Field(10.0, ge=0, le=1e6, description="most GiB on disk for what frozen layers computed")
    cache_precision: Literal["fp16", "fp32"] = Field("fp16", description="numbers that it is kept in")
    prefix: Literal["torch", "int8"] = Field(
        "torch", description="what runs frozen layers: PyTorch, or onnxruntime in int8, whose error is logged"
    )
    objective: Literal["classify", "generate"] = Field(
        "classify", description="learn a classification head, or to write the category's sentence (blip, git)"
    )
    readout: Literal["fused", "vision"] = Field(
        "fused", description="state the head reads: after the family's fusion, or its vision tower alone"
    )

    data: str = Field(
        "auto", description="auto, sample, kaggle, hf, or the path of a folder, a zip or a CSV file of products"
    )
    label: str = Field("masterCategory", description="column that holds the category")
    categories: str = Field("", description="comma-separated categories to keep (empty: all that can be learnt)")
    id_column: str = Field("id", description="column that names the product")
    picture_column: str = Field("", description="column with the picture's path (empty: images/<id>.jpg)")
    title_column: str = Field("productDisplayName", description="column with the product's title, if there is one")
    attributes: str = Field("gender,usage,season", description="comma-separated columns to report subgroups by")
    min_products: int = Field(2, ge=2, description="remove categories with fewer products than this")
    protocol: Literal["holdout", "study"] = Field(
        "holdout", description="holdout: split, then balance training; study: the original, which leaks"
    )
    per_category: int = Field(750, ge=0, description="originals to draw a category under holdout (0: all)")
    train_per_category: int = Field(480, ge=0, description="training rows a category after balancing (0: unbalanced)")
    seed: int = Field(0, ge=0, lt=2**31, description="varies split, initialisation, order and augmentation")

    image_size: int = Field(0, ge=0, le=1024, description="pixels a side of the model's input (0: the model's own)")
    augmentation: Literal["study", "mirror"] = Field(
        "study", description="study: crop, mirror, colour, rotation, perspective; mirror: that alone, framing stays"
    )
    epochs: int = Field(10, ge=1, le=1000, description="passes over the training rows")
    batch_size: int = Field(8, ge=1, le=4096, description="products a step", json_schema_extra=_search(8, 64, log=True))
    learning_rate: float = Field(
        2e-5, gt=0, le=1, description="peak learning rate of AdamW", json_schema_extra=_search(1e-6, 3e-3, log=True)
    )
    weight_decay: float = Field(
        0.01, ge=0, le=1, description="AdamW's decay, on matrices only", json_schema_extra=_search(1e-4, 0.3, log=True)
    )
    warmup: float = Field(
        0.1, ge=0, lt=1, description="share of the steps that warm up", json_schema_extra=_search(0.0, 0.3)
    )
    clip_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    patience: int = Field(3, ge=1, description="epochs without a better validation macro-F1 before stopping")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda where there is one")
    threads: int = Field(8, ge=1, description="PyTorch threads, capped at the machine's cores")
    resamples: int = Field(2000, ge=100, le=100_000, description="bootstrap resamples behind each interval")

    caption_columns: str = Field(
        "gender,baseColour,articleType",
        description="comma-separated columns that caption a picture, in reading order; the last one names the thing",
    )
    patches_kept: float = Field(1.0, gt=0, le=1, description="pretraining: share of a picture's patches that is shown")
    tower: str = Field("", description="pretraining: folder of a pretrained model whose vision tower is the start")
    output: str = Field("", description="pretraining: folder for the weights (empty: pretrained/<run id>)")

    trials: int = Field(30, ge=1, le=100_000, description="tuning: finished trials to reach")
    search: str = Field(
        "learning_rate,weight_decay,batch_size,blocks", description="tuning: comma-separated settings to search"
    )
    objectives: Literal["score", "score,seconds"] = Field(
        "score", description="tuning: validation macro-F1, or that and the seconds a picture, with no pruning"
    )
    study: str = Field(
        "", description="tuning, study: its name, to go on with it (empty: model and mode; the study's preset)"
    )
    storage: str = Field("", description="tuning: a database's address for several machines (empty: optuna.log here)")
    workers: int = Field(
        1, ge=1, le=64, description="tuning, study: processes on this machine, which share its threads"
    )

    families: str = Field("clip,blip,git", description="study: comma-separated models to compare")
    modes: str = Field("zero-shot,probe,full", description="study: comma-separated modes; the last is compared most")
    answers: str = Field("classify,generate", description="study: comma-separated objectives (generate: blip, git)")
    protocols: str = Field("holdout,study", description="study: comma-separated protocols; study shows the leak")
    seeds: int = Field(5, ge=1, le=100, description="study: seeds from `seed` on, each with a split of its own")
    parts: str = Field(
        "families,ablation,robustness,attention,labels,cost",
        description="study: comma-separated parts to carry out (ablation: of the mechanism, on one frozen encoder)",
    )

    experiment: str = Field("product-categorisation", min_length=1, description="MLflow experiment")
    run_name: str = Field("", description="MLflow run name (empty: model, mode and seed)")
    resume: str = Field("", description="id of an unfinished MLflow run to go on with")

    @model_validator(mode="after")
    def _combinations(self) -> Config:
        generative = self.model.startswith(("blip", "git"))
        if self.objective == "generate" and not generative:
            raise ValueError(f"objective=generate needs a generative model (blip or git), not {self.model}")
        if self.objective == "generate" and self.mode in ("probe", "lp-ft"):
            raise ValueError(f"mode={self.mode} trains a classification head: use objective=classify, or mode=full")
        if self.checkpoint and self.weights.startswith("tiny"):
            raise ValueError(f"checkpoint= has no use with weights={self.weights}: add weights=auto")
        if self.model == "baseline" and self.mode == "zero-shot":
            raise ValueError("the baseline has no zero-shot mode: use clip, blip or git")
        return self

    @property
    def family(self) -> str:
        """The model's family: clip, blip, git or baseline."""
        return self.model.split("-")[0]

    def to_params(self, names: Sequence[str] = ()) -> dict[str, str]:
        """The settings of those names (empty: all) as text, for MLflow."""
        return {name: str(getattr(self, name)) for name in names or type(self).model_fields}


PRETRAINING_ALONE = ("patches_kept", "tower", "output")
TUNING_ALONE = ("trials", "search", "objectives", "study", "storage", "workers")
STUDY_ALONE = ("families", "modes", "answers", "protocols", "seeds", "parts", "study", "workers")
FINE_TUNING = tuple(
    name for name in Config.model_fields if name not in (*PRETRAINING_ALONE, *TUNING_ALONE, *STUDY_ALONE)
)
TUNING = (*(name for name in FINE_TUNING if name not in ("resume", "run_name")), *TUNING_ALONE)
# A study's cells have their own model, mode, objective and protocol.
STUDY = (
    *(name for name in FINE_TUNING if name not in ("model", "mode", "objective", "protocol", "resume", "run_name")),
    *STUDY_ALONE,
)
PRETRAINING = (
    *("preset", "model", "checkpoint", "weights", "data", "label", "id_column", "picture_column", "title_column"),
    *("attributes", "seed", "image_size", "augmentation", "epochs", "batch_size", "learning_rate", "weight_decay"),
    *("warmup", "clip_norm", "device", "threads", "caption_columns", *PRETRAINING_ALONE),
    *("experiment", "run_name", "resume"),
)


def build_config(given: Mapping[str, Any]) -> Config:
    """The configuration of what the user gave, over its preset, over the defaults.

    Raises UserError that names the first setting in error and what it accepts.
    """
    preset = given.get("preset", Config.model_fields["preset"].default)
    if preset not in PRESETS:
        raise UserError(f"preset={preset} is not known: choose one of {', '.join(PRESETS)}.")
    preferred = dict(PRESETS[preset])
    if given.get("objective") == "generate":
        preferred.pop("mode", None)  # it may train a head, and who asks for sentences wants none
    if given.get("checkpoint"):
        preferred.pop("weights", None)  # it may be tiny, and who names a checkpoint wants that
    try:
        return Config.model_construct(set(given), **dict(Config(**{**preferred, **given})))
    except ValidationError as error:
        raise UserError(_explain(error)) from None


def from_params(params: Mapping[str, str]) -> Config:
    """The configuration that was logged as MLflow params; params of other names are passed over."""
    return build_config({name: text for name, text in params.items() if name in Config.model_fields})


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    if not first["loc"]:
        return first["msg"].removeprefix("Value error, ") + "."
    name = str(first["loc"][0])
    if name not in Config.model_fields:
        return f"there is no setting called {name}: see --help for the list."
    return f"{name}={first['input']} is not accepted: {first['msg'][0].lower()}{first['msg'][1:]}."


def searchable() -> dict[str, dict[str, Any]]:
    """The range of each setting that can be tuned: `low`, `high` and `log`, or `choices`."""
    extras = {name: field.json_schema_extra for name, field in Config.model_fields.items()}
    return {name: dict(extra["search"]) for name, extra in extras.items() if isinstance(extra, dict)}  # type: ignore[arg-type]


def add_flags(parser: argparse.ArgumentParser, names: Sequence[str] = ()) -> None:
    """Add one `--name` flag a setting (those named, or all of fine-tuning); a flag not given leaves no value."""
    for name in names or FINE_TUNING:
        field = Config.model_fields[name]
        choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else None
        shown = "{" + ",".join(choices) + "}" if choices else name.upper()
        text = f"{field.description} (default: {field.default!r})".replace("%", "%%")
        parser.add_argument(f"--{name}", default=argparse.SUPPRESS, metavar=shown, help=text)


def from_flags(
    arguments: Sequence[str] | None,
    parser: argparse.ArgumentParser,
    names: Sequence[str] = FINE_TUNING,
    preset: str = "",
) -> Config:
    """The configuration that a command line of these settings gives. Raises UserError as `build_config` does."""
    add_flags(parser, names)
    preset = preset or Config.model_fields["preset"].default
    return build_config({"preset": preset, **vars(parser.parse_args(arguments))})
