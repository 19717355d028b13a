"""Small models as GGUF files, and configs that llama.cpp accepts."""

import functools

import gguf
import numpy as np

from qwq_ref.config import Config
from qwq_ref.interop.llama_cpp.gguf import add_config
from tests.support.models import config_values


def small_config(**changes):
    """llama.cpp takes no model whose heads together are not as wide as the residual stream."""
    values = {"hidden_size": 192, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32}
    return Config.from_dict(config_values(intermediate_size=96, vocab_size=61, **values | changes))


def peer_config(**changes):
    """The smallest that has whole blocks of each format."""
    values = {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "vocab_size": 300,
        "rope_theta": 1e6,
    }
    return Config.from_dict(config_values() | values | changes)


def write_gguf(gguf, path, config, weights, kind="F32", fused=False, metadata=()):
    """A model without a vocabulary. Matrices are of the type `kind`, vectors float32, as in every GGUF file."""
    writer = gguf.GGUFWriter(path, "qwen2")
    add_config(writer, config)
    if config.rope.type == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(config.rope.factor)
        writer.add_rope_scaling_orig_ctx_len(config.rope.original_max_position_embeddings)
    for key, value in metadata:
        writer.add_float32(f"qwen2.{key}", value)
    tensors = {gguf_tensor_name(name): np.asarray(weights[name], np.float32) for name in config.tensors()}
    if fused:
        for layer in range(config.L):
            for leaf in ("weight", "bias"):
                parts = [tensors.pop(f"blk.{layer}.attn_{letter}.{leaf}") for letter in "qkv"]
                tensors[f"blk.{layer}.attn_qkv.{leaf}"] = np.concatenate(parts)
    for name, value in tensors.items():
        of = gguf.GGMLQuantizationType[kind if value.ndim == 2 else "F32"]
        writer.add_tensor(name, gguf.quants.quantize(value, of), raw_dtype=of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def fuse_qkv(found):
    """Make one tensor of q, k and v of each layer, and one of their biases, in what `write_types` writes."""
    for name in [name for name in found if ".attn_q." in name]:
        parts = [found.pop(name.replace(".attn_q.", f".attn_{letter}.")) for letter in "qkv"]
        found[name.replace(".attn_q.", ".attn_qkv.")] = (np.concatenate([data for data, _ in parts]), parts[0][1])


# Types of ggml that the core holds without loss, and others.
NATIVE = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL")
NATIVE_SUPER = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS")
# The place of float16 scales in a block -> the factor on a scale of 1. Other types have one at the beginning, or none.
_HALVES = {
    **{kind: {0: 1.0, 2: 8.0} for kind in ("Q4_1", "Q5_1", "Q4_K", "Q5_K")},
    **{"Q2_K": {80: 1.0, 82: 1.5}, "Q3_K": {108: 1.0}, "Q6_K": {208: 1.0}, "TQ2_0": {64: 100.0}, "MXFP4": {}},
}


def random_rows(gguf, kind, shape, rng):
    """Random blocks of a type, with weights of about 0.02: the bytes of each row [rows, bytes]."""
    if kind in ("F32", "F16", "BF16"):
        return gguf.quants.quantize(rng.normal(0, 0.02, shape).astype(np.float32), gguf.GGMLQuantizationType[kind])
    block, size = gguf.constants.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    data = rng.integers(0, 256, (shape[0], shape[1] // block, size), np.uint8)
    for at, factor in _HALVES.get(kind, {0: 1.0}).items():
        scale = rng.uniform(0.5, 1.5, (*data.shape[:2], 1)) * {"Q4_K": 1e-4, "Q5_K": 5e-5, "Q6_K": 2e-5}.get(kind, 2e-4)
        data[:, :, at : at + 2] = (scale * factor).astype("<f2").view(np.uint8)
    if kind == "MXFP4":  # an exponent
        data[:, :, 0] = 118 + data[:, :, 0] % 4
    return data.reshape(shape[0], -1)


def write_types(path, config, kind_of, *, seed=0, metadata=None, extra=None, shards=1, tensors=None):
    """Write a GGUF file of random blocks with the package's writer -> {GGUF's name: float32 array}, its own decoding.

    kind_of   from a GGUF name to the type of that matrix; vectors are F32
    metadata  called with the writer, to add fields
    extra     more tensors: GGUF's name -> float32 array
    shards    the number of files; `path` is then a function of the number
    tensors   changes the dict of GGUF's name -> (bytes, type) before it is written
    """
    rng = np.random.default_rng(seed)
    found = {}
    for name, shape in config.tensors().items():
        own = gguf_tensor_name(name)
        kind = kind_of(own) if len(shape) == 2 else "F32"
        if len(shape) == 1:
            found[own] = (rng.normal(1 if "norm" in own else 0, 0.1, shape).astype(np.float32), kind)
        else:
            found[own] = (random_rows(gguf, kind, shape, rng), kind)
    for name, value in (extra or {}).items():
        found[name] = (value, "F32")
    if tensors is not None:
        found = tensors(found) or found
    names = list(found)
    for i in range(shards):
        writer = gguf.GGUFWriter(path(i) if shards > 1 else path, "qwen2")
        if i == 0:
            add_config(writer, config)
            if metadata is not None:
                metadata(writer)
        if shards > 1:
            writer.add_uint16("split.no", i)
            writer.add_uint16("split.count", shards)
            writer.add_int32("split.tensors.count", len(names))
        for name in names[len(names) * i // shards : len(names) * (i + 1) // shards]:
            data, kind = found[name]
            writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[kind])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    decoded = {}
    for name, (data, kind) in found.items():
        if kind not in ("F64", "I32", "Q8_K"):  # the package decodes none of these
            with np.errstate(all="ignore"):
                decoded[name] = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind])
    return decoded


def gguf_tensor_name(name):
    """The name in a GGUF file of a tensor of the config, by the table of the gguf package."""
    return _names().get_name(name, try_suffixes=(".weight", ".bias"))


@functools.cache
def _names():
    return gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, 64)  # layers


def mixture(kinds):
    """A different type for every matrix, in turn: -> kind_of for `write_types`"""
    seen = {}
    return lambda name: seen.setdefault(name, kinds[len(seen) % len(kinds)])
