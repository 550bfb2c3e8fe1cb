"""Decision rules against Hugging Face's own constrained `generate`, and against slow reading without a cache."""

import numpy as np
import pytest
import torch

from tests.models.families import CAPTIONERS, CATEGORIES, make_adapter, make_categoriser
from vlm_core.errors import UserError
from vlm_core.models.decoding import (
    CONSTRAINED,
    FREE_TEXT,
    LIKELIHOOD,
    LIKELIHOOD_PER_TOKEN,
    decode_categories,
    generate_constrained,
)
from vlm_core.models.stages import run_stages
from vlm_core.pixels.views import plain_view

PIXELS = torch.randn(40, 3, 64, 64, generator=torch.Generator().manual_seed(5)) * 3
PICTURES = np.random.default_rng(3).integers(0, 256, (40, 80, 60, 3), dtype=np.uint8)
# Names that share their beginnings, so that the first token decides little.
NAMES = ("shirt", "shirt blue", "shirt blue men", "silver watch", "silver shirt", "watch", "titan women silver", "men")


def _sentences(adapter, names=NAMES):
    return [adapter.sentence_ids(name) for name in names]


def _image_tokens(adapter, pixels):
    with torch.no_grad():
        return run_stages(adapter.stages("tokens"), (pixels,))[0]


def _loosen(adapter):
    """Random weights write the same about every picture: larger ones make pictures matter."""
    with torch.no_grad():
        for module in adapter.text_modules():
            for weight in module.parameters():
                if weight.dim() == 2:
                    weight.mul_(6)
    return adapter


@pytest.mark.parametrize("family", CAPTIONERS)
def test_writing_uses_no_name_that_transformers_will_drop(family, monkeypatch):
    told = []
    monkeypatch.setattr("transformers.utils.generic.logger.warning_once", lambda *args: told.append(args))
    adapter = make_adapter(family)
    tokens = _image_tokens(adapter, PIXELS[:1])
    with torch.no_grad():
        _, cache = adapter.prefill(tokens)
        adapter.decode_step(tokens, torch.tensor([[1]]), cache)
    assert not told


@pytest.mark.parametrize("family", CAPTIONERS)
def test_constrained_writing_is_hugging_faces_with_the_same_tokens_allowed(family):
    adapter = _loosen(make_adapter(family, width=128))
    sentences, prompt = _sentences(adapter), adapter.prompt_ids()

    def allowed(_, written):
        done = written.tolist()[len(prompt) :]
        following = {text[len(done)] for text in sentences if text[: len(done)] == done and len(text) > len(done)}
        return sorted(following) or [sentences[0][-1]]  # after the end, padding

    # BLIP's generate drops the last token of its input and forces the first to be [DEC].
    ids = torch.tensor([[*prompt, 0] if family == "blip" else prompt] * len(PIXELS))
    theirs = adapter.hf.generate(
        pixel_values=PIXELS, input_ids=ids, prefix_allowed_tokens_fn=allowed, max_new_tokens=12, do_sample=False
    )
    written = [row[len(prompt) :].tolist() for row in theirs]
    expected = [next(n for n, text in enumerate(sentences) if row[: len(text)] == text) for row in written]
    ours = generate_constrained(adapter, _image_tokens(adapter, PIXELS), sentences)
    assert ours.tolist() == expected
    assert len(set(expected)) > 2


@pytest.mark.parametrize("family", CAPTIONERS)
def test_likelihoods_are_those_of_reading_each_sentence_without_a_cache(family):
    model = make_categoriser(family, "sentences")
    _loosen(model.adapter)
    tokens = _image_tokens(model.adapter, plain_view(PICTURES, 64))
    scores = []
    for sentence in model.head.sentences:
        ids = torch.tensor([model.head.prompt + sentence] * len(PICTURES))
        steps = model.adapter.token_logits(tokens, ids).log_softmax(-1)[:, len(model.head.prompt) - 1 : -1]
        scores.append(steps.gather(2, torch.tensor(sentence).expand(len(ids), -1)[..., None]).sum(dim=(1, 2)))
    whole = torch.stack(scores, dim=1).detach()
    torch.testing.assert_close(model.head.log_likelihoods(tokens), whole, atol=2e-4, rtol=1e-4)
    predictions = decode_categories(model, PICTURES).predictions
    assert predictions[LIKELIHOOD].tolist() == whole.argmax(dim=1).tolist()
    lengths = torch.tensor([len(sentence) for sentence in model.head.sentences])
    assert predictions[LIKELIHOOD_PER_TOKEN].tolist() == (whole / lengths).argmax(dim=1).tolist()


@pytest.mark.slow
@pytest.mark.parametrize("family", CAPTIONERS)
def test_each_rule_answers_as_it_would_alone(family):
    model = make_categoriser(family, "sentences")
    decoded = decode_categories(model, PICTURES)
    texts, closest = model.describe(PICTURES)
    assert list(decoded.texts) == texts
    np.testing.assert_array_equal(decoded.predictions[FREE_TEXT], closest)
    np.testing.assert_array_equal(decoded.predictions[LIKELIHOOD], model.log_probabilities(PICTURES).argmax(axis=1))
    assert set(decoded.predictions[CONSTRAINED]) <= set(range(len(CATEGORIES)))
    assert all(
        predictions.shape == (40,) and predictions.dtype == np.int64 for predictions in decoded.predictions.values()
    )


class _Coin:
    """A captioner of four tokens whose probabilities are known."""

    def __init__(self):
        self.first = torch.tensor([0.6, 0.4, 0, 0]).log()
        self.after = torch.tensor([[0, 0, 0.55, 0.45], [0, 0, 0.02, 0.98]]).log()

    def prefill(self, tokens):
        return self.first.expand(len(tokens), -1), None

    def decode_step(self, tokens, ids, cache):
        return self.after[ids]


def test_greedy_writing_takes_a_likely_beginning_though_another_sentence_is_likelier():
    sentences = [[1, 3], [0, 3], [0, 2]]  # 0.4 * 0.98 = 0.39, 0.6 * 0.45 = 0.27 and 0.6 * 0.55 = 0.33
    assert generate_constrained(_Coin(), torch.zeros(2, 1, 1), sentences).tolist() == [2, 2]


@pytest.mark.parametrize("family", CAPTIONERS)
def test_equal_sentences_mean_the_first_and_one_alone_is_always_meant(family):
    adapter = make_adapter(family)
    tokens = _image_tokens(adapter, PIXELS[:4])
    assert generate_constrained(adapter, tokens, _sentences(adapter, ("watch", "watch"))).tolist() == [0] * 4
    assert generate_constrained(adapter, tokens, _sentences(adapter, ("blue shirt",))).tolist() == [0] * 4


@pytest.mark.parametrize("kind", [("clip", "prompts"), ("git", "linear")])
def test_a_model_that_writes_nothing_is_refused(kind):
    with pytest.raises(UserError, match="objective=generate"):
        decode_categories(make_categoriser(*kind), PICTURES[:1])
