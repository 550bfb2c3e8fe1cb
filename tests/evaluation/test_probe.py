"""The linear probe: perfect where a line divides, chance where nothing does, and nothing said of rare categories."""

import math

import numpy as np

from vlm_core.evaluation.probe import probe_macro_f1

GENERATOR = np.random.default_rng(0)


def test_what_a_line_divides_is_read():
    labels = np.repeat(["a", "b"], 40)
    features = GENERATOR.normal(size=(80, 5)).astype(np.float32)
    features[:, 3] += np.where(labels == "a", 8, -8)
    assert probe_macro_f1(features, labels) == 1.0


def test_noise_gives_chance():
    labels = np.tile(["a", "a", "b", "b"], 200)
    assert abs(probe_macro_f1(GENERATOR.normal(size=(800, 3)).astype(np.float32), labels) - 0.5) < 0.1


def test_rare_and_unknown_categories_are_left_out():
    labels = np.array(["a", "a", "b", "b"] * 10 + [""] * 7 + ["rare"] * 4)
    features = np.where(labels == "a", 5, -5)[:, None].astype(np.float32)
    assert probe_macro_f1(features, labels) == 1.0
    assert math.isnan(probe_macro_f1(features[:10], np.array(["a"] * 10)))
