"""Each kind of leak has its own sentence."""

from math import nan

import pandas as pd
import pytest

from dashboard.leaks import Leak, leak_of_run, leak_of_split, mark_unmasked, percent


@pytest.mark.parametrize(
    ("leak", "said", "unsaid"),
    [
        (Leak(True, 0.0, 0.0084, "holdout"), ["0.8% of the evaluated products in pretraining"], ["appear in training"]),
        (
            Leak(True, 0.312, 0.0, "original"),
            ["31.2% of the evaluated products", "appear in training"],
            ["pretraining"],
        ),
        (Leak(True, 0.1, 0.2, "original"), ["10.0%", "appear in training", "20.0%", "pretraining"], []),
        (Leak(True, nan, nan, "original"), ["not logged"], ["appear in training"]),
        (Leak(True, 0.0, 0.0, "original"), ["original can leak, but no"], ["memorisation"]),
        (Leak(False, 0.0, 0.0, "holdout"), ["No evaluated product"], ["memorisation"]),
    ],
)
def test_each_kind_of_leak_has_its_own_sentence(leak, said, unsaid):
    text = " ".join(leak.sentences())
    assert all(part in text for part in said) and not any(part in text for part in unsaid)


def test_a_run_that_does_not_say_that_it_is_honest_counts_as_leaking():
    assert leak_of_run({}).leaking and not leak_of_run({"tags.leaking": "false", "tags.leakage": "0.0"}).leaking
    run = leak_of_run({"tags.leaking": "true", "tags.leakage": "0.0", "tags.leakage_pretraining": "0.0084"})
    split = {"leaking": True, "protocol": "holdout", "leakage": {"near": 0.0, "pretraining": 0.0084}}
    assert run.sentences() == leak_of_split(split).sentences()


@pytest.mark.parametrize(("share", "text"), [(0.0, "0.0%"), (0.0001, "< 0.1%"), (0.0084, "0.8%"), (nan, "–")])
def test_a_small_share_is_not_rounded_to_nothing(share, text):
    assert percent(share) == text


def test_a_run_on_unmasked_texts_says_so_in_its_name_on_every_page():
    table = pd.DataFrame(
        {
            "name": ["a", "b", "c", "d"],
            "params.inputs": ["image+text", "text", "image", nan],
            "params.mask_label_words": ["False", "True", "False", nan],
        }
    )
    assert mark_unmasked(table)["name"].tolist() == ["UNMASKED texts · a", "b", "c", "d"]
    before = table[["name"]]  # a store of earlier versions
    assert mark_unmasked(before)["name"].tolist() == ["a", "b", "c", "d"]
