"""Settings: precedence, bounds, and the ways they are rendered and read back."""

import argparse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_core.config import Config, build_config, from_flags, from_params
from vlm_core.errors import UserError
from vlm_core.presets import PRESETS, SUITING


def _flags(*words):
    return from_flags(words, argparse.ArgumentParser())


def test_the_study_preset_holds_the_studys_settings():
    config = _flags("--preset", "study")
    assert config == Config(preset="study")
    assert (config.preset, config.batch_size, config.epochs, config.patience) == ("study", 8, 10, 3)
    assert (config.learning_rate, config.threads, config.device) == (2e-5, 8, "auto")
    assert (config.per_category, config.train_per_category) == (750, 480)


def test_a_flag_goes_over_the_preset_and_the_preset_over_the_default():
    assert _flags("--preset", "demo").mode == "probe"
    assert _flags("--preset", "demo", "--mode", "full").mode == "full"
    assert _flags().mode == "auto"
    assert _flags("--preset", "study").mode == "full"


def test_a_configuration_knows_what_was_given():
    assert _flags("--preset", "demo", "--epochs", "10").model_fields_set == {"preset", "epochs"}


def test_a_presets_mode_that_trains_a_head_gives_way_to_the_objective_that_has_none():
    assert _flags("--preset", "demo", "--objective", "generate").mode == "full"
    with pytest.raises(UserError, match="mode=probe trains a classification head"):
        _flags("--preset", "demo", "--objective", "generate", "--mode", "probe")


def test_a_presets_weights_give_way_to_a_checkpoint_that_is_named():
    assert _flags("--preset", "demo", "--checkpoint", "folder").weights == "auto"
    with pytest.raises(UserError, match="checkpoint= has no use with weights=tiny"):
        _flags("--preset", "demo", "--checkpoint", "folder", "--weights", "tiny")


def test_every_preset_names_real_settings_and_makes_a_valid_configuration():
    for name, values in {**PRESETS, **SUITING}.items():
        assert set(values) <= set(Config.model_fields)
        build_config({"preset": name if name in PRESETS else "study", **values})


@given(
    st.fixed_dictionaries(
        {
            "learning_rate": st.floats(1e-7, 1.0),
            "epochs": st.integers(1, 1000),
            "seed": st.integers(0, 2**31 - 1),
            "data": st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=30),
            "readout": st.sampled_from(["fused", "vision"]),
        }
    )
)
def test_params_bring_the_configuration_back(values):
    config = Config(**values)
    assert from_params(config.to_params()) == config
    assert from_params({**config.to_params(), "mlflow.note": "passed over"}) == config


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--learning_rate", "-1"), "learning_rate=-1"),
        (("--learning_rate", "nan"), "learning_rate=nan"),
        (("--epochs", "ten"), "epochs=ten"),
        (("--model", "resnet"), "model=resnet"),
        (("--preset", "fast"), "preset=fast"),
        (("--model", "clip", "--objective", "generate"), "generative model"),
        (("--model", "blip", "--objective", "generate", "--mode", "probe"), "mode=probe"),
        (("--model", "baseline", "--mode", "zero-shot"), "zero-shot"),
        (("--weights", "tiny", "--checkpoint", "folder"), "weights=auto"),
    ],
)
def test_a_bad_setting_is_named_in_one_sentence(words, said):
    with pytest.raises(UserError, match=said) as error:
        _flags(*words)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")


def test_a_configuration_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Config().epochs = 3  # type: ignore[misc]


def test_family_is_the_models_first_word():
    assert [Config(model=name).family for name in ("clip", "blip-large", "baseline")] == ["clip", "blip", "baseline"]
