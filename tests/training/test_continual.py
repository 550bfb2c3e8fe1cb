"""Herding, class means and heads of more categories, on numbers worked by hand."""

import numpy as np
import pytest
from scipy.special import log_softmax

from vlm_core.errors import UserError
from vlm_core.training.continual import (
    Examples,
    ExtensionTask,
    HeadWeights,
    Memory,
    herd,
    learn,
    nearest_mean_head,
    train_head,
)


def _examples(features, labels):
    return Examples(np.array(features, np.float32), np.array(labels))


def test_herding_by_hand():
    # the mean is 3, which 2 and 4 are equally near; (2 + 4) / 2 is 3; then (2 + 4 + 0) / 3 = 2 is nearer than 16 / 3
    features = np.array([[0], [2], [4], [10], [-1]], np.float32)
    assert herd(features, features.mean(axis=0, dtype=np.float64), 3).tolist() == [1, 2, 0]
    assert sorted(herd(features, np.zeros(1), 9)) == [0, 1, 2, 3, 4]
    assert herd(features, np.zeros(1), 0).tolist() == []


def test_a_memory_is_the_same_whether_products_come_at_once_or_in_turn():
    generator = np.random.default_rng(0)
    first, second = (_examples(generator.normal(size=(40, 3)), np.arange(40) % 2) for _ in range(2))
    later = Examples(second.features, second.labels + 1)  # more of category 1, and category 2
    at_once = Memory.empty(3).joined(first + later, 3, 5)
    in_turn = Memory.empty(3).joined(first, 2, 5).joined(later, 3, 5)
    np.testing.assert_allclose(in_turn.means, at_once.means, atol=1e-6)
    np.testing.assert_allclose(in_turn.variance, at_once.variance, atol=1e-6)
    assert in_turn.counts.tolist() == at_once.counts.tolist() == [20, 40, 20]
    within = [first.features[first.labels == 0], later.features[later.labels == 2]]
    np.testing.assert_allclose(at_once.means[[0, 2]], [part.mean(axis=0) for part in within], atol=1e-6)
    assert np.bincount(in_turn.exemplars.labels).tolist() == [5, 5, 5]


def test_a_memory_is_kept_as_features_and_its_first_exemplars_are_the_best(tmp_path):
    memory = Memory.empty(2).joined(_examples([[0, 0], [2, 0], [4, 0], [1, 1]], [0, 0, 0, 1]), 2, 3)
    memory.write(tmp_path)
    read = Memory.read(tmp_path)
    np.testing.assert_array_equal(read.exemplars.features, memory.exemplars.features)
    assert read.bytes == memory.bytes > 0 and Memory.read(tmp_path / "elsewhere") is None
    assert read.limited(1).exemplars.features.tolist() == [[2, 0], [1, 1]]
    (tmp_path / "memory.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="damaged"):
        Memory.read(tmp_path)


def test_the_nearest_mean_is_a_softmax_of_distances():
    memory = Memory(_examples(np.empty((0, 2)), []), np.array([[0.0, 0], [4, 2]]), np.array([3, 3]), np.array([4.0, 1]))
    validation = _examples([[1, 0], [3, 2], [3, 2], [1, 1]], [0, 1, 0, 0])
    head = nearest_mean_head(memory, validation)
    features = np.array([[1, 0], [2, 1], [5, 5]], np.float32)
    distances = ((features[:, None] - memory.means) ** 2 / memory.variance).mean(axis=2)
    found = head.log_probabilities(features)
    sharpness = (found[0, 0] - found[0, 1]) / (distances[0, 1] - distances[0, 0])
    np.testing.assert_allclose(found, log_softmax(-sharpness * distances, axis=1), atol=1e-5)
    assert found[1, 0] == pytest.approx(np.log(0.5), abs=1e-5)  # as far from either mean

    def loss(factor):
        scaled = HeadWeights((factor * head.weights), (factor * head.bias)).log_probabilities(validation.features)
        return -scaled[np.arange(4), validation.labels].mean()

    assert loss(1.0) < min(loss(0.9), loss(1.1))


def _clouds(centres, labels, seed=0):
    generator = np.random.default_rng(seed)
    features = [generator.normal(centre, 0.3, size=(30, 2)) for centre in centres]
    return _examples(np.concatenate(features), np.repeat(labels, 30))


OLD, NEW = _clouds([(0, 0), (0, 4)], [0, 1]), _clouds([(4, 0), (4, 4)], [2, 3])


def _learnt(method, most=5):
    start = HeadWeights(np.zeros((0, 2), np.float32), np.zeros(0, np.float32))
    head = train_head(start, OLD, 2)
    memory = Memory.empty(2).joined(OLD, 2, most)
    task = ExtensionTask(NEW, OLD + NEW, 4, memory, OLD)
    return head, learn(method, head, task, memory.joined(NEW, 4, most))


@pytest.mark.parametrize(
    ("method", "forgets"), [("prototypes", 0), ("head", 0), ("distil", 0), ("joint", 0), ("naive", 1)]
)
def test_every_method_learns_the_new_and_only_naive_forgets_the_old(method, forgets):
    _, learnt = _learnt(method)
    new, old = (learnt.log_probabilities(each.features).argmax(axis=1) for each in (NEW, OLD))
    assert (new == NEW.labels).mean() == 1
    assert (old != OLD.labels).mean() == forgets


def test_distilling_keeps_the_old_head_where_nothing_is_replayed():
    start = HeadWeights(np.zeros((0, 2), np.float32), np.zeros(0, np.float32))
    head, between = train_head(start, OLD, 2), _clouds([(0, 1.2), (0, 2.6)], [2, 3])
    before = np.exp(head.log_probabilities(between.features))

    def moved(distil):
        learnt = train_head(head, between, 4, distil=distil).log_probabilities(between.features)
        return np.abs(np.exp(log_softmax(learnt[:, :2], axis=1)) - before).mean()

    assert moved(distil=True) < moved(distil=False) / 3


def test_training_is_the_same_every_time():
    one, other = _learnt("distil")[1], _learnt("distil")[1]
    np.testing.assert_array_equal(one.weights, other.weights)
