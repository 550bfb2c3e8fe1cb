"""Which cells a study has."""

import pytest

from vlm_core.config import StudyConfig
from vlm_core.errors import UserError
from vlm_core.study.plan import Cell, StudyPlan, plan_study

MECHANISMS = ("mean-pool", "attention-pool")


def planned(**settings: object) -> StudyPlan:
    return plan_study(StudyConfig.build({"preset": "demo", **settings}), MECHANISMS)


def test_each_seed_has_every_family_mode_objective_and_mechanism_and_the_leak_of_the_last_mode() -> None:
    plan = planned(seeds=2, modes="probe,lp-ft")
    assert [cell.key for cell in plan.cells if cell.seed == 0] == [
        "baseline/full/classify/holdout/0",
        "clip/probe/classify/holdout/0",
        "clip/lp-ft/classify/holdout/0",
        "blip/probe/classify/holdout/0",
        "blip/lp-ft/classify/holdout/0",
        "blip/fusion/generate/holdout/0",
        "git/probe/classify/holdout/0",
        "git/lp-ft/classify/holdout/0",
        "git/fusion/generate/holdout/0",
        "baseline/full/classify/original/0",
        "clip/lp-ft/classify/original/0",
        "blip/lp-ft/classify/original/0",
        "git/lp-ft/classify/original/0",
        "mechanism/mean-pool@clip/classify/holdout/0",
        "mechanism/attention-pool@clip/classify/holdout/0",
    ]
    assert len(plan.cells) == 2 * 15


def test_seeds_start_with_the_first_one() -> None:
    assert {cell.seed for cell in planned(seeds=3, seed=7).cells} == {7, 8, 9}


def test_a_cell_is_found_again_by_its_key() -> None:
    cells = planned(seeds=1).cells
    assert [Cell.of(cell.key) for cell in cells] == list(cells)


def test_settings_of_the_user_override_the_preset_in_every_cell() -> None:
    plan = planned(seeds=1, epochs=3, label="articleType")
    settings = plan.settings(Cell("git", "lp-ft", "classify", "holdout", 4))
    assert (settings.model, settings.mode, settings.seed) == ("git", "lp-ft", 4)
    assert (settings.epochs, settings.label, settings.weights) == (3, "articleType", "tiny")


def test_the_preset_ablation_exchanges_mechanisms_alone() -> None:
    plan = planned(preset="ablation", seeds=1)
    assert [cell.mechanism for cell in plan.cells] == list(MECHANISMS)
    assert {cell.model for cell in plan.cells} == {"mechanism"}


def test_the_preset_original_trains_every_weight_as_the_paper_did() -> None:
    plan = planned(preset="original", seeds=1, families="clip", parts="families")
    assert plan.main_mode == "full"
    assert {cell.mode for cell in plan.cells if cell.protocol == "original"} == {"full"}


def test_only_the_main_configurations_are_measured_in_depth() -> None:
    plan = planned(seeds=2)
    measured = {cell.key: plan.measurements(cell) for cell in plan.cells}
    assert measured["clip/lp-ft/classify/holdout/0"] == ("unknown", "held_out", "robustness", "attention")
    assert measured["clip/lp-ft/classify/holdout/1"] == ("unknown", "held_out", "robustness")
    assert measured["clip/lp-ft/classify/original/0"] == ("leak",)
    assert measured["clip/probe/classify/holdout/0"] == ("simple_baselines",)
    assert measured["blip/fusion/generate/holdout/1"] == ("decoding",)
    assert measured["baseline/full/classify/holdout/0"] == ("unknown", "held_out", "robustness")
    assert measured["mechanism/mean-pool@clip/classify/holdout/0"] == ()
    assert "robustness" not in planned(seeds=1, parts="families").measurements(Cell.of("clip/lp-ft/classify/holdout/0"))


