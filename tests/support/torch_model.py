"""The model in torch, from the formulas, for gradients by autograd.

In float64. It shares nothing with the code under test but RoPE's tables, which other tests compare with Hugging Face's.
"""

import math
from itertools import pairwise

import numpy as np
import torch
from hypothesis import strategies as st

from qwq_ref import spec
from qwq_ref.spec import ops

seeds = st.integers(0, 2**32 - 1)


dims = st.integers(1, 9)


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def assert_close(ours, theirs, tolerance, floor=0.0):
    """Relative to the norm of the whole array; `floor` is what counts as zero."""
    assert ours.shape == theirs.shape
    assert ours.dtype == np.float64
    assert np.linalg.norm(ours - theirs) <= tolerance * np.linalg.norm(theirs) + floor


def autograd(function, arrays, dy):
    """torch's gradients of sum(function(*arrays) * dy) by each of the arrays."""
    tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
    function(*tensors).backward(torch.tensor(dy))
    return [tensor.grad.numpy() for tensor in tensors]


def assert_gradients(ours, function, arrays, dy):
    floor = 1e-13 * np.linalg.norm(dy)  # what autograd itself leaves of a gradient that is zero
    for mine, theirs in zip(ours, autograd(function, arrays, dy), strict=True):
        assert_close(mine, theirs, 1e-10, floor)


def torch_rmsnorm(x, w, eps):
    return x / torch.sqrt((x**2).mean(-1, keepdim=True) + eps) * w


def torch_rope(x, cos, sin):
    """x [B, T, N, E], cos and sin [B, T, E]."""
    first, second = x.chunk(2, -1)
    return x * cos[..., None, :] + torch.cat([-second, first], -1) * sin[..., None, :]


def torch_attention(q, k, v, visible, segments):
    """Head by head, key-value heads repeated."""
    G, E = q.shape[2] // k.shape[2], q.shape[3]
    k, v = k.repeat_interleave(G, 2), v.repeat_interleave(G, 2)
    scores = torch.einsum("bthe,bshe->bhts", q, k) / math.sqrt(E)
    see = torch.tensor(visible)[None, None]
    if segments is not None:
        own = torch.tensor(segments)
        see = see & (own[:, None, :, None] == own[:, None, None, :])
    return torch.einsum("bhts,bshe->bthe", scores.masked_fill(~see, -math.inf).softmax(-1), v)


def torch_swiglu(gate, up, beta):
    return gate * torch.sigmoid(beta * gate) * up


def torch_model(config, w, ids, segments, positions):
    """-> logits, hidden"""
    tables = spec.rope_tables(
        spec.rope_frequencies(config.rope, config.E), config.rope.attention_scaling, positions.reshape(-1), np.float64
    )
    cos, sin = (torch.tensor(table.reshape(*ids.shape, -1)) for table in tables)
    x = w["model.embed_tokens.weight"][torch.tensor(ids)]
    for layer in range(config.L):
        at = f"model.layers.{layer}."
        normed = torch_rmsnorm(x, w[at + "input_layernorm.weight"], config.rms_norm_eps)
        q, k, v = (
            (normed @ w[f"{at}self_attn.{name}_proj.weight"].T + w[f"{at}self_attn.{name}_proj.bias"]).unflatten(
                -1, (-1, config.E)
            )
            for name in "qkv"
        )
        visible = ops.causal_mask(ids.shape[1], ids.shape[1], config.window(layer))
        heads = torch_attention(torch_rope(q, cos, sin), torch_rope(k, cos, sin), v, visible, segments)
        x = x + heads.flatten(-2) @ w[at + "self_attn.o_proj.weight"].T
        normed = torch_rmsnorm(x, w[at + "post_attention_layernorm.weight"], config.rms_norm_eps)
        gate, up = (normed @ w[f"{at}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + torch_swiglu(gate, up, config.swiglu_beta) @ w[at + "mlp.down_proj.weight"].T
    hidden = torch_rmsnorm(x, w["model.norm.weight"], config.rms_norm_eps)
    return hidden @ w[config.head_name].T, hidden


def torch_cross_entropy(logits, targets, weight):
    each = torch.nn.functional.cross_entropy(logits.flatten(0, -2), torch.tensor(targets.reshape(-1)), reduction="none")
    weight = torch.tensor(weight.reshape(-1))
    return (each * weight).sum() / weight.sum()


@st.composite
def packings(draw, B, T):
    """Segment ids [B, T]: runs, whose ids may be any and may come again after another's; or None."""
    if draw(st.booleans()):
        return None
    changes = draw(st.lists(st.booleans(), min_size=B * T, max_size=B * T))
    return np.cumsum(np.reshape(changes, (B, T)), axis=1) % draw(st.sampled_from([2, 100]))


def runs(segments_row):
    """The slices of one row in which the segment is the same."""
    edges = [0, *(np.flatnonzero(np.diff(segments_row)) + 1), len(segments_row)]
    return [slice(a, b) for a, b in pairwise(edges)]
