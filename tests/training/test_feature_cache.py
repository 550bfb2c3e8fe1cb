"""States on disk: what comes back is what was computed, never half of it, never more than there is room for."""

import os
import shutil
import time
from contextlib import suppress
from multiprocessing import get_context

import numpy as np
import pytest
import torch

from vlm_core.errors import UserError
from vlm_core.training.feature_cache import FeatureCache

KEY = {"weights": "a", "view": "plain"}


def _states(rows):
    """A state of two tensors that tells its row."""
    rows = torch.from_numpy(rows).float()
    return rows[:, None, None].repeat(1, 3, 4), rows[:, None] / 7


def _compute(requested=None):
    def compute(rows):
        for start in range(0, len(rows), 2):
            chosen = rows[start : start + 2]
            if requested is not None:
                requested.extend(chosen.tolist())
            yield chosen, _states(chosen)

    return compute


@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 1e-3), ("fp32", 0)])
def test_rows_come_back_in_the_order_asked_for(tmp_path, precision, tolerance):
    entry = FeatureCache(tmp_path, 2**20, precision).entry(KEY, 50)
    entry.fill(np.array([7, 3, 41, 3]), _compute())
    wanted = np.array([41, 3, 3, 7])
    for part, whole in zip(entry.read(wanted).take(wanted), _states(wanted), strict=True):
        assert part.dtype == torch.float32
        torch.testing.assert_close(part, whole, rtol=tolerance, atol=0)


def test_only_what_is_missing_is_computed(tmp_path):
    requested = []
    cache = FeatureCache(tmp_path, 2**20)
    cache.entry(KEY, 50).fill(np.arange(5), _compute(requested))
    cache.entry(KEY, 50).fill(np.arange(8), _compute(requested))
    cache.entry(KEY, 50).fill(np.arange(8), _compute(requested))
    assert requested == list(range(8))
    with pytest.raises(KeyError):
        cache.entry(KEY, 50).read(np.array([9]))


@pytest.mark.parametrize("change", [{"weights": "b"}, {"view": "study 0 1"}])
def test_another_key_is_another_entry(tmp_path, change):
    cache = FeatureCache(tmp_path, 2**20)
    cache.entry(KEY, 50).fill(np.arange(5), _compute())
    assert len(cache.entry({**KEY, **change}, 50).missing(np.arange(5))) == 5
    assert len(cache.entry(KEY, 51).missing(np.arange(5))) == 5
    assert len(FeatureCache(tmp_path, 2**20, "fp32").entry(KEY, 50).missing(np.arange(5))) == 5


def test_rows_that_were_not_asked_for_take_no_room(tmp_path):
    entry = FeatureCache(tmp_path, 2**20).entry(KEY, 10_000_000)
    entry.fill(np.array([9_999_999]), lambda rows: iter([(rows, _states(rows % 10))]))
    file = entry.folder / "part-0.npy"
    assert file.stat().st_size > 200_000_000 and file.stat().st_blocks * 512 < 100_000


def test_what_was_interrupted_is_not_there_and_is_computed_again(tmp_path):
    def interrupted(rows):
        yield rows[:2], _states(rows[:2])
        raise KeyboardInterrupt

    entry = FeatureCache(tmp_path, 2**20).entry(KEY, 50)
    with pytest.raises(KeyboardInterrupt):
        entry.fill(np.arange(4), interrupted)
    assert len(entry.missing(np.arange(4))) == 4
    entry.fill(np.arange(4), _compute())
    torch.testing.assert_close(entry.read(np.arange(4)).take(np.arange(4))[0], _states(np.arange(4))[0])


def _delete_all(entry):
    shutil.rmtree(entry.folder.parent)


def _delete_parts(entry):
    for path in entry.folder.glob("part-*"):
        path.unlink()


def _delete_a_part(entry):
    (entry.folder / "part-0.npy").unlink()


def _cut(entry):
    os.truncate(entry.folder / "part-1.npy", 150)


def _zero(entry):
    path = entry.folder / "part-1.npy"
    path.write_bytes(path.read_bytes()[:128] + bytes(path.stat().st_size - 128))


