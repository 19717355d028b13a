"""Codes of 2 to 8 bits in words of 32 bits -> one byte for each code."""

from __future__ import annotations

import numpy as np

from ...core import Array

# Nibble i of a word of AWQ, from the lowest on, is the code of this one of eight neighbouring outputs.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def stream(words: Array, bits: int) -> Array:
    """words uint32 or int32 [n, m] -> uint8 [n, 32 m / bits]

    Each row is a stream of bits: the lowest bits of a word come first, and a code may lie in two words. GPTQ and MLX
    have this layout. A row must hold whole codes.
    """
    data = _bytes(words)
    n = len(data)
    if bits == 8:
        return data
    mask = np.uint8((1 << bits) - 1)
    if 8 % bits == 0:
        out = np.empty((n, data.shape[1], 8 // bits), np.uint8)
        for i in range(8 // bits):
            np.bitwise_and(data >> np.uint8(i * bits), mask, out=out[:, :, i])
        return out.reshape(n, -1)
    units = data.reshape(n, -1, bits)  # each holds 8 codes
    out = np.empty((n, units.shape[1], 8), np.uint8)
    for i in range(8):
        byte, shift = divmod(i * bits, 8)
        code = units[:, :, byte] >> np.uint8(shift)
        if shift + bits > 8:
            code = code | units[:, :, byte + 1] << np.uint8(8 - shift)
        np.bitwise_and(code, mask, out=out[:, :, i])
    return out.reshape(n, -1)


def one_more(words: Array, bits: int) -> Array:
    """words int32 [n, m] -> uint8 [n, 32 m / bits]: the zero points that version 1 of GPTQ stores minus 1

    A zero point of 0 is stored as a code of all ones. The sum is 0 again, and not 2^bits: qlinear_cuda_old.py of
    AutoGPTQ, and ExLlamaV2, mask it (ExLlama's kernels in vLLM do not). Writers subtract 1 from all codes of a word at
    once, so that this code borrows 1 from the code above it. One addition to the whole word gives it back. GPTQModel's
    `convert_gptq_v1_to_v2_format_module`, which transformers calls, adds in the same way. Pull request 640 of AutoGPTQ
    measured that such files answer as the model does. Codes of 3 bits lie in two words; there GPTQModel wraps each one.
    """
    mask = np.uint8((1 << bits) - 1)
    if 32 % bits:
        return stream(words, bits) + np.uint8(1) & mask
    ones = np.uint32(0xFFFFFFFF // int(mask))
    return stream(words.view(np.uint32) + ones, bits)


def awq(words: Array) -> Array:
    """words int32 [m, n] -> uint8 [8 n, m]: each column of words becomes eight rows, in `AWQ_ORDER`."""
    m, n = words.shape
    data = _bytes(words.T).reshape(n, m, 4)
    out = np.empty((n, 8, m), np.uint8)
    for i, row in enumerate(AWQ_ORDER):
        byte = data[:, :, i // 2]
        out[:, row] = byte >> 4 if i % 2 else byte & 15
    return out.reshape(8 * n, m)


def _bytes(words: Array) -> Array:
    """words of 32 bits [n, m] -> uint8 [n, 4 m], the lowest byte of a word first"""
    data: Array = np.ascontiguousarray(words, words.dtype.newbyteorder("<")).view(np.uint8)
    return data
