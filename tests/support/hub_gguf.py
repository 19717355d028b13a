"""Small GGUF models with a tokenizer, as the files of a repository in the hub."""

import functools
import tempfile
from pathlib import Path

from tests.support.gguf_models import peer_config, write_types
from tests.support.gguf_text import metadata
from tests.support.small_tokenizer import SIZE, TEMPLATE, VALUES

CONFIG = peer_config(num_hidden_layers=1, vocab_size=SIZE + 5)
TYPES = ("q2_k", "q4_k_m", "q8_0")
KINDS = {"q2_k": "Q2_K", "q4_k_m": "Q4_K", "q8_0": "Q8_0", "bf16": "BF16"}
# What the repositories of the hub hold beside models.
UNREAD = ("README.md", ".gitattributes", "imatrix.dat", "imatrix_x.gguf", "mmproj-F16.gguf", "sub/mmproj-m-f16.gguf")


def text_fields(writer, template=TEMPLATE):
    for key, value in metadata(VALUES, SIZE + 5).items():
        if key == "general.architecture":
            continue
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            writer.add_string(key, value)
    writer.add_uint32("tokenizer.ggml.eos_token_id", 0)
    if template is not None:
        writer.add_chat_template(template)


@functools.cache
def model(kind="q4_k_m", shards=1, template=TEMPLATE, seed=0):
    """The bytes of each file of a model, in the order of its shards."""
    with tempfile.TemporaryDirectory() as folder:
        names = [Path(folder, f"m-{i + 1:05d}-of-{shards:05d}.gguf") for i in range(shards)]
        path = (lambda i: names[i]) if shards > 1 else names[0]
        fields = functools.partial(text_fields, template=template)
        write_types(path, CONFIG, lambda _: KINDS[kind], seed=seed, metadata=fields, shards=shards)
        return tuple(name.read_bytes() for name in names)


def repository(kinds=TYPES, name="m-{}.gguf", unread=UNREAD):
    """The files of a repository with one file of each type."""
    return dict.fromkeys(unread, b"never read") | {name.format(kind): model(kind)[0] for kind in kinds}


def in_shards(stem, kind="bf16", count=2):
    return {f"{stem}-{i + 1:05d}-of-{count:05d}.gguf": data for i, data in enumerate(model(kind, count))}
