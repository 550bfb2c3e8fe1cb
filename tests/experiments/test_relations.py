"""The command: pairs of a catalogue, which are read with their parts and nothing that leaks."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import relations
from tests.messages import logging_restored
from vlm_core.config import Config
from vlm_core.data import load_data
from vlm_core.errors import UserError


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table of two kinds of pictures, 70 of each."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    generator = np.random.default_rng(0)
    for number in range(140):
        Image.fromarray(generator.integers(0, 256, (10, 8, 3), dtype=np.uint8)).save(f"images/{number}.png")
    lines = [f"{number},images/{number}.png,{'belts' if number % 2 else 'bags'}" for number in range(140)]
    Path("shop.csv").write_text("\n".join(["sku,photo,kind", *lines]))
    return tmp_path / "shop.csv"


@pytest.mark.slow
def test_pairs_are_read_with_their_parts_and_leak_nothing(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = ["--data", str(shop), "--id_column", "sku", "--picture_column", "photo", "label=kind", "pairs=81"]
    with logging_restored():
        relations.main([*columns, "--output", "pairs"])
    told = capsys.readouterr().out
    assert "Wrote 80 pairs of shop.csv into pairs: 60 for train, 16 for test, 4 for validation." in told
    assert "data=pairs label=relation protocol=given" in told
    config = Config.build({"data": "pairs", "label": "relation", "protocol": "given", "train_per_category": 0})
    data = load_data(config, shop.parent)
    split = data.split
    assert (len(split.train), len(split.validation), len(split.test)) == (60, 4, 16)
    assert split.categories == ("different", "same") and not split.leaking
    assert np.bincount(split.labels[split.test]).tolist() == [8, 8]
    assert data.catalogue.pictures.canvas == (10, 16)
    with pytest.raises(UserError, match="pairs=-1: give their number"):
        relations.main([*columns, "--output", "others", "--pairs", "-1"])
