"""A run's settings beside those of its preset, for its own model."""

import pytest

from dashboard.run_settings import differing_params, effective_settings, preset_settings
from vlm_core.config import Config
from vlm_core.config.presets import HEAD, SUITING, choose_mode


def _row(values, source="", **changes):
    settings = Config.build(values)
    if settings.mode == "auto":
        settings = settings.model_copy(update={"mode": choose_mode(settings.objective, source.split(":")[0])})
    suiting = HEAD if settings.mode == "probe" and settings.model != "baseline" else {}  # as a training adapts them
    suiting = {"resize": "stretch", **suiting}
    settings = settings.model_copy(update={**suiting, **changes})
    return {**{f"params.{name}": text for name, text in settings.to_params().items()}, "tags.weights_source": source}


@pytest.mark.parametrize("model", ["clip", "blip", "git", "baseline"])
@pytest.mark.parametrize("preset", ["cpu", "demo", "original"])
def test_a_run_of_its_presets_settings_differs_in_nothing(model, preset):
    assert differing_params(_row({"preset": preset, "model": model})) == []


def test_what_suits_the_weights_and_a_probe_is_no_choice_of_the_user():
    suited = {**SUITING["shipped"], **HEAD, "mode": "probe"}
    assert differing_params(_row({"preset": "demo", "model": "clip"}, "shipped:clip", **suited)) == []
    assert differing_params(_row({"preset": "demo", "model": "clip"}, "shipped:clip", **{**suited, "views": 5})) == [
        ("views", "5", "0")
    ]
    assert differing_params(
        _row({"preset": "demo", "model": "clip"}, "shipped:clip", **{**suited, "resize": "pad"})
    ) == [("resize", "pad", "stretch")]
    zero_shot = _row({"preset": "demo", "model": "clip", "mode": "zero-shot"}, "shipped:clip", resize="crop")
    assert [name for name, *_ in differing_params(zero_shot)] == ["mode"]


def test_the_presets_column_has_its_own_mode_with_the_epochs_of_that_mode():
    lp_ft = _row({"preset": "demo", "model": "clip", "mode": "lp-ft"}, "shipped:clip", **SUITING["shipped"])
    preset = preset_settings(lp_ft)
    assert (preset["mode"], preset["epochs"], preset["learning_rate"]) == ("probe", "30", "0.003")
    assert ("epochs", "8", "30") in differing_params(lp_ft) and ("mode", "lp-ft", "probe") in differing_params(lp_ft)
    probe = _row({"preset": "cpu", "model": "clip", "mode": "probe"}, "shipped:clip", **{**SUITING["shipped"], **HEAD})
    assert ("mode", "probe", "lp-ft") in differing_params(probe) and ("epochs", "30", "8") in differing_params(probe)
    original = _row({"preset": "original", "model": "clip", "mode": "probe"}, "", **HEAD)
    preset = preset_settings(original)
    assert (preset["mode"], preset["epochs"]) == ("full", "10") and ("epochs", "30", "10") in differing_params(original)


def test_only_settings_that_had_an_effect_are_shown():
    baseline = effective_settings(_row({"model": "baseline"}))
    assert not {"learning_rate", "epochs", "weights", "blocks", "mode"} & set(baseline) and "seed" in baseline
    assert "epochs" not in effective_settings(_row({"model": "clip", "mode": "zero-shot"}))
    assert not {"resize", "precision"} & set(baseline)
    probe = effective_settings(_row({"model": "clip", "mode": "probe"}))
    assert "learning_rate" in probe and not {"blocks", "lora_rank"} & set(probe)
    assert "lora_rank" in effective_settings(_row({"model": "clip", "mode": "lora"}))


def test_an_unknown_preset_has_no_settings():
    assert preset_settings({"params.preset": "gone"}) == {} and differing_params({"params.preset": "gone"}) == []
