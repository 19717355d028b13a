"""The speed and the memory of a conversion, for a random model of QwQ-32B's width.

    python -m tests.tools.convert_speed FOLDER [--of KIND] [-t THREADS] [-- OPTIONS OF CONVERT]

FOLDER gets the model, if it is not there yet, and the result in FOLDER/made. The kind bf16 has four layers (7 GB). The
others are quantised, and have two layers and a small vocabulary (0.5 to 2 GB). The tool prints the parameters per
second of `qwq convert` from its start to its end, its seconds of processors, and its memory. RssAnon is the memory that
the process asked for: the tool looks 50 times a second, and prints the most. VmHWM counts files that are mapped, such
as libraries.
"""

import argparse
import json
import math
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from qwq_ref.config import Config
from qwq_ref.footprint import parameters
from tests.support.paths import PACKAGE
from tests.tools.load_quantised import METHODS, settings

LAYERS = 4
QUANTISED = {
    "awq": ("awq", 4, False),
    "gptq": ("gptq", 4, False),
    "gptq-ordered": ("gptq", 4, True),
    "gptq-8": ("gptq", 8, False),
}
# The sizes of Qwen2.5-72B, which has the largest matrices of the official releases. Its MLP is padded for groups.
LARGEST = {"hidden_size": 8192, "intermediate_size": 29696, "num_attention_heads": 64}
PIECE = 1 << 24  # weights that are drawn once, and repeated from a random place on


def make(folder, layers=LAYERS):
    """Write a checkpoint of random bfloat16 weights, with the config and the tokenizer that are shipped."""
    values = json.loads((PACKAGE / "models" / "qwq-32b" / "config.json").read_text())
    values |= {"num_hidden_layers": layers, "max_window_layers": layers}
    config = Config.from_dict(values)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    shutil.copyfile(PACKAGE / "models" / "qwq-nano" / "tokenizer.json", folder / "tokenizer.json")
    rng = np.random.default_rng(0)
    drawn = (rng.standard_normal(PIECE, np.float32) * 0.02).astype(ml_dtypes.bfloat16)
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in config.tensors().items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in config.tensors().values():
            left = math.prod(shape)
            while left:
                start = int(rng.integers(0, PIECE // 2))
                piece = drawn[start : start + min(left, PIECE // 2)]
                file.write(piece.tobytes())
                left -= len(piece)


def make_quantised(folder, method, bits, ordered, changes):
    """Write a quantised checkpoint of random words, with two layers and a small vocabulary."""
    values = json.loads((PACKAGE / "models" / "qwq-32b" / "config.json").read_text())
    values |= {"num_hidden_layers": 2, "max_window_layers": 2, "vocab_size": 4096} | changes
    config, tensors, rng = Config.from_dict(values), {}, np.random.default_rng(0)
    for name, shape in config.tensors().items():
        if len(shape) == 2 and ".layers." in name:
            leaves = METHODS[method][0](rng, *shape, bits, ordered)
            tensors |= {f"{name.removesuffix('.weight')}.{leaf}": value for leaf, value in leaves.items()}
        else:
            tensors[name] = np.ones(shape, np.float16)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict() | settings(method, bits, ordered)))
    shutil.copyfile(PACKAGE / "models" / "qwq-nano" / "tokenizer.json", folder / "tokenizer.json")
    save_file(tensors, folder / "model.safetensors")


def status(process):
    """-> {name: KiB} of the lines of /proc/PID/status that count memory; empty after the end"""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if " kB" in rest}


def measured(command):
    """-> seconds of a command, seconds of processors, and the largest RssAnon and VmHWM in MiB"""
    started = time.perf_counter()
    process = subprocess.Popen(command)
    anonymous = most = 0
    while process.poll() is None:
        found = status(process)
        anonymous, most = max(anonymous, found.get("RssAnon", 0)), max(most, found.get("VmHWM", 0))
        time.sleep(0.02)
    if process.returncode:
        sys.exit(process.returncode)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - started, usage.ru_utime + usage.ru_stime, anonymous / 1024, most / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    kinds = ["bf16", *QUANTISED]
    parser.add_argument("--of", choices=kinds, default="bf16", help="the kind of the checkpoint")
    parser.add_argument("--largest", action="store_true", help="take the sizes of a layer of 72 B")
    parser.add_argument("-t", "--threads", type=int, default=2)
    given = sys.argv[1:]
    end = given.index("--") if "--" in given else len(given)
    options, of_convert = parser.parse_args(given[:end]), given[end + 1 :]
    source, made = options.folder / "source", options.folder / "made"
    if not (source / "model.safetensors").exists():
        if options.of == "bf16":
            make(source)
        else:
            make_quantised(source, *QUANTISED[options.of], LARGEST if options.largest else {})
    shutil.rmtree(made, ignore_errors=True)
    count = parameters(Config.from_file(source / "config.json"))
    command = [sys.executable, "-m", "qwq_ref", "convert", "-m", str(source), "-o", str(made)]
    seconds, busy, anonymous, most = measured([*command, "-t", str(options.threads), *of_convert])
    print(f"{count / 1e6:,.0f} M parameters in {seconds:.1f} s: {count / seconds / 1e6:.0f} M/s")
    print(f"{busy:.1f} s of processors, {count * options.threads / busy / 1e6:.0f} M/s if each thread has its own")
    print(f"memory: RssAnon {anonymous:.0f} MiB, VmHWM {most:.0f} MiB")


if __name__ == "__main__":
    main()
