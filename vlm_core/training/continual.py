"""Learning further categories on frozen features: class means, exemplars kept as features, and heads that replay them.

Every method ends in the weights of a linear head, so that an extended model is one like any other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from vlm_core.errors import UserError
from vlm_core.files.atomic import write_atomically
from vlm_core.pixels.arrays import Float32Array, FloatArray, Labels, Rows

Method = Literal["prototypes", "head", "distil", "joint", "naive"]
FILE: Final = "memory.safetensors"  # in a saved categoriser's folder
DECAY: Final = 1e-3  # of a head's weights towards where they started, over standardised features
ITERATIONS: Final = 100  # of L-BFGS at most
DISTILLING: Final = 2.0  # temperature of the old head's probabilities (Li & Hoiem 2016, section 3)
_LOG_SHARPNESS: Final = 7.0  # and minus it are the bounds of what validation chooses
_LEAST_VARIANCE: Final = 1e-8


@dataclass(frozen=True)
class Examples:
    """Frozen features and categories of distinct products."""

    features: Float32Array  # (n, D)
    labels: Labels  # (n,)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def bytes(self) -> int:
        """Return the size of the arrays."""
        return self.features.nbytes + self.labels.nbytes

    def __add__(self, other: Examples) -> Examples:
        return Examples(np.concatenate([self.features, other.features]), np.concatenate([self.labels, other.labels]))


@dataclass(frozen=True)
class HeadWeights:
    """A linear head's weights (C, D) and bias (C,)."""

    weights: Float32Array
    bias: Float32Array

    def log_probabilities(self, features: Float32Array) -> Float32Array:
        """Return log-probabilities (n, C) of features (n, D)."""
        logits = torch.from_numpy(features @ self.weights.T + self.bias)
        return functional.log_softmax(logits, dim=-1).numpy()


@dataclass(frozen=True)
class Memory:
    """What a model keeps of its training products: features of a few, and each category's mean; never pictures."""

    exemplars: Examples  # in the order of herding within each category
    means: FloatArray  # (C, D) of all training products
    counts: NDArray[np.int64]  # (C,) products behind each mean
    variance: FloatArray  # (D,) within categories, pooled

    @classmethod
    def empty(cls, width: int) -> Self:
        """Return the memory of a model without categories."""
        none = Examples(np.empty((0, width), np.float32), np.empty(0, np.int64))
        return cls(none, np.empty((0, width)), np.empty(0, np.int64), np.zeros(width))

    @property
    def bytes(self) -> int:
        """Return the size of the arrays."""
        return sum(array.nbytes for array in self._arrays().values())

    def limited(self, most: int) -> Self:
        """Return the memory with at most so many exemplars of each category: the first that herding chose."""
        firsts = [np.flatnonzero(self.exemplars.labels == label)[:most] for label in range(len(self.means))]
        first = np.concatenate([np.empty(0, np.int64), *firsts])
        return replace(self, exemplars=Examples(self.exemplars.features[first], self.exemplars.labels[first]))

    def joined(self, new: Examples, categories: int, most: int) -> Self:
        """Return the memory after new products, with `most` exemplars of each of so many categories.

        A category that has new products chooses its exemplars anew, among those kept and the new ones.
        """
        width = self.means.shape[1]
        means, counts = np.zeros((categories, width)), np.zeros(categories, np.int64)
        means[: len(self.means)], counts[: len(self.counts)] = self.means, self.counts
        squares = self.variance * self.counts.sum()
        chosen: list[Examples] = []
        for label in range(categories):
            kept = self.exemplars.features[self.exemplars.labels == label]
            added = new.features[new.labels == label]
            if len(added):
                mean, share = added.mean(axis=0, dtype=np.float64), len(added) / (counts[label] + len(added))
                squares = (
                    squares + ((added - mean) ** 2).sum(axis=0) + counts[label] * share * (means[label] - mean) ** 2
                )
                means[label] += share * (mean - means[label])
                counts[label] += len(added)
                candidates = np.concatenate([kept, added])
                kept = candidates[herd(candidates, means[label], most)]
            chosen.append(Examples(kept[:most], np.full(len(kept[:most]), label)))
        exemplars = Examples(
            np.concatenate([each.features for each in chosen]), np.concatenate([each.labels for each in chosen])
        )
        return replace(
            self, exemplars=exemplars, means=means, counts=counts, variance=squares / max(int(counts.sum()), 1)
        )

    def write(self, folder: Path) -> None:
        """Write `memory.safetensors` into a categoriser's folder, atomically."""
        from safetensors.numpy import save

        content = save({name: np.ascontiguousarray(array) for name, array in self._arrays().items()})
        write_atomically(folder / FILE, lambda file: file.write(content))

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Return the memory in a categoriser's folder; None without one. Raises UserError for a damaged file."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        path = folder / FILE
        if not path.is_file():
            return None
        try:
            arrays = load(path.read_bytes())
            exemplars = Examples(arrays["features"], arrays["labels"])
            return cls(exemplars, arrays["means"], arrays["counts"], arrays["variance"])
        except (SafetensorError, KeyError) as error:
            raise UserError(f"{path} is damaged ({error}): extend another version of the model.") from error

    def _arrays(self) -> dict[str, NDArray[np.generic]]:
        return {
            "features": self.exemplars.features,
            "labels": self.exemplars.labels,
            "means": self.means,
            "counts": self.counts,
            "variance": self.variance,
        }


