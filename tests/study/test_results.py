from dataclasses import replace

import pytest

from vlm_core.evaluation.bootstrap import Estimate
from vlm_core.evaluation.seed_comparison import SeedComparison
from vlm_core.study.results import PairRow, ScoreRow, is_simple_baseline

LOSES = SeedComparison(
    seeds=2,
    rows=40,
    products=30,
    only_a_correct=3,
    only_b_correct=8,
    p_mcnemar=0.2,
    p_mcnemar_mid=0.1,
    p_mcnemar_holm=0.4,
    p_mcnemar_mid_holm=0.2,
    difference=Estimate(-0.1, -0.2, 0.05),
    p_bootstrap=0.3,
    p_bootstrap_holm=0.6,
    over_seeds=Estimate(-0.1, -0.4, 0.2),
    differences=(-0.15, -0.05),
    detectable_macro_f1=0.1,
    detectable_accuracy=0.1,
)


def test_the_better_configuration_of_a_pair_comes_first_with_its_numbers() -> None:
    row = PairRow("families", "clip", "git", LOSES, "git is better than clip").better_first()
    assert (row.a, row.b) == ("git", "clip")
    assert row.test.difference == Estimate(0.1, -0.05, 0.2)
    assert row.test.over_seeds == Estimate(0.1, -0.2, 0.4)
    assert (row.test.only_a_correct, row.test.only_b_correct) == (8, 3)
    assert row.test.differences == (0.15, 0.05)
    assert row.better_first() == row


@pytest.mark.parametrize(
    ("configuration", "simple"),
    [("clip/probe/classify/holdout", False), ("majority/clip/probe/classify/holdout", True)],
)
def test_a_simple_baseline_is_named_before_its_probe(configuration: str, simple: bool) -> None:
    nothing = Estimate(0.5, 0.4, 0.6)
    row = ScoreRow(
        configuration=configuration,
        label="any",
        model="clip",
        kind="baseline",
        protocol="holdout",
        seeds=(0,),
        run_ids=("a",),
        test_products=30,
        headline_macro_f1=nothing,
        macro_f1=nothing,
        accuracy=nothing,
        worst_recall=nothing,
        natural_macro_f1=nothing,
        per_category={},
        weights=0,
        weights_trained=0,
        train_seconds=0.0,
        learning_rates=(),
    )
    assert is_simple_baseline(row) is simple
    assert is_simple_baseline(replace(row, kind="family")) is simple  # the configuration alone decides
