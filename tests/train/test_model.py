"""The batched model against the spec, and its gradients against torch's autograd."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwq_ref import spec
from qwq_ref.config import Config
from qwq_ref.train import gradients as vjp
from qwq_ref.train.model import (
    KEPT,
    Batch,
    backward,
    forward,
    loss_and_grads,
)
from tests.support.models import (
    config_values,
    configs,
    random_weights,
    yarn,
)
from tests.support.torch_model import assert_close, normal, packings, runs, seeds, torch_cross_entropy, torch_model


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
