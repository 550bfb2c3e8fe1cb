"""Attention as Hugging Face's own classes give it, and the papers' formulas in loops: what maps are held against."""

import numpy as np
import torch

from vlm_core.models.categoriser import VisionLanguageCategoriser


def _pooled(head, weights: torch.Tensor, tokens: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """SigLIP's pooled state as it depends on these weights: PyTorch's module returns a copy that nothing depends on."""
    _, _, w_v = head.attention.in_proj_weight.chunk(3)
    _, _, b_v = head.attention.in_proj_bias.chunk(3)
    values = torch.nn.functional.linear(tokens, w_v, b_v)  # (B, N, D)
    values = values.unflatten(2, (weights.shape[1], -1)).transpose(1, 2)  # (B, H, N, E)
    y = head.attention.out_proj((weights @ values).transpose(1, 2).flatten(2))
    state = (y + head.mlp(head.layernorm(y)))[:, 0]
    torch.testing.assert_close(state, expected)
    return state


def attention_of_hugging_face(model: VisionLanguageCategoriser, pixels: torch.Tensor, ids: list[int] | None = None):
    """Eager attention by kind (lists of (B, heads, rows, columns), in the graph); the state, or logits after `ids`."""
    hf, family = model.hf, model.description.family
    hf.set_attn_implementation("eager")
    if family == "clip":
        output = hf.vision_model(pixels, output_attentions=True)
        return {"vision": output.attentions}, hf.visual_projection(output.pooler_output)
    if family == "vision":
        output = hf(pixels, output_attentions=True)
        return {"vision": output.attentions}, output.pooler_output
    if family == "siglip":
        output, head = hf.vision_model(pixels, output_attentions=True), hf.vision_model.head
        query, tokens = head.probe.expand(len(pixels), -1, -1), output.last_hidden_state
        weights = head.attention(query, tokens, tokens, average_attn_weights=False)[1]  # (B, H, 1, N)
        return {"vision": output.attentions, "pool": [weights]}, _pooled(head, weights, tokens, output.pooler_output)
    texts = torch.tensor([ids or model.adapter.prompt_ids()] * len(pixels))
    if family == "blip":
        seen = hf.vision_model(pixels, output_attentions=True)
        read = hf.text_decoder.bert(
            texts, encoder_hidden_states=seen.last_hidden_state, is_decoder=True, output_attentions=True
        )
        found = {"vision": seen.attentions, "text": read.attentions, "cross": read.cross_attentions}
        return found, hf.text_decoder.cls(read.last_hidden_state) if ids else read.last_hidden_state[:, -1]
    found = {"vision": [], "joint": []}
    hooks = [
        module.register_forward_hook(lambda module, inputs, output, kind=kind: found[kind].append(output[1]))
        for kind, modules in {
            "vision": [block.self_attn for block in hf.git.image_encoder.vision_model.encoder.layers],
            "joint": [block.attention.self for block in hf.git.encoder.layer],
        }.items()
        for module in modules
    ]
    state = hf.git(input_ids=texts, pixel_values=pixels).last_hidden_state
    for hook in hooks:
        hook.remove()
    return found, hf.output(state[:, -texts.shape[1] :]) if ids else state[:, -1]


def rollout_by_hand(layers: list[np.ndarray]) -> np.ndarray:
    """Abnar & Zuidema 2020, equation 1, of one picture: layers (heads, N, N)."""
    length = layers[0].shape[-1]
    rolled = np.eye(length)
    for layer in layers:
        mixed = np.zeros((length, length))
        for i in range(length):
            for j in range(length):
                mixed[i, j] = 0.5 * sum(head[i, j] for head in layer) / len(layer) + 0.5 * (i == j)
        rolled = mixed @ rolled
    return rolled


def weighted_by_hand(attention: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Chefer et al. 2021, equation 5, of one picture: both (heads, rows, columns)."""
    result = np.zeros(attention.shape[1:])
    for head in range(len(attention)):
        for i in range(attention.shape[1]):
            for j in range(attention.shape[2]):
                result[i, j] += max(0.0, attention[head, i, j] * gradient[head, i, j]) / len(attention)
    return result


def normalised_by_hand(relevance: np.ndarray) -> np.ndarray:
    """Equations 8 and 9."""
    result = np.eye(len(relevance))
    for i in range(len(relevance)):
        added = [relevance[i, j] - (i == j) for j in range(len(relevance))]
        for j in range(len(relevance)):
            result[i, j] += added[j] / sum(added) if sum(added) > 0 else 0.0
    return result


def chefer_by_hand(weighted: dict[str, list[np.ndarray]]) -> np.ndarray:
    """Relevance of image tokens for the class token, or for each text token: equations 5 to 11 of one picture."""
    images = weighted["vision"][0].shape[-1]
    r_ii = np.eye(images)
    for layer in weighted["vision"]:
        r_ii = r_ii + layer @ r_ii  # 6
    if "cross" in weighted:
        length = weighted["text"][0].shape[-1]
        r_tt, r_ti, r_it = np.eye(length), np.zeros((length, images)), np.zeros((images, length))
        for among, across in zip(weighted["text"], weighted["cross"], strict=True):
            r_tt, r_ti = r_tt + among @ r_tt, r_ti + among @ r_ti  # 6, 7
            r_ti, r_tt = (
                r_ti + normalised_by_hand(r_tt).T @ across @ normalised_by_hand(r_ii),  # 10
                r_tt + across @ r_it,  # 11
            )
        return r_ti
    if "pool" in weighted:
        return weighted["pool"][0] @ normalised_by_hand(r_ii)  # 10 for one query that attends to nothing else
    if "joint" in weighted:
        r = np.eye(weighted["joint"][0].shape[-1])
        r[:images, :images] = normalised_by_hand(r_ii)  # our own addition: the paper has no tower before joint layers
        for layer in weighted["joint"]:
            r = r + layer @ r
        return r[images:, :images]
    return r_ii[:1]
