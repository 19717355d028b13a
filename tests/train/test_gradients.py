"""Gradients against torch's autograd, the batched model against the spec, and the optimiser against torch's.

The torch functions here are written from the formulas, in float64, and share nothing with the code under test but
RoPE's tables, which other tests hold to Hugging Face's.
"""

import inspect
import math
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from qwq_ref import spec
from qwq_ref.config import Config
from qwq_ref.spec import ops
from qwq_ref.train import gradients as vjp
from qwq_ref.train.model import (
    KEPT,
    Batch,
    backward,
    forward,
    loss_and_grads,
)
from qwq_ref.train.optim import (
    adamw,
    clip_by_global_norm,
    cosine_schedule,
    initial_state,
)
from tests.support import contracts
from tests.support.models import (
    config_values,
    configs,
    random_weights,
    yarn,
)

PUBLIC = {
    name: function
    for name, function in vars(vjp).items()
    if inspect.isfunction(function) and function.__module__ == vjp.__name__ and not name.startswith("_")
}
checked = SimpleNamespace(**{name: contracts.checked(function) for name, function in PUBLIC.items()})
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


# The formulas, in torch.


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


# Each operation.


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


# The whole model.


@st.composite
def cases(draw):
    """-> config, float64 weights, batch: over the architecture, packed or not, some positions not counted."""
    values = draw(configs()) | {"swiglu_beta": draw(st.sampled_from([1.0, 1.7]))}
    config = Config.from_dict(values)
    B, T, seed = draw(st.integers(1, 3)), draw(st.integers(1, 12)), draw(seeds)
    weights = {
        name: (1.0 if w.ndim == 1 else 10.0) * w.astype(np.float64) for name, w in random_weights(config, seed).items()
    }
    return config, weights, random_batch(config, B, T, seed, draw(packings(B, T)))


def random_batch(config, B, T, seed, segments=None):
    rng = np.random.default_rng(seed)
    ids, targets = rng.integers(0, config.V, (2, B, T))
    weight = rng.choice([0.0, 0.5, 1.0], (B, T))
    weight[-1, -1] = 1
    return Batch(ids, targets, weight, segments)


def settings_of(**changes):
    """A config whose dimensions are distinct, with float64 weights."""
    config = Config.from_dict(config_values(**changes))
    return config, {name: w.astype(np.float64) for name, w in random_weights(config, 0).items()}


@given(cases())
def test_forward_is_the_spec_s_for_each_sequence_alone(case):
    config, weights, batch = case
    logits, _ = forward(config, weights, batch.ids, batch.segments)
    for row, ids in enumerate(batch.ids):
        for at in [slice(None)] if batch.segments is None else runs(batch.segments[row]):
            alone, _ = spec.forward(config, weights, ids[at], dtype=np.float64)
            assert_close(logits[row, at], alone, 1e-12)


def test_positions_begin_again_with_each_segment():
    """RoPE is relative, so in exact arithmetic nothing but the tables can tell."""
    config, weights = settings_of()
    segments = np.array([[4, 4, 4, 1, 1, 4, 4, 4, 4, 2], [0] * 10])
    _, tape = forward(config, weights, np.zeros((2, 10), int), segments)
    positions = np.array([0, 1, 2, 0, 1, 0, 1, 2, 3, 0, *range(10)])
    cos, sin = spec.rope_tables(spec.rope_frequencies(config.rope, config.E), 1.0, positions, np.float64)
    assert np.array_equal(tape.common.cos, cos)
    assert np.array_equal(tape.common.sin, sin)


@given(cases())
def test_gradients_of_the_whole_model_are_torch_s(case):
    config, weights, batch = case
    segments, positions = None, np.tile(np.arange(batch.ids.shape[1]), (len(batch.ids), 1))
    if batch.segments is not None:
        segments = np.zeros_like(batch.segments)
        for row in range(len(segments)):
            for number, at in enumerate(runs(batch.segments[row])):
                segments[row, at] = number
                positions[row, at] = np.arange(at.stop - at.start)

    tensors = {name: torch.tensor(w, requires_grad=True) for name, w in weights.items()}
    logits, hidden = torch_model(config, tensors, batch.ids, segments, positions)
    loss = torch_cross_entropy(logits, batch.targets, batch.weight)
    loss.backward(retain_graph=True)

    step = loss_and_grads(config, weights, batch, piece=2)
    assert step.loss == pytest.approx(loss.item(), rel=1e-12)
    assert list(step.grads) == list(config.tensors())
    floor = 1e-13 * max(np.linalg.norm(grad) for grad in step.grads.values())
    for name, tensor in tensors.items():
        assert_close(step.grads[name], tensor.grad.numpy(), 1e-10, floor)

    dhidden = normal(0, *hidden.shape)
    (hidden * torch.tensor(dhidden)).sum().backward()
    ours, tape = forward(config, weights, batch.ids, batch.segments)
    grads = backward(tape, vjp.cross_entropy(ours, batch.targets, batch.weight)[1], dhidden)
    floor = 1e-13 * max(np.linalg.norm(grad) for grad in grads.values())
    for name, tensor in tensors.items():
        assert_close(grads[name], tensor.grad.numpy(), 1e-10, floor)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(cases())
