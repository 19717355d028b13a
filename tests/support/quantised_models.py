"""Quantised checkpoints in safetensors, packed by code written from the published layouts, with their float32 values.

Codes are put into words one by one, as Python integers, and the values are computed from codes, not from words.
"""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from qwq_ref.errors import ConfigError
from qwq_ref.formats import open_source
from tests.support.models import config_values

BF16 = ml_dtypes.bfloat16
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
CONFIG = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}


def values_of(**changes):
    """config.json of a model whose sizes are multiples of 32, pairwise distinct."""
    sizes = {"vocab_size": 96, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
    return config_values(**sizes, num_attention_heads=5, num_key_value_heads=1, head_dim=32) | changes


def words_of(codes, bits):
    """codes [n, m] -> uint32 [n, m bits / 32]: one little-endian stream of bits for each row."""
    rows = []
    for row in codes.tolist():
        number = sum(code << bits * place for place, code in enumerate(row))
        rows.append([number >> 32 * i & 0xFFFFFFFF for i in range(len(row) * bits // 32)])
    return np.array(rows, np.uint32)


def awq_words(codes):
    """codes [m, n] -> int32 [m, n / 8]: nibble i of word c is column 8 c + AWQ_ORDER[i]"""
    words = np.zeros((codes.shape[0], codes.shape[1] // 8), np.uint32)
    for c in range(words.shape[1]):
        for i, column in enumerate(AWQ_ORDER):
            words[:, c] |= codes[:, 8 * c + column].astype(np.uint32) << np.uint32(4 * i)
    return words.view(np.int32)


def scales_of(rng, shape, dtype=np.float16, bits=4):
    return (rng.uniform(0.5, 1.5, shape) * 0.064 / (1 << bits)).astype(dtype)


def zeros_of(rng, shape, least, most):
    """Zero points near the middle, as in real files, so that rows have a mean near 0.

    Some rows with several groups have all other zero points, too.
    """
    middle = (least + most + 1) // 2
    z = rng.integers(max(least, middle - 2), min(most, middle + 2) + 1, shape)
    if shape[0] > 1:
        z[:, 5:9] = rng.integers(least, most + 1, (shape[0], 4))
        z[:, 9:11] = least, most
    return z


def awq_matrix(rng, N, K, group=32):
    """-> ({leaf: array}, float32 [N, K])"""
    group = K if group == -1 else group
    of = np.arange(K) // group
    q, z = rng.integers(0, 16, (K, N)), zeros_of(rng, (of[-1] + 1, N), 0, 15)
    s = scales_of(rng, z.shape)
    weights = (q - z[of]).astype(np.float32) * s[of].astype(np.float32)
    return {"qweight": awq_words(q), "qzeros": awq_words(z), "scales": s}, np.ascontiguousarray(weights.T)


def shuffled(rng, K):
    return rng.permutation(K)


def one_less(z, bits):
    """z [n, m] -> uint32 [n, m bits / 32]: zero points minus 1, subtracted from whole words where codes fill words"""
    if 32 % bits:
        return words_of(z - 1 & (1 << bits) - 1, bits)
    ones = sum(1 << place for place in range(0, 32, bits))
    return words_of(z, bits) - np.uint32(ones)


def gptq_matrix(rng, N, K, group=32, bits=4, version=1, order=None, symmetric=False, groups=True, least=0):
    """-> ({leaf: array}, float32 [N, K])

    order  from (rng, K) to a permutation of columns: the one at place i is of group i // group
    least  the smallest zero point
    """
    group = K if group == -1 else group
    of = np.arange(K) // group
    if order is not None:
        of[order(rng, K)] = np.arange(K) // group
    most, shape = (1 << bits) - 1, (of.max() + 1, N)
    q = rng.integers(0, most + 1, (K, N))
    z = np.full(shape, (most + 1) // 2)
    if not symmetric:
        z = zeros_of(rng, shape, least, most)
    s = scales_of(rng, shape, bits=bits)
    stored = one_less(z, bits) if version == 1 else words_of(z, bits)
    tensors = {"qweight": words_of(q.T, bits).T.copy().view(np.int32), "qzeros": stored.view(np.int32)}
    tensors |= {"scales": s} | ({"g_idx": of.astype(np.int32)} if groups else {})
    weights = (q - z[of]).astype(np.float32) * s[of].astype(np.float32)
    return tensors, np.ascontiguousarray(weights.T)


def mlx_matrix(rng, N, K, group=64, bits=4, dtype=np.float16):
    """-> ({leaf: array}, float32 [N, K])"""
    of = np.arange(K) // group
    q = rng.integers(0, 1 << bits, (N, K))
    s = scales_of(rng, (N, of[-1] + 1), dtype, bits)
    if dtype == BF16:
        s[3:6] *= dtype(2.0**-20)  # float16 has no such numbers
    b = (-s.astype(np.float32) * ((1 << bits) - 1) / 2 * rng.uniform(0.8, 1.2, s.shape)).astype(dtype)
    weights = s.astype(np.float32)[:, of] * q.astype(np.float32) + b.astype(np.float32)[:, of]
    return {"weight": words_of(q, bits), "scales": s, "biases": b}, weights


def model(config, matrix, quantised=lambda name: ".layers." in name, seed=0, dtype=np.float16):
    """Random weights of a config -> ({the file's name: array}, {name of `Config.tensors`: float32 array})

    matrix     from (rng, N, K) of a quantised matrix to its tensors and values
    quantised  whether a matrix of this name is quantised
    """
    rng, tensors, values = np.random.default_rng(seed), {}, {}
    for name, shape in config.tensors().items():
        module = name.rpartition(".")[0]
        if len(shape) == 2 and quantised(name):
            leaves, values[name] = matrix(rng, *shape)
            tensors |= {f"{module}.{leaf}": value for leaf, value in leaves.items()}
        else:
            value = rng.normal(1 if "norm" in name else 0, 0.05, shape).astype(dtype)
            tensors[name], values[name] = value, value.astype(np.float32)
    return tensors, values


def write(folder, config, tensors, settings=None, *, key="quantization_config", file=None, shards=1):
    """Write a checkpoint's folder.

    settings  of the quantisation, under `key` of config.json, or in `file`
    """
    folder.mkdir(exist_ok=True, parents=True)
    own = {} if settings is None or file else {key: settings}
    (folder / "config.json").write_text(json.dumps(config.to_dict() | own))
    if file:
        (folder / file).write_text(json.dumps(settings))
    names = sorted(tensors)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    index = {}
    for i in range(shards):
        shard = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[i::shards]}
        save_file(part, folder / shard)
        index |= dict.fromkeys(part, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


def refuses_settings(folder, key, changes, field, words):
    """Change what config.json says of the quantisation: opening names the file and the field."""
    path = folder / "config.json"
    values = json.loads(path.read_text())
    values[key] |= changes
    path.write_text(json.dumps(values))
    with pytest.raises(ConfigError) as caught:
        open_source(folder)
    assert caught.value.file == str(path)
    assert caught.value.field == f"{key}.{field}"
    assert words in caught.value.problem
