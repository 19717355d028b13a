"""What the optimiser and the size of a step are worth: short runs of the base stage, each on the same number of tokens.

    python -m tests.tools.optimisers [--places 2000000] [-t 2] [RUN ...]

A run is OPTIMISER:ROWS:RATE[:HIDDEN]: adamw for all weights, or muon for the matrices of blocks, at HIDDEN times the
rate of the others. The loss is that of clean completions of the training split, which no run has seen. `--places`
counts padding too.
"""

import argparse
import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from qwq_ref.config import Config
from qwq_ref.text import load_tokenizer
from qwq_ref.train import corpus, nano
from qwq_ref.train.model import loss_and_grads
from qwq_ref.train.optim import adamw, clip_by_global_norm, cosine_schedule, descend, initial_state
from qwq_ref.train.sft import STAGES
from tests.support.paths import ROOT

RUNS = ["adamw:40:3e-3", "muon:40:3e-3:1", "muon:40:3e-3:2", "muon:20:3e-3:1"]
LENGTH, HELD_OUT = 160, 12
BASE = STAGES["base"]


def run(spec, places, workers):
    """Train once -> the loss on clean completions, and the seconds of the steps."""
    optimiser, rows, rate, *hidden = spec.split(":")
    rows, total = int(rows), places // (int(rows) * LENGTH)
    config = Config.from_dict(nano.NANO)
    formatter = corpus.Formatter(load_tokenizer(ROOT / "qwq_ref" / "models" / "qwq-nano-base", config.V))
    weights = nano.initial_weights(config, np.random.default_rng([0]), nano.NANO["initializer_range"])
    state = initial_state(weights)
    if optimiser == "adamw":
        state |= {f"square.{name}": np.zeros_like(w) for name, w in weights.items()}

    def loss(mixture, seed, rows):
        batch = corpus.batch(formatter, mixture, np.random.default_rng(seed), rows, LENGTH)
        return loss_and_grads(config, weights, batch, workers)

    started = time.perf_counter()
    for step in range(total):
        grads = loss(BASE.mixture, [0, 0, step], rows).grads
        clip_by_global_norm(grads, BASE.max_norm)
        now = cosine_schedule(step, total, float(rate), max(30, total // 16), 0.02 * float(rate))
        if optimiser == "adamw":
            state["step"] += 1
            adamw(weights, grads, state, now, decay=BASE.decay)
        else:
            descend(weights, grads, state, now, float(hidden[0]) * now, BASE.decay)
    seconds = time.perf_counter() - started
    clean = STAGES["cold-start"].mixture
    return np.mean([loss(clean, [7, 7, n], 40).loss for n in range(HELD_OUT)]), seconds


parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("runs", nargs="*", default=RUNS, metavar="RUN")
parser.add_argument("--places", type=int, default=300 * 40 * LENGTH)
parser.add_argument("-t", "--threads", type=int, default=2)
options = parser.parse_args()
print(f"{'run':20}  {'loss':>6}  {'seconds':>7}")
for spec in options.runs:
    found, seconds = run(spec, options.places, options.threads)
    print(f"{spec:20}  {found:6.4f}  {seconds:7.0f}", flush=True)
