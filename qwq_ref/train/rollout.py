"""Many answers at once: a batch of prompts in NumPy, or one prompt a thread on a backend of the engine.

The batch runs on the block of `model`, with a cache. Its sampling is the spec's with a batch axis; tests compare both.
The filters are repeated here because a call of the spec for each row would take a third more time. Prompts of different
lengths share a batch: each row has its own positions, and sees no key beyond them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Event
from typing import Any, TypeVar

import numpy as np

from ..cluster.workers import Workers
from ..config import Config
from ..engine.backends import Backend
from ..engine.decode.plain import Run, generate
from ..engine.model import Model
from ..engine.session import Session
from ..errors import NonFiniteError
from ..spec import Sampling, distribution, draw
from ..spec.ops import Array, embed, linear, rmsnorm, rope_frequencies, rope_tables, softmax
from ..spec.sampling import checked_logits, temperature
from .model import Common, Weights, block

_SHARE = 4  # prompts that go to another process at a time: that many are computed again where it is lost
T = TypeVar("T")
R = TypeVar("R")
Progress = Callable[[int], object]


def _silent(count: int) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class Answer:
    """Generated ids without the end token; `ended` is False if the limit came before an end token.

    `answers` also gives the end token, and the log-probability of each id and of the end token. A comparison of answers
    leaves these out.
    """

    ids: list[int]
    ended: bool
    end: int | None = field(default=None, compare=False)
    logprobs: list[float] = field(default_factory=list, compare=False)


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
    never: Sequence[range] = (),
    batch: int = 256,
    workers: int = 1,
    progress: Progress = _silent,
) -> list[Answer]:
    """Sample one answer to each prompt, in batches.

    vocabulary  ids that may be chosen: 0 to vocabulary - 1
    never       ranges of ids that are not chosen either
    batch       prompts in one batch
    workers     threads that share the batches
    progress    called with the number of answers since its last call, from any of the threads

    Prompt n draws from a generator of its own, keyed by (seed, n). So neither `batch` nor `workers` changes an answer,
    but for the rounding of its logits. Raises ValueError for a model with a sliding window, and for penalties;
    NonFiniteError for logits that hold NaN or infinity.
    """
    if config.sliding_window is not None:
        raise ValueError("a sliding window is not batched")
    order = sorted(range(len(prompts)), key=lambda n: len(prompts[n]))  # rows of nearly one length share a batch
    chunks = [order[start : start + batch] for start in range(0, len(order), batch)]

    def run(numbers: list[int], stop: Event) -> list[Answer]:
        rows = [prompts[n] for n in numbers]
        with np.errstate(all="ignore"):  # NaN and infinity are looked for in the logits
            said = _sample(config, weights, rows, numbers, how, end_ids, vocabulary, max_tokens, seed, never, stop)
        progress(len(said))
        return said

    done: dict[int, Answer] = {}
    for chunk, got in zip(chunks, _shared(run, chunks, workers), strict=True):
        done |= zip(chunk, got, strict=True)
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
    never: Sequence[range] = (),
    workers: int = 1,
    progress: Progress = _silent,
    numbers: Sequence[int] | None = None,
) -> list[Answer]:
    """`answers` of a backend: each of `workers` threads answers one prompt after another, with the same draws.

    numbers  of the prompts, by which they draw; None: 0, 1 and so on
    """

    def answer(n: int, stop: Event) -> Answer:
        uniforms, run = _uniforms(seed, n if numbers is None else numbers[n]), Run(list(prompts[n]), seed)

        def choose(logits: Array, prompt: list[int], output: list[int]) -> int:
            _heed(stop)
            return draw(distribution(logits, how, prompt, output), uniforms)

        tokens = generate(
            Session(backend),
            run,
            choose,
            end_ids=end_ids,
            vocabulary=vocabulary,
            context=backend.context,
            max_tokens=max_tokens,
            never=never,
        )
        said = Answer(list(tokens), run.finish_reason == "stop")
        progress(1)
        return said

    return _shared(answer, range(len(prompts)), workers)


@dataclass(frozen=True)
class _Share:
    """Some of the prompts, for another process: the arguments of `answers_each`."""

    prompts: list[Sequence[int]]
    how: Sampling
    settings: dict[str, Any]


def _answer_share(model: Model, share: _Share) -> list[Answer]:
    return answers_each(model.backend, share.prompts, share.how, **share.settings)


def answers_over(
    machines: Workers[Model],
    prompts: Sequence[Sequence[int]],
    how: Sampling,
    *,
    progress: Progress = _silent,
    **settings: Any,
) -> list[Answer]:
    """`answers_each` over the machines of a cluster: the same answers. `settings` are its other arguments.

    machines  whose `make` loads a model for one thread

    Raises ClusterError, once no machine is left.
    """
    shares = []
    for start in range(0, len(prompts), _SHARE):
        some = [*prompts[start : start + _SHARE]]
        numbers = [*range(start, start + len(some))]
        shares.append(_Share(some, how, {**settings, "numbers": numbers}))
    found = machines.map(_answer_share, shares, lambda number, said: progress(len(said)))
    return [said for share in found for said in share]


def _shared(work: Callable[[T, Event], R], items: Iterable[T], workers: int) -> list[R]:
    """Return work(item, stop) of each item, computed on so many threads. An interruption sets `stop`."""
    stop = Event()
    with ThreadPoolExecutor(workers) as pool:
        waiting = [pool.submit(work, item, stop) for item in items]
        try:
            return [future.result() for future in waiting]
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def _heed(stop: Event) -> None:
    """End this thread's work if it should stop: nobody waits for its result."""
    if stop.is_set():
        raise CancelledError


