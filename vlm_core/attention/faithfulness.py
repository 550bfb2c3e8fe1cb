"""Whether a map says what the model goes by: deletion and insertion against maps that know nothing of the picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from numpy.typing import NDArray

from vlm_core.arrays import FloatArray
from vlm_core.errors import UserError
from vlm_core.evaluation.bootstrap import Estimate, estimate
from vlm_core.progress import track

if TYPE_CHECKING:
    from vlm_core.attention.maps import Method
    from vlm_core.models.categoriser import VisionLanguageCategoriser

Curve = Literal["deletion", "insertion"]
# A blurred picture still shows its colours and outline: of the real catalogue's products the tiny models then keep a
# third of their certainty and more. Its mean colour leaves none, but makes edges that no picture had.
Removal = Literal["mean", "blur"]
Certainty = Callable[[NDArray[np.bool_]], FloatArray]  # of the model where the pixels (n, H, W) are shown
GRID: Final = 8  # cells a side that go and come, the same for every family
STEPS: Final = 8  # in which they go
SIGNIFICANT: Final = 0.05
_BLUR: Final = 0.125  # standard deviation as a share of the picture's sides, which is a cell's
_RESAMPLES: Final = 2000
_FLIPS: Final = 9999


@dataclass(frozen=True)
class MapCurves:
    """The predicted category's mean probability as a map's cells are removed, most important first, or come back."""

    map: str  # a method, "<method>, of another picture", "random" or "centre"
    deletion: tuple[float, ...]  # at each share of cells removed, from 0 to 1; low where the map is right
    insertion: tuple[float, ...]  # at each share of cells that came back; high where the map is right
    deletion_area: Estimate  # under the curve, mean over pictures
    insertion_area: Estimate


@dataclass(frozen=True)
class ControlComparison:
    """One method against one control on the same pictures."""

    method: str
    control: str
    curve: Curve
    gain: Estimate  # of area, positive where the method is the better one
    p: float  # two-sided, of a mean gain of zero
    p_holm: float  # corrected for all comparisons of this model
    verdict: str  # in words


@dataclass(frozen=True)
class RandomisationCheck:
    """How like a method's map is to that of the same model with shuffled weights."""

    method: str
    correlation: Estimate  # Spearman's, over cells; near 0 where the map comes from what was learnt


@dataclass(frozen=True)
class Faithfulness:
    """What the maps of one model are worth, on so many pictures."""

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
    """Curves of each method's maps and of their controls over pictures (n, H, W, 3), and what tells them apart.

    The picture is cut into 8 x 8 cells, of which some are removed. Petsiuk et al. 2018, arXiv 1806.07421.
    Every control is measured on the same pictures and cells: a random order, nearness to the centre, and the same
    method's map of another picture, which knows where products lie but not what this picture shows. Shuffled weights
    are the check of Adebayo et al. 2018, arXiv 1810.03292. Raises UserError for fewer than two pictures.
    """
    if len(pictures) < 2:
        raise UserError("faithfulness needs two pictures at least: one picture's map is compared with another's.")
    generator = np.random.default_rng(seed)
    targets = model.log_probabilities(pictures).argmax(axis=1)
    cells, blank = _cells(pictures.shape[1:3]), _blanked(pictures, removal)
    values = {method: _cell_values(model, pictures, targets, method, cells) for method in methods}
    ranks = {name: _ranks(of_map, generator) for name, of_map in _with_controls(values, generator).items()}
    counts = _counts(steps)
    certainty = partial(_certainty, model, pictures, blank, targets)
    ends = _ends(certainty, pictures.shape[:3])
    curves = {
        name: _curves(certainty, rank[:, cells], counts, ends)
        for name, rank in track(ranks.items(), "removing what maps point to", len(ranks))
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
        randomised=tuple(_randomised(model, pictures, targets, values, cells, seed)),
    )


@dataclass(frozen=True)
class PictureCurves:
    """One picture's probability of a category as one map's cells go or come back, most important first."""

    shares: tuple[float, ...]  # of cells
    deletion: tuple[float, ...]
    insertion: tuple[float, ...]


