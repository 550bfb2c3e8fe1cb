"""The baselines that read texts: logistic regression on TF-IDF, alone or stacked with that on pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from vlm_core.errors import UserError
from vlm_core.evaluation.product_texts import TextReading
from vlm_core.evaluation.summary import macro_f1
from vlm_core.files.atomic import write_atomically
from vlm_core.models.baseline import SCHEMA, Baseline, balanced_rows, fit_logistic_regression, log_softmax
from vlm_core.models.category_only import CategoryOnly
from vlm_core.pixels.arrays import Float32Array, FloatArray, Labels, Pictures, Rows

if TYPE_CHECKING:
    import pandas as pd

PENALTIES: Final = (1.0, 10.0, 100.0)  # scikit-learn's C
MOST_TERMS: Final = 50_000  # words and pairs of words, the most frequent
FEWEST_TEXTS: Final = 2  # of a term
_READING: Final = TypeAdapter(TextReading)


@dataclass(frozen=True)
class TextBaseline(CategoryOnly):
    """A fitted baseline that reads texts alone: a Categoriser without text generation."""

    categories: tuple[str, ...]  # (C,)
    canvas: tuple[int, int]  # (height, width) that images are fitted to, though none is looked at
    reads: TextReading
    terms: tuple[str, ...]  # (V,)
    idf: FloatArray  # (V,) inverse document frequency of each term
    weights: Float32Array  # (C, V)
    bias: Float32Array  # (C,)
    penalty: float  # scikit-learn's C, the inverse regularisation strength

    def log_probabilities(
        self, pictures: Pictures, texts: Sequence[str] | None = None, has_picture: NDArray[np.bool_] | None = None
    ) -> Float32Array:
        """Return log-probabilities (B, C) of texts (B,); without any text each row is that of an empty one."""
        return self.of_texts([""] * len(pictures) if texts is None else texts)

    def of_texts(self, texts: Sequence[str]) -> Float32Array:
        """Return log-probabilities (B, C) of texts (B,)."""
        if not texts:
            return np.empty((0, len(self.categories)), np.float32)
        return log_softmax(self._vectoriser.transform(texts) @ self.weights.T + self.bias)

    @cached_property
    def _vectoriser(self) -> Any:
        vectoriser = make_vectoriser(self.terms)
        vectoriser.idf_ = self.idf
        return vectoriser

    def save(self, folder: Path) -> None:
        """Write `model.safetensors`, then `categoriser.json`, each atomically."""
        from safetensors.numpy import save

        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in ("idf", "weights", "bias")}
        tensors = save(arrays)
        write_atomically(folder / "model.safetensors", lambda file: file.write(tensors))
        _write(
            folder,
            self.categories,
            self.canvas,
            {"reads": _READING.dump_python(self.reads, mode="json"), "terms": self.terms, "penalty": self.penalty},
        )

    @classmethod
    def load(cls, folder: Path) -> TextBaseline:
        """Return the baseline that `save` wrote. Raise UserError if the folder holds no complete one."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            content = _read(folder)
            settings, arrays = content["settings"], load((folder / "model.safetensors").read_bytes())
            baseline = cls(
                categories=tuple(content["categories"]),
                canvas=(int(content["canvas"][0]), int(content["canvas"][1])),
                reads=_READING.validate_python(settings["reads"]),
                terms=tuple(map(str, settings["terms"])),
                penalty=float(settings["penalty"]),
                **arrays,
            )
            count, width = len(baseline.categories), len(baseline.terms)
            shapes = (baseline.weights.shape, baseline.bias.shape, baseline.idf.shape)
            if shapes != ((count, width), (count,), (width,)):
                raise ValueError(f"its arrays have the shapes {shapes}")
        except (OSError, KeyError, TypeError, ValueError, ValidationError, SafetensorError) as error:
            raise _incomplete(folder, error) from error
        return baseline


@dataclass(frozen=True)
class StackedBaseline(CategoryOnly):
    """Both baselines, stacked: a softmax of their log-probabilities, each times a coefficient."""

    picture: Baseline
    text: TextBaseline
    coefficients: tuple[float, float]  # of picture and text, fitted on validation

    @property
    def categories(self) -> tuple[str, ...]:
        """Return the categories (C,)."""
        return self.picture.categories

    @property
    def canvas(self) -> tuple[int, int]:
        """Return the height and width that images are fitted to."""
        return self.picture.canvas

    @property
    def reads(self) -> TextReading:
        """Return which texts of products it reads."""
        return replace(self.text.reads, inputs="image+text")

    def log_probabilities(
        self, pictures: Pictures, texts: Sequence[str] | None = None, has_picture: NDArray[np.bool_] | None = None
    ) -> Float32Array:
        """Return log-probabilities (B, C) of images (B, H, W, 3) and texts (B,), or of the one that there is."""
        texts = [""] * len(pictures) if texts is None else texts
        has_picture = np.ones(len(pictures), dtype=bool) if has_picture is None else has_picture
        given = np.stack([has_picture, np.array([bool(text) for text in texts], dtype=bool)], axis=1)
        return self.stack(self.picture.log_probabilities(pictures), self.text.of_texts(texts), given)

    def stack(self, picture: Float32Array, text: Float32Array, given: NDArray[np.bool_]) -> Float32Array:
        """Return log-probabilities (B, C) of those by pictures and by texts (B, C), where they are given (B, 2)."""
        both = given.all(axis=1, keepdims=True)
        weights = np.where(both, np.array(self.coefficients), given.astype(np.float64))  # (B, 2)
        return log_softmax(weights[:, :1] * picture + weights[:, 1:] * text)

    def save(self, folder: Path) -> None:
        """Write both baselines into folders of their own, then `categoriser.json`."""
        for name, baseline in (("picture", self.picture), ("text", self.text)):
            (folder / name).mkdir(parents=True, exist_ok=True)
            baseline.save(folder / name)
        _write(
            folder,
            self.categories,
            self.canvas,
            {"reads": _READING.dump_python(self.reads, mode="json"), "coefficients": self.coefficients},
        )

    @classmethod
    def load(cls, folder: Path) -> StackedBaseline:
        """Return the baselines that `save` wrote. Raise UserError if the folder holds no complete ones."""
        try:
            first, second = _read(folder)["settings"]["coefficients"]
            coefficients = float(first), float(second)
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise _incomplete(folder, error) from error
        return cls(Baseline.load(folder / "picture"), TextBaseline.load(folder / "text"), coefficients)


