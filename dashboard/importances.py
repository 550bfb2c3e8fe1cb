"""How much each searched setting matters, computed from the trials' runs alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

Setting = float | str
FEWEST_TRIALS: Final = 4


def importances(trials: Sequence[Mapping[str, Setting]], scores: Sequence[float]) -> dict[str, float]:
    """Return each setting's share of the score's variance, most important first; {} for fewer than four trials.

    By the random forests of fANOVA (Hutter et al. 2014, https://proceedings.mlr.press/v32/hutter14.html), as Optuna
    computes it. Settings that never varied are left out.
    """
    import optuna

    values = {name: [trial[name] for trial in trials] for name in trials[0]} if trials else {}
    varied = {name: column for name, column in values.items() if len(set(column)) > 1}
    if len(trials) < FEWEST_TRIALS or not varied or len(set(scores)) < 2:
        return {}
    distributions = {name: _distribution(column) for name, column in varied.items()}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    search = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(0))
    for trial, score in zip(trials, scores, strict=True):
        params = {name: trial[name] for name in distributions}
        search.add_trial(optuna.create_trial(params=params, distributions=dict(distributions), value=score))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return dict(optuna.importance.get_param_importances(search, evaluator=evaluator))


def _distribution(values: Sequence[Setting]) -> FloatDistribution | CategoricalDistribution:
    """Return the range of the numbers, on a log scale where all are positive, or the set of the words."""
    from optuna import distributions

    numbers = [value for value in values if not isinstance(value, str)]
    if len(numbers) < len(values):
        return distributions.CategoricalDistribution(sorted(set(map(str, values))))
    return distributions.FloatDistribution(min(numbers), max(numbers), log=min(numbers) > 0)
