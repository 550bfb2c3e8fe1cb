"""Which searched settings a score depended on, from trials alone, wherever these were kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

FEWEST: int = 4  # trials that can say anything


def importances(trials: Sequence[Mapping[str, float | str]], scores: Sequence[float]) -> dict[str, float]:
    """Each setting's share of the score's variance, most important first; {} for fewer than four trials.

    By the random forests of fANOVA (Hutter et al. 2014, https://proceedings.mlr.press/v32/hutter14.html), as Optuna
    computes it. Settings that never varied are left out.
    """
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    values = {name: [trial[name] for trial in trials] for name in trials[0]} if trials else {}
    varied = {name: each for name, each in values.items() if len(set(each)) > 1}
    if len(trials) < FEWEST or not varied or len(set(scores)) < 2:
        return {}
    ranges: dict[str, FloatDistribution | CategoricalDistribution] = {}
    for name, each in varied.items():
        numbers = [value for value in each if not isinstance(value, str)]
        if len(numbers) == len(each):
            ranges[name] = FloatDistribution(min(numbers), max(numbers), log=min(numbers) > 0)
        else:
            ranges[name] = CategoricalDistribution(sorted(set(map(str, each))))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(0))
    for trial, score in zip(trials, scores, strict=True):
        given = {name: trial[name] for name in ranges}
        study.add_trial(optuna.create_trial(params=given, distributions=dict(ranges), value=score))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))