def measure_picture_curves(
    model: VisionLanguageCategoriser, picture: NDArray[np.uint8], of_map: NDArray[np.float32], target: int
) -> PictureCurves:
    """What becomes of the category `target` in a picture (H, W, 3) as the cells of a map (H, W) get the mean colour.

    One picture is an illustration, not evidence: that is what `measure_faithfulness` gives.
    """
    cells, counts = _cells(picture.shape[:2]), _counts(STEPS)
    ranks = _ranks(_in_cells(of_map[None], cells), np.random.default_rng(0))
    certainty = partial(_certainty, model, picture[None], _blanked(picture[None], "mean"), np.array([target]))
    ends = _ends(certainty, (1, *cells.shape))
    deletion, insertion = _curves(certainty, ranks[:, cells], counts, ends)[:, 0].tolist()
    return PictureCurves(tuple((counts / GRID**2).tolist()), tuple(deletion), tuple(insertion))


def _blanked(pictures: NDArray[np.uint8], removal: Removal) -> NDArray[np.uint8]:
    """What removed cells show: each picture's mean colour, or the picture blurred."""
    from scipy.ndimage import gaussian_filter

    if removal == "mean":
        colours = pictures.mean(axis=(1, 2), keepdims=True).round().astype(np.uint8)
        return np.broadcast_to(colours, pictures.shape)
    height, width = pictures.shape[1:3]
    blurred: NDArray[np.uint8] = gaussian_filter(pictures, (0, _BLUR * height, _BLUR * width, 0), mode="nearest")
    return blurred


def _cells(size: tuple[int, ...]) -> NDArray[np.int64]:
    """Which cell, counted row by row, each pixel (H, W) lies in; cells of a side that no grid divides differ by one."""
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
    """The mean of each picture's map in each cell (n, 64)."""
    from vlm_core.attention.maps import explain

    return _in_cells(explain(model, pictures, method=method, target=targets), cells)


def _in_cells(maps: NDArray[np.float32], cells: NDArray[np.int64]) -> NDArray[np.float64]:
    """The mean of maps (n, H, W) in each cell (n, 64)."""
    counts = np.bincount(cells.ravel(), minlength=GRID**2)
    sums = np.stack([np.bincount(cells.ravel(), of_picture.ravel(), GRID**2) for of_picture in maps])
    return sums / np.maximum(counts, 1)


def _with_controls(
    values: dict[Method, NDArray[np.float64]], generator: np.random.Generator
) -> dict[str, NDArray[np.float64]]:
    """The values (n, 64) of each method, of its map of another picture, of no map at all and of the centre."""
    (n, _), *_ = (of_map.shape for of_map in values.values())
    others = np.empty(n, dtype=np.int64)
    drawn = generator.permutation(n)
    others[drawn] = np.roll(drawn, 1)  # one cycle through all pictures: none meets its own
    from_centre = (np.arange(GRID) - (GRID - 1) / 2) ** 2
    centre = -(from_centre[:, None] + from_centre).ravel()  # ordered as a Gaussian of any width
    return {
        **{str(method): of_map for method, of_map in values.items()},
        **{f"{method}, of another picture": of_map[others] for method, of_map in values.items()},
        "random": generator.random((n, GRID**2)),
        "centre": np.tile(centre, (n, 1)),
    }


def _ranks(values: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.int64]:
    """The place (n, 64) of each cell in the order from the largest value; equal ones in a random order."""
    order = np.lexsort((generator.random(values.shape), -values), axis=-1)
    return np.argsort(order, axis=-1)


def _counts(steps: int) -> NDArray[np.int64]:
    """How many cells are gone after each step (steps + 1,), from none to all."""
    return np.round(np.linspace(0, GRID**2, steps + 1)).astype(np.int64)


def _ends(certainty: Certainty, size: tuple[int, ...]) -> tuple[FloatArray, FloatArray]:
    """What is certain of whole pictures and of blank ones of size (n, H, W): there all orders begin and end."""
    return certainty(np.full(size, True)), certainty(np.full(size, False))


def _curves(
    certainty: Certainty, ranks: NDArray[np.int64], counts: NDArray[np.int64], ends: tuple[FloatArray, FloatArray]
) -> NDArray[np.float64]:
    """Probabilities (2, n, K) as pixels of cells with the lowest ranks (n, H, W) go, `counts` (K,) of them, or come."""
    between, (whole, nothing) = counts[1:-1], ends
    deletion = [whole, *(certainty(ranks >= count) for count in between), nothing]
    insertion = [nothing, *(certainty(ranks < count) for count in between), whole]
    return np.stack([np.stack(deletion, axis=1), np.stack(insertion, axis=1)])


