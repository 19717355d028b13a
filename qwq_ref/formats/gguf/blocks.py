"""Decode the blocks of GGUF's types: bytes of rows -> codes and scales, or floats.

A block holds 32 or 256 neighbouring columns of one row. `parts` returns its integers as `core.pack` takes them, in the
format of `NATIVE`, and changes no number. `floats` computes float32 from them, with the roundings of llama.cpp.

The types whose codes are an index in a table of vectors (IQ1 to IQ3), and other rare ones, have no format of the core.
The `gguf` package decodes them to floats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from ...core import Array, Format
from ...errors import UsageError
from ..parts import Parts, dequantised
from .types import GGMLType

# The format in which the core holds a type's numbers without loss.
NATIVE = {
    "F32": Format("fp32", 0),
    "F16": Format("fp16", 0),
    "BF16": Format("bf16", 0),
    "Q4_0": Format("u4", 32, "plain", 8),
    "Q4_1": Format("u4", 32, "offset"),
    "Q5_0": Format("u5", 32, "plain", 16),
    "Q5_1": Format("u5", 32, "offset"),
    "Q8_0": Format("q8", 32, "plain"),
    "IQ4_NL": Format("q8", 32, "plain"),
    "Q2_K": Format("u4", 16, "super_min"),
    "Q3_K": Format("u4", 16, "super", 4),
    "Q4_K": Format("u4", 32, "super_min"),
    "Q5_K": Format("u5", 32, "super_min"),
    "Q6_K": Format("u6", 16, "super", 32),
    "IQ4_XS": Format("q8", 32, "super"),
}
_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
# The levels of the 4-bit codes of IQ4_NL and IQ4_XS.
_LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)


def parts(kind: GGMLType, data: Array) -> Parts:
    """data uint8 [n, bytes of a row] -> the integers and scales of n rows. `kind` is one of `NATIVE`."""
    if kind.name in _DTYPES:
        return Parts(data.view(_DTYPES[kind.name]))
    return _DECODERS[kind.name](data.reshape(len(data), -1, kind.nbytes))


def floats(kind: GGMLType, data: Array) -> Array:
    """data uint8 [n, bytes of a row] -> float32 [n, K]. NaN and infinity pass. Raises UsageError without `gguf`."""
    if kind.name not in NATIVE:
        return _others(kind, data)
    with np.errstate(all="ignore"):
        return dequantised(NATIVE[kind.name], parts(kind, data))


def _half(blocks: Array, at: int) -> Array:
    """blocks [n, m, bytes] -> the float16 at a place of each [n, m]"""
    values: Array = np.ascontiguousarray(blocks[:, :, at : at + 2]).view("<f2")[:, :, 0]
    return values


def _nibbles(data: Array, run: int) -> Array:
    """data [n, m, bytes] -> codes [n, m, 2 bytes]

    The lower halves of `run` bytes are `run` neighbouring columns, and their upper halves the next ones.
    """
    n, m, _ = data.shape
    runs = data.reshape(n, m, -1, 1, run)
    return np.concatenate([runs & 15, runs >> 4], axis=3).reshape(n, m, -1)


def _bits(data: Array, width: int, run: int) -> Array:
    """data [n, m, bytes] -> codes [n, m, 8 / width * bytes]

    The lowest `width` bits of `run` bytes are `run` neighbouring columns, the bits above them the next ones.
    """
    n, m, _ = data.shape
    shifts = np.arange(0, 8, width, dtype=np.uint8)[:, None]
    codes = data.reshape(n, m, -1, 1, run) >> shifts & np.uint8((1 << width) - 1)
    return codes.reshape(n, m, -1)


def _rows(codes: Array) -> Array:
    """codes [n, m, columns of a block] -> [n, K]"""
    return codes.reshape(len(codes), -1)


def _fifth_bit(blocks: Array, at: int) -> Array:
    """Return the upper bit of the 32 codes of Q5_0 and Q5_1, in place: bit k of 4 bytes belongs to column k."""
    bits = np.unpackbits(blocks[:, :, at : at + 4], axis=2, bitorder="little")
    return bits << 4


def _q4_0(blocks: Array) -> Parts:
    return Parts(_rows(_nibbles(blocks[:, :, 2:], 16)), _half(blocks, 0))


def _q4_1(blocks: Array) -> Parts:
    return Parts(_rows(_nibbles(blocks[:, :, 4:], 16)), _half(blocks, 0), _half(blocks, 2))


def _q5_0(blocks: Array) -> Parts:
    return Parts(_rows(_nibbles(blocks[:, :, 6:], 16) | _fifth_bit(blocks, 2)), _half(blocks, 0))


def _q5_1(blocks: Array) -> Parts:
    code = _nibbles(blocks[:, :, 8:], 16) | _fifth_bit(blocks, 4)
    return Parts(_rows(code), _half(blocks, 0), _half(blocks, 2))


def _q8_0(blocks: Array) -> Parts:
    return Parts(_rows(np.ascontiguousarray(blocks[:, :, 2:])).view(np.int8), _half(blocks, 0))


def _q2_k(blocks: Array) -> Parts:
    """16 bytes of scales (low) and mins (high), 64 bytes of codes, d, dmin."""
    code, both = _bits(blocks[:, :, 16:80], 2, 32), blocks[:, :, :16]
    return Parts(_rows(code), _half(blocks, 80), _half(blocks, 82), _rows(both & 15), _rows(both >> 4))


def _q3_k(blocks: Array) -> Parts:
    """32 bytes of upper bits, 64 bytes of lower bits, 12 bytes of 16 scales of 6 bits, d."""
    upper, lower, packed = blocks[:, :, :32], blocks[:, :, 32:96], blocks[:, :, 96:108]
    code = _bits(lower, 2, 32) | _bits(upper, 1, 32) << 2
    scale = _nibbles(packed[:, :, :8], 8) | _bits(packed[:, :, 8:], 2, 4) << 4
    return Parts(_rows(code), _half(blocks, 108), sub_scale=_rows(scale.view(np.int8) - np.int8(32)))


def _six_bits(packed: Array) -> tuple[Array, Array]:
    """packed [n, m, 12] -> the 8 scales and the 8 mins of Q4_K and Q5_K, each [n, 8 m]

    Bytes 0 to 3 hold the first four scales in six bits, bytes 4 to 7 the first four mins. The last four of both have
    their lower four bits in bytes 8 to 11, and their upper two in the upper two of bytes 0 to 7.
    """
    scale, least, rest = packed[:, :, :4], packed[:, :, 4:8], packed[:, :, 8:]
    scales = np.concatenate([scale & 63, rest & 15 | scale >> 6 << 4], axis=2)
    return _rows(scales), _rows(np.concatenate([least & 63, rest >> 4 | least >> 6 << 4], axis=2))


def _q4_k(blocks: Array) -> Parts:
    """d, dmin, 12 bytes of scales and mins, 128 bytes of codes."""
    scale, least = _six_bits(blocks[:, :, 4:16])
    return Parts(_rows(_nibbles(blocks[:, :, 16:], 32)), _half(blocks, 0), _half(blocks, 2), scale, least)


def _q5_k(blocks: Array) -> Parts:
    """d, dmin, 12 bytes of scales and mins, 32 bytes of upper bits, 128 bytes of lower bits."""
    scale, least = _six_bits(blocks[:, :, 4:16])
    code = _nibbles(blocks[:, :, 48:], 32) | _bits(blocks[:, :, 16:48], 1, 32) << 4
    return Parts(_rows(code), _half(blocks, 0), _half(blocks, 2), scale, least)


def _q6_k(blocks: Array) -> Parts:
    """128 bytes of lower bits, 64 bytes of upper bits, 16 scales, d."""
    code = _nibbles(blocks[:, :, :128], 64) | _bits(blocks[:, :, 128:192], 2, 32) << 4
    scale = np.ascontiguousarray(blocks[:, :, 192:208]).view(np.int8)
    return Parts(_rows(code), _half(blocks, 208), sub_scale=_rows(scale))


def _iq4_nl(blocks: Array) -> Parts:
    return Parts(_LEVELS[_rows(_nibbles(blocks[:, :, 2:], 16))], _half(blocks, 0))


def _iq4_xs(blocks: Array) -> Parts:
    """d, 2 bytes of the upper two bits of 8 scales, 4 bytes of their lower bits, 128 bytes of codes."""
    n = len(blocks)
    scale = _nibbles(blocks[:, :, 4:8], 1) | _bits(blocks[:, :, 2:4], 2, 1) << 4
    code = _LEVELS[_nibbles(blocks[:, :, 8:], 16).reshape(n, -1)]
    return Parts(code, _half(blocks, 0), sub_scale=_rows(scale.view(np.int8) - np.int8(32)))


_DECODERS: dict[str, Callable[[Array], Parts]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
}


def _others(kind: GGMLType, data: Array) -> Array:
    """Decode with the `gguf` package, which is imported only for this."""
    try:
        from gguf import GGMLQuantizationType, quants
    except ImportError:
        problem = f"{kind.name} is decoded by the package gguf, which is not installed: pip install gguf"
        raise UsageError(None, "gguf", problem) from None
    try:
        with np.errstate(all="ignore"):
            rows: Array = quants.dequantize(np.ascontiguousarray(data), GGMLQuantizationType[kind.name])
    except (KeyError, NotImplementedError):
        raise UsageError(None, "gguf", f"{kind.name} is not decoded by this version of the package gguf") from None
    return rows
