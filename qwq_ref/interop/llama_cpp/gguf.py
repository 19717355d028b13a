"""Write a GGUF file of a model's shape with random weights, for a benchmark.

The time of a product depends on the format of its weights, not on their values.
"""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...config import Config
from ...errors import ConfigError, QwqError, UsageError
from ...files import StrPath, writes
from ...footprint import human
from ...formats.gguf.names import gguf_name
from ...formats.write import atomic_file
from ...host import disk
from .bindings import require_packages

QUANTS = {"Q4_0": "MOSTLY_Q4_0", "Q4_K": "MOSTLY_Q4_K_M"}  # the file type under which llama-quantize writes each
_ALIGNMENT = 32  # of tensors in a GGUF file, in bytes
_ROOM = 1 << 20  # bytes for the header and for alignment
_DEVIATION = 0.02  # standard deviation of the weights; Hugging Face's initialisation
_POOL = (1 << 17) - 1  # blocks; a prime, so that the rows of a matrix begin at that many different blocks


@dataclass(frozen=True)
class _Block:
    """The block of a quantised format.

    weights  the number of weights in a block
    nbytes   its size in bytes
    halves   place of a float16 in the block, in bytes -> its value, as a multiple of the block's scale
    spread   the standard deviation of the weights, in units of the scale, if all other bytes are random
    """

    weights: int
    nbytes: int
    halves: Mapping[int, float]
    spread: float


# Of n random bits: mean (2^n - 1) / 2, mean square (2^n - 1) (2^(n+1) - 1) / 6.
_BLOCKS = {
    # scale (q - 8), q of 4 bits
    "Q4_0": _Block(32, 18, {0: 1.0}, math.sqrt(21.5)),
    # scale s q - min m, where s has 6 bits, q 4 and m 6. With min = 7.5 scales, which is the mean of q, the mean is 0.
    "Q4_K": _Block(256, 144, {0: 1.0, 2: 7.5}, math.sqrt(1333.5 * 77.5 + 7.5**2 * 1333.5 - 2 * (31.5 * 7.5) ** 2)),
    # scale s (q - 32), where s is a signed byte and q has 6 bits
    "Q6_K": _Block(256, 210, {208: 1.0}, math.sqrt(5461.5 * 341.5)),
}


def gguf_bytes(config: Config, quant: str) -> int:
    """Return the bytes of all tensors of the file that `write_gguf` writes; the header adds less than 1 MiB.

    Raises the same errors for the same shapes.
    """
    return sum(_nbytes(shape, kind) for shape, kind in _tensors(config, quant).values())


def write_gguf(
    path: StrPath, config: Config, quant: str, seed: int = 0, progress: Callable[[int], object] | None = None
) -> None:
    """Write a GGUF file of the config's shapes with random weights.

    quant     the formats of the matrices, as `llama-quantize` chooses them. Q4_0: every matrix is
              Q4_0. Q4_K: Q4_K, but attn_v and ffn_down are Q6_K in about half of the layers. In both, the output is
              Q6_K, and norms and biases are F32
    progress  called with the number of bytes written since the last call; `gguf_bytes` in all

    Nothing is quantised: the file consists of random blocks. There are 131,071 different ones of each format, at most
    27 MB, and each matrix repeats them from a random one on; memory holds nothing else. The weights have mean 0 and
    standard deviation 0.02. The file has no vocabulary and no YaRN, which takes no time.

    The file is written whole or not at all. llama.cpp and the formats limit the shape: D must be H E and a multiple of
    256. F must be a multiple of 32, or of 256 for Q4_K. No layer may have a sliding window.
    Raises ConfigError for another shape, UsageError for another quant or without the packages, QwqError if the disk is
    too small, and FileError if it fails.
    """
    require_packages()
    tensors = _tensors(config, quant)
    path = Path(path)
    rng = np.random.default_rng(seed)
    pools = _Pools(rng)
    with writes(path):
        free = disk.free_bytes(path.parent)
        needed = gguf_bytes(config, quant) + _ROOM
        if free is not None and needed > free:
            raise QwqError(path, None, f"needs {human(needed)} of disk space, but {human(free)} are free")
        with atomic_file(path) as file:
            _write_header(file.name, config, quant, tensors)
            file.seek(0, os.SEEK_END)
            for name, (shape, kind) in tensors.items():
                file.write(bytes(-file.tell() % _ALIGNMENT))
                if kind == "F32":
                    values = rng.normal(1.0 if name.endswith("norm.weight") else 0.0, _DEVIATION, shape)
                    pieces: Iterable[memoryview] = [values.astype("<f4").data.cast("B")]
                else:
                    pieces = pools.pieces(kind, _nbytes(shape, kind))
                for piece in pieces:
                    file.write(piece)
                    if progress:
                        progress(len(piece))
            file.write(bytes(-file.tell() % _ALIGNMENT))


