"""Copies of checkpoints at an address: whole epochs, the later one of there and here; no training ends by them."""

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.messages import collected_messages
from vlm_core.errors import UserError
from vlm_core.files.addresses import open_address
from vlm_core.training.checkpoint import Checkpoint, TrainingState
from vlm_core.training.checkpoint_copies import CheckpointCopies


class Training:
    """A training of one weight on one machine, whose epochs are copied."""

    def __init__(self, folder: Path, address: str) -> None:
        self.weights = {"weight": nn.Parameter(torch.zeros(3))}
        self.optimiser = torch.optim.AdamW(self.weights.values(), lr=0.1)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimiser, lambda step: 1.0)
        self.copies, self.folder = CheckpointCopies(address, "run"), folder
        self.checkpoint = Checkpoint(folder, lambda: self.copies.store(folder))
        self.state = TrainingState()

    def epoch(self, macro_f1: float) -> None:
        self.optimiser.zero_grad()
        self.weights["weight"].sum().backward()
        self.optimiser.step()
        self.scheduler.step()
        self.state = self.state.next_epoch(macro_f1)
        self.checkpoint.save(self.state, self.weights, self.optimiser, self.scheduler)

    def resume(self) -> TrainingState:
        self.copies.fetch(self.folder)
        self.state = self.checkpoint.restore(self.weights, self.optimiser, self.scheduler)
        return self.state


@pytest.fixture(params=["memory://", "file://"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"{request.param}{tmp_path}/shared"


def test_another_machine_goes_on_from_the_last_epoch(address: str, tmp_path: Path) -> None:
    first, second = Training(tmp_path / "first", address), Training(tmp_path / "second", address)
    assert second.resume() == TrainingState()
    for macro_f1 in (0.3, 0.6, 0.5):
        first.epoch(macro_f1)
    assert second.resume() == first.state
    assert torch.equal(second.weights["weight"], first.weights["weight"])
    for training in (first, second):
        training.epoch(0.7)
    assert torch.equal(second.weights["weight"], first.weights["weight"])
    assert sorted(path.name for path in second.folder.iterdir()) == sorted(path.name for path in first.folder.iterdir())


def test_only_what_the_last_epoch_needs_is_kept_and_the_end_removes_it(tmp_path: Path) -> None:
    training = Training(tmp_path / "here", f"file://{tmp_path}/shared")
    for macro_f1 in (0.3, 0.6, 0.5):
        training.epoch(macro_f1)
    kept = {path.name for path in (tmp_path / "shared" / "run").iterdir()}
    assert kept == {"position.json", "last-3.safetensors", "best-2.safetensors"}
    training.copies.remove()
    assert not (tmp_path / "shared" / "run").exists()


def test_a_later_epoch_on_this_machine_stays(tmp_path: Path) -> None:
    training = Training(tmp_path / "here", f"file://{tmp_path}/shared")
    training.epoch(0.3)
    Checkpoint(training.folder).save(
        training.state.next_epoch(0.9), training.weights, training.optimiser, training.scheduler
    )
    assert training.resume().epoch == 2


def test_a_machine_that_dies_while_it_copies_leaves_the_epoch_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"file://{tmp_path}/shared"
    training = Training(tmp_path / "here", address)
    training.epoch(0.3)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def die(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr("fsspec.implementations.local.LocalFileSystem.pipe_file", die)
        training.epoch(0.6)
    other = Training(tmp_path / "other", address)
    assert other.resume().epoch == 1


def test_what_a_machine_that_died_had_copied_is_not_taken_for_the_same_epoch_of_another(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = (Training(tmp_path / name, address) for name in ("first", "second", "third"))
    first.epoch(0.3)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def die(*_: object) -> None:
            raise KeyboardInterrupt

        for files in ("local.LocalFileSystem", "memory.MemoryFileSystem"):
            patch.setattr(f"fsspec.implementations.{files}.pipe_file", die)
        first.epoch(0.6)
    second.resume()
    second.optimiser.param_groups[0]["lr"] = 0.7  # another path than the first's
    second.epoch(0.6)
    assert third.resume() == second.state
    assert torch.equal(third.weights["weight"], second.weights["weight"])
    assert not torch.equal(third.weights["weight"], first.weights["weight"])


def test_a_head_trained_first_is_copied_beside_the_rest(tmp_path: Path) -> None:
    head = Training(tmp_path / "here" / "head", "")
    head.epoch(0.3)
    CheckpointCopies(f"file://{tmp_path}/shared", "run").store(tmp_path / "here")
    CheckpointCopies(f"file://{tmp_path}/shared", "run").fetch(tmp_path / "other")
    assert Checkpoint(tmp_path / "other" / "head").state().epoch == 1


def test_a_head_trained_first_stays_beside_the_rest(address: str, tmp_path: Path) -> None:
    training = Training(tmp_path / "here", address)
    head = Checkpoint(tmp_path / "here" / "head", lambda: training.copies.store(training.folder))
    head.save(TrainingState().next_epoch(0.3), training.weights, training.optimiser, training.scheduler)
    with collected_messages() as lines:
        for macro_f1 in (0.3, 0.6, 0.7):
            training.epoch(macro_f1)
    assert lines == []
    files, base = open_address(f"{address}/run")
    kept = {path.rpartition("/run/")[2] for path in files.find(base)}
    names = {"position.json", "last-3.safetensors", "best-3.safetensors"}
    assert kept == names | {"head/position.json", "head/last-1.safetensors", "head/best-1.safetensors"}


def test_a_training_goes_on_where_copies_cannot_be_written_but_does_not_begin_where_they_cannot_be_read(
    tmp_path: Path,
) -> None:
    training = Training(tmp_path / "here", "nosuch://user:hunter2@place")
    with collected_messages() as lines:
        training.epoch(0.3)
    assert training.checkpoint.state().epoch == 1
    assert any("shared_checkpoints=nosuch://place/run cannot be written to" in line for line in lines)
    assert "hunter2" not in "".join(lines)
    with pytest.raises(UserError, match=r"nosuch://place/run cannot be read from: .* or omit shared_checkpoints="):
        training.resume()
