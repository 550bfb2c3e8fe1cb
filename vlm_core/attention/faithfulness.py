"""Faithfulness of explanation maps: deletion and insertion curves against control maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from numpy.typing import NDArray

from vlm_core.errors import UserError
from vlm_core.evaluation.bootstrap import Estimate, estimate
from vlm_core.evaluation.paired import holm
from vlm_core.pixels.arrays import FloatArray
from vlm_core.progress import track

if TYPE_CHECKING:
    from vlm_core.attention.maps import Method
    from vlm_core.models.categoriser import VisionLanguageCategoriser

Curve = Literal["deletion", "insertion"]
# A blurred picture still shows colours and outline: on the real catalogue the tiny models keep a third or more of
# their confidence. The mean colour leaves nothing, but adds edges that the picture did not have.
Removal = Literal["mean", "blur"]
TargetProbability = Callable[[NDArray[np.bool_]], FloatArray]  # as a function of the visible pixels (n, H, W)
GRID: Final = 8  # cells per side, the same for every family
STEPS: Final = 8  # of removal
SIGNIFICANT: Final = 0.05
_BLUR: Final = 0.125  # standard deviation as a share of the picture's sides: one cell
_RESAMPLES: Final = 2000
_FLIPS: Final = 9999


@dataclass(frozen=True)
class MapCurves:
    """The predicted category's mean probability as a map's cells are removed or inserted, most important first."""

    map: str  # a method, "<method>, of another picture", "random" or "centre"
    deletion: tuple[float, ...]  # at each share of removed cells, from 0 to 1; lower is better
    insertion: tuple[float, ...]  # at each share of inserted cells; higher is better
    deletion_area: Estimate  # under the curve, mean over pictures
    insertion_area: Estimate


@dataclass(frozen=True)
class ControlComparison:
    """One method against one control on the same pictures."""

    method: str
    control: str
    curve: Curve
    gain: Estimate  # in area, positive where the method is better
    p: float  # two-sided, of a zero mean gain
    p_holm: float  # corrected for all comparisons of this model
    verdict: str  # one sentence


@dataclass(frozen=True)
class RandomisationCheck:
    """The sanity check: how similar a method's maps are to those of the same model with shuffled weights."""

    method: str
    correlation: Estimate  # Spearman's, over cells; near 0 where maps depend on the learned weights


@dataclass(frozen=True)
class Faithfulness:
    """The faithfulness of one model's maps on n pictures."""

    family: str
    n: int
    removal: Removal
    shares: tuple[float, ...]  # of cells, where the curves were measured
    curves: tuple[MapCurves, ...]
    comparisons: tuple[ControlComparison, ...]
    randomised: tuple[RandomisationCheck, ...]


def measure_faithfulness(
    model: VisionLanguageCategoriser,
    pictures: NDArray[np.uint8],
    *,
    methods: Sequence[Method] = ("raw", "gradient"),
    steps: int = STEPS,
    removal: Removal = "mean",
    seed: int = 0,
) -> Faithfulness:
    """Measure the curves of each method's maps and of their controls over pictures (n, H, W, 3), and compare them.

    The picture is divided into 8 x 8 cells, which are removed or inserted (Petsiuk et al. 2018, arXiv 1806.07421).
    Every control is measured on the same pictures and cells: a random order, nearness to the centre, and the same
    method's map of another picture, which knows where products usually are but not what this picture shows. The sanity
    check with shuffled weights is that of Adebayo et al. 2018, arXiv 1810.03292. Raises UserError for fewer than two
    pictures.
    """
    if len(pictures) < 2:
        raise UserError("faithfulness needs at least two pictures: the map of one is compared with the map of another.")
    generator = np.random.default_rng(seed)
    targets = model.log_probabilities(pictures).argmax(axis=1)
    cells, blank = _cells(pictures.shape[1:3]), _blanked(pictures, removal)
    values = {method: _cell_values(model, pictures, targets, method, cells) for method in methods}
    ranks = {name: _ranks(of_map, generator) for name, of_map in _with_controls(values, generator).items()}
    counts = _counts(steps)
    probability = partial(_target_probability, model, pictures, blank, targets)
    ends = _ends(probability, pictures.shape[:3])
    curves = {
        name: _curves(probability, rank[:, cells], counts, ends)
        for name, rank in track(ranks.items(), "measuring deletion and insertion", len(ranks))
    }
    shares = counts / GRID**2
    areas = {name: np.asarray(np.trapezoid(curve, shares, axis=-1)) for name, curve in curves.items()}  # (2, n)
    family = model.description.family
    return Faithfulness(
        family=family,
        n=len(pictures),
        removal=removal,
        shares=tuple(shares.tolist()),
        curves=tuple(_map_curves(name, curves[name], areas[name], seed) for name in curves),
        comparisons=_compare(family, areas, methods, seed),
        randomised=tuple(_randomisation_checks(model, pictures, targets, values, cells, seed)),
    )


