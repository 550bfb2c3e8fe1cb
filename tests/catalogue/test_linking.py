"""Pictures are linked as if all were compared with all, however they are divided into blocks, batches and processes."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlm_core.catalogue import linking, processes
from vlm_core.catalogue.linking import HASH_RADIUS, link_pictures, merge
from vlm_core.catalogue.sample import draw_picture, plan_rows
from vlm_core.pixels.picture_store import PictureStore, decode_picture


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=12), st.integers(0, 2**32))
def test_near_pairs_are_all_whose_hashes_differ_in_few_bits(seeds, shuffle):
    rng = np.random.default_rng(shuffle)
    flips = [[1 << int(place) for place in rng.choice(64, count, replace=False)] for count in (0, 2, 4, 5)]
    codes = np.array([seed ^ sum(flipped) for seed in seeds for flipped in flips], dtype=np.uint64)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("ROWS_PER_BLOCK", 5), ("CANDIDATES_AT_ONCE", 4), ("PAIRS_PER_BATCH", 3)):
            patch.setattr(linking, name, value)
        with tempfile.TemporaryDirectory() as folder:
            linking._Index.write(codes, Path(folder))
            index = linking._Index.read(Path(folder))
            batches = [pair for start in range(0, len(codes), 5) for pair in index.near_pairs(start)]
    found = sorted((int(i), int(j)) for first, second in batches for i, j in zip(first, second, strict=True))
    expected = [
        (i, j)
        for i in range(len(codes))
        for j in range(i + 1, len(codes))
        if int(codes[i] ^ codes[j]).bit_count() <= HASH_RADIUS
    ]
    assert found == expected


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9))))
def test_a_group_is_numbered_by_its_first_member(links):
    pairs = np.array(links, dtype=np.int64).reshape(-1, 2)
    at_once = merge(np.arange(10), pairs[:, 0], pairs[:, 1])
    one_by_one = np.arange(10)
    for first, second in pairs:
        one_by_one = merge(one_by_one, np.array([first]), np.array([second]))
    assert at_once.tolist() == one_by_one.tolist()
    for number in set(at_once.tolist()):
        assert np.flatnonzero(at_once == number)[0] == number


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Drawn products, each with copies that are a little brighter, so that many pairs are near and many the same."""
    found = []
    for row in plan_rows(60, 3):
        try:
            picture = decode_picture(draw_picture(row, 3)).resize((60, 80), Image.Resampling.BICUBIC)
        except Exception:  # the sample holds a broken picture on purpose
            continue
        found += [np.clip(np.asarray(picture).astype(int) + more, 0, 255).astype(np.uint8) for more in (0, 3, 6, 60)]
    path = tmp_path_factory.mktemp("store") / "pictures.npy"
    np.save(path, np.stack(found))
    return PictureStore(path)


def _everything_compared(store):
    """Groups by comparing all near pairs, with nothing passed over."""
    files = []
    write = linking._write

    def keep(given, groups):
        files.append(given)
        write(given, groups)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linking, "_write", keep)
        patch.setattr(linking, "_compare", lambda given, start: _all_of(given, start))
        return link_pictures(store, np.arange(len(store)))


def _all_of(files, start):
    matcher = linking._Matcher(files)
    pairs = list(linking._Index.read(files.folder).near_pairs(start))
    first, second = (np.concatenate(side) for side in zip(*pairs, strict=True))
    same = matcher.coarsely(first, second)
    same[same] = matcher.same(first[same], second[same])
    return first[same], second[same]


@pytest.mark.parametrize("block", [7, 64, 1024])
def test_what_is_passed_over_changes_no_group(store, monkeypatch, block):
    expected = _everything_compared(store)
    assert 40 < len(set(expected.tolist())) < len(store) / 2
    for name, value in (("ROWS_PER_BLOCK", block), ("CANDIDATES_AT_ONCE", block), ("PAIRS_PER_BATCH", 5 * block)):
        monkeypatch.setattr(linking, name, value)
    assert link_pictures(store, np.arange(len(store))).tolist() == expected.tolist()


@pytest.mark.slow
def test_processes_give_the_same_groups(store, monkeypatch):
    expected = link_pictures(store, np.arange(len(store)))
    for name, value in (("WORTH_PROCESSES", 10), ("ROWS_PER_BLOCK", 32), ("ROWS_PER_TASK", 16)):
        monkeypatch.setattr(linking, name, value)
    started = []
    monkeypatch.setattr(processes, "shows_messages", lambda: started.append(1) or True)
    monkeypatch.setattr(processes, "cores", lambda: 2)
    assert link_pictures(store, np.arange(len(store))).tolist() == expected.tolist()
    assert len(started) == 2
