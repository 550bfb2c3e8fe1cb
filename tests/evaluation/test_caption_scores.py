"""Caption scores against hand-worked examples."""

import math

import pytest

from vlm_core.evaluation.caption_scores import caption_scores, named_value

COLUMNS = ("gender", "colour", "kind")


def test_attributes_are_compared_as_whole_words_and_the_longest_counts():
    assert named_value("men navy blue shirts", ["blue", "navy blue", "men", "shirts"]) == "navy blue"
    assert named_value("women red tops", ["men", "women"]) == "women"
    assert named_value("a T-Shirt, for men", ["t shirt", "shirt"]) == "t shirt"
    assert named_value("nothing known", ["blue"]) == "" and named_value("", ["blue"]) == ""
    assert named_value("red and tan", ["tan", "red"]) == "red"


def test_shares_are_of_the_products_whose_value_is_known():
    truths = [("men", "navy blue", "shirts"), ("women", "", "tops"), ("men", "blue", "shirts")]
    texts = ["men navy blue shirts", "women red tops", "men navy blue tops"]
    scores = caption_scores(texts, truths, COLUMNS)
    assert scores["gender"] == 1.0
    assert scores["colour"] == 0.5  # the second has no colour, the third is called navy blue
    assert scores["kind"] == pytest.approx(2 / 3)
    assert scores["all"] == 0.5  # of the two whose values are all known


def test_bleu_of_the_right_words_is_one_and_of_none_is_zero():
    truths = [("men", "navy blue", "shirts")] * 2
    assert caption_scores(["men navy blue shirts"] * 2, truths, COLUMNS)["bleu"] == pytest.approx(1.0)
    assert caption_scores(["a b c d"] * 2, truths, COLUMNS)["bleu"] == 0.0


def test_what_nobody_knows_has_no_score():
    assert math.isnan(caption_scores(["x"], [("", "", "")], COLUMNS)["colour"])
