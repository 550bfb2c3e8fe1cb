"""Mechanisms are built alike, compute what they are named after, and see what they claim to see."""

import pytest
import torch
from torch import nn

from vlm_core.attention.mechanisms import (
    HEADS,
    MAIN,
    MECHANISMS,
    WIDTH,
    Attention,
    CrossBlock,
    JointBlock,
    Mechanism,
    control_of,
    shuffle,
)
from vlm_core.models.git import _joint_mask

CATEGORIES, PATCHES, TOKEN_WIDTH = 4, 12, 24
READ_PATCHES = [name for name, spec in MECHANISMS.items() if spec.kind != "class-token"]
PER_CATEGORY = [name for name, spec in MECHANISMS.items() if spec.scoring == "per category"]


def _sample(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _make(name, categories=CATEGORIES, token_width=TOKEN_WIDTH, name_width=20):
    torch.manual_seed(0)
    return Mechanism(name, _sample(categories, name_width, seed=1), token_width).eval()


def _weights(model):
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


def _reference(attention):
    """PyTorch's own attention with the same weights."""
    theirs = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).eval()
    parts = (attention.q_proj, attention.k_proj, attention.v_proj)
    theirs.in_proj_weight.data = torch.cat([part.weight for part in parts])
    theirs.in_proj_bias.data = torch.cat([part.bias for part in parts])
    theirs.out_proj.load_state_dict(attention.out_proj.state_dict())
    return theirs


@pytest.mark.parametrize(
    ("categories", "token_width", "name_width"),
    [(5, 128, 128), (60, 128, 128), (5, 768, 512), (5, 1024, 768), (2, 16, 8)],
    ids=["tiny", "many categories", "CLIP B/32", "CLIP L/14", "smallest"],
)
def test_all_have_the_same_number_of_weights(categories, token_width, name_width):
    counts = [_weights(_make(name, categories, token_width, name_width)) for name in MECHANISMS]
    assert max(counts) / min(counts) < 1.05


def test_a_shuffled_mechanism_has_exactly_the_weights_of_the_learned_one():
    for name in MECHANISMS:
        if name.endswith("-shuffled"):
            learned, shuffled = _make(name.removesuffix("-shuffled")), _make(name)
            shuffled.load_state_dict(learned.state_dict())
            tokens = _sample(3, 1 + PATCHES, TOKEN_WIDTH)
            assert not torch.allclose(shuffled(tokens), learned(tokens), atol=1e-4)


def test_for_one_seed_all_start_with_the_same_head():
    heads = [_make(name).head.weight for name in PER_CATEGORY]
    assert all(torch.equal(head, heads[0]) for head in heads)


@pytest.mark.parametrize("name", MECHANISMS)
def test_rows_are_log_probabilities_and_follow_their_pictures(name):
    model, tokens = _make(name), _sample(5, 1 + PATCHES, TOKEN_WIDTH)
    rows = model.log_probabilities((tokens,))
    torch.testing.assert_close(rows.exp().sum(dim=1), torch.ones(5))
    order = [4, 2, 0, 1, 3]
    torch.testing.assert_close(model.log_probabilities((tokens[order],)), rows[order], atol=1e-5, rtol=0)
    loss, same = model.loss((tokens,), torch.tensor([0, 1, 2, 3, 0]))
    torch.testing.assert_close(loss, -rows[range(5), [0, 1, 2, 3, 0]].mean())
    assert torch.equal(same, rows) and not same.requires_grad


def test_a_control_is_beside_the_mechanism_that_it_changes_in_one_respect():
    for name, spec in MECHANISMS.items():
        beside = MECHANISMS.get(control_of(name))
        if beside is None:
            assert name in MAIN
        else:
            parts = ("weighting", "source", "scoring")
            assert spec.kind == beside.kind, name
            assert sum(vars(spec)[part] != vars(beside)[part] for part in parts) == 1, name