def test_what_is_kept_changes_the_bytes_and_not_one_bit_of_the_gradients(dtype, case):
    config, weights, batch = case
    weights = {name: w.astype(dtype) for name, w in weights.items()}
    none, selective, full = (loss_and_grads(config, weights, batch, checkpointing=mode) for mode in KEPT)
    assert none.kept_bytes > selective.kept_bytes > full.kept_bytes > 0
    assert none.loss == selective.loss == full.loss
    for name, grad in none.grads.items():
        assert grad.dtype == dtype
        assert np.array_equal(grad, selective.grads[name])
        assert np.array_equal(grad, full.grads[name])


def test_the_kept_bytes_are_what_the_shapes_say():
    config, weights = settings_of()
    B, T = 3, 7
    N, L, D, F, kv = B * T, config.L, config.D, config.F, config.K * config.E
    q, probs = config.H * config.E, config.H * T
    floats = {
        "full": L * D,
        "selective": L * (2 * D + 2 * q + 2 * kv + 2 * F),
        "none": L * (4 * D + 2 * q + 2 * kv + 3 * F + probs),
    }
    for mode, kept in floats.items():
        step = loss_and_grads(config, weights, random_batch(config, B, T, 0), checkpointing=mode)
        assert step.kept_bytes == 8 * N * (kept + 2 * D), mode


@pytest.mark.parametrize("mode", KEPT)
def test_threads_and_repetition_change_not_one_bit(mode):
    config, weights = settings_of(rope_scaling=yarn())
    weights = {name: w.astype(np.float32) for name, w in weights.items()}
    batch = random_batch(config, 11, 9, 0)
    steps = [loss_and_grads(config, weights, batch, workers, mode, piece=2) for workers in (1, 2, 2, 3, 3)]
    for other in steps[1:]:
        assert other.loss == steps[0].loss
        assert all(np.array_equal(grad, steps[0].grads[name]) for name, grad in other.grads.items())


def test_pieces_change_the_rounding_only():
    config, weights = settings_of(tie_word_embeddings=True)
    batch = random_batch(config, 7, 9, 0)
    whole, parts = (loss_and_grads(config, weights, batch, 2, piece=piece) for piece in (7, 3))
    assert whole.loss == pytest.approx(parts.loss, rel=1e-14)
    for name, grad in whole.grads.items():
        assert_close(parts.grads[name], grad, 1e-12)


def test_float32_gradients_are_those_of_float64_to_float32_s_rounding():
    config, weights = settings_of()
    batch = random_batch(config, 5, 30, 0)
    exact = loss_and_grads(config, weights, batch).grads
    single = loss_and_grads(config, {name: w.astype(np.float32) for name, w in weights.items()}, batch).grads
    for name, grad in exact.items():
        assert single[name].dtype == np.float32
        assert_close(single[name].astype(np.float64), grad, 1e-5)


def test_what_does_not_count_has_no_say():
    """Padding after the last counted position may be anything."""
    config, weights = settings_of()
    batch = random_batch(config, 3, 9, 0)
    batch.weight[:, 6:] = 0
    batch.weight[:, 0] = 1
    step = loss_and_grads(config, weights, batch)
    other = Batch(batch.ids.copy(), batch.targets.copy(), batch.weight)
    other.ids[:, 6:], other.targets[:, 6:] = 1, 2
    changed = loss_and_grads(config, weights, other)
    assert changed.loss == step.loss
    for name, grad in step.grads.items():
        assert_close(changed.grads[name], grad, 1e-14)


def test_what_cannot_be_learned_from_is_refused():
    config, weights = settings_of()
    batch = random_batch(config, 2, 4, 0)
    for name in ("ids", "targets"):
        for wrong in (-1, config.V):
            with pytest.raises(ValueError, match=rf"{name} must be in \[0, 53\)"):
                loss_and_grads(config, weights, batch._replace(**{name: np.full((2, 4), wrong)}))
    with pytest.raises(ValueError, match="positive sum"):
        loss_and_grads(config, weights, batch._replace(weight=np.zeros((2, 4))))


