"""Every setting once: its default, help, bounds, choices and search range.

Settings stand in groups, and what a command takes is a class made of groups: `Config` for training, `SearchConfig`,
`StudyConfig`, `PretrainingConfig` and `AuditConfig`. Each renders to the command line (`add_flags`, `from_flags`), to
MLflow params (`to_params`, `from_params`) and to the MLproject text (`experiments.mlproject`). Functions of the library
take the group or the configuration whose settings they read.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final, Literal, Self

from pydantic import Field, model_validator

from vlm_core.config.families import Model, Pooling, family_of, family_problem
from vlm_core.config.lists import split_list
from vlm_core.config.presets import reading_problem
from vlm_core.config.settings import Settings


def _search(low: float, high: float, *, log: bool = False) -> dict[str, Any]:
    return {"search": {"low": low, "high": high, "log": log}}


def _choose(*choices: str) -> dict[str, Any]:
    return {"search": {"choices": list(choices)}}


class WeightsSettings(Settings):
    """Weights."""

    checkpoint: str = Field("", description="hub name or local Hugging Face folder to use instead of the model's own")
    weights: Literal["auto", "pretrained", "tiny", "tiny-random"] = Field(
        "auto",
        description="auto: the checkpoint if it is available, else the tiny pretrained weights that are included; "
        "pretrained: never fall back; tiny: never use the network; tiny-random: tiny, randomly initialised",
    )
    image_size: int = Field(0, ge=0, le=1024, description="side of the model's input in pixels (0: the model's own)")

    @model_validator(mode="after")
    def _checkpoint_is_used(self) -> Self:
        if self.checkpoint and self.weights.startswith("tiny"):
            raise ValueError(f"checkpoint= has no use with weights={self.weights}: add weights=auto")
        return self


class ModelSettings(WeightsSettings):
    """Model."""

    model: Model = Field("blip", description="family and size; baseline: logistic regression on HOG + colour, TF-IDF")

    @property
    def family(self) -> str:
        """The model's family, one of FAMILIES or baseline."""
        return family_of(self.model)


