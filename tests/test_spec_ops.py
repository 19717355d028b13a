"""Each operation of the spec on its own: against float64 within derived bounds, and against HF's bfloat16 bits."""

import hf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from models import config_values, random_weights, yarn

from qwq_ref.config import Config
from qwq_ref.spec import attention, causal_mask, embed, forward, linear, rmsnorm, rope, softmax, swiglu
from qwq_ref.spec.ops import to_bf16

U = 2.0**-24  # unit roundoff of float32
TINY = float(np.finfo(np.float32).tiny)

# Zeros of both signs, subnormals, ties, and sizes whose squares and products stay finite.
numbers = st.one_of(
    st.floats(-100, 100, width=32),
    st.sampled_from([0.0, -0.0, 1e-40, -1e-45, 1.0, 0.5, 1e15, -1e15, 60.0, 1 / 3]).map(lambda x: float(np.float32(x))),
)


def arrays(*shape, elements=numbers):
    return hnp.arrays(np.float32, shape, elements=elements)


@given(st.integers(1, 5), st.integers(1, 40), st.integers(1, 6), st.data())
def test_dot_product_bound(T, n, m, data):
    """|fl(x.w) - x.w| <= gamma_n |x|.|w|, gamma_n = n u / (1 - n u), in any order of summation."""
    x, w, b = data.draw(arrays(T, n)), data.draw(arrays(m, n)), data.draw(arrays(m))
    wide = [a.astype(np.float64) for a in (x, w, b)]
    truth = wide[0] @ wide[1].T + wide[2]
    gamma = (n + 1) * U / (1 - (n + 1) * U)
    bound = gamma * (np.abs(wide[0]) @ np.abs(wide[1]).T + np.abs(wide[2])) + n * TINY
    got = linear(x, w, b)
    assert got.dtype == np.float32
    assert np.all(np.abs(got - truth) <= bound)


@given(st.integers(1, 7), st.integers(1, 300), st.integers(1, 9), st.integers(0, 2**31))
def test_integers_are_exact(T, n, m, seed):
    rng = np.random.default_rng(seed)
    x, w = rng.integers(-128, 128, (T, n)), rng.integers(-128, 128, (m, n))  # sums below 300 * 2^14 < 2^24
    assert np.array_equal(linear(x.astype(np.float32), w.astype(np.float32)), x @ w.T)


@given(arrays(3, 17), arrays(17), st.sampled_from([1e-6, 1e-5, 1e-2]))
def test_rmsnorm(x, w, eps):
    x64 = x.astype(np.float64)
    truth = w * x64 / np.sqrt((x64**2).mean(-1, keepdims=True) + eps)
    subnormal = TINY * np.maximum(np.abs(w), 1)  # a normalised x below TINY has lost bits before it meets the weight
    assert np.all(np.abs(rmsnorm(x, w, eps) - truth) <= (17 / 2 + 5) * U * np.abs(truth) + subnormal)
    assert rmsnorm(x64, w.astype(np.float64), eps).dtype == np.float64


@given(arrays(4, 9, elements=st.floats(-1e4, 1e4, width=32)))
def test_softmax(x):
    x64 = x.astype(np.float64)
    e = np.exp(x64 - x64.max(-1, keepdims=True))
    truth = e / e.sum(-1, keepdims=True)
    got = softmax(x)
    # exp turns the rounding of its argument, |x - max| u, into relative error.
    spread = np.abs(x64 - x64.max(-1, keepdims=True))
    assert np.all(np.abs(got - truth) <= truth * (spread + 16) * U + TINY)
    np.testing.assert_allclose(got.sum(-1), 1, rtol=1e-6)


@given(arrays(2, 33, elements=st.floats(-200, 200, width=32)), st.sampled_from([1.0, np.log(2.0), 1.702, 0.1]))
def test_swiglu(gate, beta):
    up = np.ones_like(gate)
    wide = gate.astype(np.float64)
    truth = wide / (1 + np.exp(-beta * wide))
    got = swiglu(gate, up, beta)
    assert np.all(np.abs(got - truth) <= np.abs(truth) * (beta * np.abs(wide) + 8) * U + 2 * TINY)
    if beta == 1.0:  # beta * gate is then exact, and 4 ulp is the gate
        normal = np.abs(truth) > 1e3 * TINY
        assert np.all(np.abs(got - truth)[normal] <= 4 * np.spacing(np.abs(truth).astype(np.float32))[normal])