def _uniforms(seed: int, n: int) -> np.random.Generator:
    """Return the generator of prompt n, which gives one number for each token."""
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
    never: Sequence[range],
    stop: Event,
) -> list[Answer]:
    lengths = np.array([len(prompt) for prompt in prompts])
    decoder = _Decoder(config, weights, len(prompts), int(lengths.max()) + max_tokens)
    ids = np.zeros((len(prompts), lengths.max()), np.int64)
    for number, prompt in enumerate(prompts):
        ids[number, : len(prompt)] = prompt
    logits = decoder.step(ids, np.zeros(len(prompts), np.int64), lengths - 1)
    uniforms = [_uniforms(seed, n) for n in numbers]
    output: list[list[int]] = [[] for _ in prompts]
    logprobs: list[list[float]] = [[] for _ in prompts]
    ends: list[int | None] = [None] * len(prompts)
    ended = np.zeros(len(prompts), bool)
    alive = np.arange(len(prompts))
    for step in range(max_tokens):
        _heed(stop)
        if not np.isfinite(logits).all():
            where = f"decode step {step}" if step else "prompt"
            raise NonFiniteError(None, where, "the logits of an answer hold NaN or infinity")
        for ids_without_text in never:
            logits[:, ids_without_text.start : ids_without_text.stop] = -np.inf
        probs = distribution_rows(logits[:, :vocabulary], how)
        cumulative = np.cumsum(probs, axis=-1)
        drawn = np.array([uniforms[row].random() for row in alive])[:, None] * cumulative[:, -1:]
        tokens = np.sum(cumulative <= drawn, axis=-1)
        chosen = np.log(np.take_along_axis(probs, tokens[:, None], axis=-1)[:, 0])
        for row, token, logprob in zip(alive, tokens, chosen, strict=True):
            logprobs[row].append(float(logprob))
            if token in end_ids:
                ended[row], ends[row] = True, int(token)
            else:
                output[row].append(int(token))
        going = ~ended[alive]
        alive, tokens = alive[going], tokens[going]
        if len(alive) == 0 or step == max_tokens - 1:
            break
        decoder.keep(going)
        logits = decoder.step(tokens[:, None], lengths[alive] + step, np.zeros(len(alive), np.int64))
    return [Answer(*each) for each in zip(output, ended.tolist(), ends, logprobs, strict=True)]


def distribution_rows(logits: Array, how: Sampling) -> Array:
    """logits [B, V] -> [B, V]

    `spec.distribution` for each row. ValueError for a row as there, and for what no recipe uses: penalties, a bias,
    top-n-sigma and typical-p.
    """
    if how.penalises or how.logit_bias or how.top_n_sigma > 0 or how.typical_p < 1:
        raise ValueError("penalties, logit_bias, top_n_sigma and typical_p are not batched")
    logits = checked_logits(logits.astype(np.float64))
    rows, V = logits.shape
    for name in how.steps:
        if name == "temperature" and how.temperature > 0:
            logits = temperature(logits, how.temperature)
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
    """A batch of growing sequences: the model of `model`, with keys and values in arrays of their largest length."""

    def __init__(self, config: Config, weights: Weights, rows: int, positions: int) -> None:
        self.config, self.weights = config, weights
        dtype = weights["model.norm.weight"].dtype
        shape = (rows, positions, config.K, config.E)
        self.cache = [(np.zeros(shape, dtype), np.zeros(shape, dtype)) for _ in range(config.L)]
        inv_freq = rope_frequencies(config.rope, config.E)
        self.tables = rope_tables(inv_freq, config.rope.attention_scaling, np.arange(positions), dtype)
        self.positions = np.zeros((rows, 0), np.int64)  # of the tokens of the current step [B, T]

    def keep(self, rows: Array) -> None:
        """Keep these rows of the batch, and drop the others, which have ended."""
        if not rows.all():
            self.cache = [(k[rows], v[rows]) for k, v in self.cache]

    def step(self, ids: Array, start: Array, last: Array) -> Array:
        """ids [B, T], start [B], last [B] -> [B, V]

        Row b holds the tokens of positions start[b], start[b] + 1, ... The logits are those after its column last[b].
        """
        B, T = ids.shape
        self.positions = start[:, None] + np.arange(T)
        cos, sin = (table[self.positions].reshape(B * T, -1) for table in self.tables)
        common = Common(self.config, self.weights, ids, None, cos, sin, self)
        x = embed(ids.reshape(-1), self.weights["model.embed_tokens.weight"])
        for layer in range(self.config.L):
            x, _ = block(common, layer, x)
        x = x.reshape(B, T, -1)[np.arange(B), last]
        x = rmsnorm(x, self.weights["model.norm.weight"], self.config.rms_norm_eps)
        return linear(x, self.weights[self.config.head_name])

    def extend(self, layer: int, k: Array, v: Array) -> tuple[Array, Array, Array]:
        """Store keys and values of the current step; a query sees the positions up to its own. See `model.Cache`."""
        keys, values = self.cache[layer]
        row, S = np.arange(len(k))[:, None], int(self.positions.max()) + 1
        keys[row, self.positions], values[row, self.positions] = k, v
        visible = np.arange(S) <= self.positions[:, :, None]
        return keys[:, :S], values[:, :S], visible[:, None, None]
