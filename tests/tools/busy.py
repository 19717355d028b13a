"""Decode speed on a machine that other programs use: one and two threads in turns.

    python -m tests.tools.busy [--busy 0,1,2,5] [--rounds 6]

The model has the shape of a 0.5B model with random q4 weights and a head of 32,000 rows. BUSY processes that compute
without end run beside it, at the same priority. Prints the median tokens per second.
"""

import argparse
import subprocess
import sys
from statistics import median

from qwq_ref.bench.model import Engine
from qwq_ref.bench.weights import random_weights
from qwq_ref.config import Config
from qwq_ref.engine.backends.core import CoreBackend
from qwq_ref.tables import Table
from tests.support.models import config_values

SHAPE = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 32_000,
}
THREADS = (1, 2)
TOKENS = 16


def speeds(engines, rounds):
    """{threads: median tokens per second}, measured in turns."""
    found = {threads: [] for threads in engines}
    for _ in range(rounds):
        for threads, engine in engines.items():
            found[threads].append(TOKENS / engine.decode(TOKENS, 0))
    return {threads: median(values) for threads, values in found.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--busy", default="0,1,2,5", help="numbers of busy processes")
    parser.add_argument("--rounds", type=int, default=6)
    options = parser.parse_args()
    config = Config.from_dict(config_values(**SHAPE))
    weights = random_weights(config, "q4")
    engines = {threads: Engine(CoreBackend(config, weights, 512, "int8", threads=threads)) for threads in THREADS}
    table = Table(("busy", *(f"-t {threads}" for threads in THREADS)), ">" * (1 + len(THREADS)), (4, 6, 6))
    print(table.line(table.headings))
    for count in map(int, options.busy.split(",")):
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
        try:
            found = speeds(engines, options.rounds)
        finally:
            for other in others:
                other.kill()
                other.wait()
        print(table.line((str(count), *(f"{found[threads]:.1f}" for threads in THREADS))), flush=True)


if __name__ == "__main__":
    main()