class CatalogueSettings(Settings):
    """Catalogue."""

    takes_several_labels: ClassVar[bool] = False

    data: str = Field(
        "auto",
        description="auto, sample, kaggle, hf, or a folder, zip or table of products: its path, or an address (s3://...)",
    )
    label: str = Field(
        "masterCategory",
        description="column with the category; several, coarse to fine and comma-separated, are learnt together, and "
        "the last one decides split, balance and ranking",
    )
    normalise_labels: bool = Field(
        False, description="true: merge categories that are one but written differently, and take nan or N/A as none"
    )
    corrections: str = Field(
        "", description="CSV of corrections (id,column,old,new), or those of a run: runs:/<run id>"
    )
    id_column: str = Field("id", description="column with the product's id")
    picture_column: str = Field("", description="column with the image's path (empty: images/<id>.jpg)")
    row_order: Literal["id", "table"] = Field(
        "id",
        description="order of products, which the split depends on; id: the same whatever the order of the table's "
        "rows; table: that of the rows, as in earlier versions",
    )
    download: bool = Field(False, description="download images at web addresses, unless they are there already")
    title_column: str = Field("productDisplayName", description="column with the product's title, if there is one")
    attributes: str = Field("gender,usage,season", description="comma-separated columns to report subgroups by")
    caption_columns: str = Field(
        "gender,baseColour,articleType",
        description="comma-separated columns that caption an image, in reading order; the last one names the article",
    )

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the label columns (L,), from coarse to fine."""
        return split_list(self.label) or (self.label,)

    @property
    def main_label(self) -> str:
        """Return the last label column: products are split and balanced by it, and models ranked."""
        return self.labels[-1]

    @model_validator(mode="after")
    def _labels_differ(self) -> Self:
        if len(set(self.labels)) < len(self.labels):
            raise ValueError(f"label={self.label} names a column twice: name each level once, from coarse to fine")
        if len(self.labels) > 1 and not self.takes_several_labels:
            raise ValueError(f"label={self.label} names several columns, and this command takes one: name that one")
        return self


class TextColumns(CatalogueSettings):
    """Texts of products."""

    text_columns: str = Field("", description="comma-separated columns that are read as text (empty: the title)")


class ReadingSettings(TextColumns):
    """Reading of texts."""

    inputs: Literal["image", "text", "image+text"] = Field("image", description="what predictions are made from")
    fusion: Literal["late", "concat", "cross-attention", "own"] = Field(
        "concat", description="how image+text are fused: docs/multimodal.md; own: as the family does"
    )
    mask_label_words: bool = Field(False, description="true: remove words that name categories from the texts")
    modality_dropout: float = Field(
        0.15, ge=0, le=0.5, description="share of products that training shows without text, and of those without image"
    )


class SamplingSettings(CatalogueSettings):
    """Products."""

    categories: str = Field("", description="comma-separated categories to use (empty: all that can be learnt)")
    min_products: int = Field(2, ge=2, description="leave out categories with fewer products than this")
    per_category: int = Field(750, ge=0, description="products sampled per category under holdout (0: all)")
    train_per_category: int = Field(
        480, ge=0, description="training rows per category after oversampling (0: each product once)"
    )
    test_ids: Literal["auto", "reserved"] = Field(
        "auto",
        description="products that may be used for validation and test under holdout; auto: all, except where "
        "pretrained weights have seen the catalogue: then only the reserved quarter; reserved: that quarter always",
    )


class SplitSettings(SamplingSettings):
    """Split."""

    protocol: Literal["holdout", "original", "given", "condition-cnn"] = Field(
        "holdout",
        description="holdout: split, then balance the training set; original: the original paper's, which leaks; "
        "given: the parts that the catalogue is divided into, such as folders train and test, or those of split=; "
        "condition-cnn: Condition-CNN's lists of Myntra products, which leak, from split=",
    )
    split: str = Field(
        "", description="CSV of id and part (train, validation or test), or a dataset_info.json, whose parts are kept"
    )
    balance: Literal["oversample", "weights", "logit-adjusted", "none"] = Field(
        "oversample",
        description="what is done for rare categories in training; oversample: each gets train_per_category rows; "
        "weights: a loss weighted by the inverse of their share; logit-adjusted: logits shifted by its logarithm while "
        "training; none: nothing",
    )

    @model_validator(mode="after")
    def _division(self) -> Self:
        if self.split and self.protocol in ("holdout", "original"):
            raise ValueError(f"protocol={self.protocol} divides the products itself: use split= with protocol=given")
        if self.protocol == "condition-cnn" and not self.split:
            raise ValueError(
                "protocol=condition-cnn needs the lists of products that Condition-CNN was trained and tested on: name "
                "a CSV file of id and part with split="
            )
        if self.protocol == "original" and self.balance != "oversample":
            raise ValueError(
                f"protocol=original oversamples before it splits, which balance={self.balance} does not: use "
                "balance=oversample, or another protocol"
            )
        return self


class PreparationSettings(SplitSettings, WeightsSettings):
    """Preparation."""

    takes_several_labels: ClassVar[bool] = True


class EvaluationSettings(CatalogueSettings):
    """Evaluation."""

    resamples: int = Field(2000, ge=100, le=100_000, description="bootstrap resamples behind each interval")


class FreezingSettings(Settings):
    """Frozen layers and the feature cache."""

    blocks: int = Field(
        2, ge=0, le=100, description="number of last blocks that are trained (0: all)", json_schema_extra=_search(1, 4)
    )
    lora_rank: int = Field(
        8, ge=1, le=256, description="rank of the adapters of mode=lora", json_schema_extra=_search(2, 32, log=True)
    )
    views: int = Field(
        3,
        ge=0,
        le=100,
        description="augmented views per image that go through the frozen layers (0: the plain one only)",
    )
    cache_gib: float = Field(10.0, ge=0, le=1e6, description="size limit of the feature cache on disk, in GiB")
    cache_precision: Literal["fp16", "fp32"] = Field("fp16", description="precision of the feature cache")
    prefix: Literal["torch", "int8"] = Field(
        "torch", description="what runs the frozen layers: PyTorch, or ONNX Runtime in int8, whose error is logged"
    )
    readout: Literal["fused", "vision"] = Field(
        "fused", description="features that the head reads: after the model's fusion, or of its vision tower alone"
    )
    resize: Literal["auto", "stretch", "crop", "pad"] = Field(
        "auto", description="how images become square; auto: for zero-shot as the checkpoint states, else stretch"
    )


class OptimisationSettings(Settings):
    """Optimisation."""

    augmentation: Literal["standard", "mirror"] = Field(
        "standard", description="standard: crop, mirror, colour, rotation, perspective; mirror: horizontal flips only"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "fp32",
        description="arithmetic of training and of frozen layers; bf16 is mixed precision, for processors with "
        "AVX512-BF16 or AMX and for GPUs; auto tries both for a second",
    )
    epochs: int = Field(10, ge=1, le=1000, description="passes over the training rows")
    batch_size: int = Field(
        8, ge=1, le=4096, description="products per step", json_schema_extra=_search(8, 64, log=True)
    )
    learning_rate: float = Field(
        2e-5, gt=0, le=1, description="peak learning rate of AdamW", json_schema_extra=_search(1e-6, 3e-3, log=True)
    )
    weight_decay: float = Field(
        0.01,
        ge=0,
        le=1,
        description="AdamW's weight decay, of weight matrices only",
        json_schema_extra=_search(1e-4, 0.3, log=True),
    )
    warmup: float = Field(
        0.1, ge=0, lt=1, description="share of the steps used for warm-up", json_schema_extra=_search(0.0, 0.3)
    )
    clip_norm: float = Field(1.0, gt=0, description="norm to which gradients are clipped")


class FineTuningSettings(OptimisationSettings, FreezingSettings, EvaluationSettings, SamplingSettings, WeightsSettings):
    """Early stopping and checkpoints."""

    patience: int = Field(3, ge=1, description="epochs without a better validation macro-F1 before training stops")
    shared_checkpoints: str = Field("", description="where to copy checkpoints for other machines: s3://bucket/folder")


class TrainingSettings(ReadingSettings, FineTuningSettings, PreparationSettings, ModelSettings):
    """Training."""

    mode: Literal["auto", "zero-shot", "probe", "last-blocks", "fusion", "lora", "lp-ft", "full"] = Field(
        "full",
        description="what is trained; zero-shot: nothing; probe: the head on frozen features; last-blocks: the last "
        "`blocks` blocks; fusion: all after the vision tower; lora: low-rank adapters in the last blocks; lp-ft: first "
        "the head, then the last blocks; full: every weight; auto: lp-ft for pretrained weights, full for random ones",
        json_schema_extra=_choose("probe", "last-blocks", "fusion", "lora", "lp-ft", "full"),
    )
    objective: Literal["classify", "generate"] = Field(
        "classify", description="classify: train a classification head; generate: write the category (blip, git)"
    )

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if problem := family_problem(self.family, dict(self)):
            raise ValueError(problem)
        if self.objective == "generate" and self.mode in ("probe", "lp-ft"):
            raise ValueError(f"mode={self.mode} trains a classification head: use objective=classify, or mode=full")
        if self.objective == "generate" and self.balance in ("weights", "logit-adjusted"):
            raise ValueError(
                f"balance={self.balance} changes the loss of a classification head, which objective=generate does not "
                "have: use balance=oversample or balance=none"
            )
        if len(self.labels) > 1 and (alone := self._learns_one_label()):
            raise ValueError(f"label={self.label} names several columns, and {alone}: name one column")
        if problem := reading_problem(dict(self)):
            raise ValueError(problem)
        return self

    def _learns_one_label(self) -> str:
        """Return why the settings have one label only, "" if they may have several."""
        if self.objective == "generate":
            return "objective=generate writes one category"
        if self.mode == "zero-shot":
            return "mode=zero-shot trains no head for each"
        if self.inputs != "image":
            return f"inputs={self.inputs} has no head for each yet"
        return "the baseline learns one" if self.model == "baseline" else ""


class RunSettings(Settings):
    """Run."""

    run_name: str = Field("", description="MLflow run name (empty: model, mode and seed)")
    resume: str = Field("", description="id of an unfinished MLflow run to resume")


class EngineSettings(Settings):
    """Machines."""

    engine: Literal["local", "ray"] = Field(
        "local", description="local: processes of this machine; ray: a Ray cluster, which takes the extra `ray`"
    )
    address: str = Field(
        "", description="Ray cluster: auto, or host:port (empty: one on this machine, for this command)"
    )

    @model_validator(mode="after")
    def _address_is_used(self) -> Self:
        if self.address and self.engine == "local":
            raise ValueError(f"address={self.address} has no use with engine=local: add engine=ray")
        return self


class WorkersSettings(EngineSettings):
    """Workers."""

    workers: int = Field(
        1, ge=1, le=1000, description="processes at a time, which share the threads; engine=ray: in the whole cluster"
    )


# What says where a command works, and not what it does.
OF_MACHINES: Final = frozenset(WorkersSettings.model_fields.keys() - Settings.model_fields.keys())


class Config(RunSettings, WorkersSettings, TrainingSettings):
    """Training run."""

    workers: int = Field(
        1, ge=1, le=1000, description="engine=ray: processes that train the model, each on its part of every batch"
    )

    @model_validator(mode="after")
    def _workers_have_work(self) -> Self:
        if self.engine == "local" and self.workers > 1:
            raise ValueError(f"workers={self.workers} train one model on a Ray cluster: add engine=ray")
        if self.engine == "ray" and (self.model == "baseline" or self.mode in ("zero-shot", "probe")):
            what = "model=baseline" if self.model == "baseline" else f"mode={self.mode}"
            raise ValueError(
                f"engine=ray shares the training of blocks, and {what} trains none: omit engine=, or choose mode=full, "
                "last-blocks, lora, lp-ft or fusion"
            )
        return self


class ExtensionConfig(RunSettings, EvaluationSettings, SamplingSettings):
    """Extension."""

    run: str = Field("", description="finished run that learns more: its id, or models:/categoriser-clip@champion")
    method: Literal["prototypes", "head", "distil", "joint", "naive"] = Field(
        "prototypes",
        description="prototypes: nearest class mean, nothing is trained; head: a head trained on the new products and "
        "exemplars of the old; distil: the same, and on the old head's probabilities; joint: on all products; naive: "
        "on the new products alone",
    )
    memory: int = Field(20, ge=0, le=10_000, description="exemplars of each category that the model keeps, as features")
    max_forgetting: float = Field(
        0.01, ge=0, le=1, description="macro-F1 that old categories may lose for the new version to become champion"
    )
    old_data: str = Field("", description="catalogue of the run, where it is not prepared on this machine")


class SearchConfig(WorkersSettings, TrainingSettings):
    """Search."""

    is_search: ClassVar[bool] = True

    trials: int = Field(30, ge=1, le=100_000, description="finished trials to reach")
    search: str = Field(
        "learning_rate,weight_decay,batch_size,blocks", description="comma-separated settings to search over"
    )
    search_objectives: Literal["score", "score,seconds"] = Field(
        "score", description="validation macro-F1, or macro-F1 and seconds per image (without pruning)"
    )
    search_name: str = Field("", description="name of the search, by which it is resumed (empty: model and mode)")
    storage: str = Field("", description="database URL, for several machines (empty: optuna.log in this folder)")


class StudyConfig(TextColumns, WorkersSettings, FineTuningSettings):
    """Study."""

    families: str = Field("clip,blip,git", description="comma-separated models to compare, siglip and vision too")
    modes: str = Field("zero-shot,probe,full", description="comma-separated modes; the last is compared in most detail")
    objectives: str = Field("classify,generate", description="comma-separated objectives (generate: only blip and git)")
    protocols: str = Field(
        "holdout,original",
        description="comma-separated protocols; original shows the leak; given, by itself, keeps the catalogue's parts",
    )
    seeds: int = Field(5, ge=1, le=100, description="number of seeds, from `seed` on, each with its own split")
    parts: str = Field(
        "families,ablation,robustness,attention,labels,cost",
        description="comma-separated parts to run (ablation: of the mechanism, on frozen towers; continual: article "
        "types learnt step by step; fusion: images with texts)",
    )
    towers: str = Field(
        "clip",
        description="comma-separated frozen towers of the ablation: clip, blip, git, random (untrained), and folders "
        "of CLIP, BLIP or GIT models",
    )
    study: str = Field("", description="name of the study, by which it is resumed (empty: the preset's name)")


class AuditConfig(SamplingSettings, WeightsSettings):
    """Audit."""

    weights: Literal["auto", "pretrained", "tiny", "tiny-random"] = Field(
        "tiny", description="what labels are audited with; tiny: the small weights that are included, without network"
    )
    audited: int = Field(20_000, ge=100, description="products whose labels are audited, at most")
    output: str = Field("audit", min_length=1, description="folder for audit.csv and audit.html")
    corrected: str = Field(
        "", description="CSV file to write the whole table to, every row that can be read, with its corrections"
    )


class PretrainingConfig(RunSettings, OptimisationSettings, CatalogueSettings, ModelSettings):
    """Pretraining."""

    preset: Literal["cpu", "original", "demo", "ablation", "pretrain"] = Field(
        "pretrain", description="named set of settings to start from"
    )
    patches_kept: float = Field(1.0, gt=0, le=1, description="share of an image's patches that the model sees")
    pooling: Pooling = Field(
        "class-token",
        description="what CLIP's embedding of an image is made of: its class token, or the mean of its patches; "
        "weights to start from keep theirs",
    )
    tower: str = Field("", description="folder of a pretrained model whose vision tower is the start")
    output: str = Field("", description="folder for the weights (empty: pretrained/<run id>)")

    @model_validator(mode="after")
    def _pooling_is_used(self) -> Self:
        if self.pooling != "class-token" and self.family != "clip":
            raise ValueError(
                f"pooling={self.pooling} is CLIP's, and model={self.model} pools in its own way: omit pooling="
            )
        return self


def searchable() -> dict[str, dict[str, Any]]:
    """Return the range of each setting that can be tuned: `low`, `high` and `log`, or `choices`."""
    extras = {name: field.json_schema_extra for name, field in Config.model_fields.items()}
    return {name: dict(extra["search"]) for name, extra in extras.items() if isinstance(extra, dict)}  # type: ignore[arg-type]
