"""One layer of QwQ-32B's width over 131,072 tokens with YaRN: how fast, and rows of it against the spec in float64.

python -m tests.tools.long_context [TOKENS]

Weights are random, packed to q4, and those of the spec are the same, unpacked; the cache is int8. Queries are three
times as large as keys, so that a row attends to some tens of tokens rather than to all alike. The vocabulary is cut to
4,096: a row of the head depends on no other. All 512 rows are computed of eight chunks, and three of these compared
with the spec with YaRN and without: the second has to be wrong. Of other tokens a single layer needs keys and values
only. 131,072 tokens take some minutes on two cores, and 8 GB of memory.
"""

import dataclasses
import sys
import time

import numpy as np

from qwq_ref import core
from qwq_ref.config import Config
from qwq_ref.engine.backends import ALL, LAST
from qwq_ref.engine.backends.core import CHUNK, CoreBackend
from qwq_ref.engine.packing import pack_weights
from qwq_ref.host.limits import cpus
from qwq_ref.numerics import quant
from qwq_ref.spec import Scope, block, norm, ops, projection
from tests.support.paths import QWQ_CONFIG

AT_A_TIME = 4096  # tokens whose keys and values are computed at once


def random_weights(config, rng):
    weights = {}
    for name, shape in config.tensors().items():
        w = rng.standard_normal(shape, np.float32)
        if name.endswith("norm.weight"):
            w = 1 + 0.1 * w
        elif len(shape) == 2 and "embed" not in name:
            w *= np.float32((3 if "q_proj" in name else 1) * shape[1] ** -0.5)
        weights[name] = w
    return weights


def meant(w, form):
    """What a weight is after packing, in float64."""
    code, scale = (core.quantise_q4 if form == "q4" else core.quantise_q8)(w, threads=cpus())
    levels = quant.CODEBOOK[code] if form == "q4" else code
    return quant.dequantise(levels, scale).astype(np.float64)


def keys_and_values(config, layer, ids, embedding, cos, sin):
    """Keys and values of all tokens, [S, K, E] each, in float64: as `spec.block` computes them."""
    k, v = np.empty((2, len(ids), config.K, config.E))
    attn = layer.inside("self_attn")
    for start in range(0, len(ids), AT_A_TIME):
        part = slice(start, start + AT_A_TIME)
        x = norm(config, layer, "input_layernorm", embedding[ids[part]])
        for name, to in (("k", k), ("v", v)):
            to[part] = projection(attn, name, x).reshape(-1, config.K, config.E)
        k[part] = ops.rope(k[part], cos[part], sin[part])
    return k, v


def rows(config, weights, ids, wanted):
    """Position -> the spec's logits there."""
    packed = {name: meant(w, "q4") if w.ndim == 2 else w for name, w in weights.items() if ".layers." in name}  # 4 GB
    layer = Scope(packed, "model.layers.0.", np.float64)
    embedding = ops.to_bf16(weights["model.embed_tokens.weight"]).astype(np.float64)
    head = meant(weights["lm_head.weight"], "q8")
    inv_freq = ops.rope_frequencies(config.rope, config.E)
    cos, sin = ops.rope_tables(inv_freq, config.rope.attention_scaling, np.arange(len(ids)), np.float64)
    k, v = keys_and_values(config, layer, ids, embedding, cos, sin)
    for row in wanted:
        one = slice(row, row + 1)
        visible = np.ones((1, row + 1), bool)
        x, _ = block(config, layer, embedding[ids[one]], cos[one], sin[one], visible, (k[:row], v[:row]))
        x = ops.rmsnorm(x, weights["model.norm.weight"].astype(np.float64), config.rms_norm_eps)
        yield row, ops.linear(x, head)[0]


def main():
    tokens = int(sys.argv[1]) if len(sys.argv) > 1 else 131_072
    config = Config.from_file(QWQ_CONFIG)
    config = dataclasses.replace(config, num_hidden_layers=1, vocab_size=4096, layer_types=config.layer_types[:1])
    yarn = {"rope_theta": config.rope.theta, "rope_type": "yarn", "factor": 4.0}
    yarn |= {"original_max_position_embeddings": 32768}
    plain, config = config, config.with_rope(yarn, "this script")
    rng = np.random.default_rng(0)
    weights, ids = random_weights(config, rng), rng.integers(0, config.V, tokens)
    backend = CoreBackend(config, pack_weights(config, weights, "q4", cpus()), tokens, "int8", threads=cpus())

    ours, sequence, first = {}, backend.sequence(), None
    print(config.rope, backend.description, sep="\n")
    print(f"{'position':>9}{'prompt tokens/s':>17}{'of the first':>14}", flush=True)
    for start in range(0, tokens, CHUNK):
        chunk = ids[start : start + CHUNK]
        if start + len(chunk) not in (512, 4096, 8192, 32768, 40960, 65536, 131072, tokens):
            backend.run(chunk, sequence, LAST)
            continue
        for _ in range(2):  # the first time pages are touched; then it is rolled back
            sequence.rollback(start)
            begun = time.perf_counter()
            logits = backend.run(chunk, sequence, ALL)
            speed = len(chunk) / (time.perf_counter() - begun)
        first = first or speed
        print(f"{start + len(chunk):>9}{speed:>17.1f}{speed / first:>14.0%}", flush=True)
        ours |= {start + row: logits[row] for row in (0, len(chunk) // 2, len(chunk) - 1)}
    wanted = sorted(ours)
    right, wrong = (dict(rows(c, weights, ids, wanted)) for c in (config, plain))
    print(f"{'position':>9}{'NMSE':>12}{'same top':>10}{'without YaRN':>14}")
    for row in wanted:
        nmse = [np.sum((ours[row] - true[row]) ** 2) / np.sum(true[row] ** 2) for true in (right, wrong)]
        same = ours[row].argmax() == right[row].argmax()
        print(f"{row:>9}{nmse[0]:>12.1e}{same!s:>10}{nmse[1]:>14.1e}", flush=True)


if __name__ == "__main__":
    main()