def _tensors(config: Config, quant: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return {GGUF's name: (shape, type)} in the order of the computation. Raises ConfigError, UsageError."""
    if quant not in QUANTS:
        raise UsageError(None, "quant", f"must be one of {', '.join(QUANTS)}, got {quant[:40]}")
    if config.D != config.H * config.E:
        raise ConfigError(
            None, "hidden_size", f"must be heads x head_dim = {config.H * config.E} for llama.cpp, got {config.D}"
        )
    if any(config.window(layer) is not None for layer in range(config.L)):
        raise ConfigError(None, "sliding_window", "llama.cpp has none in this architecture")
    tensors = {}
    for name, shape in config.tensors().items():
        theirs = gguf_name(name)
        *block, base, _ = theirs.split(".")  # blk.7.ffn_up.weight
        layer = int(block[1]) if block else None
        kind = _kind(base, layer, config, quant) if len(shape) == 2 else "F32"
        if kind in _BLOCKS and shape[1] % _BLOCKS[kind].weights:
            raise ConfigError(
                None, name, f"has rows of {shape[1]}, which {kind} does not divide into {_BLOCKS[kind].weights}"
            )
        tensors[theirs] = shape, kind
    return tensors


def _kind(base: str, layer: int | None, config: Config, quant: str) -> str:
    """Return the format that `llama-quantize` chooses for a matrix, without an importance matrix."""
    if base == "output" or (base == "token_embd" and config.tie_word_embeddings):
        return "Q6_K"
    if quant == "Q4_K" and layer is not None and base in ("attn_v", "ffn_down"):
        first, last = config.L // 8, 7 * config.L // 8
        if layer < first or layer >= last or (layer - first) % 3 == 2:  # both ends, and every third layer between
            return "Q6_K"
    return quant


def _nbytes(shape: Sequence[int], kind: str) -> int:
    if kind == "F32":
        return 4 * math.prod(shape)
    block = _BLOCKS[kind]
    return math.prod(shape) // block.weights * block.nbytes


def add_config(writer: Any, config: Config) -> None:
    """Add the metadata of a model without a vocabulary to a `gguf.GGUFWriter`: its sizes, RoPE base and norm."""
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.D)
    writer.add_block_count(config.L)
    writer.add_feed_forward_length(config.F)
    writer.add_head_count(config.H)
    writer.add_head_count_kv(config.K)
    writer.add_rope_freq_base(config.rope.theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.V)
    writer.add_tokenizer_model("no_vocab")  # then llama.cpp asks for the size alone


def _write_header(path: str, config: Config, quant: str, tensors: Mapping[str, tuple[tuple[int, ...], str]]) -> None:
    """Write everything in front of the tensors with the package `gguf`."""
    gguf: Any = importlib.import_module("gguf")
    writer = gguf.GGUFWriter(path, "qwen2")
    try:
        writer.add_file_type(gguf.LlamaFileType[QUANTS[quant]])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        add_config(writer, config)
        for name, (shape, kind) in tensors.items():
            # A quantised tensor's shape is given in bytes.
            size = shape if kind == "F32" else (shape[0], _nbytes(shape[1:], kind))
            dtype = np.dtype(np.float32 if kind == "F32" else np.uint8)
            writer.add_tensor_info(name, size, dtype, _nbytes(shape, kind), gguf.GGMLQuantizationType[kind])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()


class _Pools:
    """Random blocks of each format, made on first use."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._pools: dict[str, memoryview] = {}

    def pieces(self, kind: str, nbytes: int) -> Iterator[memoryview]:
        """Yield blocks of `nbytes` in all, from a random one on."""
        if kind not in self._pools:
            self._pools[kind] = self._made(_BLOCKS[kind])
        pool = self._pools[kind]
        begin = int(self._rng.integers(_POOL)) * _BLOCKS[kind].nbytes
        while nbytes:
            piece = pool[begin : begin + nbytes]
            nbytes -= len(piece)
            begin = 0
            yield piece

    def _made(self, block: _Block) -> memoryview:
        """Return random blocks whose weights have the deviation."""
        blocks = self._rng.integers(0, 256, (_POOL, block.nbytes), np.uint8)
        # Scales of either sign; 13/12 is the mean square of a uniform number from 0.5 to 1.5.
        scale = self._rng.uniform(0.5, 1.5, _POOL) * self._rng.choice([-1.0, 1.0], _POOL)
        scale *= _DEVIATION / block.spread / math.sqrt(13 / 12)
        for at, multiple in block.halves.items():
            blocks[:, at : at + 2] = (scale * multiple).astype("<f2").view(np.uint8).reshape(_POOL, 2)
        return blocks.data.cast("B")
