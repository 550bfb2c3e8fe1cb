"""Settings: precedence, bounds, former names, and the ways they are rendered and read back."""

import argparse
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_core.config import (
    AuditConfig,
    Config,
    ExtensionConfig,
    PreparationSettings,
    PretrainingConfig,
    SearchConfig,
    StudyConfig,
)
from vlm_core.config.presets import PRESETS, SUITING
from vlm_core.errors import UserError, redact


@pytest.fixture(autouse=True)
def _messages(caplog):
    caplog.set_level(logging.INFO, logger="vlm_core")


KINDS = (Config, SearchConfig, StudyConfig, PretrainingConfig)


def _flags(*words, kind=Config):
    return kind.from_flags(words, argparse.ArgumentParser())


def test_the_original_preset_holds_the_papers_settings():
    config = _flags("--preset", "original")
    assert config == Config(preset="original")
    assert (config.preset, config.batch_size, config.epochs, config.patience) == ("original", 8, 10, 3)
    assert (config.learning_rate, config.threads, config.device) == (2e-5, 8, "auto")
    assert (config.per_category, config.train_per_category) == (750, 480)


def test_a_flag_goes_over_the_preset_and_the_preset_over_the_default():
    assert _flags("--preset", "demo").mode == "probe"
    assert _flags("--preset", "demo", "--mode", "full").mode == "full"
    assert _flags().mode == "auto"
    assert _flags("--preset", "original").mode == "full"


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


def test_pooling_is_clips():
    assert PretrainingConfig.build({"model": "clip-large", "pooling": "mean"}).pooling == "mean"
    with pytest.raises(UserError, match="pooling=mean is CLIP's, and model=git pools in its own way: omit pooling="):
        PretrainingConfig.build({"model": "git", "pooling": "mean"})


def test_every_preset_names_real_settings_and_makes_a_valid_configuration():
    for name, values in {**PRESETS, **SUITING}.items():
        assert set(values) <= {setting for kind in KINDS for setting in kind.model_fields}
        for kind in KINDS:
            own = {setting: value for setting, value in values.items() if setting in kind.model_fields}
            kind.build({"preset": name if name in PRESETS else "original", **own})


@pytest.mark.parametrize("balance", ["weights", "logit-adjusted"])
def test_balanced_losses_need_a_classification_head(balance):
    with pytest.raises(UserError, match=f"balance={balance} changes the loss of a classification head"):
        _flags("--objective", "generate", "--balance", balance)
    assert _flags("--objective", "generate", "--balance", "none").balance == "none"


def test_the_original_protocol_oversamples():
    with pytest.raises(UserError, match="protocol=original oversamples before it splits, which balance=none does not"):
        _flags("--protocol", "original", "--balance", "none")


def test_a_file_of_parts_is_kept_unless_a_protocol_divides_anew():
    assert _flags("--split", "parts.csv").protocol == "given"
    for protocol in ("holdout", "original"):
        with pytest.raises(UserError, match=f"protocol={protocol} divides the products itself"):
            _flags("--split", "parts.csv", "--protocol", protocol)
    with pytest.raises(UserError, match="protocol=condition-cnn needs the lists of products"):
        _flags("--protocol", "condition-cnn")
    published = _flags("--split", "parts.csv", "--protocol", "condition-cnn")
    assert (published.protocol, published.balance) == ("condition-cnn", "none")
    assert _flags("--split", "p.csv", "--protocol", "condition-cnn", "--balance", "weights").balance == "weights"


def test_several_labels_stand_from_coarse_to_fine():
    config = _flags("--label", "department, type")
    assert config.labels == ("department", "type") and config.main_label == "type"
    assert _flags("--label", '"type, new"').labels == ("type, new",)
    assert _flags().labels == ("masterCategory",)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--objective", "generate"), "objective=generate writes one category: name one column"),
        (("--mode", "zero-shot"), "mode=zero-shot trains no head for each"),
        (("--model", "baseline"), "the baseline learns one"),
        (("--inputs", "image+text"), "inputs=image.text has no head for each yet"),
    ],
)
def test_what_learns_one_label_refuses_several(words, message):
    with pytest.raises(UserError, match=message):
        _flags("--label", "department,type", *words)


@pytest.mark.parametrize("kind", [StudyConfig, PretrainingConfig, ExtensionConfig, AuditConfig])
def test_commands_of_one_label_refuse_several(kind):
    with pytest.raises(UserError, match="label=a,b names several columns, and this command takes one"):
        _flags("--label", "a,b", kind=kind)
    with pytest.raises(UserError, match="label=a,a names a column twice"):
        _flags("--label", "a,a", kind=kind)


