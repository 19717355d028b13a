"""Measure how long models take to load.

python -m tests.tools.load_time checkpoint FOLDER [--base TREE] [--weights bf16] [--turns 5]
python -m tests.tools.load_time packed FOLDER [--layers 8]
python -m tests.tools.load_time gguf [FILE]
python -m tests.tools.load_time awq FOLDER          (also gptq, mlx)

`checkpoint` writes a bfloat16 checkpoint of Qwen2.5-0.5B's shape with random weights (0.99 GB) and loads it with this
package, with transformers, and with the package of another source tree. Each load runs in a process of its own, which
imports everything first. It is timed until all pages of the weights have been touched, and until the logits of one
token are there. The processes take turns.

`packed` writes a file of QwQ-32B's shape in q4 (4.2 GiB with 8 layers), or takes a folder that `qwq convert` made. It
compares reading the packed weights with `preadv` of the same bytes into fresh memory. FOLDER keeps the files. Before
each measurement, the system has the file in its cache.

`gguf` packs a piece of each of ggml's types from memory to memory, with C and with the NumPy decoders, and the matrices
of FILE. `awq`, `gptq` and `mlx` write small checkpoints of random words to FOLDER, and do the same.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np

from qwq_ref import core
from qwq_ref.bench.weights import random_tensors
from qwq_ref.config import Config
from qwq_ref.engine.plan import plan
from qwq_ref.formats import open_source
from qwq_ref.formats.names import CONFIG, SINGLE, packed_name
from qwq_ref.formats.packed import writing
from qwq_ref.formats.packed_folder import PackedFolder
from qwq_ref.formats.write import SafetensorsStream, atomic_file, write_json
from qwq_ref.host.limits import cpus
from tests.support.paths import QWQ_CONFIG, ROOT
from tests.tools.load_quantised import METHODS, measure_gguf, measure_words

PIECE = 16 << 20
SHAPE = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_act": "silu",
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "eos_token_id": 0,
}
OURS = """
import sys, time
import qwq_ref, qwq_ref.engine.weights, qwq_ref.text
from qwq_ref import core
weights = None if sys.argv[2] == "default" else sys.argv[2]
qwq_ref.load("qwq-nano", weights="q4").logits([1])
begun = time.perf_counter()
model = qwq_ref.load(sys.argv[1], weights=weights, context=256)
loaded = time.perf_counter()
model.logits([1])
"""
THEIRS = """
import sys, time
import torch, transformers
from transformers.models.qwen2 import modeling_qwen2
begun = time.perf_counter()
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
for weight in model.parameters():
    weight.data.view(torch.int16).flatten()[::2048].sum()
loaded = time.perf_counter()
with torch.no_grad():
    model(torch.tensor([[1]]))
"""
REPORT = """
used = time.perf_counter()
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(loaded - begun, used - begun, int(peak) * 1024)
"""


def bare(path, threads):
    """Read a file into fresh memory on huge pages, with preadv and nothing else."""
    size = path.stat().st_size
    memory = core.aligned(size)
    with open(path, "rb", buffering=0) as file, ThreadPoolExecutor(threads) as pool:
        starts = range(0, size, PIECE)
        list(pool.map(lambda start: os.preadv(file.fileno(), [memory.data[start : start + PIECE]], start), starts))
    return memory


def warm(path, fresh=True):
    """Read a file into the system's cache; first drop it from there, so that its history does not matter."""
    with open(path, "rb", buffering=0) as file:
        if fresh:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while file.read(PIECE):
            pass


def touch_memory(size):
    """Use memory and give it back. On a virtual machine, the first use of memory costs several times the second."""
    np.ones(size, np.uint8)


def write_checkpoint(folder):
    """Write a checkpoint with random weights, and a small tokenizer."""
    from tests.support.small_tokenizer import TEMPLATE, VALUES

    if (folder / SINGLE).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG, SHAPE)
    (folder / "tokenizer.json").write_text(json.dumps(VALUES))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    shapes, rng = Config.from_dict(SHAPE).tensors(), np.random.default_rng(0)
    with atomic_file(folder / SINGLE) as file:
        stream = SafetensorsStream(file, shapes, "BF16")
        for name, shape in shapes.items():
            stream.append(name, rng.standard_normal(shape, np.float32) * np.float32(0.02))


