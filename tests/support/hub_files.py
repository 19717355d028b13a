"""A small checkpoint as the files of a repository in the hub, among files that are not read."""

import json

from tests.support.hub_server import LARGE
from tests.support.safetensors_files import INDEX, VALUES, WEIGHTS, split, weights_file
from tests.support.small_tokenizer import TEMPLATE
from tests.support.small_tokenizer import VALUES as TOKENIZER

SHARDS = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
SMALL = {
    "generation_config.json": {"do_sample": True, "temperature": 0.6, "top_k": 40, "top_p": 0.95},
    "tokenizer.json": TOKENIZER,
    "tokenizer_config.json": {},
    "chat_template.jinja": TEMPLATE,
}
# Names that repositories have beside what is read.
UNREAD = (
    "README.md",
    ".gitattributes",
    "LICENSE",
    "vocab.json",
    "merges.txt",
    "trainer_state.json",
    "pytorch_model.bin",
    "x-q4_k_m.gguf",
    "original/model.safetensors",
    "model.fp16.safetensors",
    "onnx/model.onnx",
    "consolidated.00.pth",
)


def published(sharded=True, small=SMALL, unread=UNREAD, config=VALUES):
    """The files of a repository: name -> bytes."""
    files = dict.fromkeys(unread, b"never read" * LARGE)
    for name, value in {"config.json": config, **small}.items():
        files[name] = value.encode() if isinstance(value, str) else json.dumps(value).encode()
    if not sharded:
        return files | {"model.safetensors": weights_file(WEIGHTS)}
    shards, weight_map = split()
    files |= {SHARDS[shard]: weights_file(weights) for shard, weights in shards.items()}
    weight_map = {name: SHARDS[shard] for name, shard in weight_map.items()}
    return files | {INDEX: json.dumps({"weight_map": weight_map}).encode()}


def held(folder):
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
