"""Many answers at once: a batch of prompts with the trainer's model, or one prompt a thread with an engine's backend.

The batched model is the spec's forward and its sampling with a batch axis, and the tests hold it to both. Prompts of
different lengths share a batch: each row has its own position, and looks at no key beyond it.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from ..config import Config
from ..engine.backends import Backend
from ..engine.decode.plain import Run, generate
from ..engine.session import Session
from ..spec import Sampling, distribution, draw
from ..spec.ops import (
    Array,
    embed,
    linear,
    rmsnorm,
    rope,
    rope_frequencies,
    rope_tables,
    softmax,
    swiglu,
)
from .model import Weights


@dataclass(frozen=True)
class Answer:
    """Generated ids, without the end token; `ended` tells whether there was one before the limit."""

    ids: list[int]
    ended: bool


def answers(
    config: Config,
    weights: Weights,
    prompts: Sequence[Sequence[int]],
    how: Sampling,
    *,
    end_ids: Sequence[int],
    vocabulary: int,
    max_tokens: int,
    seed: int,
    batch: int = 256,
    workers: int = 1,
) -> list[Answer]:
    """Sample one answer to each prompt. Prompt n draws from a generator of its own, keyed by (seed, n), so that
    neither the batch size nor the number of workers changes an answer beyond the rounding of its logits.
    ValueError for a model with a sliding window, or for penalties.
    """
    if config.sliding_window is not None:
        raise ValueError("a sliding window is not batched")
    order = sorted(range(len(prompts)), key=lambda n: len(prompts[n]))  # rows of a batch are then of nearly one length
    chunks = [order[start : start + batch] for start in range(0, len(order), batch)]

    def run(numbers: list[int]) -> list[Answer]:
        rows = [prompts[n] for n in numbers]
        return _sample(config, weights, rows, numbers, how, end_ids, vocabulary, max_tokens, seed)

    with ThreadPoolExecutor(workers) as pool:
        done = {n: answer for chunk, got in zip(chunks, pool.map(run, chunks), strict=True) for n, answer in
                zip(chunk, got, strict=True)}  # fmt: skip
    return [done[n] for n in range(len(prompts))]


def answers_each(
    backend: Backend,
    prompts: Sequence[Sequence[int]],
    how: Sampling,
    *,
    end_ids: Sequence[int],
    vocabulary: int,
    max_tokens: int,
    seed: int,
    workers: int = 1,
) -> list[Answer]:
    """`answers` of a backend: each of `workers` threads answers one prompt after another, with the same draws."""

    def answer(n: int) -> Answer:
        uniforms, run = _uniforms(seed, n), Run(list(prompts[n]), seed)

        def choose(logits: Array, prompt: list[int], output: list[int]) -> int:
            return draw(distribution(logits, how, prompt, output), uniforms)

        tokens = generate(
            Session(backend),
            run,
            choose,
            end_ids=end_ids,
            vocabulary=vocabulary,
            context=backend.context,
            max_tokens=max_tokens,
        )
        return Answer(list(tokens), run.finish_reason == "stop")

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(answer, range(len(prompts))))


def _uniforms(seed: int, n: int) -> np.random.Generator:
    """What prompt n draws from: one number a token."""
    return np.random.Generator(np.random.Philox(key=[seed, n]))


def _sample(
    config: Config,
    weights: Weights,
    prompts: list[Sequence[int]],
    numbers: list[int],
    how: Sampling,
    end_ids: Sequence[int],
    vocabulary: int,
    max_tokens: int,
    seed: int,
) -> list[Answer]:
    lengths = np.array([len(prompt) for prompt in prompts])
    decoder = _Decoder(config, weights, len(prompts), int(lengths.max()) + max_tokens)
    ids = np.zeros((len(prompts), lengths.max()), np.int64)
    for number, prompt in enumerate(prompts):
        ids[number, : len(prompt)] = prompt
    logits = decoder.step(ids, np.zeros(len(prompts), np.int64), lengths - 1)
    uniforms = [_uniforms(seed, n) for n in numbers]
    output: list[list[int]] = [[] for _ in prompts]
    ended = np.zeros(len(prompts), bool)
    alive = np.arange(len(prompts))
    for step in range(max_tokens):
        probs = distribution_rows(logits[:, :vocabulary], how)
        cumulative = np.cumsum(probs, axis=-1)
        drawn = np.array([uniforms[row].random() for row in alive])[:, None] * cumulative[:, -1:]
        tokens = np.sum(cumulative <= drawn, axis=-1)
        for row, token in zip(alive, tokens, strict=True):
            if token in end_ids:
                ended[row] = True
            else:
                output[row].append(int(token))
        going = ~ended[alive]
        alive, tokens = alive[going], tokens[going]
        if len(alive) == 0 or step == max_tokens - 1:
            break
        decoder.keep(going)
        logits = decoder.step(tokens[:, None], lengths[alive] + step, np.zeros(len(alive), np.int64))
    return [Answer(said, bool(end)) for said, end in zip(output, ended, strict=True)]


def distribution_rows(logits: Array, how: Sampling) -> Array:
    """logits [B, V] -> [B, V]

    `spec.distribution` for each row, without penalties, which no recipe here uses.
    """
    if how.repetition_penalty != 1 or how.presence_penalty != 0:
        raise ValueError("penalties are not batched")
    logits = logits.astype(np.float64)
    rows, V = logits.shape
    for name in how.steps:
        if name == "temperature" and how.temperature > 0:
            logits = logits / how.temperature
        elif name == "top_k" and 0 < how.top_k < V:
            kth = np.partition(logits, V - how.top_k, axis=-1)[:, V - how.top_k, None]
            logits = np.where(logits < kth, -np.inf, logits)
        elif name == "top_p" and how.top_p < 1:
            likeliest_last = np.argsort(-logits, axis=-1, kind="stable")[:, ::-1]
            dropped = np.cumsum(softmax(np.take_along_axis(logits, likeliest_last, -1)), axis=-1) <= 1 - how.top_p
            dropped[:, -1] = False
            out = np.empty((rows, V), bool)
            np.put_along_axis(out, likeliest_last, dropped, axis=-1)
            logits = np.where(out, -np.inf, logits)
        elif name == "min_p" and how.min_p > 0:
            probs = softmax(logits)
            logits = np.where(probs < how.min_p * probs.max(axis=-1, keepdims=True), -np.inf, logits)
    if how.temperature == 0:
        greedy: Array = np.eye(V)[np.argmax(logits, axis=-1)]
        return greedy
    return softmax(logits)


class _Decoder:
    """Keys and values of a batch, in arrays as long as they may get: the state that the spec's cache avoids."""

    def __init__(self, config: Config, weights: Weights, rows: int, positions: int) -> None:
        self.config, self.weights = config, weights
        dtype = weights["model.norm.weight"].dtype
        shape = (rows, config.K, positions, config.E)
        self.cache = [(np.zeros(shape, dtype), np.zeros(shape, dtype)) for _ in range(config.L)]
        inv_freq = rope_frequencies(config.rope, config.E)
        self.tables = rope_tables(inv_freq, config.rope.attention_scaling, np.arange(positions), dtype)

    def keep(self, rows: Array) -> None:
        """Drop the rows that have ended, from the cache as from the batch."""
        if not rows.all():
            self.cache = [(k[rows], v[rows]) for k, v in self.cache]

    def step(self, ids: Array, start: Array, last: Array) -> Array:
        """ids [B, T], start [B], last [B] -> [B, V]

        Row b holds tokens of positions start[b], start[b] + 1, ...; logits are those after its column last[b].
        """
        config, (B, T) = self.config, ids.shape
        positions = start[:, None] + np.arange(T)
        row = np.arange(B)[:, None]
        cos, sin = (table[positions].reshape(B * T, -1) for table in self.tables)
        visible = np.arange(int(positions.max()) + 1) <= positions[:, :, None]  # [B, T, S]
        hidden_keys = np.where(visible, 0, -np.inf)[:, None, None].astype(cos.dtype)
        G, E, S = config.G, config.E, visible.shape[-1]

        x = embed(ids.reshape(-1), self.weights["model.embed_tokens.weight"])
        for layer in range(config.L):
            path = f"model.layers.{layer}."

            def weight(name: str, path: str = path) -> Array:
                return self.weights[path + name]

            def project(x: Array, name: str, heads: int, path: str = path) -> Array:
                w, b = (self.weights[f"{path}self_attn.{name}_proj.{part}"] for part in ("weight", "bias"))
                return linear(x, w, b).reshape(B * T, heads, E)

            normed = rmsnorm(x, weight("input_layernorm.weight"), config.rms_norm_eps)
            q = rope(project(normed, "q", config.H), cos, sin).reshape(B, T, config.K, G, E)
            keys, values = self.cache[layer]
            keys[row, :, positions] = rope(project(normed, "k", config.K), cos, sin).reshape(B, T, config.K, E)
            values[row, :, positions] = project(normed, "v", config.K).reshape(B, T, config.K, E)
            q_BKGTE = q.transpose(0, 2, 3, 1, 4).reshape(B, config.K, G * T, E)
            scores = (q_BKGTE @ keys[:, :, :S].transpose(0, 1, 3, 2)).reshape(B, config.K, G, T, S) * E**-0.5
            probs = softmax(scores + hidden_keys).reshape(B, config.K, G * T, S)
            heads = (probs @ values[:, :, :S]).reshape(B, config.K, G, T, E).transpose(0, 3, 1, 2, 4)
            x = x + linear(heads.reshape(B * T, config.H * E), weight("self_attn.o_proj.weight"))
            normed = rmsnorm(x, weight("post_attention_layernorm.weight"), config.rms_norm_eps)
            gate, up = (linear(normed, weight(f"mlp.{name}_proj.weight")) for name in ("gate", "up"))
            x = x + linear(swiglu(gate, up, config.swiglu_beta), weight("mlp.down_proj.weight"))
        x = rmsnorm(x.reshape(B, T, -1)[np.arange(B), last], self.weights["model.norm.weight"], config.rms_norm_eps)
        return linear(x, self.weights[config.head_name])
