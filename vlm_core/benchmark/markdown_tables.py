"""The benchmark's tables in Markdown, from the figures that `measure` gave."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from vlm_core.tracking.card import markdown_table
from vlm_core.tracking.tags import machine_tags

Figures = Mapping[str, Any]
FAMILIES = ("clip", "blip", "git")
EPOCHS, TRAINED, VALIDATED, VIEWS = 10, 2400, 600, 3  # the study's, and the recipe's views


def training_table(results: Sequence[Figures]) -> str:
    """Seconds a picture of a training step by kind, next to naive, of each family and size."""
    rows = []
    for result in results:
        naive = find(results, "naive", result["family"], result["image_size"])
        train = result["train"]
        prefix = result.get("prefix")
        rows.append(
            (
                result["family"],
                result["image_size"],
                _kind(result),
                spread(train),
                f"{naive['train']['median'] / train['median']:,.1f}" if naive else "",
                f"{prefix['seconds']:.3f}" if prefix else "",
                f"{prefix['kib']:,.0f}" if prefix else "",
                f"{result['peak_mib']:,.0f}",
            )
        )
    names = ("family", "pixels", "kind", "train, s a picture", "times naive", "frozen layers, s a view", "KiB a view")
    return markdown_table((*names, "peak MiB"), rows)


def _kind(result: Figures) -> str:
    """The kind, with how far its states are from single precision's where they are not of that."""
    error = (result.get("prefix") or {}).get("prefix_error")
    return f"{result['kind']} (states {error:.1%} off)" if error else str(result["kind"])


def beside_table(results: Iterable[Figures]) -> str:
    """Steps of naive and of our full fine-tuning that were taken in turn, and how many times faster ours were."""
    rows = [
        (
            result["family"],
            result["image_size"],
            spread(result["naive"]),
            spread(result["full"]),
            f"{result['times']['median']:.2f} ({result['times']['low']:.2f} to {result['times']['high']:.2f})",
        )
        for result in results
    ]
    return markdown_table(("family", "pixels", "naive, s a picture", "full, s a picture", "times naive"), rows)


def answers_table(results: Iterable[Figures]) -> str:
    """Milliseconds a picture of answering with one picture and with 32 at a time, by what computes."""
    rows = [
        (
            result["family"],
            result["image_size"],
            form["form"],
            f"{form['megabytes']:,.0f}",
            *(f"{1000 * seconds:.0f}" for seconds in form["seconds"]),
            f"{form['largest_difference']:.2g}",
        )
        for result in results
        for form in result["forms"]
    ]
    names = ("family", "pixels", "computed by", "MB", "one picture, ms", "of 32, ms a picture")
    return markdown_table((*names, "log-probabilities off by at most"), rows)


def naive_table(results: Sequence[Figures]) -> str:
    """What the naive step spends, and its share of the machine's rate for matrix products."""
    rows = [
        (
            result["family"],
            result["image_size"],
            spread(result["train"]),
            f"{result['input']['median'] / result['train']['median']:.1%}",
            f"{result['evaluate']['median']:.3f}",
            f"{result['gflop']:.0f}",
            f"{result['gflop'] / result['train']['median'] / result['gemm_gflops']:.0%}",
            f"{result['gemm_gflops']:.0f}",
        )
        for result in results
        if result["kind"] == "naive"
    ]
    names = ("family", "pixels", "train, s a picture", "of it decoding and augmenting", "evaluate, s a picture")
    return markdown_table((*names, "GFLOP a picture", "share of GEMM rate", "that, GFLOP/s"), rows)


def study_table(results: Sequence[Figures]) -> str:
    """Hours of the study's ten epochs, extrapolated from the seconds a picture, and how many times fewer they are.

    The original is BLIP at its own 384 pixels, the others at 224.
    """
    recipes = {
        "naive, BLIP at 384": _hours(results, "naive", {"blip": 384}, 0),
        "naive": _hours(results, "naive", {}, 0),
        f"one block, {VIEWS} views": _hours(results, "one block", {}, VIEWS),
        "one block, 1 view": _hours(results, "one block", {}, 1),
        "one block, 1 view, 160 pixels": _hours(results, "one block", dict.fromkeys(FAMILIES, 160), 1),
        "one block, 1 view, 160 pixels, int8": _hours(results, "one block int8", dict.fromkeys(FAMILIES, 160), 1),
    }
    sums = {name: sum(hours) for name, hours in recipes.items() if len(hours) == len(FAMILIES)}
    rows = [
        (
            name,
            *(f"{part:.2f}" for part in recipes[name]),
            f"{total:.2f}",
            *(f"{sums[other] / total:.1f}" if other in sums else "" for other in ("naive", "naive, BLIP at 384")),
        )
        for name, total in sums.items()
    ]
    names = ("recipe, caches included", *(f"{family}, h" for family in FAMILIES), "all, h", "times naive")
    return markdown_table((*names, "times naive with BLIP at 384"), rows)


