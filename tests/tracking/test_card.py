"""The model card says what a stranger must know."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tracking.made import make_catalogue, make_evaluation, make_split
from tests.tracking.models import save_categoriser
from vlm_core.tracking.card import markdown_code, markdown_table, markdown_text, write_card


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_categoriser("blip", tmp_path_factory.mktemp("card") / "blip")


def _card(folder: Path, protocol: str) -> str:
    catalogue = make_catalogue()
    path = write_card(
        folder,
        run_id="0123456789abcdef",
        settings={"model": "blip", "mode": "full", "checkpoint": "", "seed": "4"},
        weights_source="tiny-random",
        catalogue=catalogue,
        split=make_split(catalogue, protocol),
        evaluation=make_evaluation(20),
    )
    assert path == folder / "README.md"
    return path.read_text()


def test_a_card_states_data_protocol_scores_and_limits(folder: Path) -> None:
    card = _card(folder, "holdout")
    evaluation = make_evaluation(20)
    macro = evaluation.macro_f1
    assert f"| macro-F1 | {macro.value:.4f} | {macro.low:.4f} to {macro.high:.4f} |" in card
    for score in evaluation.per_category:
        assert f"| {score.category} | {score.support} | {score.precision:.4f} | {score.recall:.4f} |" in card
    assert "fingerprint `c0ffee00c0ffee00`" in card
    assert "Protocol `holdout`" in card
    assert "| Free Items | 33.33% | 20 |" in card
    assert "defined by their price" in card
    assert "randomly initialised" in card
    assert 'mlflow.pyfunc.load_model("runs:/0123456789abcdef/model")' in card
    assert 'BlipForConditionalGeneration.from_pretrained("model")' in card
    assert "checkpoint" not in card
    assert "reward memory" not in card


def test_a_card_of_a_leaking_run_says_so_before_anything_else(folder: Path) -> None:
    card = _card(folder, "original")
    assert card.index("These scores reward memory") < card.index("##")
    assert "**leaking**" in card


def test_texts_from_data_are_no_markdown() -> None:
    category = "Tops [x](http://evil) <img src=x> `a` *b* _c_ | # $d$ &lt; \\\n## Head"
    escaped = markdown_text(category)
    assert escaped == (r"Tops \[x\](http://evil) \<img src=x\> \`a\` \*b\* \_c\_ | \# \$d\$ \&lt; \\ \#\# Head")
    assert markdown_code("a`b\nc") == "`a'b c`"
    assert markdown_table(("x",), [(markdown_text("a|b"),)]).splitlines()[-1] == r"| a\|b |"
    assert markdown_text("Free Items (85), 12.5 %") == "Free Items (85), 12.5 %"


def test_the_network_loads_as_the_card_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = _card(folder, "holdout")
    code = card.split("```python\n")[2].split("```")[0]
    monkeypatch.chdir(folder)
    made: dict[str, object] = {}
    exec(code, made)
    assert type(made["network"]).__name__ == "BlipForConditionalGeneration"
