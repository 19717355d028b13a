"""Proximal policy optimisation of a model on rewards that can be checked, on the gradients of `gradients`.

An iteration has four steps:

    1. sample   one answer to each of many prompts, at temperature 1, and score each
    2. judge    the model's own log-probabilities and values of these answers, and the reference's
    3. credit   the advantage of each token: GAE on the values, or the group's mean as the baseline (GRPO)
    4. improve  some epochs of small steps on the clipped loss

The probabilities of step 2 and 4 come from the same function on the same shapes, so the first ratios are exactly 1.
The sampler's log-probabilities differ from these by rounding alone; `sampler_gap` of the log is the largest difference.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import numpy as np

from ..config import Config
from ..spec import Sampling
from ..spec.ops import Array
from ..text.bpe import holes
from .environment import Environment
from .model import Gradients, Weights, backward, forward
from .optim import adamw, clip_by_global_norm, descend
from .policy import actions, clipped_surrogate, generalised_advantages, group_advantages, value_loss, whitened
from .rollout import Answer, answers

VALUE = ("value.weight", "value.bias")  # the value head: one number for each token's last hidden state


@dataclass(frozen=True)
class Settings:
    """The settings of one run.

    advantages    gae: a value head is the baseline; group: the mean of the answers to one prompt is (GRPO)
    prompts       answers of an iteration; `group` of them share a prompt
    epochs        times that an iteration's answers are learnt, `minibatch` answers a step
    clip          how far a probability may move in an iteration: its ratio stays in [1 - clip, 1 + clip]
    discount      of later rewards, in `gae`
    trace         the lambda of GAE
    kl            reward taken for each nat that an answer's log-probability is above the reference's; 0 takes none
    entropy       weight of the entropy bonus
    warmup        first iterations, in which only the value head learns
    rate          learning rate of AdamW; the matrices in blocks have `hidden` times that (Muon)
    value_rate    of the value head
    value_weight  weight of the values' loss in the model's own gradient; 0 keeps the model out of it
    """

    advantages: Literal["gae", "group"] = "gae"
    iterations: int = 80
    prompts: int = 512
    group: int = 1
    epochs: int = 2
    minibatch: int = 512
    clip: float = 0.2
    discount: float = 1.0
    trace: float = 1.0
    kl: float = 0.01
    entropy: float = 0.0
    warmup: int = 4
    rate: float = 1e-4
    hidden: float = 2.0
    value_rate: float = 3e-4
    value_weight: float = 0.1
    max_norm: float = 1.0


class Episode(NamedTuple):
    """One answer: the ids of prompt and actions, where the actions begin, the parts of its reward, and for each action
    the log-probability of the sampler."""

    ids: Array
    prompt: int
    parts: Mapping[str, float]
    sampled: Array

    @property
    def reward(self) -> float:
        return float(sum(self.parts.values()))


class Judged(NamedTuple):
    """The model's own figures of the actions of one answer, each [T]."""

    logp: Array
    values: Array
    entropy: Array


class Credit(NamedTuple):
    """The input of an update from one answer, each [T]."""

    old: Array
    advantages: Array
    returns: Array


def initial_value_head(config: Config) -> dict[str, Array]:
    return {"value.weight": np.zeros(config.D, np.float32), "value.bias": np.zeros(1, np.float32)}