@given(arrays(2, 33), arrays(2, 33))
def test_swiglu_is_hf_silu(gate, up):
    """Down to -87; below, HF's exp(-x) overflows and its result is 0, where the spec's is still right."""
    theirs = torch.nn.functional.silu(torch.from_numpy(gate)) * torch.from_numpy(up)
    ours = swiglu(gate, up)
    near = gate > -87
    np.testing.assert_allclose(ours[near], theirs.numpy()[near], rtol=8 * U, atol=1e-34)
    far = (gate <= -87) & (gate > -95)
    wide = np.float64(gate[far])
    np.testing.assert_allclose(ours[far], wide / (1 + np.exp(-wide)) * up[far], rtol=1e-3, atol=1e-34)


def test_causal_mask_by_enumeration():
    for S in range(1, 7):
        for T in range(1, S + 1):
            for window in (None, 1, 2, 3, 6, 9):
                mask = causal_mask(T, S, window)
                for t in range(T):
                    query = S - T + t
                    oldest = 0 if window is None else max(0, query - window + 1)
                    assert np.array_equal(np.flatnonzero(mask[t]), np.arange(oldest, query + 1))


def test_attention_by_enumeration():
    """The definition as loops: query head h reads key-value head h // G, over the keys that it may see."""
    rng = np.random.default_rng(0)
    T, S, H, K, E = 3, 5, 6, 2, 4
    q, k, v = rng.standard_normal((T, H, E)), rng.standard_normal((S, K, E)), rng.standard_normal((S, K, E))
    mask = causal_mask(T, S, window=3)
    got = attention(q, k, v, mask)
    for t in range(T):
        for h in range(H):
            keys = [s for s in range(S) if mask[t, s]]
            weights = np.exp([q[t, h] @ k[s, h // 3] / np.sqrt(E) for s in keys])
            wanted = sum(p * v[s, h // 3] for p, s in zip(weights / weights.sum(), keys, strict=True))
            np.testing.assert_allclose(got[t, h], wanted, rtol=1e-13, atol=1e-14)


@given(hnp.arrays(np.uint32, 200, elements=st.integers(0, 2**32 - 1)))
def test_to_bf16_is_torch_rounding(bits):
    x = bits.view(np.float32)
    wanted = torch.from_numpy(x.copy()).to(torch.bfloat16).float().numpy()
    assert np.array_equal(to_bf16(x), wanted, equal_nan=True)


def test_to_bf16_ties_to_even():
    ties = np.array([0x3F808000, 0x3F818000, 0x7F7F8000, 0x00008000, 0x80018000], np.uint32).view(np.float32)
    wanted = np.array([0x3F800000, 0x3F820000, 0x7F800000, 0x00000000, 0x80020000], np.uint32).view(np.float32)
    assert np.array_equal(to_bf16(ties), wanted)


@pytest.mark.parametrize("harsh", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_bf16_emulation_rounds_where_hf_rounds(seed, harsh):
    """HF's eager bfloat16 model, operation by operation on HF's own inputs: at least 99 of 100 elements equal.

    Not all: sums run in another order, and a sum next to a rounding boundary can fall on its other side.
    E is 12, so that scaling by 1 / sqrt(E) rounds.
    """
    values = config_values(
        vocab_size=331, hidden_size=96, intermediate_size=176, num_attention_heads=10, head_dim=12, rope_scaling=yarn()
    )
    config = Config.from_dict(values)
    weights = {name: to_bf16(value) for name, value in random_weights(config, seed, harsh).items()}
    ids = np.random.default_rng(seed).integers(0, config.V, 70)
    theirs, _ = hf.taps(hf.build(config, values, weights, torch.bfloat16), ids)

    cos, sin = theirs["model.rotary_emb.cos"], theirs["model.rotary_emb.sin"]
    equal = {"model.embed_tokens": embed(ids, weights["model.embed_tokens.weight"])}
    for layer in range(config.L):
        path = f"model.layers.{layer}."
        t = {name.removeprefix(path): value for name, value in theirs.items() if name.startswith(path)}
        w = {name.removeprefix(path): value for name, value in weights.items() if name.startswith(path)}

        def lin(x, name, w=w):
            return linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"), to_bf16)

        def heads(name, t=t):
            return t[name].reshape(len(ids), -1, config.E)

        normed = t["input_layernorm"]
        ours = {
            "input_layernorm": rmsnorm(t["resid_pre"], w["input_layernorm.weight"], config.rms_norm_eps, to_bf16),
            "self_attn.q_matmul": linear(normed, w["self_attn.q_proj.weight"], None, to_bf16),
            "self_attn.q_proj": lin(normed, "self_attn.q_proj"),
            "self_attn.k_proj": lin(normed, "self_attn.k_proj"),
            "self_attn.v_proj": lin(normed, "self_attn.v_proj"),
            "self_attn.q_rope": rope(heads("self_attn.q_proj"), cos, sin, to_bf16),
            "self_attn.k_rope": rope(heads("self_attn.k_proj"), cos, sin, to_bf16),
            "self_attn.o_proj": lin(t["self_attn.heads"].reshape(len(ids), -1), "self_attn.o_proj"),
            "resid_mid": to_bf16(t["resid_pre"] + t["self_attn.o_proj"]),
            "post_attention_layernorm": rmsnorm(
                t["resid_mid"], w["post_attention_layernorm.weight"], config.rms_norm_eps, to_bf16
            ),
            "mlp.gate_proj": lin(t["post_attention_layernorm"], "mlp.gate_proj"),
            "mlp.up_proj": lin(t["post_attention_layernorm"], "mlp.up_proj"),
            "mlp.act": swiglu(t["mlp.gate_proj"], t["mlp.up_proj"], 1.0, to_bf16),
            "mlp.down_proj": lin(t["mlp.act"], "mlp.down_proj"),
            "resid_post": to_bf16(t["resid_mid"] + t["mlp.down_proj"]),
        }
        ours["self_attn.heads"] = attention(
            t["self_attn.q_rope"],
            t["self_attn.k_rope"],
            heads("self_attn.v_proj"),
            causal_mask(len(ids), len(ids)),
            to_bf16,
            lambda name, value, ours=ours: ours.update({f"self_attn.{name}": value}),
        )
        equal |= {path + name: value for name, value in ours.items()}
    norm = rmsnorm(theirs[f"{path}resid_post"], weights["model.norm.weight"], config.rms_norm_eps, to_bf16)
    equal |= {"model.norm": norm, "lm_head": linear(theirs["model.norm"], weights["lm_head.weight"], None, to_bf16)}
    for name, value in equal.items():
        assert np.mean(value == theirs[name]) >= 0.99, (name, np.mean(value == theirs[name]))


@pytest.mark.parametrize("seed", range(3))
def test_bf16_forward_stays_as_near_the_truth_as_hf_bf16(seed):
    """End to end the roundings propagate and the bits part ways; the distance from float64 must not."""
    values = config_values(hidden_size=96, intermediate_size=176, head_dim=16)
    config = Config.from_dict(values)
    weights = random_weights(config, seed)  # not bfloat16 yet: both sides round them as they read them
    ids = np.random.default_rng(seed).integers(0, config.V, 70)
    theirs, _ = hf.taps(hf.build(config, values, weights, torch.bfloat16), ids)
    ours, _ = hf.spec_taps(forward, config, weights, ids, dtype="bfloat16")
    truth, _ = hf.spec_taps(forward, config, weights, ids, dtype=np.float64)
    for name, value in ours.items():
        assert np.array_equal(to_bf16(value), value), f"{name} holds values that are not bfloat16"
        wanted = truth[name]
        assert hf.nmse(value, wanted) <= 2 * hf.nmse(theirs[name], wanted), name