def _spoil(entry):
    (entry.folder / "filled.npy").write_bytes(b"no array")


@pytest.mark.parametrize("damage", [_delete_all, _delete_parts, _delete_a_part, _cut, _zero, _spoil])
@pytest.mark.parametrize("moment", ["while it is filled", "afterwards"])
def test_rows_count_only_if_they_are_those_that_were_filled(tmp_path, monkeypatch, damage, moment):
    monkeypatch.setattr("vlm_core.training.feature_cache.SECONDS_BETWEEN_COMMITS", 0.0)
    entry = FeatureCache(tmp_path / "cache", 2**20).entry(KEY, 50)
    rows = np.arange(8)

    def damaging(rows):
        for number, batch in enumerate(_compute()(rows)):
            if number == 2:
                damage(entry)
            yield batch

    with suppress(KeyError):
        entry.fill(rows, damaging if moment == "while it is filled" else _compute())
    if moment == "afterwards":
        damage(entry)
    assert entry.folder.exists() != (damage is _delete_all)  # what was deleted is not made again
    for _ in range(2):
        entry.fill(rows, _compute())
        with suppress(KeyError):
            features = entry.read(rows)
            break
    for part, whole in zip(features.take(rows), _states(rows), strict=True):
        torch.testing.assert_close(part, whole, rtol=1e-3, atol=0)


def test_an_entry_that_vanishes_while_it_is_filled_is_no_error_of_the_disk(tmp_path):
    entry = FeatureCache(tmp_path / "cache", 2**20).entry(KEY, 50)

    def vanishing(rows):
        _delete_all(entry)
        yield rows, _states(rows)

    with pytest.raises(KeyError, match="was removed while it was filled"):
        entry.fill(np.arange(4), vanishing)
    assert not entry.folder.parent.exists()


def test_two_processes_that_want_the_same_compute_it_once(tmp_path):
    def want(name):
        def slow(rows):
            (tmp_path / name).write_text("filled")
            for batch in _compute()(rows):
                time.sleep(0.05)
                yield batch

        entry = FeatureCache(tmp_path / "cache", 2**20).entry(KEY, 50)
        entry.fill(np.arange(30), slow)
        entry.read(np.arange(30)).take(np.arange(30))

    wants = [get_context("fork").Process(target=want, args=(name,)) for name in "ab"]
    for process in wants:
        process.start()
    for process in wants:
        process.join(60)
    assert [process.exitcode for process in wants] == [0, 0]
    assert [(tmp_path / name).exists() for name in "ab"].count(True) == 1


@pytest.mark.slow
def test_the_least_recently_used_makes_room_and_what_is_kept_stays(tmp_path):
    cache = FeatureCache(tmp_path, 115_000)
    entries = [cache.entry({**KEY, "view": str(number)}, 1000) for number in range(4)]
    for age, entry in enumerate(entries):
        entry.fill(np.arange(1000), _compute())
        os.utime(entry.folder / "key.json", (time.time() - 100 + age,) * 2)
    entries[0].fill(np.arange(1000), _compute())  # used again: the youngest
    opened = entries[1].read(np.arange(1000))
    cache.free_space(cache.size_bytes([(3, 4), (1,)], 1000), keep=[entries[2]])
    assert [entry.folder.exists() for entry in entries] == [True, False, True, False]
    torch.testing.assert_close(
        opened.take(np.array([5]))[0], _states(np.array([5]))[0]
    )  # open files outlive their names


def test_values_that_half_precision_cannot_hold_are_refused(tmp_path):
    entry = FeatureCache(tmp_path, 2**20).entry(KEY, 5)
    with pytest.raises(UserError, match="cache_precision=fp32"):
        entry.fill(np.arange(2), lambda rows: iter([(rows, (torch.full((2, 3), 1e6),))]))
    assert len(entry.missing(np.arange(2))) == 2


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    entry = FeatureCache(tmp_path, 2**20).entry(KEY, 5)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        entry.fill(np.arange(2), _compute())
