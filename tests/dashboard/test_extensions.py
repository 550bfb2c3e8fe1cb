"""What a page says of a run that learnt more."""

from dashboard.extensions import extension_of_run

ROW = {
    "tags.extends": "0123456789abcdef",
    "tags.new_categories": "Belts, Hats",
    "params.method": "head",
    "metrics.old_macro_f1_before": 0.8,
    "metrics.old_macro_f1_after": 0.75,
    "metrics.forgetting": 0.05,
    "metrics.forgetting_low": 0.01,
    "metrics.forgetting_high": 0.09,
}


def test_what_was_learnt_and_forgotten_is_said():
    assert extension_of_run(ROW) == (
        "By head from run 01234567: Belts, Hats. Macro-F1 of the old categories on their old test products: 0.800 "
        "before, 0.750 after; lost +0.050 (+0.010 to +0.090)."
    )


def test_what_is_not_known_is_said_and_other_runs_say_nothing():
    missing = float("nan")  # where other runs of the table have a value
    unmeasured = extension_of_run({**ROW, "metrics.forgetting": missing, "tags.new_categories": ""})
    assert "more products of its categories" in unmeasured and "could not be measured" in unmeasured
    assert extension_of_run({}) == extension_of_run({"tags.extends": missing}) == ""
