"""Known mistakes, each swapped into the spec: the gates must see it, and HF must be nearer to the spec than to it.

A tolerance that lets a mistake through is no tolerance. Every entry of `MISTAKES` is a mistake that implementations
of this architecture have made; the test passes only if the gate is green without it and red with it.
"""

import dataclasses
import math
from unittest import mock

import hf
import numpy as np
import pytest
import torch
from models import config_values, random_weights, yarn

from qwq_ref.config import Config
from qwq_ref.spec import forward, model, ops
from qwq_ref.spec.ops import exact, to_bf16

GATE = 1e-11
LONG = config_values(rope_scaling=yarn())
RAMPED = config_values(rope_scaling=yarn(original_max_position_embeddings=512))
WINDOWED = config_values(use_sliding_window=True, sliding_window=5, max_window_layers=1)

# As imported, before the shape contracts wrap them: some mistakes break a contract on purpose.
true_attention, true_block = ops.attention, model.block


def on_op(name, wrong):
    """The mistake as another function in the place of an operation."""
    return lambda: mock.patch.object(model, name, wrong)


def on_config(**changes):
    """The mistake as other constants: the spec is run on a config that differs."""
    true = model.forward

    def forward_changed(config, *args, **kwargs):
        rope = dataclasses.replace(config.rope, **{k: v for k, v in changes.items() if hasattr(config.rope, k)})
        rest = {k: v for k, v in changes.items() if not hasattr(config.rope, k)}
        return true(dataclasses.replace(config, rope=rope, **rest), *args, **kwargs)

    return lambda: mock.patch.object(model, "forward", forward_changed)


def on_weights(change):
    """The mistake as other weights: read in the wrong order, left out, or the wrong ones."""
    true = model.forward

    def forward_changed(config, weights, *args, **kwargs):
        return true(config, change(config, weights), *args, **kwargs)

    return lambda: mock.patch.object(model, "forward", forward_changed)


def interleaved_rope(x, cos, sin, rnd=exact):
    half = x.shape[-1] // 2
    even, odd, c, s = x[..., ::2], x[..., 1::2], cos[:, None, :half], sin[:, None, :half]
    return np.stack([even * c - odd * s, even * s + odd * c], axis=-1).reshape(x.shape)


def rope_backwards(x, cos, sin, rnd=exact):
    return ops.rope(x, cos, -sin, rnd)


def tiled_attention(q, k, v, visible, rnd=exact, tap=ops.no_tap):
    G = q.shape[1] // k.shape[1]
    return true_attention(q, np.tile(k, (1, G, 1)), np.tile(v, (1, G, 1)), visible, rnd, tap)


def unscaled_attention(q, k, v, visible, rnd=exact, tap=ops.no_tap):
    return ops.attention(q * math.sqrt(q.shape[-1]), k, v, visible, rnd, tap)


def mask_hides_self(T, S, window=None):
    return ops.causal_mask(T, S, window) & (np.arange(S) != np.arange(S - T, S)[:, None]) | (np.arange(S) == 0)


def mask_sees_one_ahead(T, S, window=None):
    return ops.causal_mask(T, S, window) | (np.arange(S) == np.arange(S - T, S)[:, None] + 1)


def window_one_wider(T, S, window=None):
    return ops.causal_mask(T, S, window and window + 1)


def positions_from_one(inv_freq, scaling, positions, dtype, rnd=exact):
    return ops.rope_tables(inv_freq, scaling, positions + 1, dtype, rnd)


def scaling_on_cos_only(inv_freq, scaling, positions, dtype, rnd=exact):
    cos, sin = ops.rope_tables(inv_freq, scaling, positions, dtype, rnd)
    return cos, sin / scaling


def layernorm(x, w, eps, rnd=exact):
    return ops.rmsnorm(x - x.mean(axis=-1, keepdims=True), w, eps, rnd)


def eps_outside_the_root(x, w, eps, rnd=exact):
    return w * x / (np.sqrt(np.mean(x * x, axis=-1, keepdims=True)) + eps)


def norm_adds_one(x, w, eps, rnd=exact):
    return ops.rmsnorm(x, 1 + w, eps, rnd)


def gelu(gate, up, beta=1.0, rnd=exact):
    return gate * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3))) * up


def gate_and_up_swapped(gate, up, beta=1.0, rnd=exact):
    return ops.swiglu(up, gate, beta, rnd)


def without(part):
    return lambda config, weights: {n: np.zeros_like(w) if part in n else w for n, w in weights.items()}


def tied_head(config, weights):
    return {**weights, "lm_head.weight": weights["model.embed_tokens.weight"]}


def no_final_norm_weight(config, weights):
    return {**weights, "model.norm.weight": np.ones_like(weights["model.norm.weight"])}


