"""The perplexity of a model on a text, chunk by chunk, in the way and in the figures of llama-perplexity.

A text is cut into chunks of `ctx` tokens, and each is computed from an empty cache. Only the second half is scored, so
that each scored token has at least half a chunk before it. These are the tokens from ctx // 2 + 1 on, counted from 0,
which the positions from ctx // 2 on predict. If texts of the model begin with BOS, it stands at the start of the text,
and then replaces the first token of each chunk. Tokens behind the last whole chunk are left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..engine.backends import LAST, Backend, Progress, Step
from ..engine.faults import run_finite_together
from ..engine.model import Model
from ..engine.session import Request
from ..errors import KlBaseError, UsageError
from ..files import StrPath
from ..formats.write import atomic_file
from ..spec.ops import Array
from ..text import Tokenizer
from ..text.pieces import encode_pieces
from .kl_base import Base, BaseWriter
from .kld import Comparison, Divergence, kl_divergence, log_softmax
from .means import Estimate, Mean, exponential
from .perplexity import picked

CTX = 512  # tokens of a chunk, as llama-perplexity's
LEAST_CTX = 8  # three scored tokens, for an error of their mean
_LOGITS = 1 << 24  # logits that are held at a time, 64 MiB
_FLOATS = 1 << 20  # of them, as float64 at a time


@dataclass(frozen=True)
class Figures:
    """The result of some chunks.

    chunks      their number
    tokens      the tokens that were scored
    ppl         the perplexity
    divergence  from a base; None without one
    """

    chunks: int
    tokens: int
    ppl: Estimate
    divergence: Divergence | None

    def row(self) -> dict[str, Any]:
        return asdict(self)


class Chunks:
    """The chunks of a text whose pieces are `texts`. Iterate over it once.

    read  tokens of the text that were encoded so far
    left  tokens behind the last whole chunk, at the end
    """

    def __init__(self, tokenizer: Tokenizer, texts: Iterable[str], ctx: int, bos: int | None) -> None:
        self._pieces, self._ctx = encode_pieces(tokenizer, texts), ctx
        self._ids = [] if bos is None else [bos]
        self.read = self.left = len(self._ids)

    def __iter__(self) -> Iterator[list[int]]:
        for ids in self._pieces:
            self._ids += ids
            self.read += len(ids)
            whole = len(self._ids) - len(self._ids) % self._ctx
            for start in range(0, whole, self._ctx):
                yield self._ids[start : start + self._ctx]
            del self._ids[:whole]
            self.left = len(self._ids)


class Measurement:
    """Computes chunks, and keeps the figures of those that are complete.

    save   takes the log-probabilities of the model
    base   to compare with: its chunks must be those that are added
    parallel  chunks that one call of `add` takes at most: they share each pass over the weights
    """

    def __init__(
        self,
        model: Model,
        ctx: int,
        bos: int | None,
        *,
        save: BaseWriter | None = None,
        base: Base | None = None,
        parallel: int = 1,
    ) -> None:
        """Raises KlBaseError for a base of another vocabulary or another length of chunks."""
        if base is not None and base.n_vocab != model.config.V:
            raise KlBaseError(base.path, "n_vocab", f"is {base.n_vocab}, but the model has {model.config.V}")
        if base is not None:
            base.check_ctx(ctx)
        self._model, self._ctx, self._bos = model, ctx, bos
        self._save, self._base = save, base
        self._sequences = [model.backend.sequence() for _ in range(parallel)]
        self._surprise = Mean()
        self._comparison = None if base is None else Comparison()
        self.chunks = 0

    def add(self, chunks: Sequence[Sequence[int]], progress: Progress | None = None) -> None:
        """Compute chunks. Raises NonFiniteError, and KlBaseError for a chunk that the base does not have.

        progress  called with the number of tokens computed since its last call, fractions included
        """
        problem: KlBaseError | None = None
        if self._base is not None:
            for i, ids in enumerate(chunks):
                try:
                    self._same(self._base, ids, self.chunks + i)
                except KlBaseError as found:
                    chunks, problem = chunks[:i], found  # those before it are complete
                    break
        if chunks:
            self._compute(chunks, progress)
        if problem is not None:
            raise problem

    def _compute(self, chunks: Sequence[Sequence[int]], progress: Progress | None) -> None:
        for ids, blocks in zip(chunks, self._blocks(chunks, progress), strict=True):
            if self._save is not None:
                self._save.begin(ids)
            parts = [self._part(*part) for part in self._scored(ids, blocks)]
            surprises, *others = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
            self._surprise.add(surprises)
            if self._base is not None and self._comparison is not None:
                klds, tops = others
                base_tops, base_surprises = self._base.ends(self.chunks)
                self._comparison.add(surprises, base_surprises, klds, tops == base_tops)
            self.chunks += 1

    def end(self) -> None:
        """Check that the text does not end before the base. Raises KlBaseError."""
        if self._base is not None and self.chunks < self._base.chunks:
            problem = f"fill {self._base.chunks} chunks, and those of the text only {self.chunks}"
            raise KlBaseError(self._base.path, "tokens", problem)

    @property
    def figures(self) -> Figures:
        """The figures of the chunks so far. Raises ValueError if there are none."""
        divergence = None if self._comparison is None else self._comparison.divergence
        return Figures(self.chunks, self._surprise.count, exponential(self._surprise.estimate), divergence)

    @property
    def ppl(self) -> float:
        """The perplexity of the chunks so far. Raises ValueError if there are none."""
        return exponential(self._surprise.estimate).value

    def _same(self, base: Base, ids: Sequence[int], number: int) -> None:
        if number == base.chunks:
            raise KlBaseError(base.path, "tokens", f"end after chunk {base.chunks}, where the text goes on")
        tokens = base.tokens(number)
        for at, (theirs, ours) in enumerate(zip(tokens, ids, strict=True)):
            if theirs != ours:
                problem = f"differ from the text in chunk {number + 1}: token {at} is {theirs}, not {ours}"
                raise KlBaseError(base.path, "tokens", problem)

    def _blocks(self, chunks: Sequence[Sequence[int]], progress: Progress | None) -> list[Iterable[tuple[int, Array]]]:
        """Return, for each chunk, blocks of its scored positions: the first position, and logits [n, V] from there on.

        The blocks of one chunk are computed when they are asked for. Those of several are held.
        """
        backend, first, last = self._model.backend, self._ctx // 2, self._ctx - 1
        fed = [list(ids) if self._bos is None else [self._bos, *ids[1:]] for ids in chunks]
        sequences = self._sequences[: len(chunks)]
        for sequence in sequences:
            sequence.rollback(0)

        def run(cuts: Iterable[tuple[int, int]]) -> Iterator[list[tuple[int, Array]]]:
            for start, stop in cuts:
                rows = LAST if stop <= first else slice(max(0, first - start), None)
                steps = [Step(ids[start:stop], sequence, rows) for ids, sequence in zip(fed, sequences, strict=True)]
                names = [f"chunk {self.chunks + i + 1}, positions {start} to {stop - 1}" for i in range(len(chunks))]
                requests = [Request(step, name, progress) for step, name in zip(steps, names, strict=True)]
                found = run_finite_together(backend, requests, self._model.path)
                if stop > first:
                    yield [(max(first, start), logits) for logits in found]

        if len(chunks) == 1 and not backend.streams:
            size = min(backend.chunk, max(16, _LOGITS // self._model.config.V))
            one = run([*_cut(0, first, backend.chunk), *_cut(first, last, size)])
            return [(block for (block,) in one)]
        return [list(blocks) for blocks in zip(*run(_cut(0, last, backend.chunk)), strict=True)]

    def _scored(self, ids: Sequence[int], blocks: Iterable[tuple[int, Array]]) -> Iterator[tuple[int, Array, Array]]:
        """Yield scored positions in smaller blocks: the first one's number, their logits [n, V], their next ids [n]."""
        for start, logits in blocks:
            for i, j in _cut(0, len(logits), max(1, _FLOATS // self._model.config.V)):
                following = np.asarray(ids[start + i + 1 : start + j + 1])
                yield start + i - self._ctx // 2, logits[i:j], following

    def _part(self, at: int, logits: Array, following: Array) -> tuple[Array, ...]:
        """Return the surprises of a block, and with a base its KL divergences and its likeliest tokens."""
        wide = logits.astype(np.float64)
        logs = log_softmax(wide)
        surprises = picked(logs, following)
        if self._save is not None:
            self._save.add(logs, surprises)
        if self._base is None:
            return (surprises,)
        base = self._base.logs(self.chunks, at, at + len(logits))
        return surprises, kl_divergence(base, wide), logits.argmax(axis=-1)


def _cut(start: int, stop: int, length: int) -> Iterator[tuple[int, int]]:
    return ((i, min(stop, i + length)) for i in range(start, stop, length))


def groups(chunks: Iterable[list[int]], size: int) -> Iterator[list[list[int]]]:
    """Yield chunks in lists of so many, of which the last may be shorter."""
    coming = iter(chunks)
    while group := list(itertools.islice(coming, size)):
        yield group


def bos_of(model: Model) -> int | None:
    """Return the token that begins each text of a model; None if none does."""
    return model.tokenizer.bos if model.tokenizer.adds_bos else None


def writer(file: Any, model: Model, ctx: int) -> BaseWriter:
    """Return the writer of a base into an open file, with the facts of a model."""
    backend: Backend = model.backend
    facts = {"model": model.path.name, "backend": backend.description}
    return BaseWriter(file, **facts, n_vocab=model.config.V, ctx=ctx, bos=bos_of(model))


def measure(
    model: Model,
    text: str | Iterable[str],
    *,
    ctx: int | None = None,
    chunks: int | None = None,
    kl_base: StrPath | None = None,
    kl: StrPath | None = None,
) -> Figures:
    """Return the perplexity of a model on a text, and its distance from a base.

    text     a text, or its pieces, of which only one is held in memory
    ctx      tokens of a chunk; None: 512, or those of the base
    chunks   at most so many chunks; None: all of the text
    kl_base  write the model's log-probabilities into this file
    kl       compare with the log-probabilities in this file; the text must be the same

    Raises UsageError for a text of less than a chunk, KlBaseError, FileError, NonFiniteError.
    """
    with ExitStack() as files:
        base = None if kl is None else files.enter_context(Base(kl))
        ctx = ctx or (CTX if base is None else base.ctx)
        bos = bos_of(model) if base is None else base.bos
        check_ctx(model, ctx)
        save = None if kl_base is None else writer(files.enter_context(atomic_file(kl_base)), model, ctx)
        measurement = Measurement(model, ctx, bos, save=save, base=base, parallel=model.parallel)
        source = Chunks(model.tokenizer, [text] if isinstance(text, str) else text, ctx, bos)
        for group in groups(itertools.islice(source, chunks), model.parallel):
            measurement.add(group)
        if chunks is None:
            measurement.end()
        if not measurement.chunks:
            raise UsageError(None, "text", too_short(source.read, ctx))
        return measurement.figures


def check_ctx(model: Model, ctx: int) -> None:
    """Raise UsageError for chunks that the model's context does not hold, or that have too few tokens to score."""
    if not LEAST_CTX <= ctx <= model.context:
        raise UsageError(None, "ctx", f"must be {LEAST_CTX} to {model.context}, got {ctx}")


def too_short(tokens: int, ctx: int) -> str:
    """Return the problem of a text that fills no chunk."""
    return f"has {tokens} tokens, and a chunk {ctx}: take a longer text, or shorter chunks"