def load_text_baseline(folder: Path, inputs: str) -> TextBaseline | StackedBaseline:
    """Return the saved baseline that reads these inputs. Raise UserError if the folder holds no complete one."""
    return TextBaseline.load(folder) if inputs == "text" else StackedBaseline.load(folder)


def _write(folder: Path, categories: tuple[str, ...], canvas: tuple[int, int], settings: dict[str, Any]) -> None:
    content = {
        "family": "baseline",
        "schema": SCHEMA,
        "inputs": settings["reads"]["inputs"],
        "categories": list(categories),
        "canvas": list(canvas),
        "settings": settings,
    }
    text = json.dumps(content, indent=2, ensure_ascii=False)
    write_atomically(folder / "categoriser.json", lambda file: file.write(text.encode("utf-8", "surrogatepass")))


def _read(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "categoriser.json").read_bytes().decode("utf-8", "surrogatepass"))
    if (content["family"], content["schema"]) != ("baseline", SCHEMA):
        raise ValueError(f"family {content['family']}, schema {content['schema']}")
    return content


def _incomplete(folder: Path, error: Exception) -> UserError:
    return UserError(f"{folder} holds no complete baseline of schema {SCHEMA} ({error}): train again.")


def make_vectoriser(terms: Sequence[str] | None = None) -> Any:
    """Return scikit-learn's TF-IDF of words and pairs of words, with known terms or none yet."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(
        strip_accents="unicode",
        ngram_range=(1, 2),
        min_df=FEWEST_TEXTS,
        max_features=None if terms else MOST_TERMS,
        sublinear_tf=True,
        vocabulary=terms,
    )


def fit_text_baseline(
    products: pd.DataFrame,
    reads: TextReading,
    labels: Labels,
    training_rows: Rows,
    validation_rows: Rows,
    categories: tuple[str, ...],
    canvas: tuple[int, int],
    *,
    balance: str = "none",
) -> TextBaseline:
    """Return a baseline fitted on the texts of the training rows, with the penalty of the best macro-F1 on validation.

    `labels` (n_products,) cover the whole catalogue; rows index it and the products. A training row that occurs k times
    has weight k, and `balance` is as for `fit_baseline`. Raise UserError where too few texts have a word in common.
    """
    reads = replace(reads, inputs="text")
    rows, repeats = np.unique(training_rows, return_counts=True)
    vectoriser = make_vectoriser()
    try:
        training = vectoriser.fit_transform(reads.texts(products.iloc[rows]))
    except ValueError:
        raise UserError(
            f"The texts of the training products ({', '.join(reads.columns)}) have no word in common: name other "
            "columns with text_columns=, or use inputs=image."
        ) from None
    terms = tuple(map(str, vectoriser.get_feature_names_out()))
    idf = np.asarray(vectoriser.idf_, dtype=np.float64)
    row_weights, shift = balanced_rows(labels[rows], repeats, len(categories), balance)
    fitted = []
    for penalty in PENALTIES:
        weights, bias = fit_logistic_regression(training, labels[rows], row_weights, penalty)
        bias = (bias - shift).astype(np.float32)
        fitted.append(TextBaseline(categories, canvas, reads, terms, idf, weights, bias, penalty))
    texts = reads.texts(products.iloc[validation_rows])
    scores = [macro_f1(labels[validation_rows], model.of_texts(texts).argmax(axis=1)) for model in fitted]
    return fitted[int(np.argmax(scores))]


def stack_baselines(
    picture: Baseline, text: TextBaseline, pictures: Float32Array, texts: Float32Array, labels: Labels
) -> StackedBaseline:
    """Return both baselines with the coefficients of the lowest cross-entropy on their log-probabilities (n, C)."""
    from scipy.optimize import minimize

    given, places = np.ones((len(labels), 2), dtype=bool), np.arange(len(labels))

    def loss(coefficients: FloatArray) -> float:
        stacked = StackedBaseline(picture, text, (float(coefficients[0]), float(coefficients[1])))
        return -float(stacked.stack(pictures, texts, given)[places, labels].mean(dtype=np.float64))

    found = minimize(loss, [0.5, 0.5], method="Nelder-Mead", bounds=[(0, 10), (0, 10)]).x
    return StackedBaseline(picture, text, (float(found[0]), float(found[1])))
