"""Two processes that train together take the steps of one: the same losses, and the same weights in the end."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import distributed

from tests.models.families import make_categoriser, make_shallow
from vlm_core.config import Config
from vlm_core.errors import UserError
from vlm_core.evaluation.hierarchy import Hierarchy
from vlm_core.models.categoriser import VisionLanguageCategoriser
from vlm_core.pixels.picture_store import PictureStore
from vlm_core.training import loop
from vlm_core.training.checkpoint import TrainingState
from vlm_core.training.feature_cache import FeatureCache
from vlm_core.training.fit import Trainer
from vlm_core.training.loop import StepReport
from vlm_core.training.parallel import ALONE, Group, GroupCheckpoint

LABELS = np.arange(24) % 3
# Of the coarser level some products have no category, and whole parts of batches none at all.
LEVELS = np.stack([np.where(np.arange(24) % 8 < 5, -1, LABELS // 2), LABELS], axis=1)
# Fifteen rows in batches of seven: parts of three and four, and a last batch that leaves one process without any row.
TRAIN = np.array([*range(14), 13])
CASES: dict[str, dict[str, Any]] = {
    "full": {"model": "clip", "mode": "full"},
    "weights": {"model": "blip", "mode": "full", "balance": "weights"},
    "lora": {"model": "clip", "mode": "lora", "blocks": 1, "views": 1},
    "last-blocks": {"model": "clip", "mode": "last-blocks", "blocks": 1, "views": 2},
    "lp-ft": {"model": "clip", "mode": "lp-ft", "blocks": 1, "views": 1},
    "levels": {"model": "clip", "mode": "full", "label": "coarse,fine", "balance": "weights"},
    "generate": {"model": "blip", "mode": "full", "objective": "generate"},
}


@pytest.mark.parametrize(("rows", "size"), [(8, 2), (7, 2), (1, 2), (2, 5), (0, 3), (100, 7)])
def test_parts_make_up_the_batch_and_are_even(rows: int, size: int) -> None:
    parts = [np.arange(rows)[Group(rank, size).part(rows)] for rank in range(size)]
    assert np.concatenate(parts).tolist() == [*range(rows)]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_one_process_is_a_group_that_waits_for_nobody() -> None:
    assert ALONE.of_first(lambda: 3) == 3 and ALONE.gather("one") == ["one"]
    module = torch.nn.Linear(2, 1)
    assert ALONE.averaging(module) is module and ALONE.mean(torch.tensor(2.0)) == 2


def test_a_checkpoint_that_not_all_have_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Group, "of_first", lambda self, make: TrainingState(epoch=2))
    checkpoint = GroupCheckpoint(tmp_path, lambda: None, Group(1, 2))
    weight = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(UserError, match="of worker 1 has the checkpoint of epoch 0 .* give shared_checkpoints="):
        checkpoint.restore({"weight": weight}, torch.optim.AdamW([weight]), None)


def train(case: str, folder: Path, group: Group | None) -> None:
    """Train a case; the first process writes the losses of its steps, its metrics and its weights."""
    rank = group.rank if group else 0
    pictures = PictureStore(folder / "pictures.npy")
    catalogue = SimpleNamespace(
        pictures=pictures, products=pd.DataFrame(index=range(24)), pictures_fingerprint="these", fingerprint="these"
    )
    split = SimpleNamespace(
        labels=LABELS, level_labels=LEVELS, train=TRAIN, validation=np.arange(16, 24), categories="abc"
    )
    settings = {"preset": "original", "epochs": 4, "patience": 4, "batch_size": 7, "learning_rate": 1e-3}
    config = Config.build({**settings, "cache_precision": "fp32", **CASES[case]})
    model = make_categoriser(config.family, head="sentences") if case == "generate" else make_shallow(config.family)
    if case == "levels":
        hierarchy = Hierarchy.learn(config.labels, (("top", "other"), model.categories), LEVELS[TRAIN])
        description = replace(model.description, hierarchy=hierarchy)
        torch.manual_seed(2)
        model = VisionLanguageCategoriser(model.hf, model.adapter.tokenizer, description)
    place = folder / f"{case}-{group.size if group else 1}"
    cache = FeatureCache(folder / "cache", 2**30, "fp32")
    data: Any = SimpleNamespace(catalogue=catalogue, split=split)
    trainer = Trainer(config, data, model, place / "checkpoints", cache, group=group)
    losses: list[float] = []
    scores: list[tuple[float, float, float]] = []
    show = loop.show_steps

    def recorded(reports: Any, *rest: Any) -> Any:
        for report in show(reports, *rest):
            if isinstance(report, StepReport):
                losses.append(report.loss)
            yield report

    loop.show_steps = recorded
    try:
        trainer.fit(
            on_epoch=lambda report: scores.append(
                (report.training.loss, report.training.accuracy, report.validation.loss)
            ),
        )
    finally:
        loop.show_steps = show
    if rank == 0:
        weights = {name: value.detach().clone() for name, value in model.hf.named_parameters()}
        save_file(weights, place / "weights.safetensors")
        (place / "figures.json").write_text(json.dumps({"losses": losses, "scores": scores}))


def _process(rank: int, folder: Path, cases: list[str]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    for case in cases:
        train(case, folder, Group.here())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], tuple[Any, dict[str, torch.Tensor]]]:
    """Train every case in one process and in two; a function of case and number returns figures and weights."""
    folder = tmp_path_factory.mktemp("trained")
    pixels = np.random.default_rng(0).integers(0, 60, (24, 20, 15, 3), dtype=np.uint8)
    pixels[np.arange(24), :, :, LABELS] += 150
    np.save(folder / "pictures.npy", pixels)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_process, args=(rank, folder, [*CASES])) for rank in range(2)]
    for process in processes:
        process.start()
    for case in CASES:
        train(case, folder, None)
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0]

    def read(case: str, number: int) -> tuple[Any, dict[str, torch.Tensor]]:
        place = folder / f"{case}-{number}"
        return json.loads((place / "figures.json").read_text()), load_file(place / "weights.safetensors")

    return read


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_take_the_steps_of_one(case: str, trained: Any) -> None:
    one, weights_of_one = trained(case, 1)
    two, weights_of_two = trained(case, 2)
    assert len(one["losses"]) == len(two["losses"]) >= 12  # three an epoch, of lp-ft those of the head before them
    np.testing.assert_allclose(two["losses"], one["losses"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(two["scores"], one["scores"], rtol=0, atol=1e-4)
    assert len(set(one["losses"])) > 5
    for name, weight in weights_of_one.items():
        torch.testing.assert_close(weights_of_two[name], weight, rtol=0, atol=1e-3)