def herd(features: Float32Array, mean: FloatArray, most: int) -> Rows:
    """Return up to `most` rows of features (n, D), chosen so that the mean of each beginning is close to `mean` (D,).

    Algorithm 4 of iCaRL (Rebuffi et al. 2017, arXiv 1611.07725); a row is chosen once, the first of equal ones.
    """
    chosen: list[int] = []
    total, left = np.zeros(features.shape[1]), np.ones(len(features), dtype=bool)
    for size in range(1, min(most, len(features)) + 1):
        distances = ((mean - (total + features) / size) ** 2).sum(axis=1)
        best = int(np.where(left, distances, np.inf).argmin())
        chosen.append(best)
        left[best] = False
        total += features[best]
    return np.array(chosen, dtype=np.int64)


@dataclass(frozen=True)
class ExtensionTask:
    """What a head that knows some categories is to learn; labels are those of all `categories`."""

    new: Examples  # training products
    validation: Examples  # of old and new categories, as far as they are at hand
    categories: int  # C, old ones first
    memory: Memory | None  # of the old categories; None where nothing is kept of them
    old: Examples | None = None  # all their training products, for `joint`


def learn(method: Method, head: HeadWeights, task: ExtensionTask, memory: Memory) -> HeadWeights:
    """Return the head of all categories that a method makes of the old one; `memory` is that of all categories.

    - `prototypes`: the nearest class mean, which trains nothing;
    - `head`: trained on the new products and the old categories' exemplars;
    - `distil`: the same, and on the old head's probabilities (Li & Hoiem 2016, arXiv 1606.09282);
    - `joint`: trained on all products, old and new;
    - `naive`: trained on the new products alone.
    """
    if method == "prototypes":
        return nearest_mean_head(memory, task.validation)
    examples = task.new
    if method == "joint":
        assert task.old is not None
        examples = task.old + examples
    elif method != "naive":
        assert task.memory is not None
        examples = task.memory.exemplars + examples
    return train_head(head, examples, task.categories, distil=method == "distil")


def nearest_mean_head(memory: Memory, validation: Examples) -> HeadWeights:
    """Return the head whose probabilities are a softmax of -sharpness * mean squared distance to each category's mean.

    Distances are over features divided by their deviation within categories. The sharpness, an inverse temperature, has
    the lowest negative log-likelihood on validation; it changes no prediction. What all logits have in common is left
    out, which makes them linear in the features (Mensink et al. 2013, https://doi.org/10.1109/TPAMI.2013.83).
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    variance = np.maximum(memory.variance, _LEAST_VARIANCE) * memory.means.shape[1]
    centre = memory.means.mean(axis=0)
    weights = 2 * (memory.means - centre) / variance
    bias = ((centre**2 - memory.means**2) / variance).sum(axis=1)
    logits, rows = validation.features @ weights.T + bias, np.arange(len(validation))

    def loss(log_sharpness: float) -> float:
        scaled = log_softmax(np.exp(log_sharpness) * logits, axis=1)
        return -float(scaled[rows, validation.labels].mean())

    best = minimize_scalar(loss, bounds=(-_LOG_SHARPNESS, _LOG_SHARPNESS), method="bounded").x
    sharpness = float(np.exp(best)) if len(validation) else 1.0
    return HeadWeights((sharpness * weights).astype(np.float32), (sharpness * bias).astype(np.float32))


def train_head(
    start: HeadWeights, examples: Examples, categories: int, *, distil: bool = False, decay: float = DECAY
) -> HeadWeights:
    """Return a head of so many categories, trained by L-BFGS from a start that may know fewer: the same every time.

    All categories among the examples weigh the same. The loss is convex: cross-entropy, half of `decay` times the
    squared distance of the standardised weights from the start, and with `distil` the divergence of the start's
    probabilities of its own categories.
    """
    features = torch.from_numpy(examples.features)
    centre, scale = features.mean(dim=0), features.std(dim=0, correction=0).clamp(min=_LEAST_VARIANCE**0.5)
    features, labels = (features - centre) / scale, torch.from_numpy(examples.labels)
    known = len(start.bias)
    old_weights, old_bias = torch.from_numpy(start.weights), torch.from_numpy(start.bias)
    anchor = torch.zeros(categories, features.shape[1])
    anchor[:known] = old_weights * scale
    bias = torch.zeros(categories)
    bias[:known] = old_bias + old_weights @ centre
    teacher = functional.softmax((features @ anchor[:known].T + bias[:known]) / DISTILLING, dim=1)
    counts = torch.bincount(labels, minlength=categories).clamp(min=1)
    shares = 1 / counts[labels]
    shares /= shares.sum()
    weights = anchor.clone().requires_grad_()
    bias.requires_grad_()
    optimiser = torch.optim.LBFGS([weights, bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        logits = features @ weights.T + bias
        value = shares @ functional.cross_entropy(logits, labels, reduction="none")
        value = value + decay / 2 * ((weights - anchor) ** 2).sum()
        if distil:
            student = functional.log_softmax(logits[:, :known] / DISTILLING, dim=1)
            divergence = functional.kl_div(student, teacher, reduction="none").sum(dim=1)
            value = value + DISTILLING**2 * shares @ divergence
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    own = weights.detach() / scale
    return HeadWeights(own.numpy(), (bias.detach() - own @ centre).numpy())
