"""Heads of several label levels: paths by hand and by counting them all, what is learnt, and what is saved."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from tests.evaluation.test_hierarchy import CROSSED, TREE
from tests.models.families import CATEGORIES, make_categoriser, make_tiny
from vlm_core.evaluation.hierarchy import Hierarchy
from vlm_core.models.categoriser import Description, VisionLanguageCategoriser
from vlm_core.models.level_heads import LevelsHead
from vlm_core.training.balance import LevelTargets


def _head(hierarchy, *probabilities):
    """A head whose levels have these probabilities for the feature 1."""
    head = LevelsHead(1, hierarchy, "fused")
    with torch.no_grad():
        for linear, row in zip(head.linears, probabilities, strict=True):
            linear.weight.zero_()
            linear.bias.copy_(torch.tensor(row).log())
    return head


FEATURE = (torch.ones(1, 1),)


def test_the_rule_multiplies_what_all_levels_say_of_a_path():
    # own: Clothes .4, Shoes .6; Boot .3, Shirt .5, Trousers .2
    head = _head(TREE, [0.4, 0.6], [0.3, 0.5, 0.2])
    # Shoes, Boot: .6 * .3 = .18; Clothes, Shirt: .4 * .5 = .2; Clothes, Trousers: .4 * .2 = .08; in all .46
    np.testing.assert_allclose(head.log_probabilities(FEATURE).exp().detach()[0], np.array([18, 20, 8]) / 46, rtol=1e-5)
    scores = head.scores(FEATURE)
    assert scores.own.tolist() == [[1, 1]] and scores.chosen.tolist() == [[0, 1]]  # Shoes and Shirt; Clothes and Shirt
    np.testing.assert_allclose(scores.confidence.detach(), [[28 / 46, 20 / 46]], rtol=1e-5)


def test_of_several_parents_the_likeliest_is_chosen():
    # Men .7, Women .3; Dress .2, Shirt .8. Men, Shirt: .56; Women, Shirt: .24; Women, Dress: .06; in all .86
    head = _head(CROSSED, [0.7, 0.3], [0.2, 0.8])
    np.testing.assert_allclose(head.log_probabilities(FEATURE).exp().detach()[0], [6 / 86, 80 / 86], rtol=1e-5)
    assert head.scores(FEATURE).chosen.tolist() == [[0, 1]]


@st.composite
def _hierarchies(draw):
    sizes = draw(st.lists(st.integers(2, 4), min_size=2, max_size=3))
    products = draw(st.lists(st.tuples(*(st.integers(-1, size - 1) for size in sizes)), min_size=1, max_size=12))
    names = [tuple(f"{level}{index}" for index in range(size)) for level, size in enumerate(sizes)]
    return Hierarchy.learn([f"l{level}" for level in range(len(sizes))], names, np.array(products))


@given(_hierarchies(), st.integers(0, 100), st.sampled_from([1.0, 30.0, 3000.0]))
def test_predictions_are_consistent_and_probabilities_sum_to_one(hierarchy, seed, scale):
    torch.manual_seed(seed)
    head = LevelsHead(3, hierarchy, "fused")
    state = (scale * torch.randn(5, 3),)
    scores = head.scores(state)
    assert hierarchy.is_consistent(scores.chosen.numpy()).all()
    assert torch.isfinite(scores.log_probabilities).all()
    np.testing.assert_allclose(scores.log_probabilities.double().exp().sum(dim=1).detach(), 1, atol=1e-4)
    assert (scores.chosen[:, -1] == scores.log_probabilities.argmax(dim=1)).all()


@given(_hierarchies(), st.integers(0, 100))
def test_probabilities_are_those_of_all_paths_that_stand_together(hierarchy, seed):
    torch.manual_seed(seed)
    head = LevelsHead(3, hierarchy, "fused")
    state = (torch.randn(1, 3),)
    own = [scores.detach().exp()[0] for scores in head.own(state)]
    paths = np.array(list(product(*(range(len(names)) for names in hierarchy.categories))))
    weights = np.array([np.prod([float(own[level][index]) for level, index in enumerate(path)]) for path in paths])
    weights *= hierarchy.is_consistent(paths)
    shares = [
        np.bincount(column, weights, len(names)) / weights.sum()
        for column, names in zip(paths.T, hierarchy.categories, strict=True)
    ]
    scores = head.scores(state)
    np.testing.assert_allclose(scores.log_probabilities.exp().detach()[0], shares[-1], rtol=1e-4, atol=1e-9)
    expected = [share[index] for share, index in zip(shares, scores.chosen[0], strict=True)]
    np.testing.assert_allclose(scores.confidence.detach()[0], expected, rtol=1e-4)


def test_the_loss_is_the_sum_of_the_levels_over_products_whose_category_is_known():
    torch.manual_seed(0)
    head = LevelsHead(3, TREE, "fused")
    state = (torch.randn(3, 3),)
    labels = torch.tensor([[0, 1], [-1, 0], [1, 0]])
    loss, log_probabilities = head.loss(state, labels)
    first, second = (linear(state[0]) for linear in head.linears)
    expected = functional.cross_entropy(first[[0, 2]], labels[[0, 2], 0]) + functional.cross_entropy(
        second, labels[:, 1]
    )
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    assert not log_probabilities.requires_grad
    loss.backward()
    assert all(linear.weight.grad.abs().sum() > 0 for linear in head.linears)
    none = head.loss(state, torch.tensor([[-1, -1]] * 3))[0]
    assert float(none) == 0


def test_each_level_is_balanced_by_its_own_shares():
    labels = np.array([[0, 0], [0, 0], [0, 1], [1, 1], [-1, 1]])
    targets = LevelTargets.of("weights", labels, np.arange(5), (2, 2))
    np.testing.assert_allclose(targets.losses[0].weights, [2 / 3, 2])
    np.testing.assert_allclose(targets.losses[1].weights, [5 / 4, 5 / 6])
    assert LevelTargets.of("none", labels, np.arange(5), (2, 2)).losses == (None, None)
    head = _head(Hierarchy.learn(("a", "b"), (("x", "y"), ("p", "q")), labels), [0.5, 0.5], [0.5, 0.5])
    loss, _ = head.loss((torch.ones(2, 1),), torch.tensor([[0, 0], [1, 1]]), targets.losses)
    assert float(loss) == pytest.approx(np.log(2) * (4 / 3 + (5 / 4 + 5 / 6) / 2), rel=1e-5)


@pytest.mark.slow
def test_a_model_of_levels_is_saved_and_loaded(tmp_path):
    hierarchy = Hierarchy.learn(
        ("department", "type"), (("Clothes", "Other"), CATEGORIES), np.array([[0, 0], [1, 1], [1, 2]])
    )
    plain = make_categoriser("clip")
    torch.manual_seed(1)
    description = Description("clip", CATEGORIES, (80, 60), "linear", "fused", {}, hierarchy=hierarchy)
    model = VisionLanguageCategoriser(*make_tiny("clip"), description)
    pictures = np.random.default_rng(0).integers(0, 255, (3, 80, 60, 3), dtype=np.uint8)
    scores, levels = model.levels(pictures)
    np.testing.assert_allclose(model.log_probabilities(pictures), scores, atol=1e-6)
    assert plain.levels(pictures) is None and plain.hierarchy is None
    model.save(tmp_path)
    loaded = VisionLanguageCategoriser.load(tmp_path)
    assert loaded.hierarchy == hierarchy
    again, same = loaded.levels(pictures)
    np.testing.assert_allclose(again, scores, atol=1e-6)
    np.testing.assert_array_equal(same.chosen, levels.chosen)
    assert set(model.freeze_before(len(model.stages))) == {
        f"head.linears.{n}.{p}" for n in (0, 1) for p in ("weight", "bias")
    }