@pytest.mark.parametrize("name", [name for name in MECHANISMS if not name.endswith("-shuffled")])
def test_the_order_of_patches_cannot_be_noticed(name):
    model, tokens = _make(name), _sample(3, 1 + PATCHES, TOKEN_WIDTH)
    order = torch.cat((torch.zeros(1, dtype=torch.long), 1 + torch.randperm(PATCHES)))
    torch.testing.assert_close(model(tokens[:, order]), model(tokens), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", MECHANISMS)
def test_each_reads_the_tokens_it_is_named_after(name):
    model, tokens = _make(name), _sample(3, 1 + PATCHES, TOKEN_WIDTH).requires_grad_()
    (gradient,) = torch.autograd.grad(model(tokens).square().sum(), tokens)
    read = gradient.abs().amax(dim=(0, 2)) > 0
    spec = MECHANISMS[name]
    assert read.tolist() == [spec.source != "patches"] + [spec.kind != "class-token"] * PATCHES


@pytest.mark.parametrize("name", [name for name in PER_CATEGORY if name.startswith("cross-attention")])
def test_a_category_keeps_its_score_when_categories_change_places(name):
    model, tokens = _make(name), _sample(3, 1 + PATCHES, TOKEN_WIDTH)
    with torch.no_grad():
        before = model(tokens)
        order = [2, 0, 3, 1]
        model.names = model.names[order]
        model.head.weight.copy_(model.head.weight[order])
        model.head.bias.copy_(model.head.bias[order])
        torch.testing.assert_close(model(tokens), before[:, order], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["cross-attention", "joint-self-attention"])
def test_with_one_head_row_a_score_is_read_from_the_names_own_state(kind):
    model, tokens = _make(f"{kind}-all-own-names"), _sample(3, 1 + PATCHES, TOKEN_WIDTH)
    assert model.head.weight.shape == (1, WIDTH) and not model.has_query
    before = model(tokens)
    assert before.shape == (3, CATEGORIES) and len(before[0].unique()) == CATEGORIES
    model.names = model.names[[0, 0, 0, 0]].clone()
    if kind == "cross-attention":  # joint self-attention tells equal names apart by the names before them
        assert len(model(tokens)[0].detach().round(decimals=5).unique()) == 1


def test_the_names_of_controls_are_random_or_those_of_other_categories():
    names = _sample(CATEGORIES, 20, seed=1)
    given = ("own", "random", "exchanged")
    own, random, exchanged = (_make(f"cross-attention-all-{each}-names").names for each in given)
    torch.testing.assert_close(own, nn.functional.layer_norm(names, (20,)))
    assert torch.equal(exchanged, own.roll(1, dims=0))
    assert (torch.corrcoef(torch.cat((own, random)))[:CATEGORIES, CATEGORIES:].abs() < 0.9).all()
    assert torch.equal(random, _make("cross-attention-all-random-names").names)


def test_attention_is_pytorchs():
    attention, queries, context = Attention(), _sample(2, 3, WIDTH), _sample(2, PATCHES, WIDTH, seed=1)
    theirs, _ = _reference(attention)(queries, context, context)
    torch.testing.assert_close(attention(queries, context), theirs, atol=1e-5, rtol=0)


def test_uniform_attention_is_the_mean_of_the_values():
    attention, context = Attention("uniform"), _sample(2, PATCHES, WIDTH)
    mean = attention.out_proj(attention.v_proj(context).mean(dim=1, keepdim=True))
    torch.testing.assert_close(attention(_sample(2, 1, WIDTH, seed=1), context), mean, atol=1e-5, rtol=0)


def test_shuffled_attention_weighs_one_patch_and_reads_another():
    attention, queries, context = Attention("shuffled").eval(), _sample(2, 3, WIDTH), _sample(2, PATCHES, WIDTH, seed=1)
    theirs, _ = _reference(attention)(queries, context, shuffle(context, resample=False))
    torch.testing.assert_close(attention(queries, context), theirs, atol=1e-5, rtol=0)


def test_shuffling_keeps_every_patch_and_draws_an_order_for_each_picture():
    tokens = torch.arange(PATCHES, dtype=torch.float32).repeat(50, 1)[..., None].expand(-1, -1, 3)
    drawn = shuffle(tokens, resample=True)
    assert torch.equal(drawn.sort(dim=1).values, tokens)
    assert len({tuple(row.tolist()) for row in drawn[..., 0]}) == 50
    fixed = shuffle(tokens, resample=False)
    assert torch.equal(fixed, shuffle(tokens, resample=False)) and len(fixed[..., 0].unique(dim=0)) == 1
    assert (fixed[0, :, 0] == tokens[0, :, 0]).float().mean() < 0.3


@pytest.mark.parametrize(("last", "every"), [(False, False), (True, False), (True, True)])
def test_the_joint_block_is_one_self_attention_under_gits_mask(last, every):
    torch.manual_seed(0)
    block, patches, text = JointBlock(48, last, every).eval(), _sample(2, PATCHES, WIDTH), _sample(2, 5, WIDTH, seed=1)
    joint = torch.cat((patches, text), dim=1)
    normed = block.norm(joint)
    attended, _ = _reference(block.attention)(normed, normed, normed, attn_mask=_joint_mask(joint, 5)[0, 0])
    theirs = block.mlp(joint + attended)
    after_patches, after_text = block(patches, text)
    read = slice(-1, None) if last and not every else slice(PATCHES, None)
    torch.testing.assert_close(after_text, theirs[:, read], atol=1e-5, rtol=0)
    torch.testing.assert_close(after_patches, patches if last else theirs[:, :PATCHES], atol=1e-5, rtol=0)


def test_the_cross_block_is_pytorchs_decoder_layer():
    torch.manual_seed(0)
    block, patches, text = (
        CrossBlock("learned", 48, True).eval(),
        _sample(2, PATCHES, WIDTH),
        _sample(2, 5, WIDTH, seed=1),
    )
    theirs = nn.TransformerDecoderLayer(WIDTH, HEADS, 48, activation="gelu", batch_first=True, norm_first=True).eval()
    theirs.self_attn, theirs.multihead_attn = _reference(block.self_attention), _reference(block.attention)
    theirs.norm1, theirs.norm2, theirs.norm3 = block.self_norm, block.norm, block.mlp.layers[0]
    theirs.linear1, theirs.linear2 = block.mlp.layers[1], block.mlp.layers[3]
    torch.testing.assert_close(block(patches, text)[1], theirs(text, patches), atol=1e-5, rtol=0)


def _planted(count, seed):
    """Tokens in which one, at a random place and marked, shows the category; all others show random ones."""
    generator = torch.Generator().manual_seed(seed)
    tokens = 0.1 * torch.randn(count, 1 + PATCHES, TOKEN_WIDTH, generator=generator)
    shown = torch.randint(CATEGORIES, (count, 1 + PATCHES), generator=generator)
    place = torch.randint(1, 1 + PATCHES, (count,), generator=generator)
    tokens += nn.functional.one_hot(shown, TOKEN_WIDTH)
    tokens[range(count), place, CATEGORIES] += 1
    return tokens, shown[range(count), place]


def _diffuse(count, seed):
    """Tokens that all show a little of the category: their mean shows it."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CATEGORIES, (count,), generator=generator)
    tokens = torch.randn(count, 1 + PATCHES, TOKEN_WIDTH, generator=generator)
    return tokens + nn.functional.one_hot(labels, TOKEN_WIDTH)[:, None], labels


def _accuracy(name, draw, steps):
    """Share of fresh pictures that a mechanism gets right after so many steps."""
    model = _make(name).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, fused=True)
    for step in range(steps):
        tokens, labels = draw(64, seed=step)
        loss, _ = model.loss((tokens,), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    tokens, labels = draw(1000, seed=10_000)
    return float((model.eval()(tokens).argmax(dim=1) == labels).float().mean())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["attention-pool", "cross-attention", "joint-self-attention"])
def test_attention_finds_the_one_token_that_decides(name):
    assert _accuracy(name, _planted, 60) > 0.95


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "mean-pool",
        *("attention-pool-all-uniform", "attention-pool-all-shuffled"),
        *("cross-attention-all-uniform", "cross-attention-all-shuffled"),
    ],
)
def test_what_has_no_use_of_attention_does_not_find_it(name):
    assert _accuracy(name, _planted, 60) < 0.45  # which shows attention all of it


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PER_CATEGORY if name in READ_PATCHES and "penultimate" not in name])
def test_where_the_mean_decides_all_do_equally_well(name):
    assert _accuracy(name, _diffuse, 40) > 0.9
