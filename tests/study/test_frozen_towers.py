"""Frozen towers in folders: named, checked, and kept as they were when a study began."""

from pathlib import Path

import pytest

from tests.models.families import make_mean_pooled, make_tiny
from vlm_core.config import StudyConfig
from vlm_core.errors import UserError
from vlm_core.study.cells import load_encoder
from vlm_core.study.frozen_towers import check_towers, checksums_text, find_towers
from vlm_core.study.plan import Cell, plan_study


def save(folder: Path, family: str) -> Path:
    for part in make_tiny(family):
        part.save_pretrained(folder)
    return folder


@pytest.fixture
def mean(tmp_path: Path) -> Path:
    folder = tmp_path / "clip@mean"
    for part in (make_mean_pooled().hf, make_tiny("clip")[1]):
        part.save_pretrained(folder)
    return folder


def test_a_folder_is_a_tower_of_its_own_name_family_and_weights(mean: Path) -> None:
    settings = {"preset": "ablation", "seeds": 1, "towers": f'random,"{mean}/", {mean}'}
    plan = plan_study(StudyConfig.build(settings), ("mean-pool",))
    assert [cell.key for cell in plan.cells] == [
        "mechanism/mean-pool@random/classify/holdout/0",
        "mechanism/mean-pool@clip@mean/classify/holdout/0",
    ]
    cell = Cell.of(plan.cells[1].key)
    assert (cell.mechanism, cell.tower, cell.label) == (
        "mean-pool",
        "clip@mean",
        "mean-pool, patches only (clip@mean tower)",
    )
    config = plan.settings(cell)
    assert (config.model, config.checkpoint, config.batch_size) == ("clip", str(mean), 64)
    assert load_encoder(config, config.family).hf.config.vision_config.pooling == "mean"
    random = plan.settings(plan.cells[0])
    assert (random.checkpoint, random.test_ids, config.test_ids) == ("", "reserved", "reserved")


def test_a_folder_whose_files_have_changed_is_noticed(mean: Path) -> None:
    (tower,) = find_towers(str(mean)).values()
    assert tower
    tower.check()
    kept = checksums_text({"clip@mean": tower})
    check_towers({"clip@mean": tower}, kept)
    check_towers({"clip@mean": tower}, "")  # of a study that was stopped before it kept any
    (mean / "config.json").write_text((mean / "config.json").read_text() + "\n")
    with pytest.raises(UserError, match="has other files than when the study began"):
        tower.check()
    now = {name: each for name, each in find_towers(str(mean)).items() if each}
    with pytest.raises(UserError, match="has other files than when the study began"):
        check_towers(now, kept)


def test_what_cannot_be_a_tower_is_refused(mean: Path, tmp_path: Path) -> None:
    siglip = save(tmp_path / "siglip", "siglip")
    (tmp_path / "empty").mkdir()
    (tmp_path / "other" / mean.name).mkdir(parents=True)
    for towers, message in {
        str(siglip): r"is of the family siglip, and mechanisms read a class token.*of clip, blip, git\.",
        "siglip": "towers=siglip is not known: choose among clip, blip, git, random, or name a folder",
        str(tmp_path / "empty"): r"towers=.*empty holds no readable config\.json",
        f"{mean},{tmp_path / 'other' / mean.name}": "has the name of another tower, clip@mean",
        " ": "towers is empty",
    }.items():
        with pytest.raises(UserError, match=message):
            find_towers(towers)
    with pytest.raises(UserError, match="has the name of another tower, git"):
        find_towers(str(mean.rename(tmp_path / "git")))