def test_the_ablation_runs_on_each_tower() -> None:
    plan = planned(preset="ablation", seeds=1, towers="git,random", epochs=3)
    modes = [f"{name}@{tower}" for tower in ("git", "random") for name in MECHANISMS]
    assert [cell.mode for cell in plan.cells] == modes
    git, random = (plan.settings(plan.cells[place]) for place in (0, -1))
    assert (git.model, git.weights, git.mode, git.epochs) == ("git", "tiny", "probe", 3)
    assert (random.model, random.weights, random.batch_size) == ("clip", "tiny-random", 64)


def test_cells_of_the_ablation_say_what_they_read_and_on_which_tower() -> None:
    def label(mode: str) -> str:
        return Cell("mechanism", mode, "classify", "holdout", 0).label

    assert label("cross-attention-all@clip") == "cross-attention"
    assert label("attention-pool-all-uniform@git") == "attention-pool, uniform weights (git tower)"
    assert label("attention-pool-shuffled") == "attention-pool, patches only, shuffled weights"  # of an earlier version


def test_given_parts_are_kept_by_every_cell() -> None:
    plan = planned(protocols="given", seeds=1, modes="probe,lp-ft")
    assert {cell.protocol for cell in plan.cells} == {plan.honest_protocol} == {"given"}
    assert {plan.settings(cell).protocol for cell in (*plan.cells[:2], plan.cells[-1])} == {"given"}
    measured = {cell.key: plan.measurements(cell) for cell in plan.cells}
    assert measured["clip/lp-ft/classify/given/0"] == ("unknown", "held_out", "robustness", "attention")
    assert len(plan.cells) == len([cell for cell in planned(seeds=1, modes="probe,lp-ft").cells if cell.is_honest])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"families": "clip,flava"}, "families=flava is not known: choose among clip"),
        ({"modes": "probe,half"}, "modes=half is not known"),
        ({"parts": "robustness"}, "leaves nothing to run: name families, ablation, continual or fusion"),
        ({"protocols": " , "}, "protocols is empty"),
        ({"towers": "vit"}, "towers=vit is not known: choose among clip, blip, git, random"),
        (
            {"protocols": "given,holdout"},
            "protocols=given,holdout: given keeps the parts of the catalogue, and stands alone",
        ),
        ({"protocols": "given", "parts": "fusion"}, "protocols=given keeps parts that parts=fusion divides anew"),
    ],
)
def test_an_unknown_name_is_refused_with_the_known_ones(settings: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        planned(**settings)


def test_the_continual_part_needs_no_cell() -> None:
    plan = planned(parts="continual", families="git,clip", seeds=1)
    assert plan.cells == () and plan.probe_settings().model == "git"


def test_the_part_on_texts_has_a_cell_for_each_reader_with_the_budget_of_a_probe() -> None:
    plan = planned(parts="fusion", families="clip", seeds=2, text_columns="title,brand")
    assert len(plan.cells) == 2 * 16 and {cell.seed for cell in plan.cells} == {0, 1}
    cell = Cell.of("reader/clip:image+text:own:masked/classify/holdout/1")
    assert cell in plan.cells and cell.label == "clip both, own (masked)"
    settings, probe = plan.settings(cell), plan.probe_settings()
    assert (settings.inputs, settings.fusion, settings.mask_label_words) == ("image+text", "own", True)
    assert (settings.seed, settings.text_columns, settings.mode) == (1, "title,brand", "probe")
    assert (settings.learning_rate, settings.epochs) == (probe.learning_rate, probe.epochs)


def test_a_family_has_no_cells_of_modes_that_it_lacks() -> None:
    config = StudyConfig.build(
        {"families": "siglip,vision", "modes": "zero-shot,fusion,probe", "seeds": 1, "parts": "families"}
    )
    cells = [(cell.model, cell.mode) for cell in plan_study(config, []).cells if cell.protocol == "holdout"]
    assert cells == [
        ("baseline", "full"),
        *(("siglip", mode) for mode in ("zero-shot", "fusion", "probe")),
        ("vision", "probe"),
    ]
