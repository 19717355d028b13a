"""One pass of the spec over a text, watched through its taps.

Each subject is a class with a method `take(name, value)`, which sees every tap, and reduces it at once to the numbers
that are asked for. The weights may be on disk: the spec reads one tensor at a time.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config import Config
from ..engine.backends import checked_ids
from ..engine.faults import TOO_LARGE, divisible
from ..errors import NonFiniteError, UsageError
from ..host.memory import require
from ..spec import forward, linear, rmsnorm
from ..spec.ops import Array
from ..text import Tokenizer
from .memory import LENS_ROWS, needs
from .tokens import token_text

MOST_TOKENS = 512  # of a text: each head has a probability for each pair of them
MOST_TOP = 50  # tokens that the lens lists for each layer
SUBJECTS = ("attention", "residual", "lens")
DIGITS = 4
VERSION = 1  # of the fields of `Inside.to_dict`

_TAP = re.compile(r"model\.layers\.(\d+)\.(self_attn\.probs|self_attn\.o_proj|mlp\.down_proj|resid_post)")


@dataclass(frozen=True)
class Attention:
    """The probabilities with which queries look at keys.

    layers  [n], the layers that were asked for
    query   [n, H, S]: those of one token, in each head; S = token + 1, as later tokens are hidden
    head    the head of `matrix`, or None
    matrix  [n, T, T]: those of all tokens, in one head; None without a head
    """

    layers: tuple[int, ...]
    query: Array
    head: int | None
    matrix: Array | None


@dataclass(frozen=True)
class Residual:
    """The size of the residual stream: root mean squares over its D channels.

    rms        [L + 1, T]: of the stream, as the embedding and after each layer
    attention  [L, T]: of the output of attention, which the layer adds first
    mlp        [L, T]: of the output of the MLP, which the layer adds then
    """

    rms: Array
    attention: Array
    mlp: Array


@dataclass(frozen=True)
class Lens:
    """The logit lens: the final norm and the output head, applied to the stream after each layer.

    ids    [L + 1, T, k]: the likeliest next tokens, the likeliest first
    probs  [L + 1, T, k]: their probabilities
    rank   [L + 1, T]: the place, from 1, of the token that is likeliest after the last layer

    The first row is the lens on the embedding, the last one is the model's own output.
    nostalgebraist 2020, "interpreting GPT: the logit lens".
    """

    ids: Array
    probs: Array
    rank: Array


@dataclass(frozen=True)
class Inside:
    """The result of `look`: `to_dict` gives it as plain data. A subject that was not asked for is None."""

    ids: tuple[int, ...]
    prompt: int
    token: int
    layers: int
    heads: int
    attention: Attention | None
    residual: Residual | None
    lens: Lens | None

    def to_dict(self, tokenizer: Tokenizer | None) -> dict[str, Any]:
        """Return the data for JSON, with numbers of four digits: see docs/inside.md."""
        facts: dict[str, Any] = {
            "version": VERSION,
            "tokens": [{"id": i, "text": token_text(tokenizer, i)} for i in self.ids],
            "prompt_tokens": self.prompt,
            "token": self.token,
            "layers": self.layers,
            "heads": self.heads,
        }
        if self.attention is not None:
            facts["attention"] = _attention_facts(self.attention)
        if self.residual is not None:
            of = self.residual
            facts["residual"] = {name: _significant(getattr(of, name)) for name in ("rms", "attention", "mlp")}
        if self.lens is not None:
            facts["lens"] = {
                "texts": {str(i): token_text(tokenizer, i) for i in np.unique(self.lens.ids).tolist()},
                "ids": self.lens.ids.tolist(),
                "probs": _decimals(self.lens.probs),
                "rank": self.lens.rank.tolist(),
            }
        return facts


def look(
    config: Config,
    weights: Mapping[str, Array],
    token_ids: Sequence[int],
    subjects: Collection[str] = SUBJECTS,
    *,
    layers: Sequence[int] | None = None,
    head: int | None = None,
    token: int = -1,
    top: int = 5,
    prompt: int | None = None,
    model: str | os.PathLike[str] | None = None,
    progress: Callable[[int], object] | None = None,
) -> Inside:
    """token_ids [T] -> Inside

    Run the spec in float32 over a text, and keep the numbers of the subjects.

    weights   name -> float array: of a backend or of `formats.open_floats`, which reads one tensor at a time
    subjects  some of "attention", "residual", "lens"
    layers    those whose attention is kept; None: all. Negative numbers count from the end, here and below
    head      the head whose whole matrix of attention is kept
    token     the token whose attention is kept in all heads
    top       tokens that the lens lists for each layer
    prompt    tokens of the text that are the prompt; None: all of them
    model     where the weights came from, for errors
    progress  called with 1 after each of `steps`

    Raises UsageError, MemoryLimitError before any computation, and NonFiniteError.
    """
    ids = _checked_text(config, token_ids)
    T, L = len(ids), config.L
    chosen = tuple(index("layer", layer, L) for layer in (range(L) if layers is None else layers))
    place = index("token", token, T)
    attended = None if head is None else index("head", head, config.H)
    unknown = [name for name in subjects if name not in SUBJECTS]
    if unknown or not subjects:
        raise UsageError(None, "subject", f"must be some of {', '.join(SUBJECTS)}, got {', '.join(unknown) or 'none'}")
    if not 1 <= top <= min(MOST_TOP, config.V):
        raise UsageError(None, "top", f"must be 1 to {min(MOST_TOP, config.V)}, got {top}")
    require(needs(config, T, subjects), model or "the model")

    attention = _Attention(chosen, attended, place) if "attention" in subjects else None
    residual = _Residual(L, T) if "residual" in subjects else None
    lens = _Lens(L, T, config.D) if "lens" in subjects else None
    watched = [each for each in (attention, residual, lens) if each is not None]

    def tap(name: str, value: Array) -> None:
        found = _TAP.fullmatch(name)
        layer, what = (int(found[1]), found[2]) if found else (-1, name)
        if what in ("resid_post", "model.embed_tokens") and not divisible(value).all():
            raise NonFiniteError(model, name, f"is not finite, or {TOO_LARGE}")
        for each in watched:
            each.take(layer, what, value)
        if what == "resid_post" and progress is not None:
            progress(1)

    with np.errstate(all="ignore"):
        logits, cache = forward(config, weights, ids, tap=tap)
        del cache
        if not np.isfinite(logits).all():
            raise NonFiniteError(model, "lm_head", "holds NaN or infinity")
        return Inside(
            tuple(ids.tolist()),
            T if prompt is None else prompt,
            place,
            L,
            config.H,
            None if attention is None else attention.result(),
            None if residual is None else residual.result(),
            None if lens is None else lens.result(config, weights, logits, top, progress),
        )


def steps(config: Config, subjects: Collection[str]) -> int:
    """Return the number of times that `look` calls its `progress`: for each layer, and for each reading of the lens."""
    return config.L + (config.L + 1 if "lens" in subjects else 0)


class _Attention:
    """Keeps one row of each head, and one whole head, of the layers that were asked for."""

    def __init__(self, layers: tuple[int, ...], head: int | None, token: int) -> None:
        self.layers, self.head, self.token = layers, head, token
        self.query: dict[int, Array] = {}
        self.matrix: dict[int, Array] = {}

    def take(self, layer: int, what: str, value: Array) -> None:
        if what == "self_attn.probs" and layer in self.layers:  # [H, T, T]
            self.query[layer] = value[:, self.token, : self.token + 1].copy()
            if self.head is not None:
                self.matrix[layer] = value[self.head].copy()

    def result(self) -> Attention:
        matrix = None if self.head is None else np.stack([self.matrix[layer] for layer in self.layers])
        return Attention(self.layers, np.stack([self.query[layer] for layer in self.layers]), self.head, matrix)


class _Residual:
    """Keeps root mean squares."""

    def __init__(self, L: int, T: int) -> None:
        self.rms = np.zeros((L + 1, T), np.float32)
        self.added = {name: np.zeros((L, T), np.float32) for name in ("self_attn.o_proj", "mlp.down_proj")}

    def take(self, layer: int, what: str, value: Array) -> None:
        if what in ("model.embed_tokens", "resid_post"):
            self.rms[layer + 1] = _rms(value)
        elif what in self.added:
            self.added[what][layer] = _rms(value)

    def result(self) -> Residual:
        return Residual(self.rms, self.added["self_attn.o_proj"], self.added["mlp.down_proj"])


class _Lens:
    """Keeps the stream after each layer, and reads all of it with the output head, which is in memory only then."""

    def __init__(self, L: int, T: int, D: int) -> None:
        self.streams = np.zeros((L + 1, T, D), np.float32)

    def take(self, layer: int, what: str, value: Array) -> None:
        if what in ("model.embed_tokens", "resid_post"):
            self.streams[layer + 1] = value

    def result(
        self,
        config: Config,
        weights: Mapping[str, Array],
        logits: Array,
        top: int,
        progress: Callable[[int], object] | None,
    ) -> Lens:
        """`logits` [T, V] are the model's own: the last row of the lens."""
        norm, head = (np.asarray(weights[name], np.float32) for name in ("model.norm.weight", config.head_name))
        last, (rows, T, _) = logits.argmax(axis=-1), self.streams.shape
        ids = np.zeros((rows, T, top), np.int64)
        probs, rank = np.zeros((rows, T, top), np.float32), np.zeros((rows, T), np.int64)
        for row in range(rows):
            for begin in range(0, T, LENS_ROWS):
                part = slice(begin, begin + LENS_ROWS)
                if row == config.L:
                    seen = logits[part]
                else:
                    seen = linear(rmsnorm(self.streams[row, part], norm, config.rms_norm_eps), head)
                ids[row, part], probs[row, part], rank[row, part] = _likeliest(seen, top, last[part])
            if progress is not None:
                progress(1)
        return Lens(ids, probs, rank)


