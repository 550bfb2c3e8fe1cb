"""The model card: README.md in a saved categoriser's folder, for whoever finds the model without its run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from vlm_core.config.families import FAMILIES
from vlm_core.evaluation.long_tail import RANGES
from vlm_core.evaluation.subgroups import THIN
from vlm_core.evaluation.subsets import MEANING
from vlm_core.files.atomic import write_atomically

if TYPE_CHECKING:
    from vlm_core.catalogue.catalogue import Catalogue
    from vlm_core.catalogue.splitting import Split
    from vlm_core.evaluation.bootstrap import Estimate
    from vlm_core.evaluation.evaluation import Evaluation
    from vlm_core.evaluation.level_scores import LevelsScore
    from vlm_core.evaluation.text_leak import TextLeakMetrics

_SHOWN_SETTINGS: Final = (
    *("model", "checkpoint", "mode", "objective", "readout", "preset", "epochs", "batch_size", "learning_rate"),
    *("inputs", "fusion", "text_columns", "mask_label_words", "modality_dropout"),
    *("weight_decay", "balance", "seed"),
)
_FEWEST_IN_A_SUBGROUP: Final = 20
_MARKDOWN: Final = re.compile(r"[\\`*_\[\]<>#~&$]")  # a bar is left to `markdown_table`


def write_card(
    folder: Path,
    *,
    run_id: str,
    settings: Mapping[str, str],
    weights_source: str,
    catalogue: Catalogue,
    split: Split,
    evaluation: Evaluation,
    learnt: str = "",
    texts: TextLeakMetrics | None = None,
) -> Path:
    """Write the card `README.md` atomically into the folder that a categoriser was saved in, and return its path.

    `learnt` is the section of a run that learnt more from another one, `texts` are the figures of one that reads texts.
    """
    family = str(json.loads((folder / "categoriser.json").read_text(encoding="utf-8"))["family"])
    sections = [
        _head(family, split, weights_source),
        "## How it was made\n\n" + _settings(run_id, settings, weights_source),
        "## Data\n\n" + _data(catalogue, split),
        "## Texts\n\n" + _texts(texts) if texts else "",
        f"## What it learnt and forgot\n\n{learnt}" if learnt else "",
        "## Scores\n\n" + _scores(evaluation, split),
        f"## Label levels\n\n{_levels(evaluation.levels)}" if evaluation.levels else "",
        "## Subgroups\n\n" + _subgroups(evaluation),
        "## Limits\n\n" + _limits(evaluation, split, weights_source),
        "## How to load it\n\n" + _loading(family, run_id),
    ]
    path = folder / "README.md"
    text = "\n\n".join(section for section in sections if section) + "\n"
    write_atomically(path, lambda file: file.write(text.encode("utf-8", "replace")))
    return path


def _head(family: str, split: Split, weights_source: str) -> str:
    names = ", ".join(map(markdown_text, split.categories))
    lines = [
        "---",
        "pipeline_tag: image-classification",
        f"tags: [product-categorisation, {family}]",
        "---",
        f"# {family.upper()} for product categorisation",
        "",
        f"Classifies the image of a product into one of {len(split.categories)} categories: {names}.",
    ]
    if weights_source != "none":
        lines.append(f"Its weights came from {markdown_code(weights_source)} before it was trained here.")
    if split.leaking:
        lines += ["", f"> **These scores reward memory.** {_leakage(split)} They say little about new products."]
    return "\n".join(lines)


def _settings(run_id: str, settings: Mapping[str, str], weights_source: str) -> str:
    rows = [("run", f"`{run_id}`"), ("weights before training", markdown_code(weights_source))]
    rows += [(name, markdown_code(settings[name])) for name in _SHOWN_SETTINGS if settings.get(name)]
    return markdown_table(("setting", "value"), rows)


def _data(catalogue: Catalogue, split: Split) -> str:
    totals = np.bincount(split.labels[split.train], minlength=len(split.categories))
    singles = np.bincount(split.labels[np.unique(split.train)], minlength=len(split.categories))
    counts = [
        (markdown_text(name), f"{split.prior[index]:.2%}", split.originals[name], singles[index], totals[index])
        for index, name in enumerate(split.categories)
    ]
    return "\n".join(
        [
            f"Catalogue {markdown_code(catalogue.name)}, {len(catalogue.products):,} products, fingerprint "
            f"`{catalogue.fingerprint}`; categories from the column {markdown_code(split.label)}.",
            f"Protocol `{split.protocol}`, seed {split.seed}, split `{split.fingerprint}`: {len(split.train):,} "
            f"training rows, {len(split.validation):,} validation, {len(split.test):,} test. {_leakage(split)}",
            "",
            markdown_table(("category", "share of catalogue", "sampled", "training products", "training rows"), counts),
        ]
    )


def _texts(texts: TextLeakMetrics) -> str:
    rows = [
        (markdown_text(name), "" if isnan(share) else f"{share:.1%}") for name, share in texts.leak.by_category.items()
    ]
    columns, leak, alone = map(markdown_text, texts.sentences())
    summary = " ".join([columns, leak if texts.masked else f"**{leak}**", alone])
    return f"{summary}\n\n{markdown_table(('category', 'texts with a word of it'), rows)}"


def _leakage(split: Split) -> str:
    before = split.leakage.pretraining
    text = f"{split.leakage.near:.1%} of the evaluation rows have the same or nearly the same image in training."
    return f"{text} {before:.1%} of them may have been seen in pretraining." if before else text


def _scores(evaluation: Evaluation, split: Split) -> str:
    natural, calibration = evaluation.natural, evaluation.calibration
    worst = evaluation.worst_recall
    rows = [
        ("macro-F1", *_with_interval(evaluation.macro_f1)),
        ("accuracy", *_with_interval(evaluation.accuracy)),
        (f"lowest recall ({markdown_text(worst.category)})", f"{worst.recall:.4f}", ""),
        ("macro-F1, categories as frequent as in the catalogue", *_with_interval(natural.macro_f1)),
        ("accuracy, categories as frequent as in the catalogue", *_with_interval(natural.accuracy)),
        ("negative log-likelihood", f"{calibration.nll:.4f}", ""),
        ("Brier score", f"{calibration.brier:.4f}", ""),
        ("expected calibration error", f"{calibration.ece:.4f}", ""),
    ]
    rows[4:4] = [
        (f"macro-F1, the {part.categories} with {RANGES[part.part]} training products", *_with_interval(part.macro_f1))
        for part in evaluation.long_tail
    ]
    rows += [
        (f"{name} on the {score.products:,} test products {MEANING[subset]}", *_with_interval(metric))
        for subset, score in evaluation.subsets.items()
        for name, metric in (("macro-F1", score.macro_f1), ("accuracy", score.accuracy))
    ]
    categories = [
        (
            *(markdown_text(score.category), score.support, f"{score.precision:.4f}", f"{score.recall:.4f}"),
            *_with_interval(score.f1),
        )
        for score in evaluation.per_category
    ]
    marked = ", **leaking**" if split.leaking else ""
    return "\n\n".join(
        [
            f"On {evaluation.n:,} test products, evaluated once, after training{marked}. 95 % bootstrap intervals.",
            markdown_table(("metric", "value", "interval"), rows),
            markdown_table(("category", "test products", "precision", "recall", "F1", "interval"), categories),
        ]
    )


def _levels(score: LevelsScore) -> str:
    rows = [
        (
            *(markdown_text(level.label), level.categories, level.products),
            *(*_with_interval(level.accuracy), *_with_interval(level.macro_f1)),
            *(f"{level.accuracy_without_rule:.4f}", f"{level.macro_f1_without_rule:.4f}"),
        )
        for level in score.levels
    ]
    head = ("label", "categories", "test products", "accuracy", "interval", "macro-F1", "interval")
    return "\n\n".join(
        [
            "One head per level on shared features. The rule makes predictions consistent: a category stands below one "
            "that it stands below in training. The scores above are those of the last level.",
            markdown_table((*head, "accuracy without the rule", "macro-F1 without it"), rows),
            score.summary(4),
        ]
    )


def _subgroups(evaluation: Evaluation) -> str:
    rows = [
        (
            *(markdown_text(group.attribute), markdown_text(group.value) or "(none)", group.n),
            *(*_with_interval(group.accuracy), f"{group.macro_f1:.4f}{'*' * bool(group.thin_categories)}"),
        )
        for group in evaluation.subgroups
        if group.n >= _FEWEST_IN_A_SUBGROUP
    ]
    if not rows:
        return f"No subgroup has {_FEWEST_IN_A_SUBGROUP} test products."
    table = markdown_table(("attribute", "value", "test products", "accuracy", "interval", "macro-F1"), rows)
    thin = any(group.thin_categories for group in evaluation.subgroups if group.n >= _FEWEST_IN_A_SUBGROUP)
    mark = f" * has categories of fewer than {THIN} products, so this macro-F1 is unreliable." * thin
    return f"Those with at least {_FEWEST_IN_A_SUBGROUP} test products.{mark}\n\n{table}"


def _limits(evaluation: Evaluation, split: Split, weights_source: str) -> str:
    weakest = min((score for score in evaluation.per_category if score.support), key=lambda score: score.f1.value)
    limits = [
        "It always predicts one of its categories, even for an image that shows none of them.",
        f"It is weakest on {markdown_text(weakest.category)} (F1 {weakest.f1.value:.2f}, "
        f"{weakest.support} test products).",
        "One run with one seed: another seed gives another split and another initialisation.",
        "It has seen images of this catalogue only; other cameras, backgrounds and angles are untested.",
    ]
    if "Free Items" in split.categories:
        limits.append("Free Items are defined by their price, not by their looks: no image identifies them reliably.")
    if weights_source == "tiny-random":
        limits.append("Its weights are tiny and were randomly initialised: only a stand-in for a pretrained model.")
    if weights_source.startswith("shipped:"):
        limits.append(
            "Its weights are tiny and were pretrained on one catalogue: only a stand-in for a published model."
        )
    if split.leaking:
        limits.append("Training and test overlap: do not compare its scores with those of an honest split.")
    return "\n".join(f"- {limit}" for limit in limits)


def _loading(family: str, run_id: str) -> str:
    from vlm_core.models.categoriser import ADAPTERS

    served = "\n".join(
        [
            "```python",
            "import base64, mlflow, pandas",
            f'model = mlflow.pyfunc.load_model("runs:/{run_id}/model")',
            'picture = base64.b64encode(open("picture.jpg", "rb").read()).decode()',
            'print(model.predict(pandas.DataFrame({"picture": [picture]})))',
            "```",
        ]
    )
    if family not in ADAPTERS:
        return served
    hf_class = ADAPTERS[family].hf_class
    reads_text = FAMILIES[family].has_language
    own = "\n".join(
        [
            "The network alone, without its classification head, from the folder of this card:",
            "",
            "```python",
            f"from transformers import {'AutoTokenizer, ' if reads_text else ''}{hf_class}",
            f'network = {hf_class}.from_pretrained("model")',
            *(['tokenizer = AutoTokenizer.from_pretrained("model")'] if reads_text else []),
            "```",
        ]
    )
    return f"{served}\n\n{own}"


def _with_interval(estimate: Estimate) -> tuple[str, str]:
    return f"{estimate.value:.4f}", f"{estimate.low:.4f} to {estimate.high:.4f}"


def markdown_text(text: str) -> str:
    """Return a text from data for Markdown, in which no character of it has a meaning."""
    return _MARKDOWN.sub(r"\\\g<0>", " ".join(text.split()))


def markdown_code(text: str) -> str:
    """Return a text as code, whose backticks become apostrophes: a code span has no way to escape them."""
    return f"`{' '.join(text.split()).replace('`', chr(39))}`"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table; bars in cells are escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
