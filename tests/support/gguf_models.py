"""Small models as GGUF files, and configs that llama.cpp accepts."""

import numpy as np

from qwq_ref.config import Config
from qwq_ref.interop.llama_cpp.gguf import GGUF_NAMES, add_config
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
    tensors = {}
    for name in config.tensors():
        module, leaf = name.rsplit(".", 1)
        parts = module.split(".", 3)
        layer = f"blk.{parts[2]}." if len(parts) == 4 else ""
        tensors[f"{layer}{GGUF_NAMES[parts[3] if layer else module]}.{leaf}"] = np.asarray(weights[name], np.float32)
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
