"""The weight form of a quantised file, as `numerics.engine` computes it: the file's integers, in the core's formats."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...config import Config
from ...core import Format
from ...engine.plan import EMBEDDING, gate_up_names
from ...errors import UsageError
from ...formats.decoded import DecodedSource
from ...formats.gguf import GGUFSource
from ...formats.parts import Parts, common, dequantised, widened
from ...formats.quantised import QuantisedSource
from ...forms import FILE
from ...numerics import engine
from ...numerics.kv import pad
from ...numerics.quant import GROUP, levels, matmul_floats, matmul_integers, super_scale
from ...spec.ops import Array

_SUPER = 256  # columns of a super-block


def quantised(weights: Mapping[str, Array]) -> GGUFSource | QuantisedSource:
    """Return the quantised file that weights are read from. Raises UsageError for others, which have no such form."""
    if isinstance(weights, GGUFSource | QuantisedSource):
        return weights
    problem = f"must be a GGUF file, or a checkpoint of AWQ, GPTQ or MLX, for qwq:{FILE}"
    raise UsageError(getattr(weights, "path", None), "model", problem)


def prepare(config: Config, source: DecodedSource) -> engine.Prepared:
    """Return the matrices of a quantised file as `engine.prepare` returns those of a checkpoint."""
    kept = quantised(source).kept
    form, paired = kept.form, dict[str, Format]()
    for layer in range(config.L):
        pair = gate_up_names(layer)  # they are one matrix for the kernels
        paired |= dict.fromkeys(pair, common(*(form.formats[name] for name in pair)))
    linears: dict[str, engine.Linear] = {}
    vectors: dict[str, Array] = {}
    for name, shape in config.tensors().items():
        if len(shape) == 1:
            vectors[name] = np.asarray(source[name], np.float32)
            continue
        format, rows = form.formats[name], kept.parts(name, 0, shape[0])
        if name == EMBEDDING:
            vectors[name] = dequantised(format, rows)
        if name in (config.head_name, *paired) or ".layers." in name:
            packed = paired.get(name, format)
            linears[name] = _linear(packed, widened(rows, format, packed), form.columns.get(name))
    return engine.Prepared(linears, vectors, engine.key_biases_of(config, vectors))


def _linear(format: Format, rows: Parts, columns: Array | None) -> engine.Linear:
    """format, rows [m, n] -> the function from x [T, n] to x w^T [T, m]"""

    def ordered(x: Array) -> Array:
        return x if columns is None else x[:, columns]

    if rows.scale is None:
        weights = pad(np.asarray(rows.code, np.float32), GROUP)
        return lambda x: matmul_floats(pad(ordered(x), GROUP), weights)
    width = -(-rows.code.shape[1] // max(format.group, GROUP)) * max(format.group, GROUP)
    groups = width // format.group
    code = _wide(rows.code, width).astype(np.int32)
    if rows.zero_point is not None:
        code = levels(code, _wide(rows.zero_point, groups))
    code = code - format.zero_point
    scale, offset = rows.scale.astype(np.float32), rows.offset
    if rows.sub_scale is not None:
        blocks = scale.shape[1] * _SUPER // format.group
        scale = super_scale(rows.scale, _wide(rows.sub_scale, blocks))
        if rows.offset is not None and rows.sub_min is not None:
            offset = -super_scale(rows.offset, _wide(rows.sub_min, blocks))
    scale = _wide(scale, groups)
    offset = None if offset is None else _wide(offset.astype(np.float32), groups)
    return lambda x: matmul_integers(_wide(ordered(x), width), code, scale, offset)


def _wide(values: Array, columns: int) -> Array:
    """values [n, m] -> [n, columns], with zeros, or with fewer columns"""
    return np.pad(values, ((0, 0), (0, max(0, columns - values.shape[1]))))[:, :columns]
