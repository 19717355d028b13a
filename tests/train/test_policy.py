"""Advantages and the losses of a policy: against their definitions, and their gradients against torch's autograd."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwq_ref.train import policy
from tests.support.torch_model import assert_close, normal, seeds


@given(seeds, st.integers(1, 9), st.floats(0, 1), st.floats(0, 1))
def test_generalised_advantages_are_the_sum_of_discounted_surprises(seed, T, discount, trace):
    rewards, values = normal(seed, 2, T)
    after = [*values[1:], 0.0]
    surprises = rewards + discount * np.array(after) - values
    wanted = [sum((discount * trace) ** n * surprises[t + n] for n in range(T - t)) for t in range(T)]
    advantages, returns = policy.generalised_advantages(rewards, values, discount, trace)
    assert np.allclose(advantages, wanted, atol=1e-12)
    assert np.allclose(returns, advantages + values, atol=1e-12)


def test_without_discount_the_return_is_the_sum_of_later_rewards():
    rewards, values = np.array([1.0, -2, 4, 0.5]), np.array([3.0, 1, -1, 2])
    advantages, returns = policy.generalised_advantages(rewards, values, 1, 1)
    assert np.allclose(returns, [3.5, 2.5, 4.5, 0.5])
    assert np.allclose(advantages, returns - values)


def test_the_advantages_of_a_group_are_its_rewards_in_units_of_their_deviation():
    found = policy.group_advantages([1, 0, 0, 1, 0.7, 0.7, 0.7, 0.7, 3, 1, 1, 1], 4)
    assert np.allclose(found[:4], [1, -1, -1, 1])
    assert not found[4:8].any()
    assert np.allclose(found[8:], np.array([3, -1, -1, -1]) / np.sqrt(3))
    assert np.array_equal(policy.group_advantages([1.1 + 1e-16, 1.1], 2), [0, 0])


def test_whitened_advantages_have_a_mean_of_0_and_a_deviation_of_1():
    white = policy.whitened(normal(3, 100) * 7 + 5)
    assert abs(white.mean()) < 1e-12
    assert white.std() == pytest.approx(1)
    assert not policy.whitened(np.full(5, 3.0)).any()


@st.composite
def choices(draw):
    """-> logits [B, T, V], ids, allowed, old, advantages, share: ids are allowed, some ratios beyond the clip."""
    B, T, V, seed = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(2, 9)), draw(seeds)
    rng = np.random.default_rng(seed)
    allowed = rng.random(V) < 0.7
    allowed[rng.integers(V)] = True
    ids = rng.choice(np.flatnonzero(allowed), (B, T))
    logits = rng.normal(size=(B, T, V)) * draw(st.sampled_from([0.1, 3.0]))
    now = policy.actions(logits, ids, allowed).logp
    old = now + rng.normal(size=(B, T)) * draw(st.sampled_from([0.0, 0.3]))
    share = rng.choice([0.0, 0.5, 1.0], (B, T)) / (B * T)
    return logits, ids, allowed, old, rng.normal(size=(B, T)), share


def torch_surrogate(logits, ids, allowed, old, advantages, share, clip, bonus):
    masked = logits.masked_fill(~torch.tensor(allowed), -torch.inf)
    log_all = masked.log_softmax(-1)
    logp = log_all.gather(-1, torch.tensor(ids)[..., None])[..., 0]
    ratio = (logp - torch.tensor(old)).exp()
    gain = torch.minimum(ratio * torch.tensor(advantages), ratio.clamp(1 - clip, 1 + clip) * torch.tensor(advantages))
    entropy = -(log_all.exp() * log_all.masked_fill(~torch.tensor(allowed), 0)).sum(-1)
    return -(torch.tensor(share) * (gain + bonus * entropy)).sum(), logp, entropy


@given(choices(), st.sampled_from([0.0, 0.01, 1.0]))
def test_the_clipped_loss_and_its_gradient_are_torch_s(case, bonus):
    logits, ids, allowed, old, advantages, share = case
    tensor = torch.tensor(logits, requires_grad=True)
    loss, logp, entropy = torch_surrogate(tensor, ids, allowed, old, advantages, share, 0.2, bonus)
    loss.backward()
    now = policy.actions(logits, ids, allowed)
    assert np.allclose(now.logp, logp.detach(), atol=1e-12)
    assert np.allclose(now.entropy, entropy.detach(), atol=1e-12)
    found = policy.clipped_surrogate(now, ids, old, advantages, share, 0.2, bonus)
    assert found.loss == pytest.approx(loss.item(), rel=1e-12, abs=1e-13)
    assert_close(found.dlogits, tensor.grad.numpy(), 1e-10, 1e-14)


def test_the_clip_stops_only_what_has_gone_far_enough():
    """Above 1.2 nothing more is gained for a good action, below 0.8 nothing for a bad one."""
    logits, ids, allowed = np.zeros((1, 4, 2)), np.zeros((1, 4), int), np.ones(2, bool)
    old = np.log(0.5) - np.log([[1.3, 1.3, 0.7, 0.7]])
    advantages = np.array([[1.0, -1, 1, -1]])
    now = policy.actions(logits, ids, allowed)
    found = policy.clipped_surrogate(now, ids, old, advantages, np.full((1, 4), 0.25), 0.2)
    assert (found.dlogits != 0).any(-1).tolist() == [[False, True, True, False]]
    assert found.clipped == 0.5


def test_the_value_loss_is_half_the_squared_error():
    loss, dvalues = policy.value_loss(np.array([1.0, 2, 3]), np.array([1.0, 0, 5]), np.array([0.5, 0.5, 0.25]))
    assert loss == 0.5 * (0.5 * 4 + 0.25 * 4)
    assert np.allclose(dvalues, [0, 1, -0.5])