@dataclass(frozen=True)
class PictureCurves:
    """One picture's probability of a category as one map's cells are removed or inserted, most important first."""

    shares: tuple[float, ...]  # of cells
    deletion: tuple[float, ...]
    insertion: tuple[float, ...]


def measure_picture_curves(
    model: VisionLanguageCategoriser, picture: NDArray[np.uint8], of_map: NDArray[np.float32], target: int
) -> PictureCurves:
    """Measure the probability of `target` in a picture (H, W, 3) as the cells of a map (H, W) become the mean colour.

    One picture is an illustration, not evidence: `measure_faithfulness` gives that.
    """
    cells, counts = _cells(picture.shape[:2]), _counts(STEPS)
    ranks = _ranks(_in_cells(of_map[None], cells), np.random.default_rng(0))
    blank = _blanked(picture[None], "mean")
    probability = partial(_target_probability, model, picture[None], blank, np.array([target]))
    ends = _ends(probability, (1, *cells.shape))
    deletion, insertion = _curves(probability, ranks[:, cells], counts, ends)[:, 0].tolist()
    return PictureCurves(tuple((counts / GRID**2).tolist()), tuple(deletion), tuple(insertion))


def _blanked(pictures: NDArray[np.uint8], removal: Removal) -> NDArray[np.uint8]:
    """Return what removed cells show: each picture's mean colour, or the picture blurred."""
    from scipy.ndimage import gaussian_filter

    if removal == "mean":
        colours = pictures.mean(axis=(1, 2), keepdims=True).round().astype(np.uint8)
        return np.broadcast_to(colours, pictures.shape)
    height, width = pictures.shape[1:3]
    blurred: NDArray[np.uint8] = gaussian_filter(pictures, (0, _BLUR * height, _BLUR * width, 0), mode="nearest")
    return blurred


def _cells(size: tuple[int, ...]) -> NDArray[np.int64]:
    """Return the cell index of each pixel (H, W), row by row; where 8 does not divide a side, cells differ by one."""
    height, width = size
    rows, columns = np.arange(height) * GRID // height, np.arange(width) * GRID // width
    cells: NDArray[np.int64] = rows[:, None] * GRID + columns
    return cells


