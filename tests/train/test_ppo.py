"""PPO: gradients of the whole model against torch's autograd, toys whose best policy is known, and the sampler."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwq_ref.config import Config
from qwq_ref.train import ppo
from qwq_ref.train.optim import initial_state
from tests.support.models import config_values, configs, random_weights
from tests.support.torch_model import assert_close, seeds, torch_model
from tests.train.test_policy import torch_surrogate

SETTINGS = ppo.Settings(iterations=30, prompts=64, minibatch=32, warmup=2, rate=3e-3, value_rate=3e-3, kl=0.0)


def policy_of(seed=0, **changes):
    """A config, its weights with a value head, and the state of their optimiser."""
    config = Config.from_dict(config_values(**changes))
    weights = random_weights(config, seed) | ppo.initial_value_head(config)
    return config, weights, initial_state(weights)


@st.composite
def updates(draw):
    """-> config, float64 weights, episodes, credits, allowed, settings: ratios on both sides of the clip."""
    config = Config.from_dict(draw(configs()))
    seed = draw(seeds)
    rng = np.random.default_rng(seed)
    weights = {
        n: (1.0 if w.ndim == 1 else 10.0) * w.astype(np.float64) for n, w in random_weights(config, seed).items()
    }
    weights |= {"value.weight": rng.normal(size=config.D), "value.bias": rng.normal(size=1)}
    allowed = rng.random(config.V) < 0.8
    allowed[0] = True
    episodes = []
    for _ in range(draw(st.integers(1, 5))):
        prompt, actions = int(rng.integers(1, 6)), int(rng.integers(1, 7))
        ids = np.concatenate([rng.integers(0, config.V, prompt), rng.choice(np.flatnonzero(allowed), actions)])
        episodes.append(ppo.Episode(ids, prompt, {}, np.zeros(actions)))
    judged = ppo.judge(config, weights, episodes, allowed)
    credits = [
        ppo.Credit(each.logp + rng.normal(size=len(each.logp)) * 0.3, *rng.normal(size=(2, len(each.logp))))
        for each in judged
    ]
    how = replace(SETTINGS, value_weight=draw(st.sampled_from([0.0, 0.5])), entropy=draw(st.sampled_from([0.0, 0.1])))
    return config, weights, episodes, credits, allowed, how


@given(updates())
def test_gradients_of_an_update_are_torch_s(case):
    config, weights, episodes, credits, allowed, how = case
    tensors = {name: torch.tensor(w, requires_grad=True) for name, w in weights.items()}
    total = sum(len(each.old) for each in credits)
    policy_loss = value_loss = trunk_loss = 0
    for episode, given_ in zip(episodes, credits, strict=True):
        ids = episode.ids[None, :-1]
        logits, hidden = torch_model(config, tensors, ids, None, np.arange(ids.shape[1])[None])
        at = slice(episode.prompt - 1, None)
        share = np.full(len(given_.old), 1 / total)
        loss, *_ = torch_surrogate(
            logits[0, at],
            episode.ids[episode.prompt :],
            allowed,
            given_.old,
            given_.advantages,
            share,
            how.clip,
            how.entropy,
        )
        policy_loss = policy_loss + loss
        returns = torch.tensor(given_.returns)
        for frozen in (False, True):  # the head learns from the values' loss; the model only from a part of it
            h = hidden[0, at] if frozen else hidden[0, at].detach()
            head = [tensors[name].detach() if frozen else tensors[name] for name in ppo.VALUE]
            error = ((h @ head[0] + head[1] - returns) ** 2).sum() / (2 * total)
            trunk_loss, value_loss = (trunk_loss + error, value_loss) if frozen else (trunk_loss, value_loss + error)
    (policy_loss + how.value_weight * trunk_loss + value_loss).backward()

    gains = ppo.loss_and_grads(config, weights, episodes, credits, allowed, how)
    assert gains.loss == pytest.approx(policy_loss.item(), rel=1e-11, abs=1e-13)
    assert gains.value_loss == pytest.approx(value_loss.item(), rel=1e-11)
    assert set(gains.grads) == set(weights)
    floor = 1e-13 * max(np.linalg.norm(grad) for grad in gains.grads.values())
    for name, tensor in tensors.items():
        theirs = np.zeros(tensor.shape) if tensor.grad is None else tensor.grad.numpy()
        assert_close(gains.grads[name], theirs, 1e-10, floor)
    head = ppo.loss_and_grads(config, weights, episodes, credits, allowed, how, learns=False)
    assert set(head.grads) == set(ppo.VALUE)
    for name in ppo.VALUE:
        assert_close(head.grads[name], gains.grads[name], 1e-12, floor)


class Toy:
    """Prompts of one id. `rule` gives the reward of the ids of an answer."""

    end_ids = (0,)

    def __init__(self, config, max_tokens, rule):
        self.max_tokens, self.rule = max_tokens, rule
        self.allowed = np.arange(config.V) < 8

    def draw(self, rng, count):
        return [(None, [int(rng.integers(10, 13))]) for _ in range(count)]

    def parts(self, question, answer):
        return {"rule": self.rule(answer.ids)}


def learnt(world, config, weights, state, settings, seed=0):
    """Run PPO without files, and return the mean reward of each iteration."""
    reference, rewards = {name: w.copy() for name, w in weights.items()}, []
    for number in range(settings.iterations):
        rng = np.random.default_rng([seed, number])
        stats = ppo.iterate(config, weights, reference, state, world, settings, rng, learns=number >= settings.warmup)
        rewards.append(stats["reward"])
    return rewards


@pytest.mark.parametrize("settings", [SETTINGS, replace(SETTINGS, advantages="group", group=8, warmup=0)])
def test_a_bandit_learns_its_best_arm(settings):
    """Arm a pays a / 7. The best pays 1, an even choice 0.5."""
    config, weights, state = policy_of()
    world = Toy(config, 1, lambda ids: ids[0] / 7 if ids else 0.0)
    rewards = learnt(world, config, weights, state, settings)
    assert rewards[0] < 0.6
    assert np.mean(rewards[-3:]) > 0.97


@pytest.mark.parametrize("settings", [SETTINGS, replace(SETTINGS, advantages="group", group=32, warmup=0)])
def test_a_trap_of_two_steps_is_left(settings):
    """Door 3 pays 0.2 whatever follows. Door 4 pays 1 if 5 follows, which is 1/8 in the mean at first: less."""

    def rule(ids):
        return {3: 0.2, 4: float(ids[1:2] == [5])}.get(ids[0], 0.0) if ids else 0.0

    config, weights, state = policy_of()
    rewards = learnt(
        Toy(config, 2, rule),
        config,
        weights,
        state,
        replace(settings, prompts=128, minibatch=64, iterations=40, rate=2e-3),
    )
    assert np.mean(rewards[-3:]) > 0.9


def test_the_penalty_keeps_the_policy_near_its_reference():
    far = {}
    for kl in (0.0, 1.0):
        config, weights, state = policy_of()
        world = Toy(config, 1, lambda ids: float(ids == [3]))
        reference = {name: w.copy() for name, w in weights.items()}
        learnt(world, config, weights, state, replace(SETTINGS, kl=kl, iterations=20))
        episodes = ppo.sample(config, weights, world, SETTINGS, np.random.default_rng(1))
        ours, theirs = (ppo.judge(config, w, episodes, world.allowed) for w in (weights, reference))
        far[kl] = np.mean([np.sum(a.logp - b.logp) for a, b in zip(ours, theirs, strict=True)])
    assert far[0.0] > 1.5
    assert 0 < far[1.0] < 0.6 * far[0.0]


def test_sampler_and_trainer_agree_to_rounding_and_first_ratios_are_one():
    config, weights, _ = policy_of()
    weights = {name: 5 * w if w.ndim == 2 else w for name, w in weights.items()}
    world = Toy(config, 20, lambda ids: 1.0)
    episodes = ppo.sample(config, weights, world, SETTINGS, np.random.default_rng(0))
    judged = ppo.judge(config, weights, episodes, world.allowed)
    assert {len(each.sampled) for each in episodes} > {1}
    assert all(set(each.ids[each.prompt :]) <= set(range(8)) for each in episodes)
    assert any(each.ids[-1] == 0 for each in episodes)
    gap = max(np.abs(each.logp - episode.sampled).max() for each, episode in zip(judged, episodes, strict=True))
    assert 0 <= gap < 1e-4
    credits = [ppo.Credit(each.logp, each.logp, each.logp) for each in judged]
    first = ppo.loss_and_grads(config, weights, episodes, credits, world.allowed, SETTINGS)
    total = np.concatenate([each.logp for each in judged])
    assert first.clipped == 0
    assert first.loss == pytest.approx(-np.mean(total), rel=1e-5)


def test_a_group_that_agrees_teaches_nothing():
    config, weights, state = policy_of()
    before = {name: w.copy() for name, w in weights.items()}
    settings = replace(SETTINGS, advantages="group", group=8, warmup=0)
    learnt(Toy(config, 1, lambda ids: 1.0), config, weights, state, replace(settings, iterations=2))
    assert all(np.array_equal(w, before[name]) for name, w in weights.items())


def test_threads_change_no_bit():
    found = []
    for workers in (1, 3):
        config, weights, state = policy_of()
        world = Toy(config, 6, lambda ids: len(ids) / 6)
        rng = np.random.default_rng(0)
        ppo.iterate(config, weights, dict(weights), state, world, SETTINGS, rng, learns=True, workers=workers)
        found.append(weights)
    assert all(np.array_equal(w, found[1][name]) for name, w in found[0].items())
