"""Small checkpoints and safetensors files, byte by byte, good and broken."""

import json
import tracemalloc
from contextlib import contextmanager

from qwq_ref.config import Config
from tests.support.models import config_values, random_weights

INDEX = "model.safetensors.index.json"
VALUES = config_values(num_hidden_layers=1, vocab_size=11, hidden_size=6, intermediate_size=9, head_dim=2)
CONFIG = Config.from_dict(VALUES)
WEIGHTS = random_weights(CONFIG, seed=0)
EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


def pack(header, data=b"", length=None):
    """A file's bytes; `header` is a dict, or the text itself where no dict could say it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def weights_file(weights):
    header, data = {}, b""
    for name, value in weights.items():
        header[name] = entry("F32", list(value.shape), len(data), len(data) + value.nbytes)
        data += value.tobytes()
    return pack(header, data)


def write(folder, shards, weight_map=None, values=VALUES):
    """A checkpoint folder. `shards`: {file: {name: array} or bytes}; a single file needs no index."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    for shard, weights in shards.items():
        (folder / shard).write_bytes(weights if isinstance(weights, bytes) else weights_file(weights))
    if weight_map is not None:
        (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return folder


def split():
    """({"a": half of the weights, "b": the rest}, weight_map)."""
    names = list(WEIGHTS)
    shards = {"a": {n: WEIGHTS[n] for n in names[::2]}, "b": {n: WEIGHTS[n] for n in names[1::2]}}
    return shards, {name: shard for shard, weights in shards.items() for name in weights}


def many(value):
    text = ",".join(f'"{i}":{value}' for i in range((1 << 20) // (len(value) + 10)))
    return b"{" + text.encode() + b"}"


@contextmanager
def peak_memory(limit):
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()
