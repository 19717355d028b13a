"""Names of tensors in GGUF files, and of the files of one model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..names import TOKENIZER_GGUF

_OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_IN_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
EMBEDDING, HEAD = "token_embd.weight", "output.weight"
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
MOST_SHARDS = 1000


def gguf_name(name: str) -> str:
    """Return the name in a GGUF file of a tensor of `Config.tensors`."""
    module, leaf = name.rsplit(".", 1)
    if module in _OUTSIDE:
        return f"{_OUTSIDE[module]}.{leaf}"
    _, _, layer, inner = module.split(".", 3)  # model.layers.7.mlp.up_proj
    return f"blk.{layer}.{_IN_LAYER[inner]}.{leaf}"


def fused_name(name: str) -> tuple[str, str] | None:
    """Return the name of the tensor that holds q, k and v after one another, and which of them a tensor is."""
    module, leaf = name.rsplit(".", 1)
    match = re.fullmatch(r"model\.layers\.(\d+)\.self_attn\.([qkv])_proj", module)
    return match and (f"blk.{match[1]}.attn_qkv.{leaf}", match[2])


def shard_of(name: str) -> tuple[str, int, int] | None:
    """Return the stem, the number from 1 on and the count of a shard's file name; None for another name."""
    match = _SHARD.fullmatch(name)
    return match and (match["stem"], int(match["number"]), int(match["count"]))


def shard_name(stem: str, number: int, count: int) -> str:
    return f"{stem}-{number:05d}-of-{count:05d}.gguf"


def models_in(names: Iterable[str]) -> Mapping[str, list[str]]:
    """Return the models among the names of files: the file to open -> the files that are there of it.

    Of a model in shards, the first shard is opened. Projectors of images are no models of text, and neither are the
    measurements of activations by which some types are made.

    names  of one folder, or relative ones that end in the files' own
    """
    models: dict[str, list[str]] = {}
    for name in sorted(names):
        own = name.rpartition("/")[2]
        if own.endswith(".gguf") and not own.startswith(("mmproj", "imatrix", ".")) and own != TOKENIZER_GGUF:
            shard = shard_of(name)
            models.setdefault(shard_name(shard[0], 1, shard[2]) if shard else name, []).append(name)
    return models


def model_in(folder: Path) -> Path | None:
    """Return the one GGUF model of a folder; None if it holds none, or several."""
    models = models_in(entry.name for entry in folder.iterdir())
    return folder / next(iter(models)) if len(models) == 1 else None
