"""A model's weights as the core reads them: what they are called, how large they are, and how they are made.

Large matrices are read, converted and packed some rows at a time, so that little more than the result is held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import core
from ..config import Config
from ..core import Packed
from ..core.layer import LayerWeights
from ..errors import CheckpointError
from ..footprint import parameters
from ..formats.checkpoint import CONFIG, INDEX, SINGLE
from ..formats.packed import PackedFile, Stored
from ..spec.ops import Array, to_bf16

# What --weights takes: the form of the layers' matrices, and that of the head, whose errors are seen most.
FORMS = {"fp32": ("fp32", "fp32"), "bf16": ("bf16", "bf16"), "q8": ("q8", "q8"), "q4": ("q4", "q8")}
SLICE = 1 << 23  # weights that are read and packed at a time: some 50 ms, after which Ctrl-C is heard

Progress = Callable[[float], object]
# Tensors of a layer in the order of LayerWeights: those of a checkpoint, or several of them joined.
_LAYER = (
    "input_layernorm.weight",
    "self_attn.qkv_proj.weight",
    "self_attn.qkv_proj.bias",
    "self_attn.o_proj.weight",
    "post_attention_layernorm.weight",
    "mlp.gate_up_proj.weight",
    "mlp.down_proj.weight",
)
EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


@dataclass(frozen=True)
class ModelWeights:
    """All layers, the embedding [V, D] (float32, or bfloat16 as uint16), the last norm, the head."""

    form: str
    embedding: Array
    layers: list[LayerWeights]
    norm: Array
    head: Packed

    @classmethod
    def of(cls, config: Config, form: str, tensors: Mapping[str, Any]) -> ModelWeights:
        """From tensors by the names of `plan`."""
        layers = [LayerWeights(*(tensors[name] for name in _names(i))) for i in range(config.L)]
        return cls(form, tensors[EMBEDDING], layers, tensors[NORM], tensors[HEAD])


def plan(config: Config, form: str) -> dict[str, Stored]:
    """What a model in this form consists of: name -> shape, and how it is stored. In the order of computing."""
    layer, head = (core.FORMATS[name] for name in FORMS[form])
    D, q, k = config.D, config.H * config.E, config.K * config.E
    F = -(-config.F // 32) * 32
    stored = {EMBEDDING: Stored((config.V, D), dtype="F32" if form == "fp32" else "BF16")}
    of_layer = (
        Stored((D,)),
        Stored((q + 2 * k, D), layer),
        Stored((q + 2 * k,)),
        Stored((D, q), layer),
        Stored((D,)),
        Stored((2 * F, D), layer),
        Stored((D, F), layer),
    )
    for i in range(config.L):
        stored |= zip(_names(i), of_layer, strict=True)
    return stored | {NORM: Stored((D,)), HEAD: Stored((config.V, D), head)}


def model_bytes(config: Config, form: str) -> int:
    """What `pack_weights` makes, by arithmetic."""
    return sum(stored.nbytes for stored in plan(config, form).values())


def step_bytes(config: Config, form: str) -> int:
    """Of these, what decoding a token reads: all, but of the embedding one row."""
    return model_bytes(config, form) - (config.V - 1) * _row_bytes(config, form)


def _row_bytes(config: Config, form: str) -> int:
    """Of the embedding."""
    return plan(config, form)[EMBEDDING].nbytes // config.V


def pack_weights(
    config: Config, weights: Mapping[str, Array], form: str, threads: int, progress: Progress | None = None
) -> ModelWeights:
    """All of `packed_tensors`."""
    return ModelWeights.of(config, form, dict(packed_tensors(config, weights, form, threads, progress)))


def packed_name(form: str) -> str:
    """Of a file with packed weights, in a model's folder."""
    return f"packed-{form}.safetensors"


def packed_forms(path: Path) -> dict[str, Path]:
    """Packed weights that a folder consists of, or that a file is: form -> file, the most exact first.

    Beside a checkpoint they would be one more copy, perhaps an old one: none are looked for there.
    """
    if path.is_dir():
        files = {form: path / packed_name(form) for form in FORMS}
        own = any((path / name).exists() for name in (SINGLE, INDEX))
        return {} if own else {form: file for form, file in files.items() if file.exists()}
    return {form: path for form in FORMS if path.name == packed_name(form)}


def read_weights(config: Config, form: str, path: Path, threads: int, progress: Progress | None = None) -> ModelWeights:
    """A packed file -> its weights. Raises CheckpointError for one that is not what the config and the form imply."""
    with PackedFile(path) as file:
        wanted = plan(config, form)
        for name in {**wanted, **file.weights}:
            if file.weights.get(name) != wanted.get(name):
                ours, theirs = wanted.get(name, "nothing"), file.weights.get(name, "nothing")
                raise CheckpointError(path, name, f"must be {ours} by {CONFIG}, but is {theirs}")
        share = parameters(config) / file.nbytes
        return ModelWeights.of(
            config, form, file.read(threads, progress=progress and (lambda count: progress(count * share)))
        )


