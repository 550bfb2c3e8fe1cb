"""The benchmark's Markdown tables, from the results of `measure` and its kin."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from vlm_core.tracking.card import markdown_table
from vlm_core.tracking.tags import machine_tags

Result = Mapping[str, Any]
FAMILIES = ("clip", "blip", "git")
EPOCHS, TRAINING_IMAGES, VALIDATION_IMAGES = 10, 2400, 600  # of the original paper's protocol
VIEWS = 3


def training_table(results: Sequence[Result]) -> str:
    """Return seconds per image of a training step by kind, and the speed-up over naive, per family and size."""
    rows = []
    for result in results:
        naive = find_result(results, "naive", result["family"], result["image_size"])
        prefix = result.get("prefix")
        rows.append(
            (
                result["family"],
                result["image_size"],
                _kind(result),
                format_quartiles(result["step"]),
                f"{naive['step']['median'] / result['step']['median']:,.1f}" if naive else "",
                f"{prefix['seconds_per_image']:.3f}" if prefix else "",
                f"{prefix['kib_per_image']:,.0f}" if prefix else "",
                f"{result['peak_mib']:,.0f}",
            )
        )
    columns = ("family", "pixels", "kind", "training step, s per image", "speed-up over naive")
    return markdown_table((*columns, "frozen layers, s per view", "KiB per view", "peak MiB"), rows)


def _kind(result: Result) -> str:
    """Return the kind, with the error of its features if the frozen layers ran in int8."""
    error = (result.get("prefix") or {}).get("prefix_error")
    return f"{result['kind']} (features {error:.1%} off)" if error else str(result["kind"])


def in_turn_table(results: Iterable[Result]) -> str:
    """Return the times of alternating naive and own steps of full fine-tuning, and their speed-up."""
    rows = [
        (
            result["family"],
            result["image_size"],
            format_quartiles(result["naive"]),
            format_quartiles(result["ours"]),
            "{median:.2f} ({lower:.2f} to {upper:.2f})".format(**result["speedup"]),
        )
        for result in results
    ]
    return markdown_table(("family", "pixels", "naive, s per image", "ours, s per image", "speed-up"), rows)


def inference_table(results: Iterable[Result]) -> str:
    """Return milliseconds per image of prediction at batch size 1 and 32, by format."""
    rows = [
        (
            result["family"],
            result["image_size"],
            each["format"],
            f"{each['megabytes']:,.0f}",
            *(f"{1000 * seconds:.0f}" for seconds in each["seconds_per_image"]),
            f"{each['max_difference']:.2g}",
        )
        for result in results
        for each in result["formats"]
    ]
    columns = ("family", "pixels", "format", "MB", "batch size 1, ms per image", "batch size 32, ms per image")
    return markdown_table((*columns, "largest difference in log-probability"), rows)


def precision_table(results: Iterable[Result]) -> str:
    """Return ms per image of a forward and backward pass in fp32 and in bf16, and their ratio."""
    rows = []
    for result in results:
        fp32, bf16 = (result["seconds_per_image"][name] for name in ("fp32", "bf16"))
        rows.append(
            (result["family"], result["image_size"], f"{1000 * fp32:.1f}", f"{1000 * bf16:.1f}", f"{fp32 / bf16:.2f}")
        )
    return markdown_table(("family", "pixels", "fp32, ms per image", "bf16, ms per image", "speed-up"), rows)


def busy_table(results: Iterable[Result]) -> str:
    """Return ms per image of a forward and backward pass beside competitors, and their ratio to an ideal share.

    The ideal is the time alone times (1 + competitors / cores): as much as if all processes got equally much.
    """
    rows = []
    for result in results:
        spinning, sleeping = result["waiting"]["spinning"], result["waiting"]["sleeping"]
        alone = min(each["0"]["median"] for each in (spinning, sleeping))
        for count in sleeping:
            ideal = alone * (1 + int(count) / result["cores"])
            rows.append(
                (
                    result["family"],
                    result["image_size"],
                    count,
                    *(_milliseconds(each[count]) for each in (spinning, sleeping)),
                    *(f"{each[count]['median'] / ideal:.2f}" for each in (spinning, sleeping)),
                )
            )
    columns = ("family", "pixels", "competitors", "spinning, ms per image", "sleeping, ms per image")
    return markdown_table((*columns, "spinning, times the ideal", "sleeping, times the ideal"), rows)


def _milliseconds(quartiles: Result) -> str:
    return "{:.1f} ({:.1f} to {:.1f})".format(*(1000 * quartiles[name] for name in ("median", "lower", "upper")))


def naive_table(results: Sequence[Result]) -> str:
    """Return the times of the naive step, and its share of the machine's rate for matmuls."""
    rows = [
        (
            result["family"],
            result["image_size"],
            format_quartiles(result["step"]),
            f"{result['preprocessing']['median'] / result['step']['median']:.1%}",
            f"{result['evaluation']['median']:.3f}",
            f"{result['gflop_per_image']:.0f}",
            f"{result['gflop_per_image'] / result['step']['median'] / result['gemm_gflops']:.0%}",
            f"{result['gemm_gflops']:.0f}",
        )
        for result in results
        if result["kind"] == "naive"
    ]
    costs = (
        "training step, s per image",
        "of it decoding and augmentation",
        "evaluation, s per image",
        "GFLOP per image",
    )
    return markdown_table(("family", "pixels", *costs, "share of GEMM rate", "GEMM rate, GFLOP/s"), rows)


