"""Hugging Face's errors, in units of the measured rounding: MARGIN must cover the largest.

python -m tests.tools.margin [MODELS]
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from qwq_ref import oracle
from qwq_ref.config import Config
from qwq_ref.oracle.adapters.torch_hooks import torch_taps
from qwq_ref.oracle.graph import phases_of
from qwq_ref.oracle.judge.metrics import MARGIN
from tests.oracle.test_planted import loud_weights
from tests.support import hf
from tests.support.models import config_values, random_weights, yarn

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
VALUES = (
    config_values(num_hidden_layers=3),
    config_values(num_hidden_layers=3, rope_scaling=yarn(), tie_word_embeddings=True),
    config_values(num_hidden_layers=3, use_sliding_window=True, sliding_window=5, max_window_layers=1),
    config_values(num_hidden_layers=2, hidden_size=320, intermediate_size=900, head_dim=32),
)


def shares(folder, model, weights, ids):
    """Yield every error over that of correct implementations: from the golden value, and on its own inputs."""
    report = oracle.compare(folder, torch_taps(model, phases_of(ids, 3)), model=weights, coverage=False)
    for result in report.comparison.results:
        yield "in all", MARGIN * result.distance.error / result.allowed
        yield "own", MARGIN * result.introduced / result.own_allowed


def main(models):
    found = {}
    for seed in range(models):
        for values in VALUES:
            config = Config.from_dict(values)
            for weights in (random_weights(config, seed), loud_weights(config)):
                ids = np.random.default_rng(seed).integers(0, config.V, 20)
                with tempfile.TemporaryDirectory() as folder:
                    pack = Path(folder, "pack")
                    oracle.record(config, weights, pack, ids, 3)
                    for precision, dtype in DTYPES.items():
                        model = hf.build(config, values, weights, dtype)
                        for attention in ("eager", "sdpa"):
                            model.set_attn_implementation(attention)
                            for kind, share in shares(pack, model, weights, ids):
                                found.setdefault((precision, attention, kind), []).append(share)
    print("| precision | attention | error | results | median | 99 % | largest |\n|---|---|---|---|---|---|---|")
    for (precision, attention, kind), values in found.items():
        median, most, largest = np.quantile(values, [0.5, 0.99, 1])
        print(f"| {precision} | {attention} | {kind} | {len(values)} | {median:.2f} | {most:.2f} | {largest:.2f} |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 8)
