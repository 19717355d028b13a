"""The size of each file of QwQ-32B, and the memory that the engine needs for it: the first table of docs/models.md.

    python -m tests.tools.model_sizes

No weights are needed. llama.cpp chooses the type of each matrix of a GGUF file, in a dry run on a sparse file that has
QwQ-32B's header. The layouts of AWQ, GPTQ and MLX follow from their settings. The engine's planner counts the memory.
"""

import ctypes
import math
import os
import re
import tempfile
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

from qwq_ref.config import Config
from qwq_ref.core import Format
from qwq_ref.engine.fit import core_needs
from qwq_ref.engine.plan import step_bytes
from qwq_ref.formats.gguf.blocks import NATIVE
from qwq_ref.formats.gguf.kept import REPACKED
from qwq_ref.formats.gguf.names import gguf_name
from qwq_ref.formats.gguf.types import TYPES
from qwq_ref.formats.names import SHIPPED
from qwq_ref.forms import FORMS, FileForm
from qwq_ref.interop.llama_cpp.gguf import add_config

NAMES = ["Q2_K", "Q3_K_M", "IQ4_XS", "Q4_0", "Q4_K_M", "Q5_0", "Q5_K_M", "Q6_K", "Q8_0"]
CONTEXTS = (4096, 32768)
ENDS = ("model.embed_tokens.weight", "lm_head.weight")
KINDS = {kind.name: kind for kind in TYPES.values()}
# Files of safetensors -> bits of a weight in the layers and at the ends, and the formats that the engine keeps there.
CHECKPOINTS = {
    "AWQ, GPTQ 4 bits": (4 + (16 + 4) / 128, 16, Format("u4", 128, "zero"), Format("fp16", 0)),
    "MLX 3 bits": (3.5, 3.5, *(Format("u4", 64, "offset_bf16"),) * 2),
    "MLX 4 bits": (4.5, 4.5, *(Format("u4", 64, "offset_bf16"),) * 2),
    "MLX 6 bits": (6.5, 6.5, *(Format("u6", 64, "offset_bf16"),) * 2),
    "MLX 8 bits": (8.5, 8.5, *(Format("u8", 64, "offset_bf16"),) * 2),
}


def sparse(config, path):
    """Write a GGUF file in BF16 whose tensors are holes."""
    writer, size = gguf.GGUFWriter(path, "qwen2"), 0
    add_config(writer, config)
    for name, shape in config.tensors().items():
        kind, nbytes = ("F32", 4) if len(shape) == 1 else ("BF16", 2)
        count = math.prod(shape) * nbytes
        writer.add_tensor_info(gguf_name(name), shape, np.dtype("f4"), count, gguf.GGMLQuantizationType[kind])
        size += -(-count // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    os.truncate(path, -(-path.stat().st_size // 32) * 32 + size)


def types(path, name):
    """-> {GGUF's name of a matrix: type}, as llama.cpp would choose them for a file"""
    log = []

    @ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
    def told(level, text, data):
        log.append(text.decode())

    how = llama_cpp.llama_model_quantize_default_params()
    how.ftype, how.nthread, how.dry_run = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}"), 1, True
    llama_cpp.llama_log_set(told, None)
    if llama_cpp.llama_model_quantize(os.fsencode(path), os.fsencode(path.with_name("none.gguf")), how):
        raise SystemExit(f"llama.cpp does not quantise to {name}")
    return dict(re.findall(r"\] (\S+\.weight) .*\((\w+)\)\n", "".join(log)))


def of_gguf(config, path, name):
    """-> bytes of the file without its vocabulary, and the engine's form of it"""
    kinds = {gguf: kind.upper() for gguf, kind in types(path, name).items()}
    size, formats = 0, {}
    for own, shape in config.tensors().items():
        kind = KINDS[kinds[gguf_name(own)] if len(shape) == 2 else "F32"]
        size += math.prod(shape) // kind.block * kind.nbytes
        if len(shape) == 2:
            formats[own] = NATIVE.get(kind.name, REPACKED)
    return size, FileForm(formats, "int8")


def of_checkpoint(config, layers, ends, of_layers, of_ends):
    size, formats = 0.0, {}
    for own, shape in config.tensors().items():
        bits = 16 if len(shape) == 1 else ends if own in ENDS else layers
        size += math.prod(shape) * bits / 8
        if len(shape) == 2:
            formats[own] = of_ends if own in ENDS else of_layers
    return size, FileForm(formats, "int8")


def row(config, name, size, form, kv):
    """-> the cells of a row: name, file, memory for each context, tokens/s where memory gives 50 GB/s, and modes"""
    needs = core_needs(config, form, kv)
    memory = [f"{sum(needs(context).values()) / 2**30:.1f} GiB" for context in CONTEXTS]
    speed = 50e9 / step_bytes(config, form)
    return [name, f"{size / 1e9:.1f} GB", *memory, f"{speed:.1f}", f"`{form}`, {kv}"]


def rows():
    config = Config.from_file(SHIPPED / "qwq-32b/config.json")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "bf16.gguf")
        sparse(config, path)
        for name in NAMES:
            yield row(config, name, *of_gguf(config, path, name), "int8")
    for name, settings in CHECKPOINTS.items():
        yield row(config, name, *of_checkpoint(config, *settings), "int8")
    whole = sum(2 * math.prod(shape) for shape in config.tensors().values())
    for form, kept in FORMS.items():
        yield row(config, "bf16", whole, form, kept.kv)


if __name__ == "__main__":
    print(
        "| type | file | memory at 4,096 | at 32,768 | tokens/s at most | computed in |\n|---|---:|---:|---:|---:|---|"
    )
    for cells in rows():
        print(f"| {' | '.join(cells)} |", flush=True)
