"""The optimiser against torch's, and a small model that learns its batch."""

import importlib
import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from qwq_ref.train.model import (
    loss_and_grads,
)
from qwq_ref.train.optim import (
    NEWTON_SCHULZ,
    adamw,
    clip_by_global_norm,
    cosine_schedule,
    descend,
    initial_state,
    muon,
    orthogonalised,
)
from tests.support.torch_model import assert_close, normal
from tests.train.test_model import random_batch, settings_of


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
        state["step"] += 1
        adamw(weights, grads, state, rate, betas, eps=1e-6, decay=0.3)
        for name, tensor in tensors.items():
            assert_close(weights[name], tensor.detach().numpy(), 1e-12)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5), (1, 7)])
def test_orthogonalised_acts_on_the_singular_values_alone(shape):
    matrix = normal(1, *shape)
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    a, b, c = NEWTON_SCHULZ
    s /= np.linalg.norm(matrix)
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    assert_close(orthogonalised(matrix), u * s @ vt, 1e-12)


def test_orthogonalised_is_near_orthogonal():
    values = np.linalg.svd(orthogonalised(normal(2, 64, 192)), compute_uv=False)
    assert 0.68 < values.min() < values.max() < 1.21
    assert np.all(orthogonalised(np.zeros((3, 4))) == 0)


@pytest.mark.parametrize("shape", [(24, 16), (16, 24)])
def test_muon_is_torch_s(shape, monkeypatch):
    """torch orthogonalises in bfloat16. In float64, the steps are the same to the last digits."""
    monkeypatch.setattr(
        importlib.import_module("torch.optim._muon"),
        "_zeropower_via_newtonschulz",
        lambda grad, *_: torch.tensor(orthogonalised(grad.detach().numpy())),
    )
    weights = {"a.layers.0.w": normal(0, *shape)}
    tensor = torch.tensor(weights["a.layers.0.w"], requires_grad=True)
    theirs = torch.optim.Muon(
        [tensor], lr=0.1, weight_decay=0.3, momentum=0.9, nesterov=True, adjust_lr_fn="match_rms_adamw"
    )
    state = initial_state(weights)
    for step in range(10):
        grad = normal(100 + step, *shape)
        tensor.grad = torch.tensor(grad)
        theirs.step()
        muon(weights, {"a.layers.0.w": grad}, state, 0.1, 0.9, 0.3)
        assert_close(weights["a.layers.0.w"], tensor.detach().numpy(), 1e-12)


def test_each_weight_has_its_optimiser():
    weights = {"embed": normal(0, 5, 3), "m.layers.0.up": normal(1, 5, 3), "m.layers.0.norm": normal(2, 3)}
    grads = {name: normal(9, *w.shape) for name, w in weights.items()}
    state, apart = initial_state(weights), {name: w.copy() for name, w in weights.items()}
    assert "square.m.layers.0.up" not in state
    descend(weights, grads, state, 0.1, 0.3, 0.2)
    fresh = initial_state(apart) | {"step": np.array(1)}
    muon(apart, {"m.layers.0.up": grads["m.layers.0.up"]}, fresh, 0.3, decay=0.2)
    adamw(apart, {name: grads[name] for name in ("embed", "m.layers.0.norm")}, fresh, 0.1, decay=0.2)
    for name, w in weights.items():
        assert np.array_equal(w, apart[name])


def test_a_saved_optimiser_resumes_to_the_same_bits(tmp_path):
    def train(weights, state, steps):
        for step in steps:
            grads = {name: normal(step, *w.shape).astype(np.float32) for name, w in weights.items()}
            descend(weights, grads, state, 0.1, 0.1)

    start = {"m.layers.0.w": normal(0, 5, 3).astype(np.float32), "bias": normal(1, 5).astype(np.float32)}
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
        descend(weights, step.grads, state, 0.01, 0.01)
        losses.append(step.loss)
    assert losses[0] == pytest.approx(math.log(config.V), abs=0.3)
    assert losses[-1] < 0.5 * losses[0]
