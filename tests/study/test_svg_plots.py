"""The report's plots: well-formed SVG with every label, and families in their colours."""

from dataclasses import replace
from math import nan
from xml.etree import ElementTree

import pytest

from tests.dashboard.made_study import make_results
from vlm_core.evaluation.bootstrap import Estimate
from vlm_core.study.report_contents import IntervalPlot, LeakPlot, RobustnessPlot
from vlm_core.study.sections import make_sections
from vlm_core.study.svg_plots import colour_of, plot_svg

RESULTS = make_results("s", {"a": "r1", "b": "r2"})
PLOTS = {
    f"{section.key}-{number}": plot for section in make_sections(RESULTS) for number, plot in enumerate(section.plots)
}
LABELS = {
    "scores-0": {"clip probe", "blip probe", "HOG + colour", "macro-F1, mean over seeds"},
    "pairs-0": {"clip probe − blip probe", "difference of macro-F1"},
    "held_out-0": {"clip probe − blip probe"},
    "leak-0": {"clip probe", "blip probe", "Free <i>Items</i>", "holdout", "original (leaks)"},
    "ablation-0": {"attention-pool", "mean-pool"},
    "ablation-1": {"attention-pool − mean-pool"},
    "faithfulness-0": {"clip probe: deletion", "clip probe: insertion", "raw", "gradient", "random"},
    "robustness-0": {"blur", "noise", "clip probe"},
    "calibration-0": {"clip probe", "blip probe", "risk"},
    "cost-0": {"clip probe", "HOG + colour", "macro-F1"},
    "continual-0": {"clip joint", "clip naive", "average incremental accuracy, mean over orders"},
}


def texts(svg):
    return {text.strip() for element in ElementTree.fromstring(svg).iter() if (text := element.text)}


@pytest.mark.parametrize("name", LABELS)
def test_a_plot_is_an_svg_element_with_its_labels(name):
    svg = plot_svg(PLOTS[name])
    assert svg.startswith("<svg") and LABELS[name] <= texts(svg)


def test_dollar_signs_in_a_category_are_no_mathematics():
    row, name = RESULTS.leak[0], r"$5 to $\nothing"
    named = replace(row, scores=tuple(replace(score, category=name) for score in row.scores))
    assert name in texts(plot_svg(LeakPlot("", (named,))))


@pytest.mark.slow
def test_ticks_of_a_logarithmic_axis_are_numbers():
    assert not any("$" in text for text in texts(plot_svg(PLOTS["cost-0"])))


def test_every_plot_of_the_report_is_tried_here():
    assert set(PLOTS) == set(LABELS)


@pytest.mark.slow
def test_the_same_plot_is_the_same_text():
    assert plot_svg(PLOTS["scores-0"]) == plot_svg(PLOTS["scores-0"])


def test_families_have_their_colours_and_an_unknown_interval_no_line():
    assert [colour_of(label) for label in ("clip probe", "git-large full", "mean-pool")] == [
        "#0072B2",
        "#009E73",
        "#6B7280",
    ]
    with_interval = plot_svg(IntervalPlot("", "x", (("clip", Estimate(0.5, 0.4, 0.6)),)))
    without = plot_svg(IntervalPlot("", "x", (("clip", Estimate(0.5, nan, nan)),)))
    assert with_interval.lower().count("stroke: #0072b2") == without.lower().count("stroke: #0072b2") + 1


@pytest.mark.slow
def test_panels_beyond_the_corruptions_are_hidden():
    drops = {f"corruption {number}": (0.1, 0.2, 0.3) for number in range(5)}
    row = replace(RESULTS.robustness[0], drops=dict.fromkeys(drops, Estimate(0.2, nan, nan)), by_severity=drops)
    assert set(drops) <= texts(plot_svg(RobustnessPlot("", (row,))))
