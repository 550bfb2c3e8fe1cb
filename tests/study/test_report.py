"""The report's files: HTML that opens offline, Markdown, JSON, and the suspects as CSV."""

import csv
import io
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from cachetools import cached

from tests.dashboard.made_study import make_results
from vlm_core.study import report
from vlm_core.study.report import render_html, render_markdown, write_interim_results, write_report
from vlm_core.study.results_json import read_results
from vlm_core.study.sections import make_sections

RESULTS = make_results("s", {"a": "r1", "b": "r2"})


class _Run:
    """Takes artifacts as a run does."""

    def __init__(self):
        self.files = {}

    def artifact(self, path, folder=""):
        assert folder == "study"
        self.files |= {file.name: file.read_text() for file in path.iterdir()}


@pytest.fixture(scope="module", autouse=True)
def plotted_once():
    """Equal plots are drawn once, in all reports that hold them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "plot_svg", cached({}, key=repr)(report.plot_svg))
        yield


@pytest.fixture(scope="module")
def data():
    pictures = SimpleNamespace(take=lambda rows: np.full((len(rows), 80, 60, 3), 200, np.uint8))
    return SimpleNamespace(
        catalogue=SimpleNamespace(products=pd.DataFrame({"product_id": ["3", "7"]}), pictures=pictures)
    )


@pytest.fixture(scope="module")
def html(data):
    return render_html(RESULTS, make_sections(RESULTS), data)


@pytest.mark.slow
def test_the_html_holds_every_section_and_opens_offline(html):
    for section in make_sections(RESULTS):
        assert f'<section id="{section.key}">' in html and f'href="#{section.key}"' in html
    assert html.count("<svg") == 11
    assert "<script" not in html and 'src="http' not in html


@pytest.mark.slow
def test_what_comes_from_outside_is_text(html):
    assert "&lt;script&gt;alert(1)" in html and "Free &lt;i&gt;Items&lt;/i&gt;" in html


@pytest.mark.slow
def test_tiles_conclusions_failures_and_suspects_are_in_the_html(html):
    assert re.search(r"<dt>Best macro-F1</dt><dd>clip probe <small>0.780 \(0.760 to 0.800\)</small>", html)
    assert "<li>clip probe beats blip probe by 4.0 points of macro-F1.</li>" in html
    assert "Some runs failed and are left out" in html
    assert re.search(r'<img src="data:image/jpeg;base64,[^"]+" alt="">7: Apparel, perhaps Accessories', html)


def test_the_markdown_holds_the_same_tables():
    text = render_markdown(RESULTS, make_sections(RESULTS))
    assert text.startswith("# Study made: 3 categories of shop\n\nRun s\n\n## Overview\n")
    assert "- clip probe beats blip probe by 4.0 points of macro-F1." in text
    (line,) = [line for line in text.splitlines() if "0.800 (0.780 to 0.820)" in line and "HOG" in line]
    assert "0.700 (0.680 to 0.720)" in line and "645" in line


@pytest.mark.slow
def test_a_report_is_four_files(data):
    run = _Run()
    write_report(run, RESULTS, data)
    assert sorted(run.files) == ["labels.csv", "report.html", "report.md", "results.json"]
    assert repr(read_results(run.files["results.json"])) == repr(RESULTS)
    (suspect,) = csv.DictReader(io.StringIO(run.files["labels.csv"]))
    assert suspect == {
        "product_id": "7",
        "label": "Apparel",
        "suggested": "Accessories",
        "score": "0.01",
        "title": "A <b>",
    }


@pytest.mark.slow
def test_without_a_label_audit_there_is_no_list_of_suspects(data):
    run = _Run()
    write_report(run, replace(RESULTS, label_audit=None), data)
    assert sorted(run.files) == ["report.html", "report.md", "results.json"]


def test_interim_results_are_the_json_alone():
    run = _Run()
    write_interim_results(run, RESULTS)
    assert list(run.files) == ["results.json"]
