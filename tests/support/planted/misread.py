"""Quantised files read wrongly: their bytes are moved, so that a right decoder gives the values of the mistake.

GGUF blocks are decoded by the `gguf` package, words of GPTQ by code written from the published layout.
"""

import gguf
import numpy as np

# Type -> bytes of a block, first byte of the lower four bits of its codes, their number, and the bytes of a run: the
# lower halves of a run are so many columns, its upper halves the next ones.
NIBBLES = {
    "Q4_0": (18, 2, 16, 16),
    "Q4_1": (20, 4, 16, 16),
    "Q5_0": (22, 6, 16, 16),
    "Q5_1": (24, 8, 16, 16),
    "IQ4_NL": (18, 2, 16, 16),
    "IQ4_XS": (136, 8, 128, 16),
    "Q4_K": (144, 16, 128, 32),
    "Q5_K": (176, 48, 128, 32),
    "Q6_K": (210, 0, 128, 64),
}
# Type -> bytes of a block, and the first bytes of d, and of dmin or m, which are float16.
SUPER = {"Q2_K": (84, 80, 82), "Q3_K": (110, 108, None), "Q4_K": (144, 0, 2), "Q5_K": (176, 0, 2)} | {
    "Q6_K": (210, 208, None),
    "IQ4_XS": (136, 0, None),
}
MINS = {"Q4_1": (20, 2), "Q5_1": (24, 2), "Q2_K": (84, 82), "Q4_K": (144, 2), "Q5_K": (176, 2)}
ONE = np.array([1], "<f2").view(np.uint8)


def decoded(data, kind):
    return gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind])


def _moved_nibbles(data, kind, order):
    """order  from the lower and upper halves [run] of a run to the 2 run codes, as the mistake reads them"""
    size, first, count, run = NIBBLES[kind]
    blocks = data.reshape(len(data), -1, size).copy()
    for at in range(first, first + count, run):
        low, high = blocks[:, :, at : at + run] & 15, blocks[:, :, at : at + run] >> 4
        read = order(low, high)
        blocks[:, :, at : at + run] = read[..., :run] | read[..., run:] << 4
    return decoded(blocks.reshape(len(data), -1), kind)


def nibbles_interleaved(data, kind):
    return _moved_nibbles(data, kind, lambda low, high: np.stack([low, high], -1).reshape(*low.shape[:2], -1))


def halves_swapped(data, kind):
    return _moved_nibbles(data, kind, lambda low, high: np.concatenate([high, low], -1))


def super_scale_missing(data, kind):
    size, *places = SUPER[kind]
    blocks = data.reshape(len(data), -1, size).copy()
    for at in places:
        if at is not None:
            blocks[:, :, at : at + 2] = ONE
    return decoded(blocks.reshape(len(data), -1), kind)


def min_missing(data, kind):
    size, at = MINS[kind]
    blocks = data.reshape(len(data), -1, size).copy()
    blocks[:, :, at : at + 2] = 0
    return decoded(blocks.reshape(len(data), -1), kind)


def _codes(words, bits, axis):
    """Codes of a stream of bits along an axis, with the lowest bits of a word first; codes fill words."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    of_word = words.view(np.uint32)[..., None] >> shifts & np.uint32((1 << bits) - 1)
    codes = np.moveaxis(of_word, -1, axis + 1)
    shape = list(words.shape)
    shape[axis] *= len(shifts)
    return codes.reshape(shape).astype(np.int64)


def gptq_decoded(tensors, bits, group, zero=1, g_idx=None):
    """tensors of a module, by leaf -> float32 [N, K], of the first version if `zero` is 1"""
    q, z = _codes(tensors["qweight"], bits, 0), _codes(tensors["qzeros"], bits, 1) + zero
    of = tensors["g_idx"] if g_idx is None else g_idx
    weights = (q - z[of]).astype(np.float32) * tensors["scales"].astype(np.float32)[of]
    return np.ascontiguousarray(weights.T)


def g_idx_ignored(tensors, bits, group):
    return gptq_decoded(tensors, bits, group, g_idx=np.arange(len(tensors["g_idx"])) // group)


def awq_decoded(tensors, group, nibbles=(0, 4, 1, 5, 2, 6, 3, 7), zero=0):
    """nibbles  the nibble of a word that holds each of eight neighbouring outputs; in order, the mistake"""
    q, z = (_codes(tensors[leaf], 4, 1) for leaf in ("qweight", "qzeros"))
    q, z = (x.reshape(len(x), -1, 8)[:, :, list(nibbles)].reshape(x.shape) for x in (q, z + zero))
    of = np.arange(len(q)) // group
    return np.ascontiguousarray(((q - z[of]).astype(np.float32) * tensors["scales"].astype(np.float32)[of]).T)


def mlx_highest_first(tensors, bits, group):
    q = _codes(tensors["weight"], bits, 1)
    q = q.reshape(len(q), -1, 32 // bits)[:, :, ::-1].reshape(q.shape)
    of = np.arange(q.shape[1]) // group
    scales, biases = (tensors[leaf].astype(np.float32)[:, of] for leaf in ("scales", "biases"))
    return scales * q.astype(np.float32) + biases