def _certainty(
    model: VisionLanguageCategoriser,
    pictures: NDArray[np.uint8],
    blank: NDArray[np.uint8],
    targets: NDArray[np.int64],
    shown: NDArray[np.bool_],
) -> FloatArray:
    """The probability (n,) of each picture's target where only the pixels `shown` (n, H, W) are the picture's own."""
    answers = model.log_probabilities(np.where(shown[..., None], pictures, blank))
    return np.exp(answers[np.arange(len(answers)), targets], dtype=np.float64)


def _map_curves(name: str, curves: NDArray[np.float64], areas: NDArray[np.float64], seed: int) -> MapCurves:
    deletion, insertion = curves.mean(axis=1).tolist()
    return MapCurves(name, tuple(deletion), tuple(insertion), _mean(areas[0], seed), _mean(areas[1], seed))


def _compare(
    family: str, areas: dict[str, NDArray[np.float64]], methods: Sequence[Method], seed: int
) -> tuple[ControlComparison, ...]:
    """Every method against its three controls on both curves, with p-values corrected by Holm's method over all."""
    from statsmodels.stats.multitest import multipletests

    found = []
    for method in methods:
        for control in ("random", "centre", f"{method}, of another picture"):
            less_left, more_back = areas[control][0] - areas[method][0], areas[method][1] - areas[control][1]
            for curve, gains in (("deletion", less_left), ("insertion", more_back)):
                p = _p_value(gains, seed)
                found.append(ControlComparison(method, control, curve, _mean(gains, seed), p, p, ""))  # type: ignore[arg-type]
    corrected = multipletests([comparison.p for comparison in found], method="holm")[1]
    found = [replace(comparison, p_holm=float(p)) for comparison, p in zip(found, corrected, strict=True)]
    return tuple(replace(comparison, verdict=_verdict(family, comparison)) for comparison in found)


def _verdict(family: str, comparison: ControlComparison) -> str:
    gain = comparison.gain
    word = "no better than"
    if comparison.p_holm < SIGNIFICANT:
        word = "better than" if gain.value > 0 else "worse than"
    controls = {"random": "a random order", "centre": "nearness to the centre"}
    control = controls.get(comparison.control, "its map of another picture")
    return (
        f"{family}'s {comparison.method} map is {word} {control} at {comparison.curve} "
        f"(gain {gain.value:.3f}, 95 % interval {gain.low:.3f} to {gain.high:.3f}, p = {comparison.p_holm:.2g})"
    )


def _mean(values: NDArray[np.float64], seed: int) -> Estimate:
    """The mean over pictures (n,) with its interval from resampled pictures."""
    drawn = np.random.default_rng(seed).integers(0, len(values), (_RESAMPLES, len(values)))
    return estimate(float(values.mean()), values[drawn].mean(axis=1))


def _p_value(gains: NDArray[np.float64], seed: int) -> float:
    """Of a mean of zero, two-sided: signs of paired differences (n,) are flipped, in all ways where they are few."""
    from scipy.stats import permutation_test

    test = permutation_test(
        (gains,), np.mean, permutation_type="samples", n_resamples=_FLIPS, rng=np.random.default_rng(seed)
    )
    return float(test.pvalue)


def _randomised(
    model: VisionLanguageCategoriser,
    pictures: NDArray[np.uint8],
    targets: NDArray[np.int64],
    values: dict[Method, NDArray[np.float64]],
    cells: NDArray[np.int64],
    seed: int,
) -> list[RandomisationCheck]:
    from scipy.stats import spearmanr

    from vlm_core.models.shuffling import shuffled_weights

    unlearnt = shuffled_weights(model, seed)
    found = []
    for method, of_map in values.items():
        others = _cell_values(unlearnt, pictures, targets, method, cells)
        correlations = [
            spearmanr(ours, other).statistic if np.ptp(ours) and np.ptp(other) else 0.0  # an even map agrees with none
            for ours, other in zip(of_map, others, strict=True)
        ]
        found.append(RandomisationCheck(method, _mean(np.array(correlations), seed)))
    return found
