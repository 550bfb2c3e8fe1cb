"""Which products may be pretrained on: fixed by the id, near-copies on the seen side, and carried by the weights."""

import hashlib
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_core.catalogue.exposure import (
    RULE,
    Exposure,
    allowed_for_pretraining,
    may_have_seen,
    record_exposure,
    reserved_for_evaluation,
    split_for_pretraining,
)

IDS = pd.Series([str(number) for number in range(20_000, 40_000)])
ALONE = np.arange(len(IDS))


def test_three_quarters_may_be_pretrained_on_by_the_first_byte_of_the_ids_hash():
    allowed = allowed_for_pretraining(IDS)
    assert 0.74 < allowed.mean() < 0.76
    by_hand = [hashlib.blake2b(name.encode(), digest_size=8).digest()[0] < 192 for name in IDS]
    assert allowed.tolist() == by_hand


def test_the_side_of_an_id_depends_on_nothing_else():
    shuffled = IDS.sample(frac=0.5, random_state=1)
    assert allowed_for_pretraining(shuffled).tolist() == allowed_for_pretraining(IDS)[shuffled.index].tolist()


def test_alone_each_product_has_its_own_side():
    assert (reserved_for_evaluation(IDS, ALONE) == ~allowed_for_pretraining(IDS)).all()


@pytest.mark.slow
@given(st.lists(st.integers(0, 30), min_size=1, max_size=80))
def test_near_copies_across_the_border_are_on_the_seen_side(groups):
    groups = np.array(groups)
    ids = IDS.iloc[: len(groups)]
    kept, allowed = reserved_for_evaluation(ids, groups), allowed_for_pretraining(ids)
    learnt, scored = split_for_pretraining(ids, groups)
    for group in np.unique(groups):
        members = groups == group
        assert kept[members].all() == (not allowed[members].any()) and kept[members].any() == kept[members].all()
    assert not kept[learnt].any() and not kept[scored].any()
    assert allowed[learnt].all() and allowed[scored].all()
    assert not set(groups[learnt]) & set(groups[scored])
    assert sorted([*learnt, *scored]) == np.flatnonzero(allowed).tolist()


def test_a_sixteenth_scores_pretraining():
    learnt, scored = split_for_pretraining(IDS, ALONE)
    assert 0.05 < len(scored) / (len(learnt) + len(scored)) < 0.08


def test_weights_of_another_rule_may_have_seen_everything():
    assert may_have_seen("every second id", IDS, ALONE).all()
    assert may_have_seen(RULE, IDS, ALONE).mean() < 0.8


def test_an_exposure_is_read_as_it_was_written(tmp_path):
    exposure = record_exposure("shop", "cafe", IDS)
    exposure.write(tmp_path)
    assert Exposure.read(tmp_path) == exposure
    assert exposure == record_exposure("shop", "cafe", IDS.sample(frac=1, random_state=0))
    assert exposure.products_fingerprint != record_exposure("shop", "cafe", IDS.iloc[1:]).products_fingerprint
    assert Exposure.read(tmp_path / "nowhere") is None


@pytest.mark.parametrize("content", ["{}", '{"rule": "x", "more": 1}', "[1]", "{"])
def test_an_exposure_of_another_form_is_refused(tmp_path, content):
    (tmp_path / "exposure.json").write_text(content)
    with pytest.raises(ValueError, match=r"exposure\.json"):
        Exposure.read(tmp_path)


def test_weights_that_go_on_from_others_have_seen_what_those_saw():
    first = record_exposure("a", "1", IDS.iloc[:5])
    second = record_exposure("b", "2", IDS.iloc[5:9], before=[first])
    assert second.rule == RULE and [before.catalogue for before in second.before] == ["a"]
    strange = Exposure("another rule", "c", "3", 1, "x")
    assert may_have_seen(record_exposure("b", "2", IDS, before=[strange]).rule, IDS, ALONE).all()
    third = record_exposure("d", "4", IDS, before=[second])
    assert [before.catalogue for before in third.before] == ["b", "a"]
    assert json.dumps([before.catalogue for before in third.before])
