"""Which readers of pictures and texts are compared, and how they are named."""

import pytest

from vlm_core.study.readers import Reader, readers


def test_a_family_without_language_reads_pictures_alone():
    assert [reader.label for reader in readers(["vision"]) if reader.family == "vision"] == ["vision picture"]


def test_every_way_stands_beside_its_inputs_alone_masked_and_not():
    compared = readers(["clip"])
    assert [reader.label for reader in compared if reader.family == "baseline"] == [
        "baseline picture",
        "baseline text",
        "baseline both, stacked",
        "baseline text (masked)",
        "baseline both, stacked (masked)",
    ]
    of_clip = [reader for reader in compared if reader.family == "clip"]
    assert {reader.fusion for reader in of_clip if not reader.masked} == {
        "",
        "late",
        "concat",
        "cross-attention",
        "own",
    }
    assert sum(reader.inputs == "image" for reader in of_clip) == 1 and len(of_clip) == 11


def test_a_reader_is_found_again_by_its_key():
    compared = readers(["clip", "blip", "git", "vision"])
    assert [Reader.of(reader.key) for reader in compared] == compared
    assert Reader("clip", "image+text", "cross-attention", masked=True).key == "clip:image+text:cross-attention:masked"


@pytest.mark.parametrize(
    ("reader", "settings"),
    [
        (Reader("git", "text", masked=True), {"model": "git", "inputs": "text", "mask_label_words": True}),
        (
            Reader("clip", "image+text", "own"),
            {"model": "clip", "inputs": "image+text", "mask_label_words": False, "fusion": "own"},
        ),
        (
            Reader("baseline", "image+text", "stacked"),
            {"model": "baseline", "inputs": "image+text", "mask_label_words": False},
        ),
    ],
)
def test_a_reader_names_the_settings_of_its_training(reader, settings):
    assert reader.settings == settings
