"""The loss of each type of GGUF files, and of the engine's own forms, on a real model.

    python -m tests.tools.type_quality MODEL.gguf [FOLDER] [--chunks N] [--types Q4_K_M,...]

A quantised file lies on a grid, which would favour the types that have the same grid. So the original here is the
file's weights plus noise: uniform within half a step of each weight's own grid, as rounding leaves it. llama.cpp
quantises the original to each type, and `qwq perplexity` compares the engine on that file with the engine on the
original in bf16. The text is Python and English of this repository. FOLDER keeps the original, and one more file at a
time.
"""

import argparse
import ctypes
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np

from qwq_ref.engine.plan import model_bytes
from qwq_ref.footprint import parameters
from qwq_ref.formats.gguf import GGUFSource
from qwq_ref.formats.gguf.names import gguf_name
from qwq_ref.formats.parts import dequantised
from tests.tools.cache_loss import own_text

TYPES = ["Q8_0", "Q6_K", "Q5_K_M", "Q5_0", "Q4_K_M", "Q4_0", "Q4_1", "IQ4_NL", "IQ4_XS", "Q3_K_M", "Q3_K_S", "Q2_K"]
FORMS = [("bf16", "int8"), ("q8", "int8"), ("q4", "int8")]
ROWS = 1024  # of a matrix at a time


def noisy(source, name, rng):
    """-> bfloat16 [N, K]: the weights of a matrix, anywhere in the cells of their grid."""
    found, (N, _), format = [], source.places[name].shape, source.kept.form.formats[name]
    for begin in range(0, N, ROWS):
        rows = source.kept.parts(name, begin, min(begin + ROWS, N))
        weights = dequantised(format, rows)
        if rows.scale is not None:
            levels = rows.code.astype(np.int16)
            step = dequantised(format, replace(rows, code=levels + 1)) - weights
            weights += step * rng.uniform(-0.5, 0.5, weights.shape).astype(np.float32)
        found.append(weights.astype(ml_dtypes.bfloat16))
    return np.concatenate(found)


def write_original(model, path):
    """Write the original as a GGUF file in BF16, with the metadata of the model's file."""
    import gguf

    reader, rng = gguf.GGUFReader(model), np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "qwen2")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue
        kind = field.types[0]
        writer.add_key_value(
            field.name, field.contents(), kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        )
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    with GGUFSource.open(model) as source:
        for name, place in source.places.items():
            if len(place.shape) == 1:
                writer.add_tensor(gguf_name(name), source[name])
            else:
                bits = noisy(source, name, rng).view(np.uint8)
                writer.add_tensor(gguf_name(name), bits, raw_dtype=gguf.GGMLQuantizationType.BF16)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    writer.close()


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def silent(level, text, data):
    """Take llama.cpp's log."""


def quantise(original, path, type_, threads):
    import llama_cpp

    how = llama_cpp.llama_model_quantize_default_params()
    how.ftype, how.nthread = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{type_}"), threads
    llama_cpp.llama_log_set(silent, None)
    if llama_cpp.llama_model_quantize(str(original).encode(), str(path).encode(), how):
        raise SystemExit(f"llama.cpp does not quantise to {type_}")


def perplexity(*words):
    command = [sys.executable, "-m", "qwq_ref", "perplexity", "--json", *map(str, words)]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


def row(name, size, weights, found):
    far = found["divergence"]
    ratio = np.exp(far["ln_ratio"]["value"]) - 1
    print(
        f"| {name} | {size / 1e6:.0f} MB | {8 * size / weights:.2f} | {far['mean_kld']['value']:.4f} "
        f"| {far['same_top']['value']:.1%} | {ratio:+.2%} |",
        flush=True,
    )


def main(model, folder, chunks, types, threads):
    original, base, text = folder / "original.gguf", folder / "base.klb", folder / "text"
    text.write_text("".join(part[: 2048 * chunks] for part in own_text()), encoding="utf-8")
    if not original.exists():
        write_original(model, original)
    with GGUFSource.open(original) as source:
        config = source.config
    weights = parameters(config)
    how = ["-t", threads]
    first = perplexity("-m", original, "--weights", "bf16", "-f", text, "--chunks", chunks, "--kl-base", base, *how)
    print(f"{model.name}, perplexity {first['ppl']['value']:.3f} on {first['tokens']} tokens, {first['backend']}\n")
    print("| weights | file | bits | KLD | same top | perplexity |\n|---|---:|---:|---:|---:|---:|")
    for form, kv in FORMS:
        found = perplexity("-m", original, "--weights", form, "--kv", kv, "--kl", base, *how)
        row(f"{form}, cache {kv}", model_bytes(config, form), weights, found)
    for type_ in types:
        path = folder / f"{type_}.gguf"
        quantise(original, path, type_, threads)
        row(type_, path.stat().st_size, weights, perplexity("-m", path, "--weights", "file", "--kl", base, *how))
        path.unlink()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--chunks", type=int, default=4)
    parser.add_argument("--types", default=",".join(TYPES))
    parser.add_argument("-t", "--threads", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        main(options.model, options.folder or Path(scratch), options.chunks, options.types.split(","), options.threads)
