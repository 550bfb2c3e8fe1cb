"""A training that two workers of a Ray cluster share: its losses are one process's, whoever is killed meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.engine.clusters import running_cluster
from tests.messages import collected_messages
from tests.stub_training import train_part_killed_once
from vlm_core import errors
from vlm_core.config import Config
from vlm_core.engine.cluster import connected
from vlm_core.errors import UserError
from vlm_core.tracking.reader import RunReader
from vlm_core.tracking.registry import resolve
from vlm_core.workflows import data_parallel
from vlm_core.workflows.train import run_training

SMALL = {
    "preset": "demo", "model": "clip", "mode": "lora", "blocks": 1, "views": 1, "epochs": 3, "train_per_category": 11,
    "per_category": 20, "threads": 1, "resamples": 100, "batch_size": 8,
}  # fmt: skip
SHARED = {"engine": "ray", "address": "auto", "workers": 2}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"workers": 2}, "workers=2 train one model on a Ray cluster: add engine=ray"),
        ({"engine": "ray"}, "mode=probe trains none: omit engine=, or choose mode=full"),  # the preset's mode
        ({"engine": "ray", "mode": "zero-shot"}, "mode=zero-shot trains none"),
        ({"engine": "ray", "model": "baseline", "mode": "full"}, "model=baseline trains none"),
        ({"address": "auto"}, "address=auto has no use with engine=local"),
    ],
)
def test_settings_without_use_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Config.build({"preset": "demo", **settings})


def test_a_missing_extra_is_told_before_a_run_is_begun(
    shop: Path, stocked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errors, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"ray is not installed: run pip install '[a-z-]+\[ray\]'"):
        run_training(Config.build({**SMALL, "data": str(shop), **SHARED}), stocked)
    assert len(RunReader().runs()) == 0


def _curves(run_id: str) -> dict[str, list[float]]:
    names = ("train_loss", "validation_loss", "train_accuracy")
    return {name: RunReader().history(run_id, name)["value"].tolist() for name in names}


def _weights(run_id: str) -> dict[str, torch.Tensor]:
    return {
        f"{path.name} {name}": weight
        for path in resolve(run_id).rglob("*.safetensors")
        for name, weight in load_file(path).items()
    }


@pytest.mark.slow
def test_workers_train_what_one_process_trains_and_a_killed_one_changes_nothing(
    shop: Path, stocked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = run_training(Config.build({**SMALL, "data": str(shop)}), stocked)
    with running_cluster(nodes=2), connected("auto"), collected_messages() as lines:
        together = run_training(Config.build({**SMALL, "data": str(shop), **SHARED}), stocked)
        monkeypatch.setattr(data_parallel, "train_part", train_part_killed_once)
        resumed = run_training(Config.build({**SMALL, "data": str(shop), **SHARED}), stocked)
    assert any("All workers begin again at the last checkpoint" in line for line in lines)
    reader = RunReader()
    one, two, three = (_curves(outcome.run_id) for outcome in (alone, together, resumed))
    for name, curve in one.items():
        assert len(curve) == 3
        np.testing.assert_allclose(two[name], curve, rtol=0, atol=1e-5)
    assert three == two
    weights = [_weights(outcome.run_id) for outcome in (together, resumed)]
    assert weights[0] and all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert "RUNNING" not in set(reader.runs()["status"]) and not [*stocked.glob("checkpoints/*/*")]
