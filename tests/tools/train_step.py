"""The speed of a training step, and the bytes that it keeps, for each kind of gradient checkpointing.

    python -m tests.tools.train_step [--workers 2] [--rounds 5] [--piece 8] [--layers 4]

B = 64 sequences of T = 96 tokens, a model of the shipped small one's shape, float32: gradients, clipping and AdamW.
BLAS has one thread; the workers share the batch. The modes alternate, so that a slow phase of the machine slows all of
them. The ratio is the time of a mode over that of "none" in the same round.
"""

import argparse
import os
import statistics
import time

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--workers", type=int, default=2)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--piece", type=int, default=8)
parser.add_argument("--layers", type=int, default=4)
options = parser.parse_args()
for library in ("OMP", "OPENBLAS"):
    os.environ[f"{library}_NUM_THREADS"] = "1"

import numpy as np  # noqa: E402

from qwq_ref.config import Config  # noqa: E402
from qwq_ref.train.model import KEPT, Batch, loss_and_grads  # noqa: E402
from qwq_ref.train.optim import clip_by_global_norm, descend, initial_state  # noqa: E402
from tests.support.models import config_values, random_weights  # noqa: E402

B, T = 64, 96
config = Config.from_dict(
    config_values(
        vocab_size=512,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=options.layers,
        num_attention_heads=10,
        num_key_value_heads=2,
        head_dim=32,
    )
)
weights = random_weights(config, 0)
state = initial_state(weights)
ids = np.random.default_rng(0).integers(0, config.V, (B, T + 1))
batch = Batch(ids[:, :-1], ids[:, 1:], np.ones((B, T)))


def seconds(mode):
    start = time.perf_counter()
    step = loss_and_grads(config, weights, batch, options.workers, mode, options.piece)
    clip_by_global_norm(step.grads, 1.0)
    descend(weights, step.grads, state, 1e-4, 1e-4)
    return time.perf_counter() - start, step.kept_bytes


kept = {mode: seconds(mode)[1] for mode in KEPT}  # and warm up
rounds = [{mode: seconds(mode)[0] for mode in KEPT} for _ in range(options.rounds)]
size = sum(w.size for w in weights.values())
print(f"{size / 1e6:.2f} M parameters, {options.workers} workers, load {os.getloadavg()[0]:.1f}")
for mode in KEPT:
    rate = B * T / statistics.median(times[mode] for times in rounds)
    best = B * T / min(times[mode] for times in rounds)
    ratio = statistics.median(times[mode] / times["none"] for times in rounds)
    print(
        f"{mode:9}  {rate:6,.0f} tokens/s (best {best:6,.0f})  {kept[mode] / 2**20:6.1f} MiB kept"
        f"  {kept[mode] / (B * T):7,.0f} bytes a token  time x {ratio:.2f}"
    )
