"""Each operation of the spec on its own: against float64 within derived bounds, and against HF in half precision."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qwq_ref.config import Config
from qwq_ref.oracle.graph import CORRECT, phases_of, tap_names
from qwq_ref.oracle.walk import Stream, Weights, walk
from qwq_ref.spec import (
    attention,
    causal_mask,
    forward,
    linear,
    rmsnorm,
    softmax,
    swiglu,
)
from qwq_ref.spec.ops import to_bf16, to_fp16
from tests.support import hf
from tests.support.models import config_values, random_weights, yarn

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


@given(hnp.arrays(np.uint32, 200, elements=st.integers(0, 2**32 - 1)))
def test_to_fp16_is_torch_rounding(bits):
    x = bits.view(np.float32)
    wanted = torch.from_numpy(x.copy()).to(torch.float16).float().numpy()
    assert np.array_equal(to_fp16(x), wanted, equal_nan=True)


HALVES = [("bf16", torch.bfloat16, "bfloat16", to_bf16), ("fp16", torch.float16, "float16", to_fp16)]


@pytest.mark.parametrize("half", HALVES, ids=lambda half: half[0])
@pytest.mark.parametrize("harsh", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_the_emulation_rounds_where_hf_rounds(seed, harsh, half):
    """HF's eager model in half precision, operation by operation on HF's own inputs: 99 of 100 elements equal.

    Not all: sums run in another order, and a sum next to a rounding boundary can fall on its other side.
    E is 12, so that scaling by 1 / sqrt(E) rounds.
    """
    name, dtype, _, rnd = half
    values = config_values(
        vocab_size=331, hidden_size=96, intermediate_size=176, num_attention_heads=10, head_dim=12, rope_scaling=yarn()
    )
    config = Config.from_dict(values)
    weights = {key: rnd(value) for key, value in random_weights(config, seed, harsh).items()}
    ids = np.random.default_rng(seed).integers(0, config.V, 70)
    theirs, _ = hf.taps(hf.build(config, values, weights, dtype), ids)
    compared = []

    def visit(p, tap, results):
        assert np.mean(results[0] == theirs[tap].reshape(results[0].shape)) >= 0.99, tap
        compared.append(tap)
        return theirs[tap].reshape(results[0].shape)

    walk(config, phases_of(ids, 0), [Stream(CORRECT[name][0])], Weights(weights), visit)
    assert compared == tap_names(config)


@pytest.mark.parametrize("half", HALVES, ids=lambda half: half[0])
@pytest.mark.parametrize("seed", range(3))
def test_half_precision_stays_as_near_the_truth_as_hfs(seed, half):
    """End to end the roundings propagate and the bits part ways; the distance from float64 must not."""
    _, dtype, spec_dtype, rnd = half
    values = config_values(hidden_size=96, intermediate_size=176, head_dim=16)
    config = Config.from_dict(values)
    weights = random_weights(config, seed)  # not rounded yet: both sides do as they read them
    ids = np.random.default_rng(seed).integers(0, config.V, 70)
    theirs, _ = hf.taps(hf.build(config, values, weights, dtype), ids)
    ours, _ = hf.spec_taps(forward, config, weights, ids, dtype=spec_dtype)
    truth, _ = hf.spec_taps(forward, config, weights, ids, dtype=np.float64)
    for name, value in ours.items():
        assert np.array_equal(rnd(value), value), f"{name} holds values that are not of the type"
        wanted = truth[name]
        assert hf.nmse(value, wanted) <= 2 * hf.nmse(theirs[name], wanted), name