def sample(
    config: Config,
    weights: Weights,
    world: Environment,
    settings: Settings,
    rng: np.random.Generator,
    workers: int = 1,
) -> list[Episode]:
    """Draw questions, answer each at temperature 1 from the whole vocabulary, and score the answers."""
    questions = [each for each in world.draw(rng, settings.prompts // settings.group) for _ in range(settings.group)]
    chosen = np.flatnonzero(world.allowed)
    said = answers(
        config,
        weights,
        [prompt for _, prompt in questions],
        Sampling(temperature=1.0),
        end_ids=world.end_ids,
        vocabulary=int(chosen[-1]) + 1,
        never=holes(chosen.tolist()),
        max_tokens=world.max_tokens,
        seed=int(rng.integers(2**63)),
        workers=workers,
    )
    return [
        _episode(prompt, answer, world.parts(question, answer))
        for (question, prompt), answer in zip(questions, said, strict=True)
    ]


def _episode(prompt: list[int], answer: Answer, parts: Mapping[str, float]) -> Episode:
    ids = [*prompt, *answer.ids, *([] if answer.end is None else [answer.end])]
    return Episode(np.array(ids), len(prompt), parts, np.array(answer.logprobs))


def judge(
    config: Config, weights: Weights, episodes: Sequence[Episode], allowed: Array, workers: int = 1
) -> list[Judged]:
    """Return the log-probability, value and entropy of each action of each answer."""

    def run(numbers: Array) -> dict[int, Judged]:
        rows = [episodes[n] for n in numbers]
        ids, targets = _padded([row.ids[:-1] for row in rows]), _padded([row.ids[1:] for row in rows])
        logits, tape = forward(config, weights, ids, checkpointing="full")
        found = actions(logits, targets, allowed)
        values = _values(weights, tape.hidden).reshape(ids.shape)
        return {
            int(n): Judged(
                *(array[b, rows[b].prompt - 1 : len(rows[b].ids) - 1] for array in (found.logp, values, found.entropy))
            )
            for b, n in enumerate(numbers)
        }

    done: dict[int, Judged] = {}
    with ThreadPoolExecutor(workers) as pool:
        for part in pool.map(run, _pieces(episodes)):
            done |= part
    return [done[n] for n in range(len(episodes))]


def credit(
    episodes: Sequence[Episode], judged: Sequence[Judged], reference: Sequence[Judged], settings: Settings
) -> list[Credit]:
    """Return the advantages of all actions, whitened over all of them, or those of the groups."""
    rewards = []
    for episode, ours, theirs in zip(episodes, judged, reference, strict=True):
        each = -settings.kl * (ours.logp - theirs.logp)
        each[-1] += episode.reward
        rewards.append(each)
    if settings.advantages == "group":
        shared = group_advantages([each.sum() for each in rewards], settings.group)
        return [
            Credit(ours.logp, np.full_like(ours.logp, advantage), np.zeros_like(ours.logp))
            for ours, advantage in zip(judged, shared, strict=True)
        ]
    both = [
        generalised_advantages(each, ours.values, settings.discount, settings.trace)
        for each, ours in zip(rewards, judged, strict=True)
    ]
    white = np.split(whitened(np.concatenate([a for a, _ in both])), np.cumsum([len(a) for a, _ in both])[:-1])
    return [Credit(ours.logp, a, returns) for ours, a, (_, returns) in zip(judged, white, both, strict=True)]


class Gains(NamedTuple):
    """The losses of some answers, the gradient by each weight and the value head, and the clipped share."""

    loss: float
    value_loss: float
    clipped: float
    grads: Gradients


def loss_and_grads(
    config: Config,
    weights: Weights,
    episodes: Sequence[Episode],
    credits: Sequence[Credit],
    allowed: Array,
    settings: Settings,
    workers: int = 1,
    learns: bool = True,
) -> Gains:
    """Return the mean loss of all actions of some answers, and its gradients.

    learns  False: of the value head alone
    """
    total = sum(len(each.old) for each in credits)

    def run(numbers: Array) -> Gains:
        rows, given = [episodes[n] for n in numbers], [credits[n] for n in numbers]
        ids, targets = _padded([row.ids[:-1] for row in rows]), _padded([row.ids[1:] for row in rows])
        place = partial(_placed, ids.shape, [row.prompt - 1 for row in rows])
        share = place([np.full(len(each.old), 1 / total) for each in given])
        old, advantages, returns = (place([each[n] for each in given]) for n in range(3))
        logits, tape = forward(config, weights, ids)
        values = _values(weights, tape.hidden).reshape(ids.shape)
        values_loss, dvalues = value_loss(values, returns, share)
        dvalues = dvalues.reshape(-1)
        head = {"value.weight": dvalues @ tape.hidden, "value.bias": dvalues.sum(keepdims=True)}
        if not learns:
            return Gains(0.0, values_loss, 0.0, head)
        now = actions(logits, targets, allowed)
        found = clipped_surrogate(now, targets, old, advantages, share, settings.clip, settings.entropy)
        dhidden = None
        if settings.value_weight and settings.advantages == "gae":
            dhidden = settings.value_weight * np.outer(dvalues, weights["value.weight"])
        return Gains(found.loss, values_loss, found.clipped, backward(tape, found.dlogits, dhidden) | head)

    with ThreadPoolExecutor(workers) as pool:
        return _sum(pool.map(run, _pieces(episodes)))


def improve(
    config: Config,
    weights: dict[str, Array],
    state: dict[str, Array],
    episodes: Sequence[Episode],
    credits: Sequence[Credit],
    allowed: Array,
    settings: Settings,
    rng: np.random.Generator,
    rate: float = 1.0,
    learns: bool = True,
    workers: int = 1,
) -> dict[str, float]:
    """Learn from the answers of an iteration: update `weights` and `state` in place. `rate` scales the rates."""
    useful = np.array([n for n, each in enumerate(credits) if np.any(each.advantages) or settings.advantages == "gae"])
    means: dict[str, list[float]] = {"loss": [], "value_loss": [], "clipped": [], "grad_norm": []}
    for _ in range(settings.epochs):
        order = rng.permutation(useful)
        for chosen in np.array_split(order, max(1, round(len(order) / settings.minibatch))) if len(order) else []:
            rows, given = [episodes[n] for n in chosen], [credits[n] for n in chosen]
            gains = loss_and_grads(config, weights, rows, given, allowed, settings, workers, learns)
            head = {name: gains.grads.pop(name) for name in VALUE}
            norm = clip_by_global_norm(gains.grads, settings.max_norm)
            descend(weights, gains.grads, state, rate * settings.rate, rate * settings.hidden * settings.rate, 0.0)
            adamw(weights, head, state, settings.value_rate)
            for name, value in zip(means, (gains.loss, gains.value_loss, gains.clipped, norm), strict=True):
                means[name].append(value)
    return {name: float(np.mean(values)) if values else 0.0 for name, values in means.items()}


def iterate(
    config: Config,
    weights: dict[str, Array],
    reference: Weights,
    state: dict[str, Array],
    world: Environment,
    settings: Settings,
    rng: np.random.Generator,
    *,
    rate: float = 1.0,
    learns: bool = True,
    workers: int = 1,
) -> dict[str, float]:
    """Do one iteration: update `weights` and `state` in place, and return what the log says of it.

    learns   False: only the value head learns
    """
    started = time.perf_counter()
    episodes = sample(config, weights, world, settings, rng, workers)
    sampled = time.perf_counter()
    ours = judge(config, weights, episodes, world.allowed, workers)
    theirs = judge(config, reference, episodes, world.allowed, workers)
    credits = credit(episodes, ours, theirs, settings)
    learning = improve(config, weights, state, episodes, credits, world.allowed, settings, rng, rate, learns, workers)
    names = episodes[0].parts
    return {
        "reward": float(np.mean([each.reward for each in episodes])),
        **{name: float(np.mean([each.parts[name] for each in episodes])) for name in names},
        "length": float(np.mean([len(each.sampled) for each in episodes])),
        "kl": float(np.mean([np.sum(a.logp - b.logp) for a, b in zip(ours, theirs, strict=True)])),
        "entropy": float(np.mean(np.concatenate([each.entropy for each in ours]))),
        "sampler_gap": max(float(np.abs(a.logp - e.sampled).max()) for a, e in zip(ours, episodes, strict=True)),
        **learning,
        "tokens": sum(len(each.sampled) for each in episodes),
        "sample_seconds": sampled - started,
        "seconds": time.perf_counter() - started,
    }


def _values(weights: Weights, hidden: Array) -> Array:
    """hidden [N, D] -> [N]"""
    return hidden @ weights["value.weight"] + weights["value.bias"]


def _pieces(episodes: Sequence[Episode], size: int = 8) -> Iterator[Array]:
    """Divide the numbers of answers into pieces of nearly one length, each small enough for the processor's caches."""
    order = np.argsort([len(episode.ids) for episode in episodes], kind="stable")
    return iter(np.array_split(order, -(-len(order) // size)))


def _padded(rows: Sequence[Array]) -> Array:
    """Return rows of ids as one array [B, T]; zeros fill the ends, which no earlier token sees."""
    padded = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for row, ids in zip(padded, rows, strict=True):
        row[: len(ids)] = ids
    return padded


def _placed(shape: tuple[int, int], starts: Sequence[int], rows: Sequence[Array]) -> Array:
    """Return arrays of the actions of each row at the places of these actions, and zeros elsewhere."""
    placed = np.zeros(shape, rows[0].dtype)
    for row, start, values in zip(placed, starts, rows, strict=True):
        row[start : start + len(values)] = values
    return placed


def _sum(pieces: Iterator[Gains]) -> Gains:
    """Add up the pieces of a step, in their order."""
    loss, values_loss, clipped, grads = next(pieces)
    for piece in pieces:
        loss, values_loss, clipped = loss + piece.loss, values_loss + piece.value_loss, clipped + piece.clipped
        for name, grad in piece.grads.items():
            grads[name] += grad
    return Gains(loss, values_loss, clipped, grads)