def _hours(results: Sequence[Figures], kind: str, sizes: Mapping[str, int], views: int) -> list[float]:
    """Of each family that was measured at its size (224 where none is named)."""
    found = [find(results, kind, family, sizes.get(family, 224)) for family in FAMILIES]
    return [kept_hours(figures, views) if views else naive_hours(figures) for figures in found if figures]


def naive_hours(naive: Figures) -> float:
    """Of the study's epochs of training and validation."""
    seconds = TRAINED * naive["train"]["median"] + VALIDATED * naive["evaluate"]["median"]
    return float(EPOCHS * seconds / 3600)


def kept_hours(ours: Figures, views: int) -> float:
    """The same, the frozen layers' passes over `views` views and the plain validation view included.

    So is the making of what runs them, where it was measured: seconds for PyTorch, a minute for a graph in int8.
    """
    prefix = ours["prefix"].get("making", 0.0) + (views * TRAINED + VALIDATED) * ours["prefix"]["seconds"]
    epochs = EPOCHS * (TRAINED * ours["train"]["median"] + VALIDATED * ours["evaluate"]["median"])
    return float((prefix + epochs) / 3600)


def growth_table(rows: Iterable[Figures]) -> str:
    """Time and memory of keeping states of so many pictures, and of an epoch on them."""
    names = ("pictures", "frozen layers, ms a picture", "epoch of the head, ms a picture", "peak MiB over the model's")
    lines = [
        (
            f"{row['pictures']:,}",
            f"{1000 * row['prefix']:.2f}",
            f"{1000 * row['epoch']:.3f}",
            f"{row['peak_mib']:,.0f}",
        )
        for row in rows
    ]
    return markdown_table(names, lines)


def input_table(rows: Iterable[Figures]) -> str:
    """Milliseconds a picture of what comes before the model."""
    lines = [
        (row["image_size"], *(f"{1000 * row[name]['median']:.2f}" for name in ("decode", "augment_pillow", "augment")))
        for row in rows
    ]
    return markdown_table(("pixels", "decode JPEG, ms", "augment with Pillow, ms", "ours, ms"), lines)


def spread(seconds: Figures) -> str:
    """Median and quartiles."""
    return f"{seconds['median']:.4f} ({seconds['low']:.4f} to {seconds['high']:.4f}, {seconds['steps']} steps)"


def find(results: Sequence[Figures], kind: str, family: str, image_size: int) -> Figures | None:
    """The figures of that kind, or None."""
    for result in results:
        if (result["kind"], result["family"], result["image_size"]) == (kind, family, image_size):
            return result
    return None


def machine() -> str:
    """Processor, cores and the library's version."""
    facts = machine_tags()
    return f"{facts['cpu']}, {facts['cores']} cores, PyTorch {facts['torch']}"


def whole(results: Mapping[str, Any]) -> str:
    """All tables that there are figures for, under their headings."""

    def those(kind: str) -> list[Figures]:
        return [figures for name, figures in results.items() if name.startswith(kind)]

    trained = those("train ")
    sections: list[tuple[str, Callable[[list[Figures]], str], list[Figures]]] = [
        ("Naive fine-tuning", naive_table, trained),
        ("Every mode next to it", training_table, trained),
        ("Everything learns: naive and ours step by step in turn", beside_table, those("beside ")),
        ("The study's ten epochs (2,400 training and 600 validation pictures), extrapolated", study_table, trained),
        ("Answering", answers_table, those("answers ")),
        ("Before the model", input_table, those("input ")),
        ("How it grows", growth_table, those("growth ")),
    ]
    parts = [f"### {heading}\n\n{table(figures)}" for heading, table, figures in sections if figures]
    return "\n\n".join([f"Machine: {machine()}.", *parts]) + "\n"