def heads_reordered(config, weights):
    """q and k permuted for interleaved RoPE, as Llama checkpoints are in some formats; Qwen2's never are."""

    def permute(w):
        heads = w.reshape(-1, 2, config.E // 2, *w.shape[1:])
        return heads.swapaxes(1, 2).reshape(w.shape)

    return {n: permute(w) if "q_proj" in n or "k_proj" in n else w for n, w in weights.items()}


def residual_from_the_norm(config, weight, x, cos, sin, visible, past, rnd=exact, tap=ops.no_tap):
    """The MLP added to its own normalised input instead of to the stream."""
    seen = {}

    def keep(name, value):
        seen[name] = value
        tap(name, value)

    out, kv = true_block(config, weight, x, cos, sin, visible, past, rnd, keep)
    return out - seen["resid_mid"] + seen["post_attention_layernorm"], kv


MISTAKES = {
    "RoPE on neighbours": (config_values(), on_op("rope", interleaved_rope)),
    "RoPE backwards": (config_values(), on_op("rope", rope_backwards)),
    "positions from one": (config_values(), on_op("rope_tables", positions_from_one)),
    "theta 1e6 for 1e4": (config_values(), on_config(theta=1e6)),
    "YaRN left out": (LONG, on_config(type="default")),
    "YaRN without attention scaling": (LONG, on_config(attention_factor=1.0)),
    "YaRN attention scaling on cos only": (LONG, on_op("rope_tables", scaling_on_cos_only)),
    "YaRN factor twice": (LONG, on_config(factor=8.0)),
    "YaRN ramp not truncated": (RAMPED, on_config(truncate=False)),
    "eps 1e-6": (config_values(), on_config(rms_norm_eps=1e-6)),
    "eps outside the root": (config_values(), on_op("rmsnorm", eps_outside_the_root)),
    "LayerNorm": (config_values(), on_op("rmsnorm", layernorm)),
    "norm weight plus one": (config_values(), on_op("rmsnorm", norm_adds_one)),
    "no final norm weight": (config_values(), on_weights(no_final_norm_weight)),
    "heads tiled, not repeated": (config_values(), on_op("attention", tiled_attention)),
    "scores not scaled": (config_values(), on_op("attention", unscaled_attention)),
    "mask hides self": (config_values(), on_op("causal_mask", mask_hides_self)),
    "mask sees one ahead": (config_values(), on_op("causal_mask", mask_sees_one_ahead)),
    "window one wider": (WINDOWED, on_op("causal_mask", window_one_wider)),
    "window on every layer": (WINDOWED, on_config(layer_types=("sliding_attention",) * 2)),
    "window ignored": (WINDOWED, on_config(sliding_window=None)),
    "no q bias": (config_values(), on_weights(without("q_proj.bias"))),
    "no v bias": (config_values(), on_weights(without("v_proj.bias"))),
    "heads reordered": (config_values(), on_weights(heads_reordered)),
    "GELU": (config_values(), on_op("swiglu", gelu)),
    "gate and up swapped": (config_values(), on_op("swiglu", gate_and_up_swapped)),
    "beta ln 2": (config_values(), on_config(swiglu_beta=math.log(2))),
    "residual from the norm": (config_values(), on_op("block", residual_from_the_norm)),
    "head tied": (config_values(), on_weights(tied_head)),
}
# RoPE is relative: moving every position by one changes q and k, and no score.
NOT_IN_LOGITS = {"positions from one"}


@pytest.mark.parametrize("name", MISTAKES)
def test_the_gates_see(name):
    values, mistake = MISTAKES[name]
    config = Config.from_dict(values)
    weights = random_weights(config, 1)
    ids = np.random.default_rng(2).integers(0, config.V, 40)
    theirs, _ = hf.taps(hf.build(config, values, weights), ids)

    right = hf.errors(config, *spec(config, weights, ids, theirs))
    assert max(right.values()) <= GATE
    with mistake():
        taps = hf.spec_taps(model.forward, config, weights, ids)[0]
    wrong = {n: hf.nmse(finite(taps[n]), finite(theirs[n])) for n in theirs}
    seen_at = max(wrong, key=wrong.get) if name in NOT_IN_LOGITS else "lm_head"
    assert wrong[seen_at] > 10 * GATE
    assert wrong[seen_at] > 10 * right[seen_at]


def spec(config, weights, ids, theirs):
    ours, cache = hf.spec_taps(forward, config, weights, ids)
    return ours, theirs, cache


def finite(x):
    """Masks differ on purpose here: hidden scores count as zero."""
    return np.where(np.isinf(x), 0, x)


def test_a_missing_k_bias_is_seen_where_it_is_large():
    """A bias on the keys is nearly invisible to softmax while it is small: it shifts all scores of a query alike, but
    for the turn of RoPE. The published models' are large."""
    values = config_values()
    config = Config.from_dict(values)
    weights = random_weights(config, 1, harsh=True)
    ids = np.random.default_rng(2).integers(0, config.V, 40)
    theirs, _ = hf.taps(hf.build(config, values, weights), ids)
    right, _ = forward(config, weights, ids)
    wrong, _ = forward(config, without("k_proj.bias")(config, weights), ids)
    assert hf.nmse(wrong, theirs["lm_head"]) > 1e6 * hf.nmse(right, theirs["lm_head"])


def test_bf16_norm_casts_before_the_weight():
    """Rounding after the weight instead changes a quarter of the outputs; the 99 % gate of `test_spec_ops` sees it."""
    rng = np.random.default_rng(0)
    x, w = to_bf16(rng.standard_normal((64, 96))), to_bf16(rng.standard_normal(96))
    norm = hf.modeling_qwen2.Qwen2RMSNorm(96, eps=1e-5).bfloat16()
    norm.weight.data = torch.from_numpy(w).bfloat16()
    theirs = norm(torch.from_numpy(x).bfloat16()).detach().float().numpy()
    right = np.mean(ops.rmsnorm(x, w, 1e-5, to_bf16) == theirs)
    wrong = np.mean(to_bf16(ops.rmsnorm(x, w, 1e-5)) == theirs)
    assert right >= 0.99
    assert 0.6 < wrong < 0.9


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("softmax in bfloat16", lambda x: to_bf16(to_bf16(np.exp(to_bf16(x - x.max(-1, keepdims=True)))))),
        ("softmax without a sum", lambda x: np.exp(x - x.max(-1, keepdims=True))),
    ],
)
def test_softmax_mistakes(name, changed):
    x = np.random.default_rng(0).standard_normal((5, 200)).astype(np.float32)
    theirs = torch.nn.functional.softmax(torch.from_numpy(x), dim=-1).numpy()
    assert hf.nmse(ops.softmax(x), theirs) <= 1e-12
    assert hf.nmse(changed(x), theirs) > 1e-7