def measure_checkpoint(folder, base, weights, turns):
    write_checkpoint(folder)
    ways = {"ours": (OURS, ROOT), "transformers": (THEIRS, ROOT)} | ({"base": (OURS, base)} if base else {})
    results = {name: [] for name in ways}
    for _ in range(turns):
        for name, (script, tree) in ways.items():
            warm(folder / SINGLE, fresh=False)
            touch_memory(2 << 30)
            env = {key: value for key, value in os.environ.items() if not key.endswith("NUM_THREADS")}
            env |= {"PYTHONPATH": str(tree), "HF_HUB_OFFLINE": "1"}
            command = [sys.executable, "-c", script + REPORT, folder, weights]
            done = subprocess.run(command, env=env, cwd=tree, capture_output=True, text=True, check=True)
            results[name].append([float(value) for value in done.stdout.split()])
    print("              loaded  x ours  first token  x ours  peak GiB  each load, s")
    ours = [median(column) for column in zip(*results["ours"], strict=True)]
    for name, values in results.items():
        loaded, used, peak = (median(column) for column in zip(*values, strict=True))
        each = " ".join(f"{value[0]:.2f}" for value in values)
        row = f"{name:<13}{loaded:6.3f} s{loaded / ours[0]:8.2f}{used:11.3f} s{used / ours[1]:8.2f}{peak / 2**30:10.2f}"
        print(f"{row}  {each}")


def packed_of_qwq(folder, layers):
    """Write packed weights of QwQ-32B's shape -> a source that reads them, the form, the file."""
    config = Config.from_file(QWQ_CONFIG)
    config = dataclasses.replace(config, num_hidden_layers=layers, layer_types=config.layer_types[:layers])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / packed_name("q4")
    if not path.exists():
        with writing(path, plan(config, "q4")) as append:
            for name, tensor in random_tensors(config, "q4"):
                append(name, tensor)
    return PackedFolder(path, config, {"q4": path}), "q4", path


def packed_of_model(folder):
    """A folder that `qwq convert` made -> the same."""
    source = open_source(folder)
    name = source.forms[0]
    return source, source.kept.form if source.kept else name, folder / packed_name(name)


def read(source, form, planned):
    with source.open_packed(form, planned) as file:
        return file.read(cpus())


def measure_packed(folder, layers):
    made = packed_of_model(folder) if (folder / CONFIG).exists() else packed_of_qwq(folder, layers)
    source, form, path = made
    planned = plan(source.config, form)
    ways = {
        "pread": lambda: bare(path, cpus()),
        "load": lambda: read(source, str(form), planned),
    }
    times = {name: [] for name in ways}
    for turn in range(8):  # each is as often the first: memory that was just given back costs less
        for name in list(ways)[:: -1 if turn % 2 else 1]:
            warm(path)
            begun = time.perf_counter()
            held = ways[name]()
            times[name].append(time.perf_counter() - begun)
            del held
    size = path.stat().st_size
    for name, seconds in times.items():
        each = " ".join(f"{s:.2f}" for s in seconds)
        print(f"{name:<6}{median(seconds):7.2f} s {size / median(seconds) / 1e9:6.1f} GB/s  of {each}")
    ratios = [load / pread for load, pread in zip(times["load"], times["pread"], strict=True)]
    print(f"{size / 2**30:.2f} GiB, {cpus()} threads, median ratio {median(ratios):.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    checkpoint = commands.add_parser("checkpoint", help="a bfloat16 checkpoint of Qwen2.5-0.5B's shape")
    checkpoint.add_argument("folder", type=Path)
    checkpoint.add_argument("--base", type=Path, metavar="TREE", help="a source tree with a built core, to compare")
    checkpoint.add_argument("--weights", default="bf16", help="a weight form, or default")
    checkpoint.add_argument("--turns", type=int, default=5)
    packed = commands.add_parser("packed", help="a file of packed weights of QwQ-32B's shape")
    packed.add_argument("folder", type=Path)
    packed.add_argument("--layers", type=int, default=8)
    gguf = commands.add_parser("gguf", help="the types of GGUF, and a whole file")
    gguf.add_argument("file", type=Path, nargs="?")
    for method in METHODS:
        commands.add_parser(method, help="checkpoints of random words").add_argument("folder", type=Path)
    options = parser.parse_args()
    if options.command == "checkpoint":
        measure_checkpoint(options.folder, options.base, options.weights, options.turns)
    elif options.command == "packed":
        measure_packed(options.folder, options.layers)
    elif options.command == "gguf":
        measure_gguf(options.file)
    else:
        measure_words(options.command, options.folder)


if __name__ == "__main__":
    main()
