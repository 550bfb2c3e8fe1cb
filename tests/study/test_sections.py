"""The report's sections: each number in its place, with the runs behind it."""

from dataclasses import replace

import pytest

from tests.dashboard.made_study import about, make_results
from vlm_core.evaluation.bootstrap import Estimate
from vlm_core.study.report_contents import RunLink, cell_texts
from vlm_core.study.results_json import read_results
from vlm_core.study.sections import make_sections

RESULTS = make_results("s", {"a": "r1", "b": "r2"})


def section(key, **changes):
    return next(each for each in make_sections(replace(RESULTS, **changes)) if each.key == key)


def texts(table):
    return [cell_texts(row) for row in table.rows]


def test_the_sections_come_in_the_order_of_the_report():
    assert [each.key for each in make_sections(RESULTS)] == [
        *("overview", "scores", "pairs", "held_out", "leak", "ablation", "faithfulness", "robustness"),
        *("calibration", "gaps", "decoding", "cost", "label_audit", "continual", "runs"),
    ]


def test_a_study_without_results_has_its_overview_alone():
    (overview,) = make_sections(read_results('{"study": "x"}'))
    assert [tile.value for tile in overview.tiles] == ["–", "0"]


def test_the_overview_counts_and_names_the_best_score_and_what_failed():
    overview = section("overview")
    assert [(tile.label, tile.value) for tile in overview.tiles] == [
        ("Runs in these results", "6 of 8"),
        ("Seeds", "2"),
        ("Categories", "3"),
        ("Best macro-F1", "clip probe"),
        ("Significant differences", "2 of 2"),
    ]
    assert overview.tiles[3].note == "0.780 (0.760 to 0.800)"
    assert overview.failures == ("git/probe/classify/holdout/0: RuntimeError: <script>alert(1)</script>",)
    assert "2 seeds." in overview.paragraphs[1]


@pytest.mark.parametrize(("p", "significant"), [(0.049, "1 of 1"), (0.05, "0 of 1")])
def test_a_pair_differs_below_five_percent(p, significant):
    pair = replace(RESULTS.pairs[0], test=replace(RESULTS.pairs[0].test, p_bootstrap_holm=p))
    assert section("overview", pairs=(pair,)).tiles[4].value == significant


def test_scores_are_best_first_and_each_row_leads_to_its_runs():
    scores, categories = section("scores").tables
    assert texts(scores)[0] == (
        *("clip probe", "2", "0.780 (0.760 to 0.800)", "0.800 (0.780 to 0.820)", "0.200", "0.700 (0.680 to 0.720)"),
        *("645", "12"),
    )
    assert [row[0] for row in texts(scores)] == ["clip probe", "blip probe", "HOG + colour"]
    assert scores.rows[0][0] == RunLink("clip probe", ("r1", "r2"))
    assert categories.columns == ("Configuration", "Accessories", "Apparel", "Free <i>Items</i>")
    (plot,) = section("scores").plots
    assert [(label, estimate.value) for label, estimate in plot.rows][:2] == [
        ("clip probe", 0.78),
        ("blip probe", 0.74),
    ]


def test_scores_under_the_leaking_protocol_are_left_to_the_leak():
    rows = (replace(RESULTS.scores[0], protocol="original"), *RESULTS.scores[1:])
    table = section("scores", scores=rows).tables[0]
    assert [row[0] for row in texts(table)] == ["blip probe", "HOG + colour"]


def test_pairs_have_their_tests_and_conclusions():
    pairs = section("pairs")
    assert texts(pairs.tables[0]) == [
        (
            *("clip probe − blip probe", "+0.040 (+0.020 to +0.060)", "+0.040", "0.010", "0.200 (0.150)"),
            *("30 : 20", "3.0"),
        )
    ]
    assert pairs.conclusions == ("clip probe beats blip probe by 4.0 points of macro-F1.",)
    assert pairs.plots[0].differences and len(pairs.plots[0].rows) == 1