@pytest.mark.slow
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
    assert Config.from_params(config.to_params()) == config
    assert Config.from_params({**config.to_params(), "mlflow.note": "passed over"}) == config


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
        (("--model", "vision", "--mode", "zero-shot"), "no language, and so no zero-shot mode"),
        (("--model", "vision", "--inputs", "text"), "no language, and reads no text"),
        (("--model", "vision", "--mode", "fusion"), "nothing after its vision tower"),
        (("--model", "siglip", "--objective", "generate"), "generative model"),
        (("--weights", "tiny", "--checkpoint", "folder"), "weights=auto"),
        (("--inputs", "text", "--mode", "zero-shot"), "mode=zero-shot reads pictures alone, not inputs=text"),
        (("--inputs", "image+text", "--objective", "generate"), "objective=generate reads pictures alone"),
        (("--inputs", "image+text", "--readout", "vision"), "readout=vision reads pictures alone"),
        (("--inputs", "image+text", "--prefix", "int8"), "prefix=int8 reads pictures alone"),
        (("--inputs", "text", "--mode", "fusion"), "use mode=probe"),
        (("--inputs", "both"), "inputs=both"),
        (("--modality_dropout", "0.6"), "modality_dropout=0.6"),
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


@pytest.mark.parametrize("kind", KINDS)
def test_params_bring_every_commands_settings_back(kind):
    settings = kind.build({})
    assert kind.from_params(settings.to_params()) == settings


@pytest.mark.parametrize("kind", KINDS)
def test_no_setting_is_taken_for_a_secret(kind):
    settings = " ".join(f"{name}=x" for name in kind.model_fields)
    assert redact(settings) == settings


@pytest.mark.parametrize("kind", KINDS)
def test_help_shows_every_setting_once_in_a_group(kind):
    grouped = [name for _, names in kind.groups() for name in names]
    assert sorted(grouped) == sorted(kind.model_fields)
    parser = argparse.ArgumentParser()
    kind.add_flags(parser)
    text = parser.format_help()
    assert all(text.count(f"\n  --{name} ") == 1 for name in kind.model_fields)


def test_a_command_takes_its_own_settings_alone():
    assert PretrainingConfig.build({}).preset == "pretrain"
    assert {"patches_kept", "trials", "seeds"}.isdisjoint(Config.model_fields)
    assert {"model", "mode", "objective", "protocol", "resume", "run_name"}.isdisjoint(StudyConfig.model_fields)
    assert {"resume", "run_name"}.isdisjoint(SearchConfig.model_fields)
    with pytest.raises(UserError, match="there is no setting called trials"):
        Config.build({"trials": 3})


@pytest.mark.parametrize(
    ("kind", "words", "note", "current"),
    [
        (Config, ("--protocol", "study"), "protocol=study is called protocol=original now.", ("protocol", "original")),
        (Config, ("--preset", "study"), "preset=study is called preset=original now.", ("preset", "original")),
        (
            Config,
            ("--augmentation", "study"),
            "augmentation=study is called augmentation=standard now.",
            ("augmentation", "standard"),
        ),
        (
            StudyConfig,
            ("--protocols", "holdout,study"),
            "protocols=holdout,study is called protocols=holdout,original now.",
            ("protocols", "holdout,original"),
        ),
        (
            StudyConfig,
            ("--answers", "classify"),
            "answers=classify is called objectives=classify now.",
            ("objectives", "classify"),
        ),
        (SearchConfig, ("--study", "mine"), "study=mine is called search_name=mine now.", ("search_name", "mine")),
        (
            SearchConfig,
            ("--objectives", "score,seconds"),
            "objectives=score,seconds is called search_objectives=score,seconds now.",
            ("search_objectives", "score,seconds"),
        ),
    ],
)
def test_a_former_name_is_understood_and_its_current_one_is_told(kind, words, note, current, caplog):
    config = _flags(*words, kind=kind)
    name, value = current
    assert getattr(config, name) == value and name in config.model_fields_set
    assert caplog.messages == [note]


def test_a_study_may_still_be_named_and_current_names_need_no_note(caplog):
    assert _flags("--study", "study", kind=StudyConfig).study == "study"
    assert _flags("--protocol", "original", "--augmentation", "standard").protocol == "original"
    assert caplog.messages == []


def test_stored_params_with_former_names_are_read_in_silence(caplog):
    stored = {"preset": "study", "protocol": "study", "augmentation": "study"}
    assert Config.from_params(stored) == Config.build(
        {"preset": "original", "protocol": "original", "augmentation": "standard"}
    )
    search = SearchConfig.from_params({"study": "mine", "objectives": "score,seconds", "search": "blocks"})
    assert (search.search_name, search.search_objectives) == ("mine", "score,seconds")
    study = StudyConfig.from_params({"study": "mine", "answers": "classify", "protocols": "holdout,study"})
    assert (study.study, study.objectives, study.protocols) == ("mine", "classify", "holdout,original")
    assert caplog.messages == []


def test_preparation_has_the_settings_of_catalogue_and_split_alone():
    settings = PreparationSettings.build({"label": "masterCategory,articleType", "per_category": 10})
    assert (settings.labels, settings.per_category) == (("masterCategory", "articleType"), 10)
    with pytest.raises(UserError, match="there is no setting called lora_rank"):
        PreparationSettings.build({"lora_rank": 4})
    with pytest.raises(UserError, match="protocol=condition-cnn needs the lists"):
        PreparationSettings.build({"protocol": "condition-cnn"})


def test_help_says_defaults_as_they_are_typed():
    parser = argparse.ArgumentParser()
    Config.add_flags(parser)
    shown = " ".join(parser.format_help().split())
    assert "{true,false} download images at web addresses, unless they are there already (default: false)" in shown
    assert "(default: )" not in shown and "(default: '" not in shown
