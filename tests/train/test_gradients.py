"""The gradient of each operation against torch's autograd."""

import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from qwq_ref.spec import ops
from qwq_ref.train import gradients as vjp
from tests.support import contracts
from tests.support.torch_model import (
    assert_close,
    assert_gradients,
    dims,
    normal,
    packings,
    runs,
    seeds,
    torch_attention,
    torch_cross_entropy,
    torch_rmsnorm,
    torch_rope,
    torch_swiglu,
)

PUBLIC = {
    name: function
    for name, function in vars(vjp).items()
    if inspect.isfunction(function) and function.__module__ == vjp.__name__ and not name.startswith("_")
}


checked = SimpleNamespace(**{name: contracts.checked(function) for name, function in PUBLIC.items()})


def test_every_operation_of_the_spec_has_its_vjp_and_every_function_a_contract():
    assert {f"{op}_vjp" for op in ("embed", "linear", "rmsnorm", "rope", "softmax", "attention", "swiglu")} < set(
        PUBLIC
    )
    for function in PUBLIC.values():
        contracts.parse(function)


@given(B=dims, T=dims, V=dims, D=dims, seed=seeds)
def test_embed(B, T, V, D, seed):
    ids = np.random.default_rng(seed).integers(0, V, (B, T))
    w, dy = normal(seed, V, D), normal(seed + 1, B, T, D)
    assert_gradients([checked.embed_vjp(ids, w, dy)], lambda w: w[torch.tensor(ids)], [w], dy)


@given(B=dims, T=dims, n=dims, m=dims, seed=seeds)
def test_linear(B, T, n, m, seed):
    x, w, b, dy = normal(seed, B, T, n), normal(seed + 1, m, n), normal(seed + 2, m), normal(seed + 3, B, T, m)
    assert_gradients(checked.linear_vjp(x, w, b, dy), lambda x, w, b: x @ w.T + b, [x, w, b], dy)
    dx, dw, none = vjp.linear_vjp(x, w, None, dy)
    assert none is None
    assert_gradients([dx, dw], lambda x, w: x @ w.T, [x, w], dy)


@given(B=dims, T=dims, D=dims, eps=st.sampled_from([1e-6, 1e-5, 1e-3, 1.0]), seed=seeds)
def test_rmsnorm(B, T, D, eps, seed):
    x, w, dy = normal(seed, B, T, D), normal(seed + 1, D), normal(seed + 2, B, T, D)
    # Of one channel only the sign is left, but for eps: all digits of that gradient cancel.
    assume(D > 1 or eps == 1.0)
    assert_gradients(checked.rmsnorm_vjp(x, w, eps, dy), lambda x, w: torch_rmsnorm(x, w, eps), [x, w], dy)


@given(B=dims, T=dims, N=dims, half=dims, scaling=st.sampled_from([1.0, 1.3]), seed=seeds)
def test_rope(B, T, N, half, scaling, seed):
    x, dy, angles = normal(seed, B, T, N, 2 * half), normal(seed + 1, B, T, N, 2 * half), normal(seed + 2, B, T, half)
    cos, sin = (scaling * np.concatenate([f(angles), f(angles)], -1) for f in (np.cos, np.sin))
    tables = torch.tensor(cos), torch.tensor(sin)
    assert_gradients([checked.rope_vjp(cos, sin, dy)], lambda x: torch_rope(x, *tables), [x], dy)


@given(B=dims, T=dims, S=dims, shift=st.sampled_from([0.0, 1e3]), seed=seeds)
def test_softmax(B, T, S, shift, seed):
    x, dy = 3 * normal(seed, B, T, S) + shift, normal(seed + 1, B, T, S)
    given_dy = dy.copy()
    assert_gradients([checked.softmax_vjp(x, dy)], lambda x: x.softmax(-1), [x], dy)
    assert np.array_equal(dy, given_dy)


@st.composite
def attentions(draw):
    """-> q, k, v, visible, dy, segments: with segments that do not come again, as attention asks."""
    B, T, K, G, E = draw(st.integers(1, 3)), draw(dims), draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(dims)
    seed = draw(seeds)
    shapes = [(B, T, K * G, E), (B, T, K, E), (B, T, K, E), (B, T, K * G, E)]
    q, k, v, dy = (2 * normal(seed + i, *shape) for i, shape in enumerate(shapes))
    segments = draw(packings(B, T))
    if segments is not None:
        segments = np.cumsum(np.diff(segments, prepend=0) != 0, axis=1)
    return q, k, v, ops.causal_mask(T, T, draw(st.sampled_from([None, 1, 3]))), dy, segments


@given(attentions())
def test_attention(case):
    q, k, v, visible, dy, segments = case
    given = [array.copy() for array in (q, k, v, dy)]
    ours = checked.attention_vjp(q, k, v, visible, dy, segments)
    assert_gradients(ours, lambda q, k, v: torch_attention(q, k, v, visible, segments), [q, k, v], dy)
    kept = checked.attention_probs(q, k, visible, segments)
    for a, b in zip(ours, vjp.attention_vjp(q, k, v, visible, dy, segments, kept), strict=True):
        assert np.array_equal(a, b)
    assert np.array_equal(kept, vjp.attention_probs(q, k, visible, segments))
    for before, after in zip(given, (q, k, v, dy), strict=True):
        assert np.array_equal(before, after)


@given(attentions(), st.sampled_from([1.0, 1e4]))
def test_batched_attention_is_the_spec_s_for_each_sequence_alone(case, size):
    q, k, v, visible, _, segments = case
    q = size * q  # to where exp overflows
    ours = checked.attention(q, k, v, visible, segments)
    for row in range(len(q)):
        for at in [slice(None)] if segments is None else runs(segments[row]):
            alone = ops.attention(q[row, at], k[row, at], v[row, at], visible[at, at])
            assert_close(ours[row, at], alone, 1e-14 * size, 1e-15 * size)


@given(B=dims, T=dims, F=dims, beta=st.sampled_from([1.0, 0.5, 1.7]), size=st.sampled_from([1.0, 300.0]), seed=seeds)
def test_swiglu(B, T, F, beta, size, seed):
    gate, up, dy = size * normal(seed, B, T, F), normal(seed + 1, B, T, F), normal(seed + 2, B, T, F)
    ours = checked.swiglu_vjp(gate, up, beta, dy)
    assert_gradients(ours, lambda gate, up: torch_swiglu(gate, up, beta), [gate, up], dy)


@given(B=dims, T=dims, V=dims, shift=st.sampled_from([0.0, 1e4]), seed=seeds)
def test_cross_entropy(B, T, V, shift, seed):
    rng = np.random.default_rng(seed)
    logits = 3 * rng.standard_normal((B, T, V)) + shift
    targets, weight = rng.integers(0, V, (B, T)), rng.choice([0.0, 0.5, 1.0], (B, T))
    weight[0, 0] = 1
    loss, dlogits = checked.cross_entropy(logits, targets, weight)
    tensor = torch.tensor(logits, requires_grad=True)
    theirs = torch_cross_entropy(tensor, targets, weight)
    theirs.backward()
    assert loss == pytest.approx(theirs.item(), rel=1e-12, abs=1e-12)
    assert_close(dlogits, tensor.grad.numpy(), 1e-10, 1e-13)
    assert not dlogits[weight == 0].any()