def test_thin_categories_are_told_and_stand_apart():
    scores = section("scores", thin={"Free <i>Items</i>": 8}, scores=(replace(RESULTS.scores[0], macro_f1=about(0.7)),))
    assert "is of 2 of 3 categories" in scores.paragraphs[1] and "Free <i>Items</i> (8)" in scores.paragraphs[1]
    assert scores.tables[0].columns[2:4] == ("Macro-F1", "Macro-F1, all categories")
    assert texts(scores.tables[0])[0][2:4] == ("0.780 (0.760 to 0.800)", "0.700 (0.680 to 0.720)")
    assert scores.plots[0].rows[0][1] == about(0.78)
    best = section("overview", thin={"Free <i>Items</i>": 8}).tiles[3]
    assert best.note == "0.780 (0.760 to 0.800), 2 of 3 categories"


def test_all_held_out_products_have_their_scores_and_their_own_pairs():
    held_out = section("held_out")
    assert "4,000 products in the first seed (Apparel 3,900, Accessories 100)" in held_out.paragraphs[0]
    assert texts(held_out.tables[0])[0] == (
        *("clip probe", "0.700 (0.680 to 0.720)", "0.900 (0.880 to 0.920)"),
        *("0.600 (0.580 to 0.620)", "0.800 (0.780 to 0.820)"),
    )
    assert [table.title for table in held_out.tables] == ["Means over seeds with their 95 % interval", "Pairs"]
    assert len(held_out.conclusions) == 1
    assert "with more products, smaller differences show" in held_out.paragraphs[0]
    few = section("held_out", held_out=tuple(replace(row, products=5) for row in RESULTS.held_out))
    assert "more products" not in few.paragraphs[0]  # a small catalogue holds hardly more of them than the test split
    alone = section("held_out", pairs=())
    assert len(alone.tables) == 1 and alone.conclusions == ()


def test_the_leak_stands_beside_the_scores_of_both_protocols():
    leak = section("leak")
    assert texts(leak.tables[0])[3] == (
        *("clip probe", "all", "0.500 (0.480 to 0.520)", "0.800 (0.780 to 0.820)", "+0.300"),
        *("40.0%", "90.0%", "–", "60.0%"),
    )
    assert len(leak.tables[0].rows) == 8 and leak.plots[0].rows == RESULTS.leak


def test_the_ablation_has_the_mechanisms_and_their_own_pairs():
    ablation = section("ablation")
    assert [table.title for table in ablation.tables] == [
        "Mean over seeds with its 95 % interval",
        "F1 per class",
        "Pairs",
    ]
    assert [row[0] for row in texts(ablation.tables[0])] == ["attention-pool", "mean-pool"]
    assert [row[0] for row in texts(ablation.tables[2])] == ["attention-pool − mean-pool"]
    assert len(ablation.plots) == 2
    alone = section("ablation", pairs=())
    assert len(alone.plots) == 1 and alone.conclusions == () and len(alone.paragraphs) == 1
    assert "of an earlier version" in alone.paragraphs[0]  # no cell of it names its tower


def _mechanism(name, label, rates=()):
    row = next(row for row in RESULTS.scores if row.kind == "mechanism")
    configuration = f"mechanism/{name}@clip/classify/holdout"
    named = {"configuration": configuration, "label": label, "model": "mechanism", "learning_rates": rates}
    return replace(row, **named)


def test_controls_stand_beside_their_mechanisms_and_one_paragraph_says_what_they_change():
    pair = next(pair for pair in RESULTS.pairs if pair.group == "mechanisms")  # 4 points, p = 0.01, 3 detectable
    main = replace(pair, a="attention-pool", b="mean-pool")
    controls = [
        replace(pair, group="controls", a="attention-pool", b="attention-pool, patches only"),
        replace(
            pair,
            group="controls",
            a="cross-attention, one head row, own names",
            b="cross-attention, one head row, random names",
            test=replace(pair.test, difference=Estimate(-0.01, -0.02, 0.01), p_bootstrap_holm=0.4),
        ),
    ]
    attention, mean = (
        _mechanism("attention-pool-all", "attention-pool", (1e-3, 1e-2)),
        _mechanism("mean-pool-all", "mean"),
    )
    ablation = section("ablation", scores=(attention, mean), pairs=(main, *controls))
    _, said, rates, *_ = ablation.paragraphs
    assert said == (
        "Of 1 pair of mechanisms that read every token, 1 differs significantly in macro-F1; the largest difference is "
        "4.0 points, and 3.0 points would be found in four of five cases. A mechanism without the class token scores "
        "4.0 points less on average (1 compared, of which 1 differs significantly). A mechanism with random vectors "
        "for names scores 1.0 points more on average (1 compared, of which 0 differ significantly). This is one tower: "
        "another may give another result."
    )
    assert rates.endswith("from 0.0001 to 0.01, and the smallest or largest in 1 of 2 runs.")
    assert [table.title for table in ablation.tables][2:] == ["Pairs", "Controls, each beside its mechanism"]
    assert len(texts(ablation.tables[3])) == 2 and len(ablation.conclusions) == 3


