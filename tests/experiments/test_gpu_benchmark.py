"""The command around the GPU benchmark: what it keeps, when it stops, how it ends."""

import json

import pytest

from experiments import gpu_benchmark
from vlm_core.errors import UserError

MACHINE = {"machine": {"device": "cpu", "cpu": "a processor", "cores": "2", "torch": "2.14"}}
RATE = {"median": 1.0, "lower": 0.9, "upper": 1.1, "count": 3}
CHECK = {
    "family": "clip", "check": "save", "tolerance": 1e-3, "differences": {}, "device_seconds": 1.0, "cpu_seconds": 1.0,
    "error": "", "agrees": True,
}  # fmt: skip


def _run(monkeypatch, folder, figures, *arguments):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(gpu_benchmark, "_measure", lambda *given: iter([MACHINE, *figures]))
    gpu_benchmark.main(["--device", "cpu", "--results", "new/gpu.json", *arguments])


def test_figures_and_tables_are_written(tmp_path, monkeypatch):
    _run(monkeypatch, tmp_path, [{"peaks": {"bf16": RATE}}, {"agreement": [CHECK]}, {"agreement": [CHECK]}])
    assert len(json.loads((tmp_path / "new/gpu.json").read_text())["agreement"]) == 2


def test_what_was_measured_before_the_limit_is_kept(tmp_path, monkeypatch, capsys):
    _run(monkeypatch, tmp_path, [{"agreement": [CHECK]}], "--limit", "0", "--output", "tables.md")
    assert json.loads((tmp_path / "new/gpu.json").read_text())["agreement"] == []
    assert (tmp_path / "tables.md").read_text().startswith("Machine: cpu")
    assert "Wrote the tables to tables.md." in capsys.readouterr().out


def test_a_difference_is_an_error_after_all_is_written(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="clip save"):
        _run(monkeypatch, tmp_path, [{"agreement": [{**CHECK, "agrees": False}]}])
    assert json.loads((tmp_path / "new/gpu.json").read_text())["agreement"]


def test_an_unknown_part_is_said():
    with pytest.raises(UserError, match="--parts everything"):
        gpu_benchmark.main(["--parts", "everything"])
