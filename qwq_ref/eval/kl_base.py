"""A file of the log-probabilities of a base model, with which other runs of the same tokens are compared.

| part | content |
|---|---|
| magic | 8 bytes, `QWQ-KLB1` |
| length | of the header, 8 bytes, little-endian |
| header | JSON: `model`, `backend`, `n_vocab`, `ctx`, and `bos`, null or the token that replaces a chunk's first |
| chunks | one after another, to the end of the file |

A chunk has `ctx` tokens (int32). Then come n = ctx - 1 - ctx // 2 positions: `n_vocab` codes each (uint16), then the
likeliest token of each (int32) and the surprise of the next token of each (float32). All of it is little-endian.

The code c stands for the log-probability -40 (c / 65535)^2. So the steps are finest where the probability is large.
Readers normalise. The comparison of a model with itself gives a KL divergence of a few 1e-9.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import KlBaseError
from ..files import StrPath, open_regular, parse_json, pread_exactly
from ..spec.ops import Array

MAGIC = b"QWQ-KLB1"
LOWEST = 40.0  # smaller log-probabilities than -40 are stored as -40: they have no part in a KL divergence
_CODES = 65535
_LONGEST = 1 << 16  # bytes of a header
_MOST = 1 << 24  # n_vocab and ctx
LOGS = (-LOWEST * (np.arange(_CODES + 1) / _CODES) ** 2).astype(np.float64)  # by code


def encode_logs(logs: Array) -> Array:
    """logs [n, V] -> uint16 [n, V]

    The codes of log-probabilities.
    """
    codes: Array = np.rint(np.sqrt(np.clip(-logs, 0, LOWEST) / LOWEST) * _CODES).astype("<u2")
    return codes


def scored(ctx: int) -> int:
    """Return the number of positions that are scored in a chunk of so many tokens."""
    return ctx - 1 - ctx // 2


def chunk_bytes(ctx: int, n_vocab: int) -> int:
    """Return the bytes of a chunk in the file."""
    return 4 * ctx + scored(ctx) * (2 * n_vocab + 8)


class BaseWriter:
    """Writes the chunks of a base into an open file. Call `begin`, then `add` for its positions in order, for each."""

    def __init__(self, file: BinaryIO, *, model: str, backend: str, n_vocab: int, ctx: int, bos: int | None) -> None:
        header = {"model": model, "backend": backend, "n_vocab": n_vocab, "ctx": ctx, "bos": bos}
        data = json.dumps(header).encode()
        file.write(MAGIC + len(data).to_bytes(8, "little") + data)
        self._file, self._size, self._start = file, chunk_bytes(ctx, n_vocab), len(MAGIC) + 8 + len(data)
        self._tops: list[Array] = []
        self._surprises: list[Array] = []
        self.chunks, self._left = 0, 0

    def begin(self, ids: Sequence[int]) -> None:
        """Begin a chunk with its tokens."""
        self._file.seek(self._start + self.chunks * self._size)  # an unfinished chunk goes
        self._tops, self._surprises, self._left = [], [], scored(len(ids))
        self._file.write(np.asarray(ids, "<i4").tobytes())

    def add(self, logs: Array, surprises: Array) -> None:
        """logs [n, V], surprises [n]: add positions: their log-probabilities, and the surprise of the next token."""
        self._file.write(encode_logs(logs).data)
        self._tops.append(logs.argmax(axis=-1).astype("<i4"))
        self._surprises.append(surprises.astype("<f4"))
        self._left -= len(logs)
        if self._left == 0:
            self._file.write(np.concatenate(self._tops).tobytes() + np.concatenate(self._surprises).tobytes())
            self.chunks += 1

    def end(self) -> None:
        """Leave out a chunk that is not complete."""
        self._file.truncate(self._start + self.chunks * self._size)


class Base:
    """The base in a file. Use it as a context.

    model, backend  what computed it
    n_vocab, ctx    the columns of its logits, and the tokens of a chunk
    bos             the token that replaced the first of each chunk; None if none did
    chunks          their number
    """

    def __init__(self, path: StrPath) -> None:
        """Check the header and the size of a file. Raises KlBaseError."""
        self.path = Path(path)
        self._descriptor = open_regular(path, KlBaseError)
        try:
            self._read_header()
        except BaseException:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> Base:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def _read_header(self) -> None:
        size = os.fstat(self._descriptor).st_size
        start = os.pread(self._descriptor, len(MAGIC) + 8, 0)
        if not start.startswith(MAGIC) or len(start) < len(MAGIC) + 8:
            raise KlBaseError(self.path, None, "is not a file of `qwq perplexity --kl-base`")
        length = int.from_bytes(start[len(MAGIC) :], "little")
        self._start = len(start) + length
        if length > _LONGEST or self._start > size:
            raise KlBaseError(self.path, "length", f"of the header is {length:,} bytes, of a file of {size:,}")
        data = bytearray(length)
        pread_exactly(self._descriptor, [memoryview(data)], len(start), self.path, KlBaseError)
        header = parse_json(bytes(data), self.path, KlBaseError)
        self.model, self.backend = self._text(header, "model"), self._text(header, "backend")
        self.n_vocab = self._integer(header, "n_vocab", 1, _MOST)
        self.ctx = self._integer(header, "ctx", 3, _MOST)
        self.bos = None if header.get("bos", 0) is None else self._integer(header, "bos", 0, self.n_vocab - 1)
        self._size = chunk_bytes(self.ctx, self.n_vocab)
        self.chunks, rest = divmod(size - self._start, self._size)
        if rest or not self.chunks:
            raise KlBaseError(
                self.path, "chunks", f"of {self._size:,} bytes do not fill the {size - self._start:,} bytes of the file"
            )

    def _text(self, header: dict[str, Any], name: str) -> str:
        value = header.get(name)
        if not isinstance(value, str):
            raise KlBaseError(self.path, name, f"must be a text, got {value!r:.40}")
        return value

    def _integer(self, header: dict[str, Any], name: str, least: int, most: int) -> int:
        value = header.get(name)
        if type(value) is not int or not least <= value <= most:
            raise KlBaseError(self.path, name, f"must be an integer from {least} to {most}, got {value!r:.40}")
        return value

    def check_ctx(self, ctx: int) -> None:
        """Raise KlBaseError if chunks of `ctx` tokens are not those of the file."""
        if ctx != self.ctx:
            raise KlBaseError(self.path, "ctx", f"is {self.ctx}, but chunks of {ctx} tokens are asked for")

    def tokens(self, chunk: int) -> list[int]:
        """Return the ids of a chunk. Raises KlBaseError for ids that the vocabulary does not have."""
        ids = self._read(np.empty(self.ctx, "<i4"), chunk, 0)
        if ids.min() < 0 or ids.max() >= self.n_vocab:
            raise KlBaseError(self.path, "tokens", f"of chunk {chunk + 1} must be in [0, {self.n_vocab})")
        found: list[int] = ids.tolist()
        return found

    def logs(self, chunk: int, start: int, stop: int) -> Array:
        """-> [n, V]: log-probabilities of the scored positions `start` to `stop` of a chunk, in float64.

        They are rounded, and their exponentials do not sum up to one.
        """
        codes = self._read(
            np.empty((stop - start, self.n_vocab), "<u2"), chunk, 4 * self.ctx + start * 2 * self.n_vocab
        )
        logs: Array = LOGS[codes]
        return logs

    def ends(self, chunk: int) -> tuple[Array, Array]:
        """-> tops [n], surprises [n]: the likeliest token of each scored position, and the next token's surprise.

        Raises KlBaseError for values that no run gives.
        """
        n = scored(self.ctx)
        at = 4 * self.ctx + n * 2 * self.n_vocab
        tops = self._read(np.empty(n, "<i4"), chunk, at)
        surprises = self._read(np.empty(n, "<f4"), chunk, at + 4 * n)
        if tops.min() < 0 or tops.max() >= self.n_vocab:
            raise KlBaseError(self.path, "tops", f"of chunk {chunk + 1} must be in [0, {self.n_vocab})")
        if not (np.isfinite(surprises).all() and surprises.min() > -0.01):
            raise KlBaseError(self.path, "surprises", f"of chunk {chunk + 1} must be finite and at least 0")
        return tops, surprises.astype(np.float64)

    def _read(self, array: Array, chunk: int, at: int) -> Array:
        part = array.data.cast("B")
        pread_exactly(self._descriptor, [part], self._start + chunk * self._size + at, self.path, KlBaseError)
        return array