def test_every_configuration_names_its_runs():
    (table,) = section("runs").tables
    assert texts(table)[0] == ("clip probe", "holdout", "0: r1, 1: r2") and len(table.rows) == 5
    assert {row[1] for row in texts(table)} <= {"holdout", "original (leaks)"}


def test_the_best_score_is_that_of_a_baseline_where_one_is_best():
    rows = (*RESULTS.scores, replace(RESULTS.scores[2], label="5-NN, clip features", headline_macro_f1=about(0.823)))
    tile = section("overview", scores=rows).tiles[3]
    assert (tile.label, tile.value) == ("Best macro-F1", "5-NN, clip features")


def test_a_baseline_on_the_features_of_a_probe_does_not_link_to_the_probes_runs():
    row = replace(RESULTS.scores[0], configuration="majority/clip/probe/classify/holdout", label="majority")
    scores, categories = section("scores", scores=(row, *RESULTS.scores)).tables
    runs = section("runs", scores=(row,)).tables[0]
    for table in (scores, categories, runs):
        named = {cell_texts(line)[0]: line[0] for line in table.rows}
        assert named["majority"].run_ids == ()


@pytest.mark.parametrize("difference", [0.04, -0.04])
def test_a_pair_has_one_direction_in_its_table_its_plot_and_its_sentence(difference):
    pair = RESULTS.pairs[0]
    test = replace(
        pair.test, difference=about(difference), over_seeds=about(difference), only_a_correct=5, only_b_correct=33
    )
    pairs = section("pairs", pairs=(replace(pair, test=test),))
    better, worse = (pair.a, pair.b) if difference > 0 else (pair.b, pair.a)
    (cells,) = texts(pairs.tables[0])
    assert cells[:3] == (f"{better} \u2212 {worse}", "+0.040 (+0.020 to +0.060)", "+0.040 (+0.020 to +0.060)")
    assert cells[5] == ("5 : 33" if difference > 0 else "33 : 5")
    (label, estimate), *_ = pairs.plots[0].rows
    assert label == cells[0] and estimate.value == pytest.approx(0.04)


def test_given_parts_are_said_to_be_the_same_in_all_seeds():
    rows = tuple(replace(row, protocol="given") for row in RESULTS.scores if row.protocol == "holdout")
    changes = {"settings": {**RESULTS.settings, "protocols": "given", "seeds": "5"}, "scores": rows}
    overview = section("overview", **changes)
    assert "the parts are those that the catalogue has, the same in all seeds" in overview.paragraphs[1]
    assert "of a split" not in overview.paragraphs[1] and overview.tiles[1].note == "all on the given parts"
    assert len(section("ablation", **changes).tables[0].rows) == 2
    assert {row[1] for row in texts(section("runs", **changes).tables[0])} == {"given"}


def test_few_seeds_are_said_to_be_too_few():
    assert "2 seeds are too few" in " ".join(section("scores").paragraphs)
    assert section("overview").tiles[1].note == "too few for intervals"
    enough = tuple(replace(row, seeds=(0, 1, 2, 3, 4), run_ids=tuple("abcde")) for row in RESULTS.scores)
    assert "too few" not in " ".join(section("scores", scores=enough).paragraphs)
    assert (
        section("overview", settings={**RESULTS.settings, "seeds": "5"}).tiles[1].note == "each with a split of its own"
    )
