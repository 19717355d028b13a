"""Measure whole models: prompt and decoding speed, in turns with the ceilings, and with a peer if there is one.

The names are those of llama-bench. `pp512` computes a prompt of 512 tokens and the logits of the last one. `tg128`
decodes 128 tokens, one after another. `@ d4096` means behind 4096 other tokens. `tg128 x16` decodes 128 tokens of each
of 16 sequences, which share each step. Tokens are random; nothing is sampled.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from statistics import median, stdev
from typing import Any, Protocol

import numpy as np

from ..config import Config
from ..core import attention as kv_cache
from ..engine.backends import LAST, Backend, Sequence, Step
from ..engine.backends.core import CoreBackend
from ..engine.faults import run_finite, run_finite_together
from ..engine.plan import EMBEDDING, HEAD, plan
from ..engine.session import Request
from ..forms import AnyForm
from ..host.energy import Meter
from ..spec.ops import Array
from .measure import Ceilings, in_turns, timed
from .ops import peak_of
from .speed import most_of

SHORTEST = 0.2  # seconds over which a ceiling is measured


@dataclass(frozen=True)
class Trial:
    """One test: a prompt of `tokens` ("pp"), or `tokens` decoded one after another ("tg"), behind `depth` others.

    parallel  sequences that decode as many tokens each, with shared steps
    """

    kind: str
    tokens: int
    depth: int
    parallel: int = 1

    def __str__(self) -> str:
        shared = f" x{self.parallel}" if self.parallel > 1 else ""
        return f"{self.kind}{self.tokens}{shared}" + (f" @ d{self.depth}" if self.depth else "")


@dataclass(frozen=True)
class Work:
    """The work of a whole test.

    products  multiply-accumulates of the weights' matrices
    scores    multiply-accumulates of attention: queries with keys, and probabilities with values
    bytes     bytes that must come from memory: matrices, one row of the embedding a token, the cache
    """

    products: int
    scores: int
    bytes: int


def work(config: Config, weights: AnyForm, kv: str, test: Trial) -> Work:
    """Return the work of a test: each packed weight is read once a step, a cache once for its tokens of the step."""
    many = test.parallel
    planned = plan(config, weights)
    head, embedding = planned.pop(HEAD), planned.pop(EMBEDDING, None)
    row = 0 if embedding is None else embedding.nbytes // config.V  # 0: the head is read whole
    matrices = {name: math.prod(stored.shape) for name, stored in planned.items() if stored.format is not None}
    # In the last layer of a prompt only one row continues after keys and values, and through the head.
    layer = f"model.layers.{config.L - 1}."
    asked = (f"{layer}self_attn.o_proj.", f"{layer}mlp.")
    last = sum(size for name, size in matrices.items() if name.startswith(asked))
    steps, unasked = (1, test.tokens - 1) if test.kind == "pp" else (test.tokens, 0)
    seen, end = sum(range(test.depth + 1, test.depth + test.tokens + 1)), test.depth + test.tokens
    at_a_time = 1024  # positions that a cache is laid out in
    per_position = config.L * kv_cache.kv_bytes(kv, at_a_time, config.K, config.E) / at_a_time
    return Work(
        (sum(matrices.values()) * test.tokens - last * unasked + math.prod(head.shape) * steps) * many,
        2 * config.H * config.E * (config.L * seen - (seen - end if unasked else 0)) * many,
        sum(planned[name].nbytes for name in matrices) * steps
        + head.nbytes * steps
        + row * test.tokens * many
        + int(per_position * (seen if test.kind == "tg" else end)) * many,
    )


class Runner(Protocol):
    """Something that can be timed: the engine, or a peer."""

    def prompt(self, tokens: int, depth: int) -> float:
        """Return the seconds of a prompt."""

    def decode(self, tokens: int, depth: int) -> float:
        """Return the seconds of so many decode steps."""


class Engine:
    """One sequence of a backend. The `depth` positions before a test hold random keys and values.

    A step looks at its logits, as in generation. It raises NonFiniteError if they hold NaN or infinity.
    """

    def __init__(self, backend: Backend, model: str | None = None, meter: Meter | None = None) -> None:
        """
        model  its name in errors
        meter  measures the energy of what is timed, and no more
        """
        self.backend = backend
        self._model, self._meter = model, meter
        self.joules: list[float] = []  # of each test that was run
        self.sequence = backend.sequence()
        self._rng = np.random.default_rng(0)

    def prompt(self, tokens: int, depth: int) -> float:
        return self._run(Trial("pp", tokens, depth), self.backend.chunk)

    def decode(self, tokens: int, depth: int) -> float:
        return self._run(Trial("tg", tokens, depth), 1)

    def decode_together(self, test: Trial) -> float:
        """Return the seconds of the shared steps of several sequences."""
        sequences = [self.backend.sequence() for _ in range(test.parallel)]
        for sequence in sequences:
            sequence.fill(test.depth, self._rng)
        ids = self._rng.integers(0, self.backend.config.V, (test.tokens, test.parallel))
        return self._timed(lambda: self._decode_all(test, ids, sequences))

    def _decode_all(self, test: Trial, ids: Array, sequences: list[Sequence]) -> None:
        for step in ids:
            requests = [
                Request(Step([token], sequence, LAST), str(test))
                for token, sequence in zip(step, sequences, strict=True)
            ]
            run_finite_together(self.backend, requests, self._model)

    def _run(self, test: Trial, chunk: int) -> float:
        self.sequence.fill(test.depth, self._rng)
        ids = self._rng.integers(0, self.backend.config.V, test.tokens)

        def compute() -> None:
            for at in range(0, test.tokens, chunk):
                run_finite(self.backend, ids[at : at + chunk], self.sequence, LAST, self._model, str(test))

        return self._timed(compute)

    def _timed(self, compute: Callable[[], None]) -> float:
        """Return the seconds of a test, and note its joules where they are measured."""
        before = None if self._meter is None else self._meter.total()
        seconds = timed(compute)
        after = None if self._meter is None else self._meter.total()
        if before is not None and after is not None:
            self.joules.append((after - before).joules)
        return seconds


@dataclass(frozen=True)
class Row:
    """One test. Speeds are tokens per second; nothing is rounded.

    tokens          the number of tokens of each sequence, of which there are `parallel`; products, scores and bytes
                    are the work of all of them, see `Work`
    tok_s           the median of the repeats; tok_s_stddev is their standard deviation
    peak            multiply-accumulates per second of the processor, None where there is no such ceiling
    attention_peak  the same for attention
    read            bytes per second from memory, the median of read_samples, one measured before each repeat
    ceiling_tok_s   the speed that these allow; share is the part of it that is reached
    bound           the longer of the two: "compute" or "memory"
    ratio           the median of tok_s / peer_tok_s, repeat by repeat
    joules          of each repeat, of the whole machine while the engine computed; empty where no meter tells
    joules_per_token  their median, shared by the tokens of all sequences
    """

    test: str
    model: str
    weights: str
    kv: str
    isa: str
    threads: int
    tokens: int
    depth: int
    parallel: int
    tok_s: float
    tok_s_stddev: float
    samples: list[float]
    products: int
    scores: int
    bytes: int
    peak: float | None
    attention_peak: float | None
    read: float
    read_samples: list[float]
    bound: str | None
    ceiling_tok_s: float | None
    share: float | None
    peer: str | None
    peer_tok_s: float | None
    peer_samples: list[float]
    ratio: float | None
    joules: list[float]
    joules_per_token: float | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def rows(
    model: str,
    backend: CoreBackend,
    tests: list[Trial],
    repeats: int,
    best: Ceilings,
    peer: tuple[str, Runner] | None = None,
    meter: Meter | None = None,
) -> Iterator[Row]:
    """Run each test once to warm up, then in each repeat the ceilings, the engine and the peer."""
    engine = Engine(backend, model, meter)
    for test in tests:
        yield _row(model, backend, engine, test, repeats, best, peer)


def _row(
    model: str,
    backend: CoreBackend,
    engine: Engine,
    test: Trial,
    repeats: int,
    best: Ceilings,
    peer: tuple[str, Runner] | None,
) -> Row:
    runners: list[Runner] = [engine, *([peer[1]] if peer else [])]
    name = f"{test}, {backend.form}+{backend.kv}"
    best.told(f"{name}, warm-up", 0)
    for runner in runners:
        _seconds(runner, dataclasses.replace(test, tokens=min(test.tokens, backend.chunk if test.kind == "pp" else 2)))
    engine.joules.clear()
    # The instructions for the codes of weights, and for keys and values of 8 bits with probabilities of up to 16.
    linear = peak_of(most_of(backend.config, backend.weights.form))
    attention = "dots-words" if backend.kv == "int8" else "floats"
    turns = in_turns(
        [functools.partial(_seconds, runner, test) for runner in runners],
        best,
        list(dict.fromkeys((linear, attention))),
        backend.isa,
        backend.threads,
        repeats,
        SHORTEST,
        name=name,
    )
    todo, read = work(backend.config, backend.weights.form, backend.kv, test), median(turns.reads)
    peak, attention_peak = (median(turns.peaks[name]) if turns.peaks[name] else None for name in (linear, attention))
    bound = ceiling = None
    if peak is not None and attention_peak is not None:
        limits = {"compute": todo.products / peak + todo.scores / attention_peak, "memory": todo.bytes / read}
        bound = max(limits, key=lambda name: limits[name])
        ceiling = test.tokens * test.parallel / limits[bound]
    speeds, *theirs = ([test.tokens * test.parallel / s for s in seconds] for seconds in turns.times)
    ratios = [ours / other for ours, other in zip(speeds, theirs[0], strict=True)] if theirs else []
    return Row(
        test=str(test),
        model=model,
        weights=backend.form,
        kv=backend.kv,
        isa=backend.isa,
        threads=backend.threads,
        tokens=test.tokens,
        depth=test.depth,
        parallel=test.parallel,
        tok_s=median(speeds),
        tok_s_stddev=stdev(speeds) if len(speeds) > 1 else 0.0,
        samples=speeds,
        products=todo.products,
        scores=todo.scores,
        bytes=todo.bytes,
        peak=peak,
        attention_peak=attention_peak,
        read=read,
        read_samples=turns.reads,
        bound=bound,
        ceiling_tok_s=ceiling,
        share=median(speeds) / ceiling if ceiling is not None else None,
        peer=peer[0] if peer else None,
        peer_tok_s=median(theirs[0]) if theirs else None,
        peer_samples=theirs[0] if theirs else [],
        ratio=median(ratios) if ratios else None,
        joules=[*engine.joules],
        joules_per_token=median(engine.joules) / (test.tokens * test.parallel) if engine.joules else None,
    )


def _seconds(runner: Runner, test: Trial) -> float:
    if test.parallel > 1:
        assert isinstance(runner, Engine)
        return runner.decode_together(test)
    return (runner.prompt if test.kind == "pp" else runner.decode)(test.tokens, test.depth)