def paper_table(results: Sequence[Result]) -> str:
    """Return hours of the original paper's ten epochs, extrapolated from seconds per image, and the speed-ups.

    The original setting is BLIP at its own 384 pixels and the others at 224.
    """
    hours_by_recipe = {
        "naive, BLIP at 384": _hours(results, "naive", {"blip": 384}, 0),
        "naive": _hours(results, "naive", {}, 0),
        f"one block, {VIEWS} views": _hours(results, "one block", {}, VIEWS),
        "one block, 1 view": _hours(results, "one block", {}, 1),
        "one block, 1 view, 160 pixels": _hours(results, "one block", dict.fromkeys(FAMILIES, 160), 1),
        "one block, 1 view, 160 pixels, int8": _hours(results, "one block int8", dict.fromkeys(FAMILIES, 160), 1),
    }
    sums = {recipe: sum(hours) for recipe, hours in hours_by_recipe.items() if len(hours) == len(FAMILIES)}
    rows = [
        (
            recipe,
            *(f"{hours:.2f}" for hours in hours_by_recipe[recipe]),
            f"{total:.2f}",
            *(f"{sums[naive] / total:.1f}" if naive in sums else "" for naive in ("naive", "naive, BLIP at 384")),
        )
        for recipe, total in sums.items()
    ]
    columns = ("recipe, feature cache included", *(f"{family}, h" for family in FAMILIES), "all, h")
    return markdown_table((*columns, "speed-up over naive", "speed-up over naive with BLIP at 384"), rows)


def _hours(results: Sequence[Result], kind: str, sizes: Mapping[str, int], views: int) -> list[float]:
    """Return the hours of each family that was measured at its size (224 by default)."""
    measured = (find_result(results, kind, family, sizes.get(family, 224)) for family in FAMILIES)
    return [
        cached_training_hours(result, views) if views else naive_training_hours(result) for result in measured if result
    ]


def naive_training_hours(result: Result) -> float:
    """Return the hours of all epochs of training and validation."""
    return float(_epoch_seconds(result) / 3600)


def cached_training_hours(result: Result, views: int) -> float:
    """Return the hours of all epochs, with the caching of `views` training views and the plain validation view.

    The time to build the frozen prefix is included if it was measured: seconds for PyTorch, a minute for int8 ONNX.
    """
    prefix = result["prefix"]
    prefix_images = views * TRAINING_IMAGES + VALIDATION_IMAGES
    prefix_seconds = prefix.get("build_seconds", 0.0) + prefix_images * prefix["seconds_per_image"]
    return float((prefix_seconds + _epoch_seconds(result)) / 3600)


def _epoch_seconds(result: Result) -> float:
    """Return the seconds of all epochs, without the frozen layers."""
    training, evaluation = result["step"]["median"], result["evaluation"]["median"]
    return float(EPOCHS * (TRAINING_IMAGES * training + VALIDATION_IMAGES * evaluation))


def growth_table(results: Iterable[Result]) -> str:
    """Return time and memory of caching the features of n images, and of an epoch on them."""
    columns = ("images", "frozen layers, ms per image", "epoch of the last block, ms per image")
    rows = [
        (
            f"{result['images']:,}",
            f"{1000 * result['prefix_seconds_per_image']:.2f}",
            f"{1000 * result['epoch_seconds_per_image']:.3f}",
            f"{result['peak_mib']:,.0f}",
        )
        for result in results
    ]
    return markdown_table((*columns, "peak MiB above the model's"), rows)


def preprocessing_table(results: Iterable[Result]) -> str:
    """Return milliseconds per image of decoding and augmentation."""
    names = ("decode", "augment_pillow", "augment")
    rows = [(result["image_size"], *(f"{1000 * result[name]['median']:.2f}" for name in names)) for result in results]
    columns = ("pixels", "decode JPEG, ms per image", "augment with Pillow, ms per image", "augment here, ms per image")
    return markdown_table(columns, rows)


def format_quartiles(quartiles: Result) -> str:
    """Return median and quartiles of seconds as text."""
    return "{median:.4f} ({lower:.4f} to {upper:.4f}, {count} steps)".format(**quartiles)


def find_result(results: Sequence[Result], kind: str, family: str, image_size: int) -> Result | None:
    """Return the result of that kind, family and size, or None."""
    for result in results:
        if (result["kind"], result["family"], result["image_size"]) == (kind, family, image_size):
            return result
    return None


def machine() -> str:
    """Return processor, cores and PyTorch's version."""
    facts = machine_tags()
    return f"{facts['cpu']}, {facts['cores']} cores, PyTorch {facts['torch']}"


def all_tables(results: Mapping[str, Any]) -> str:
    """Return all tables that have results, under their headings; results of unknown names are ignored."""

    def of_kind(prefix: str) -> list[Result]:
        return [result for name, result in results.items() if name.startswith(prefix)]

    training = of_kind("training ")
    sections: list[tuple[str, Callable[[list[Result]], str], list[Result]]] = [
        ("Naive fine-tuning", naive_table, training),
        ("Every mode beside naive", training_table, training),
        ("Full fine-tuning: naive and ours, alternating steps", in_turn_table, of_kind("in turn ")),
        (
            "The original paper's ten epochs (2,400 training and 600 validation images), extrapolated",
            paper_table,
            training,
        ),
        ("Inference", inference_table, of_kind("inference ")),
        ("Forward and backward pass by precision, in turn", precision_table, of_kind("precision ")),
        ("Beside other processes", busy_table, of_kind("busy ")),
        ("Preprocessing", preprocessing_table, of_kind("preprocessing ")),
        ("Growth with the catalogue", growth_table, of_kind("growth of ")),
    ]
    parts = [f"### {heading}\n\n{table(selected)}" for heading, table, selected in sections if selected]
    return "\n\n".join([f"Machine: {machine()}.", *parts]) + "\n"
