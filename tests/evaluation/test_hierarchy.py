"""Label levels: which categories stand together, and F1 over a category and all above it, on numbers worked by hand."""

import numpy as np
import pytest

from vlm_core.evaluation.hierarchy import Hierarchy

# departments Clothes, Shoes; types Shirt, Trousers, Boot; each type has one department in training
TREE = Hierarchy.learn(
    ("department", "type"),
    (("Clothes", "Shoes"), ("Boot", "Shirt", "Trousers")),
    np.array([[0, 1], [0, 1], [0, 2], [1, 0], [1, -1]]),
)
# Men and Women share Shirts
CROSSED = Hierarchy.learn(
    ("gender", "type"), (("Men", "Women"), ("Dress", "Shirt")), np.array([[0, 1], [1, 1], [1, 0]])
)


def test_pairs_are_those_of_training_products():
    assert TREE.pairs == (((0, 1), (0, 2), (1, 0)),)
    assert TREE.together(0).tolist() == [[False, True, True], [True, False, False]]
    paths = np.array([[0, 1], [1, 1], [1, 0], [0, 0]])
    assert TREE.is_consistent(paths).tolist() == [True, False, True, False]
    assert CROSSED.is_consistent(np.array([[0, 1], [1, 1], [0, 0]])).tolist() == [True, True, False]


def test_a_category_without_a_partner_in_training_may_stand_with_any():
    lonely = Hierarchy.learn(("a", "b"), (("x", "y"), ("p", "q")), np.array([[0, 0], [1, -1], [-1, 1]]))
    assert lonely.together(0).tolist() == [[True, True], [True, True]]


def test_three_levels_are_consistent_where_both_steps_are():
    three = Hierarchy.learn(("a", "b", "c"), (("x", "y"), ("p", "q"), ("s", "t")), np.array([[0, 0, 0], [1, 1, 1]]))
    assert three.is_consistent(np.array([[0, 0, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0]])).tolist() == [True] + [False] * 3


def test_hierarchical_f1_counts_what_stands_above():
    true = np.array([[0, 1]])  # Clothes, Shirt
    assert TREE.hierarchical_f1(true, true) == 1
    # the other type of the right department: {Clothes, Trousers} shares one of two with {Clothes, Shirt}
    assert TREE.hierarchical_f1(true, np.array([[0, 2]])) == pytest.approx(2 * 1 / 4)
    assert TREE.hierarchical_f1(true, np.array([[1, 0]])) == 0
    # inconsistent: {Shoes, Shirt} and Shirt's parent Clothes share two with {Clothes, Shirt}
    assert TREE.hierarchical_f1(true, np.array([[1, 1]])) == pytest.approx(2 * 2 / 5)
    both = TREE.hierarchical_f1(np.repeat(true, 2, axis=0), np.array([[0, 2], [1, 1]]))
    assert both == pytest.approx(2 * 3 / (4 + 5))


def test_a_category_with_several_parents_adds_none():
    # {Men, Shirt} and {Women, Shirt} share Shirt alone
    assert CROSSED.hierarchical_f1(np.array([[0, 1]]), np.array([[1, 1]])) == pytest.approx(2 * 1 / 4)
    # a Dress has one parent: {Men, Dress, Women} and {Women, Dress}
    assert CROSSED.hierarchical_f1(np.array([[1, 0]]), np.array([[0, 0]])) == pytest.approx(2 * 2 / 5)