def _cell_values(
    model: VisionLanguageCategoriser,
    pictures: NDArray[np.uint8],
    targets: NDArray[np.int64],
    method: Method,
    cells: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Return the mean of each picture's map in each cell (n, 64)."""
    from vlm_core.attention.maps import explain

    return _in_cells(explain(model, pictures, method=method, target=targets), cells)


def _in_cells(maps: NDArray[np.float32], cells: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the mean of maps (n, H, W) in each cell (n, 64)."""
    counts = np.bincount(cells.ravel(), minlength=GRID**2)
    sums = np.stack([np.bincount(cells.ravel(), of_picture.ravel(), GRID**2) for of_picture in maps])
    return sums / np.maximum(counts, 1)


def _with_controls(
    values: dict[Method, NDArray[np.float64]], generator: np.random.Generator
) -> dict[str, NDArray[np.float64]]:
    """Return the cell values (n, 64) of each method, its map of another picture, a random order and the centre."""
    (n, _), *_ = (of_map.shape for of_map in values.values())
    others = np.empty(n, dtype=np.int64)
    order = generator.permutation(n)
    others[order] = np.roll(order, 1)  # one cycle through all pictures, so that none is paired with itself
    squares = (np.arange(GRID) - (GRID - 1) / 2) ** 2
    centre = -(squares[:, None] + squares).ravel()  # the order of a centred Gaussian of any width
    return {
        **{str(method): of_map for method, of_map in values.items()},
        **{f"{method}, of another picture": of_map[others] for method, of_map in values.items()},
        "random": generator.random((n, GRID**2)),
        "centre": np.tile(centre, (n, 1)),
    }


def _ranks(values: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.int64]:
    """Return the rank (n, 64) of each cell from the largest value; ties in a random order."""
    order = np.lexsort((generator.random(values.shape), -values), axis=-1)
    return np.argsort(order, axis=-1)


def _counts(steps: int) -> NDArray[np.int64]:
    """Return the number of removed cells after each step (steps + 1,), from none to all."""
    return np.round(np.linspace(0, GRID**2, steps + 1)).astype(np.int64)


def _ends(probability: TargetProbability, size: tuple[int, ...]) -> tuple[FloatArray, FloatArray]:
    """Return the probabilities for whole and for blank pictures of size (n, H, W), which all orders share."""
    return probability(np.full(size, True)), probability(np.full(size, False))


def _curves(
    probability: TargetProbability,
    ranks: NDArray[np.int64],
    counts: NDArray[np.int64],
    ends: tuple[FloatArray, FloatArray],
) -> NDArray[np.float64]:
    """Return probabilities (2, n, K) as the `counts` (K,) lowest-ranked cells of (n, H, W) are removed or inserted."""
    between, (whole, blank) = counts[1:-1], ends
    deletion = [whole, *(probability(ranks >= count) for count in between), blank]
    insertion = [blank, *(probability(ranks < count) for count in between), whole]
    return np.stack([np.stack(deletion, axis=1), np.stack(insertion, axis=1)])


def _target_probability(
    model: VisionLanguageCategoriser,
    pictures: NDArray[np.uint8],
    blank: NDArray[np.uint8],
    targets: NDArray[np.int64],
    visible: NDArray[np.bool_],
) -> FloatArray:
    """Return the probability (n,) of each picture's target with the pixels outside `visible` (n, H, W) blanked."""
    log_probabilities = model.log_probabilities(np.where(visible[..., None], pictures, blank))
    return np.exp(log_probabilities[np.arange(len(targets)), targets], dtype=np.float64)


def _map_curves(name: str, curves: NDArray[np.float64], areas: NDArray[np.float64], seed: int) -> MapCurves:
    deletion, insertion = curves.mean(axis=1).tolist()
    return MapCurves(name, tuple(deletion), tuple(insertion), _mean(areas[0], seed), _mean(areas[1], seed))


def _compare(
    family: str, areas: dict[str, NDArray[np.float64]], methods: Sequence[Method], seed: int
) -> tuple[ControlComparison, ...]:
    """Compare every method with its three controls on both curves, with p-values corrected over all by Holm."""
    comparisons = []
    for method in methods:
        for control in ("random", "centre", f"{method}, of another picture"):
            deletion, insertion = areas[control][0] - areas[method][0], areas[method][1] - areas[control][1]
            for curve, gains in (("deletion", deletion), ("insertion", insertion)):
                p = _p_value(gains, seed)
                comparisons.append(ControlComparison(method, control, curve, _mean(gains, seed), p, p, ""))  # type: ignore[arg-type]
    corrected = holm([each.p for each in comparisons])
    comparisons = [replace(each, p_holm=p) for each, p in zip(comparisons, corrected, strict=True)]
    return tuple(replace(each, verdict=_verdict(family, each)) for each in comparisons)


def _verdict(family: str, comparison: ControlComparison) -> str:
    gain = comparison.gain
    result = "not distinguishable from"
    if comparison.p_holm < SIGNIFICANT:
        result = "better than" if gain.value > 0 else "worse than"
    controls = {"random": "a random order", "centre": "nearness to the centre"}
    control = controls.get(comparison.control, "its map of another picture")
    return (
        f"{family}'s {comparison.method} map is {result} {control} on {comparison.curve} "
        f"(gain {gain.value:.3f}, 95 % interval {gain.low:.3f} to {gain.high:.3f}, p = {comparison.p_holm:.2g})"
    )


def _mean(values: NDArray[np.float64], seed: int) -> Estimate:
    """Return the mean over pictures (n,) with its bootstrap interval over pictures."""
    rows = np.random.default_rng(seed).integers(0, len(values), (_RESAMPLES, len(values)))
    return estimate(float(values.mean()), values[rows].mean(axis=1))


def _p_value(gains: NDArray[np.float64], seed: int) -> float:
    """Return the two-sided p-value of a zero mean of paired differences (n,), by sign flips, exact for small n."""
    from scipy.stats import permutation_test

    test = permutation_test(
        (gains,), np.mean, permutation_type="samples", n_resamples=_FLIPS, rng=np.random.default_rng(seed)
    )
    return float(test.pvalue)


def _randomisation_checks(
    model: VisionLanguageCategoriser,
    pictures: NDArray[np.uint8],
    targets: NDArray[np.int64],
    values: dict[Method, NDArray[np.float64]],
    cells: NDArray[np.int64],
    seed: int,
) -> list[RandomisationCheck]:
    from scipy.stats import spearmanr

    from vlm_core.models.shuffling import shuffled_weights

    shuffled = shuffled_weights(model, seed)
    checks = []
    for method, of_map in values.items():
        others = _cell_values(shuffled, pictures, targets, method, cells)
        correlations = [
            spearmanr(ours, other).statistic
            if np.ptp(ours) and np.ptp(other)
            else 0.0  # a uniform map correlates with none
            for ours, other in zip(of_map, others, strict=True)
        ]
        checks.append(RandomisationCheck(method, _mean(np.array(correlations), seed)))
    return checks
