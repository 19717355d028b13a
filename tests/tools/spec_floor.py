"""The speed of the spec: its time over Hugging Face's on the same threads, in alternation.

    python -m tests.tools.spec_floor [--threads 1] [--rounds 9]

512 tokens through 4 layers of D = 1024, float32, HF with eager attention. The spec does not give up clarity for speed.
This check shows that nothing in it is needlessly slow: the ratio must be at most 1.5.
"""

import argparse
import os
import statistics
import time

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--rounds", type=int, default=9)
options = parser.parse_args()
for library in ("OMP", "OPENBLAS"):
    os.environ[f"{library}_NUM_THREADS"] = str(options.threads)

import numpy as np  # noqa: E402
import torch  # noqa: E402

from qwq_ref.config import Config  # noqa: E402
from qwq_ref.spec import forward  # noqa: E402
from tests.support import hf  # noqa: E402
from tests.support.models import config_values, random_weights  # noqa: E402

torch.set_num_threads(options.threads)
values = config_values(
    vocab_size=8192,
    hidden_size=1024,
    intermediate_size=2816,
    num_hidden_layers=4,
    num_attention_heads=16,
    num_key_value_heads=4,
    head_dim=64,
)
config = Config.from_dict(values)
weights = random_weights(config, 0)
theirs = hf.build(config, values, weights)
ids = np.random.default_rng(0).integers(0, config.V, 512)
batch = torch.from_numpy(ids)[None]


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def run_hf():
    with torch.no_grad():
        theirs(batch, use_cache=True)


seconds(lambda: forward(config, weights, ids)), seconds(run_hf)  # warm up
rounds = [(seconds(lambda: forward(config, weights, ids)), seconds(run_hf)) for _ in range(options.rounds)]
ours, hfs = (statistics.median(times) for times in zip(*rounds, strict=True))
ratio = statistics.median(a / b for a, b in rounds)
print(f"{options.threads} threads: spec {ours:.3f} s, HF {hfs:.3f} s, median ratio {ratio:.2f}")