def packed_tensors(
    config: Config, weights: Mapping[str, Array], form: str, threads: int, progress: Progress | None = None
) -> Iterator[tuple[str, Packed | Array]]:
    """A checkpoint's float32 arrays -> what `plan` says, one after another. `progress` hears of weights read.

    bf16 takes the upper half of each float32, which is all of it for a bfloat16 checkpoint; of others it cuts nothing
    silently: CoreError.
    """
    source = _Source(weights, progress)
    planned = plan(config, form)

    def vector(name: str) -> Array:
        return source.rows(name, 0, source.size(name))

    def pack(name: str, rows: Callable[[int, int], Array]) -> Packed:
        """rows(begin, end) -> float32, of a matrix that is packed so many at a time."""
        stored = planned[name]
        assert stored.format is not None
        (N, K), codes = stored.shape, stored.format.codes
        whole = core.empty(stored.format, (N, K))
        step = max(64, SLICE // K // 64 * 64)
        for begin in range(0, N, step):
            end = min(begin + step, N)
            w = rows(begin, end)
            if codes == "bf16":
                if np.any(w.view(np.uint32) & 0xFFFF):
                    problem = "are not bfloat16 in this checkpoint: take fp32, q8 or q4"
                    raise core.CoreError(None, "weights", problem)
                w = _bf16_bits(w)
            core.quantise(w, codes, threads=threads, out=whole.rows(begin, end))
        return whole

    def embedding() -> Array:
        stored = planned[EMBEDDING]
        bits = stored.dtype == "BF16"
        array = core.aligned(stored.nbytes).view(np.uint16 if bits else np.float32).reshape(stored.shape)
        step = max(1, SLICE // config.D)
        for begin in range(0, config.V, step):
            rows = source.rows(EMBEDDING, begin, min(begin + step, config.V))
            array[begin : begin + step] = _bf16_bits(rows) if bits else rows
        return array

    yield EMBEDDING, embedding()
    for i in range(config.L):
        path = f"model.layers.{i}."
        names = _names(i)
        qkv = [f"{path}self_attn.{name}_proj" for name in "qkv"]
        yield names[0], vector(names[0])
        yield names[1], pack(names[1], source.joined([f"{name}.weight" for name in qkv]))
        yield names[2], np.concatenate([vector(f"{name}.bias") for name in qkv])
        yield names[3], pack(names[3], source.matrix(names[3]))
        yield names[4], vector(names[4])
        yield names[5], pack(names[5], source.gate_up(path, config.swiglu_beta))
        yield names[6], pack(names[6], source.matrix(names[6], planned[names[6]].shape[1]))
    yield NORM, vector(NORM)
    yield HEAD, pack(HEAD, source.matrix(EMBEDDING if config.tie_word_embeddings else config.head_name))


def embed(ids: Any, embedding: Array) -> Array:
    """ids [T], embedding [V, D] -> float32 [T, D]"""
    rows: Array = embedding[ids]
    return rows if rows.dtype == np.float32 else np.left_shift(rows, 16, dtype=np.uint32).view(np.float32)


class _Source:
    """Rows of a checkpoint's tensors, in float32."""

    def __init__(self, weights: Mapping[str, Array], progress: Progress | None) -> None:
        self._weights, self._progress = weights, progress
        # What a Checkpoint has, and a dictionary has not.
        self._rows: Callable[[str, int, int], Array] | None = getattr(weights, "rows", None)
        self._forget: Callable[[str, int, int], None] = getattr(weights, "forget", lambda *rows: None)

    def size(self, name: str) -> int:
        """How many rows there are."""
        tensors = getattr(self._weights, "tensors", None)  # of a Checkpoint, which reads a tensor when it is taken
        return int((self._weights[name] if tensors is None else tensors[name]).shape[0])

    def rows(self, name: str, begin: int, end: int) -> Array:
        w = self._weights[name][begin:end] if self._rows is None else self._rows(name, begin, end)
        self._forget(name, begin, end)
        if self._progress is not None:
            self._progress(w.size)
        return np.ascontiguousarray(w, np.float32)

    def matrix(self, name: str, columns: int | None = None) -> Callable[[int, int], Array]:
        """One tensor; with zeros up to so many columns."""

        def rows(begin: int, end: int) -> Array:
            w = self.rows(name, begin, end)
            return w if columns in (None, w.shape[1]) else np.pad(w, ((0, 0), (0, columns - w.shape[1])))

        return rows

    def joined(self, names: list[str]) -> Callable[[int, int], Array]:
        """The rows of several tensors after one another."""
        sizes = [self.size(name) for name in names]
        starts = np.cumsum([0, *sizes])

        def rows(begin: int, end: int) -> Array:
            parts = []
            for name, start, size in zip(names, starts, sizes, strict=False):
                first, last = max(begin - start, 0), min(end - start, size)
                if first < last:
                    parts.append(self.rows(name, int(first), int(last)))
            return np.concatenate(parts)

        return rows

    def gate_up(self, path: str, beta: float) -> Callable[[int, int], Array]:
        """gate_proj and up_proj as `core.interleave` has them: `begin` is a multiple of 64.

        silu(beta g) u / beta is what a beta means: it is folded into the weights.
        """
        gate, up = f"{path}mlp.gate_proj.weight", f"{path}mlp.up_proj.weight"
        F = self.size(gate)

        def rows(begin: int, end: int) -> Array:
            g, u = (self.rows(name, begin // 2, min(end // 2, F)) for name in (gate, up))
            if beta != 1:
                g, u = g * np.float32(beta), u / np.float32(beta)
            return core.interleave(g, u)

        return rows


def _names(layer: int) -> list[str]:
    return [f"model.layers.{layer}.{name}" for name in _LAYER]


def _bf16_bits(w: Array) -> Array:
    """float32 -> bfloat16 as uint16, rounded to nearest"""
    upper: Array = np.right_shift(to_bf16(w).view(np.uint32), 16).astype(np.uint16)
    return upper