def _likeliest(logits: Array, top: int, final: Array) -> tuple[Array, Array, Array]:
    """logits [T, V], final [T] -> ids [T, k], probs [T, k], rank [T]. Of equal tokens, the lower id comes first."""
    own = np.take_along_axis(logits, final[:, None], axis=-1)
    rank = 1 + np.sum(logits > own, axis=-1)
    # Those above the k-th value, and then as many of those equal to it, the lower ids first.
    kth = np.partition(logits, -top, axis=-1)[:, -top][:, None]
    ids = np.empty((len(logits), top), np.int64)
    for t, row in enumerate(logits):
        near = np.flatnonzero(row >= kth[t])
        ids[t] = near[np.argsort(-row[near], kind="stable")[:top]]
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probs = np.take_along_axis(shifted, ids, axis=-1) / shifted.sum(axis=-1, keepdims=True)
    return ids, probs, rank


def _rms(x: Array) -> Array:
    root: Array = np.sqrt(np.mean(x * x, axis=-1))
    return root


def _checked_text(config: Config, token_ids: Sequence[int]) -> Array:
    """token_ids [T] as an array. Raises UsageError for a text that is too long or has ids that the model lacks."""
    most = min(MOST_TOKENS, config.positions)
    if len(token_ids) > most:
        raise UsageError(None, "prompt", f"has {len(token_ids)} tokens, and a look inside takes at most {most}")
    try:
        return checked_ids(token_ids, config, 0, config.positions)
    except ValueError as problem:
        raise UsageError(None, "prompt", str(problem)) from None


def index(name: str, number: int, count: int) -> int:
    """Return a number from 0 to count - 1; a negative one counts from the end. Raises UsageError."""
    if not -count <= number < count:
        raise UsageError(None, name, f"must be {-count} to {count - 1}, got {number}")
    return number % count


def _attention_facts(attention: Attention) -> dict[str, Any]:
    facts: dict[str, Any] = {"layers": list(attention.layers), "query": _decimals(attention.query)}
    if attention.matrix is not None:
        rows = [[_decimals(row[: t + 1]) for t, row in enumerate(layer)] for layer in attention.matrix]
        facts |= {"head": attention.head, "matrix": rows}
    return facts


def _decimals(x: Array) -> Any:
    """Return nested lists of probabilities with four decimals."""
    return np.round(x.astype(np.float64), DIGITS).tolist()


def _significant(x: Array) -> list[list[float]]:
    """Return rows of numbers of any size with four significant digits."""
    return [[float(f"{number:.{DIGITS}g}") for number in row] for row in x.tolist()]
