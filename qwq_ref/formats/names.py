"""The names of the files that a model's folder holds."""

from __future__ import annotations

import re
from pathlib import Path

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD = re.compile(r"model-\d+-of-(\d+)\.safetensors")

SHIPPED = Path(__file__).parents[1] / "models"
ONLY_CONFIGS = {"qwq-32b": "Qwen/QwQ-32B"}  # shipped without weights -> the hub id of the weights

UNFINISHED = ".unfinished-"  # and a name: the hidden folder of files that are being written
MANIFEST = "qwq-manifest.json"  # sizes and checksums of the files that `qwq convert` wrote
HF = "hf"  # the name of a conversion to a checkpoint of floats

TOKENIZER_GGUF = "tokenizer.gguf"  # metadata of the GGUF file that packed weights were made from
_PACKED = re.compile(r"packed-([a-z0-9]+)\.safetensors")


def packed_name(form: str) -> str:
    """The name of the file that holds packed weights of one weight form."""
    return f"packed-{form}.safetensors"


def packed_form(name: str) -> str | None:
    """The weight form that a file's name tells; None for a file of another kind."""
    match = _PACKED.fullmatch(name)
    return match and match[1]
