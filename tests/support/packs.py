"""A small model, packs of it, and ways to break them."""

import copy
import functools
import json

import jsonschema
import numpy as np
from hypothesis import strategies as st

from qwq_ref import spec
from qwq_ref.config import Config
from qwq_ref.errors import (
    GoldenError,
)
from qwq_ref.oracle import Golden
from qwq_ref.oracle.graph import (
    phases_of,
)
from qwq_ref.oracle.packs import vector_cases
from qwq_ref.spec import forward
from qwq_ref.spec.ops import to_bf16
from tests.support import hf, refusals
from tests.support.models import (
    config_values,
    random_weights,
)
from tests.support.paths import DOCS

PRECISIONS = {"fp32": np.float32, "bf16": "bfloat16", "fp16": "float16"}  # as a pack names them, and as the spec does
VALUES = config_values(num_hidden_layers=2, vocab_size=31, hidden_size=12, intermediate_size=20, head_dim=4)
CONFIG = Config.from_dict(VALUES)
IDS, DECODE = [3, 1, 4, 1, 5, 9, 2], 2
PHASES = phases_of(IDS, DECODE)
LAST = f"model.layers.{CONFIG.L - 1}."
seeds = st.integers(0, 2**31)


def loud(config, seed=0):
    """Weights that show every operation: matrices keep the size of their input. bfloat16 holds them exactly."""
    rng = np.random.default_rng(seed)
    weights = random_weights(config, seed)
    for name, shape in config.tensors().items():
        if len(shape) == 2 and "embed" not in name:
            weights[name] = rng.standard_normal(shape).astype(np.float32) / np.sqrt(np.float32(shape[-1]))
        elif name.endswith("bias"):
            weights[name] = rng.standard_normal(shape).astype(np.float32) / 2
    return {name: to_bf16(value) for name, value in weights.items()}


WEIGHTS = loud(CONFIG)


def spec_run(config, weights, phases, dtype=np.float32):
    """Run the spec, phase by phase with a cache -> {phase: {tap: array}}"""
    seen, cache = {}, None
    for phase in phases:
        seen[phase.name], cache = hf.spec_taps(forward, config, weights, phase.ids, cache, dtype=dtype)
    return seen


def manifest_of(folder):
    with Golden.open(folder) as golden:
        return golden.manifest


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@functools.cache
def truth():
    return spec_run(CONFIG, WEIGHTS, PHASES, np.float64)


refused = functools.partial(refusals.refused, GoldenError, 700)


def interrupt(error_type, after, *arguments):
    """Return a function that raises at its n-th call."""
    calls = []

    def call(*_):
        calls.append(1)
        if len(calls) > after:
            raise error_type(*arguments)

    return call


def bin_and_sign(i):
    """SplitMix64 with seed 0, in Python's integers."""
    mask = (1 << 64) - 1
    z = (i + 1) * 0x9E3779B97F4A7C15 & mask
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
    z = z ^ (z >> 31)
    return z & 63, -1 if z >> 63 else 1


def validator(name):
    values = json.loads((DOCS / name).read_text())
    jsonschema.Draft202012Validator.check_schema(values)
    return jsonschema.Draft202012Validator(values)


GONE = object()


def changed(values, path, value):
    """Copy nested dicts and lists, and set one place, or remove it for GONE."""
    values = copy.deepcopy(values)
    inner = values
    for key in path[:-1]:
        inner = inner[key]
    if value is GONE:
        del inner[path[-1]]
    elif isinstance(inner, list) and path[-1] == len(inner):
        inner.append(value)
    else:
        inner[path[-1]] = value
    return values


QROPE = "model.layers.0.self_attn.q_rope"


def blob(header, data=b""):
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def rewrite(path, change):
    """Rewrite a safetensors file after change({tap: array}), which works in place."""
    data = path.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    tensors = {}
    for tap, entry in json.loads(data[8:begin]).items():
        if tap != "__metadata__":
            first, last = entry["data_offsets"]
            tensors[tap] = np.frombuffer(data[begin + first : begin + last], "<f4").reshape(entry["shape"]).copy()
    change(tensors)
    header, end = {}, 0
    for tap, array in tensors.items():
        kind = {"float32": "F32", "float16": "F16", "int32": "I32"}[array.dtype.name]
        header[tap] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    path.write_bytes(blob(header, b"".join(array.tobytes() for array in tensors.values())))


def set_value(tap, index, value):
    def change(tensors):
        tensors[tap][index] = value

    return change


def replace(tap, function):
    def change(tensors):
        tensors[tap] = function(tensors[tap])

    return change


OPS = {
    "embed": lambda ids, w: spec.embed(ids, w),
    "linear": spec.linear,
    "rmsnorm": spec.rmsnorm,
    "rope": spec.rope,
    "rope_tables": lambda inv_freq, scaling, positions: spec.rope_tables(inv_freq, scaling, positions, np.float32),
    "softmax": spec.softmax,
    "attention_scores": spec.ops.attention_scores,
    "attention_heads": spec.ops.attention_heads,
    "attention": spec.attention,
    "swiglu": spec.swiglu,
}


@functools.cache
def all_cases():
    return list(vector_cases.cases())
