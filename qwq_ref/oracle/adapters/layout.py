"""The layout of a stored tensor: how the taps in it are taken out."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...config import Config
from ...spec.ops import Array
from ..graph import letters
from .candidate import MisfitError


@dataclass(frozen=True)
class Piece:
    """One tap of a stored tensor.

    tap       its name within a layer, or its full name
    repeated  key-value heads are stored once for each query head
    permute   pairs (2i, 2i + 1) become halves (i, i + E/2)
    half      each angle of cos and sin is stored once
    scale     a factor that gives the tap
    """

    tap: str
    repeated: bool = False
    permute: bool = False
    half: bool = False
    scale: float = 1.0

    @property
    def head_letter(self) -> str:
        """The letter of the tap's heads, H or K; empty without heads."""
        return next((part[0] for part in letters(self.tap) if part[0] in "HK"), "")

    def heads(self, config: Config) -> int:
        """Return the number of heads in the stored tensor; 0 for a tap without heads."""
        letter = "H" if self.repeated else self.head_letter
        return int(getattr(config, letter)) if letter else 0

    def width(self, config: Config) -> int | None:
        """Return the number of stored values a token; None for scores and probabilities."""
        if "S" in letters(self.tap):
            return None
        heads = self.heads(config)
        width = heads * config.E if heads else int(getattr(config, letters(self.tap)[-1]))
        return width // 2 if self.half else width


@dataclass(frozen=True)
class Entry:
    """One entry of a map: a pattern of names, the taps in such a tensor, and its layout (docs/adapters.md)."""

    pattern: str
    pieces: tuple[Piece, ...]
    reverse: str = ""
    transpose: tuple[int, ...] = ()
    layout: str = "concat"
    rows: str = ""

    @functools.cached_property
    def _regex(self) -> re.Pattern[str]:
        return re.compile("([0-9]{1,6})".join(map(re.escape, self.pattern.split("{layer}"))))

    @property
    def in_layers(self) -> bool:
        return "{layer}" in self.pattern

    def match(self, name: str) -> int | None:
        """Return the layer number in a matching name, or -1 if the pattern has none; None for other names."""
        found = self._regex.fullmatch(name)
        return None if found is None else int(found[1]) if self.in_layers else -1

    def take(self, config: Config, index: int, x: Array, phase: str) -> Array:
        """Take the tap of the `index`th piece out of a stored tensor. Raises MisfitError."""
        stored, piece = x.shape, self.pieces[index]
        if self.reverse:
            x = x.T if self.reverse == "axes" else x.reshape(x.shape[::-1])
        if self.transpose:
            if len(self.transpose) != x.ndim:
                raise MisfitError(f"has {x.ndim} axes {list(stored)}; transpose lists {len(self.transpose)}")
            x = x.transpose(self.transpose)
        if len(self.pieces) > 1:
            x = _part(x, [p.width(config) or 0 for p in self.pieces], index, self.layout, config)
        if piece.repeated:
            x = _unrepeat(x, config)
        if piece.permute:
            x = _pairs_to_halves(_flat(x, _width(piece, config)), config.E)
        if piece.half:
            x = _flat(x, config.E // 2)
            x = np.concatenate([x, x], axis=-1)
        if self.rows == "last" or (self.rows == "cache" and phase != "prompt"):
            x = _last_row(x, piece, config)
        if piece.scale != 1:
            wide = x.astype(np.float32) if x.dtype == np.float16 else x  # float16 overflows, and rounds again
            x = wide * wide.dtype.type(piece.scale)
        return x


def _width(piece: Piece, config: Config) -> int:
    """Return the width of the tap itself, without repeated heads or halved angles."""
    width = Piece(piece.tap).width(config)
    assert width is not None
    return width


def _flat(x: Array, width: int) -> Array:
    """Merge trailing axes until they hold the values of a token: x [..., n, m] -> [..., width]. Raises MisfitError."""
    size = 1
    for axis in reversed(range(x.ndim)):
        size *= x.shape[axis]
        if size == width:
            return x.reshape(*x.shape[:axis], width)
    raise MisfitError(f"shape {list(x.shape)}, but its last axes must make up {width} values a token")


def _part(x: Array, widths: Sequence[int], index: int, layout: str, config: Config) -> Array:
    """Take one of several taps: x [..., sum of widths] -> [..., its width]"""
    x = _flat(x, sum(widths))
    if layout == "interleaved":
        return x[..., index :: len(widths)]
    groups = config.K if layout == "groups" else 1
    x = x.reshape(*x.shape[:-1], groups, -1)
    begin = sum(widths[:index]) // groups
    x = x[..., begin : begin + widths[index] // groups]
    return x.reshape(*x.shape[:-2], widths[index])


def _unrepeat(x: Array, config: Config) -> Array:
    """Undo the repetition of key-value heads: x [..., H E] -> [..., K E]. Raises MisfitError for unequal copies."""
    x = _flat(x, config.H * config.E)
    x = x.reshape(*x.shape[:-1], config.K, config.G, config.E)
    first = x[..., :1, :]
    differs = (x != first) & ~(np.isnan(x) & np.isnan(first))
    if differs.any():
        *_, group, copy, _ = (int(i) for i in np.unravel_index(int(differs.argmax()), differs.shape))
        head = group * config.G
        raise MisfitError(f"is mapped as repeated {config.G} times, but head {head + copy} is no copy of head {head}")
    return np.ascontiguousarray(first).reshape(*x.shape[:-3], config.K * config.E)


def _pairs_to_halves(x: Array, E: int) -> Array:
    """Move dimensions 2i and 2i + 1 of each head to i and i + E/2: x [..., n E] -> [..., n E]"""
    pairs = x.reshape(*x.shape[:-1], -1, E // 2, 2)
    return np.swapaxes(pairs, -1, -2).reshape(x.shape)


def _last_row(x: Array, piece: Piece, config: Config) -> Array:
    """Take the last token, which may be the only one: x [.., T, n] -> [1, n]; scores [.., H, T, S] -> [H, 1, S]"""
    if "S" in letters(piece.tap):
        if x.ndim < 2 or x.size == 0 or math.prod(x.shape[:-3]) != 1:
            raise MisfitError(f"shape {list(x.shape)}, but rows: last needs [{config.H}, tokens, keys]")
        return x[:, None, :] if x.ndim == 2 else x.reshape(x.shape[-3:])[:, -1:]
    x = _flat(x, _width(piece, config))
    if x.size == 0 or max(x.shape[:-1], default=1) != math.prod(x.shape[:-1]):
        raise MisfitError(f"shape {list(x.shape)}, where rows needs [tokens, {x.shape[-1]}]")
    return x.reshape(-1, x.shape[-1])[-1:]