# The optimiser.


@pytest.mark.parametrize("betas", [(0.9, 0.95), (0.8, 0.999)])
def test_adamw_is_torch_s(betas):
    shapes = {"matrix": (5, 3), "bias": (5,), "norm.weight": (3,)}
    weights = {name: normal(i, *shape) for i, (name, shape) in enumerate(shapes.items())}
    tensors = {name: torch.tensor(w, requires_grad=True) for name, w in weights.items()}
    groups = [
        {"params": [tensor for tensor in tensors.values() if (tensor.ndim == 2) is decays], "weight_decay": decay}
        for decays, decay in ((True, 0.3), (False, 0.0))
    ]
    theirs = torch.optim.AdamW(groups, betas=betas, eps=1e-6)
    state = initial_state(weights)
    for step in range(20):
        rate = cosine_schedule(step, 20, 0.1, 5)
        grads = {name: normal(100 * step + i, *shape) for i, (name, shape) in enumerate(shapes.items())}
        for name, tensor in tensors.items():
            tensor.grad = torch.tensor(grads[name])
        for group in theirs.param_groups:
            group["lr"] = rate
        theirs.step()
        adamw(weights, grads, state, rate, betas, eps=1e-6, decay=0.3)
        for name, tensor in tensors.items():
            assert_close(weights[name], tensor.detach().numpy(), 1e-12)


def test_a_saved_optimiser_resumes_to_the_same_bits(tmp_path):
    def train(weights, state, steps):
        for step in steps:
            adamw(weights, {name: normal(step, *w.shape).astype(np.float32) for name, w in weights.items()}, state, 0.1)

    start = {"matrix": normal(0, 5, 3).astype(np.float32), "bias": normal(1, 5).astype(np.float32)}
    straight = {name: w.copy() for name, w in start.items()}
    train(straight, initial_state(straight), range(6))

    state = initial_state(start)
    train(start, state, range(3))
    np.savez(tmp_path / "state.npz", **state)
    with np.load(tmp_path / "state.npz") as saved:
        train(start, dict(saved), range(3, 6))
    for name, w in straight.items():
        assert w.dtype == np.float32
        assert np.array_equal(start[name], w)


@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_clipping_is_torch_s(max_norm):
    grads = {"a": normal(0, 4, 3), "b": normal(1, 7)}
    tensors = [torch.zeros(grad.shape, dtype=torch.float64, requires_grad=True) for grad in grads.values()]
    for tensor, grad in zip(tensors, grads.values(), strict=True):
        tensor.grad = torch.tensor(grad)
    theirs = torch.nn.utils.clip_grad_norm_(tensors, max_norm)
    assert clip_by_global_norm(grads, max_norm) == pytest.approx(theirs.item(), rel=1e-14)
    for tensor, grad in zip(tensors, grads.values(), strict=True):
        assert_close(grad, tensor.grad.numpy(), 1e-5)  # torch divides by the norm + 1e-6
    if max_norm < theirs:
        assert math.hypot(*(np.linalg.norm(grad) for grad in grads.values())) == pytest.approx(max_norm, rel=1e-14)


def test_the_schedule_rises_in_a_line_and_falls_as_a_cosine():
    rates = [cosine_schedule(step, 110, 3.0, 10, 1.0) for step in range(112)]
    assert rates[:10] == pytest.approx([3.0 * (step + 1) / 10 for step in range(10)])
    assert rates[10] == 3.0
    assert rates[60] == pytest.approx(2.0)
    assert rates[85] == pytest.approx(1 + (1 - math.sqrt(0.5)))
    assert rates[110] == rates[111] == 1.0
    assert all(a >= b for a, b in pairwise(rates[10:]))
    assert cosine_schedule(0, 1, 2.0, 0) == 2.0


def test_a_small_model_learns_its_batch():
    config, weights = settings_of(num_hidden_layers=1)
    batch = random_batch(config, 4, 8, 0)
    state = initial_state(weights)
    losses = []
    for _ in range(30):
        step = loss_and_grads(config, weights, batch)
        clip_by_global_norm(step.grads, 1.0)
        adamw(weights, step.grads, state, 0.01)
        losses.append(step.loss)
    assert losses[0] == pytest.approx(math.log(config.V), abs=0.3)
    assert losses[-1] < 0.5 * losses[0]
