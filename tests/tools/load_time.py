"""How long loading packed weights takes, beside reading the same bytes into fresh memory and nothing else.

python -m tests.tools.load_time FOLDER [LAYERS]

FOLDER gets a file of QwQ-32B's shape (8 layers unless said otherwise: 4.2 GiB in q4), random, and keeps it. Before each
measurement the system forgets the file and reads it again, so that it comes from memory; the two take turns, with the
same threads, and each is as often the first: memory that was just given back costs less than memory that was not.
"""

import dataclasses
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

from qwq_ref import core
from qwq_ref.bench.weights import random_tensors
from qwq_ref.config import Config
from qwq_ref.engine.plan import plan
from qwq_ref.formats.names import packed_name
from qwq_ref.formats.packed import writing
from qwq_ref.formats.packed_folder import PackedFolder
from qwq_ref.host.limits import cpus
from tests.support.paths import QWQ_CONFIG

PIECE = 16 << 20


def bare(path, threads):
    """pread into memory on huge pages, nothing else."""
    size = path.stat().st_size
    memory = core.aligned(size)
    with open(path, "rb", buffering=0) as file, ThreadPoolExecutor(threads) as pool:
        starts = range(0, size, PIECE)
        list(pool.map(lambda start: os.preadv(file.fileno(), [memory.data[start : start + PIECE]], start), starts))
    return memory


def warm(path):
    """The system's copy is new each time: what it did before must not matter."""
    with open(path, "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while file.read(PIECE):
            pass


def main():
    folder, layers = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 8
    config = Config.from_file(QWQ_CONFIG)
    config = dataclasses.replace(config, num_hidden_layers=layers, layer_types=config.layer_types[:layers])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / packed_name("q4")
    if not path.exists():
        with writing(path, plan(config, "q4")) as append:
            for name, tensor in random_tensors(config, "q4"):
                append(name, tensor)
    ways = {
        "pread": lambda: bare(path, cpus()),
        "load": lambda: PackedFolder(path, config, {"q4": path}).read_packed("q4", plan(config, "q4"), cpus()),
    }
    times = {name: [] for name in ways}
    for turn in range(8):
        for name in list(ways)[:: -1 if turn % 2 else 1]:
            warm(path)
            begun = time.perf_counter()
            held = ways[name]()
            times[name].append(time.perf_counter() - begun)
            del held
    size = path.stat().st_size
    for name, seconds in times.items():
        print(
            f"{name:<6}{median(seconds):7.2f} s {size / median(seconds) / 1e9:6.1f} GB/s  of",
            *(f"{s:.2f}" for s in seconds),
        )
    ratios = [load / pread for load, pread in zip(times["load"], times["pread"], strict=True)]
    print(f"{size / 2**30:.2f} GiB, {cpus()} threads, median ratio {median(ratios):.2f}")


if __name__ == "__main__":
    main()
