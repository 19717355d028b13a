"""The distance of the spec from Hugging Face: the table of docs/proof.md.

    python -m tests.tools.distances [--models 200]

Random models over the whole architecture (the strategy of the tests, seeded). For each gate: the median and the worst
NMSE over all taps of all models, and the tap where the worst was seen.
"""

import argparse
import os

os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import numpy as np
from hypothesis import HealthCheck, given, settings

from qwq_ref.config import Config
from qwq_ref.spec import forward
from tests.support import hf
from tests.support.models import config_values, configs, random_weights


def report(title, errors):
    values = np.array(list(errors.values()))
    worst = max(errors, key=errors.get)
    print(f"{title:<46} median {np.median(values):.1e}   worst {values.max():.1e} at {worst.split('/')[1]}")


def measure(values, seed, harsh):
    """-> NMSE per tap: spec - HF, spec - truth, HF - truth, truth - HF in float64"""
    config = Config.from_dict(values)
    weights = random_weights(config, seed, harsh)
    ids = np.random.default_rng(seed).integers(0, config.V, 24)
    model = hf.build(config, values, weights)
    theirs, _ = hf.taps(model, ids)
    ours, cache = hf.spec_taps(forward, config, weights, ids)
    truth, true_cache = hf.spec_taps(forward, config, weights, ids, dtype=np.float64)
    with hf.in_float64(model):
        true_theirs, _ = hf.taps(model, ids)
    return (
        hf.errors(config, ours, theirs, cache),
        hf.errors(config, truth, ours, true_cache),
        hf.errors(config, truth, theirs, true_cache),
        hf.errors(config, truth, true_theirs, true_cache),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", type=int, default=200)
    options = parser.parse_args()
    drawn = []

    @settings(max_examples=options.models, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(configs())
    def draw(values):
        drawn.append(values)

    draw()
    for harsh in (False, True):
        names = ("spec - HF, float32", "spec - truth, float32", "HF - truth, float32", "spec - HF, float64")
        tables = [{} for _ in names]
        for seed, values in enumerate(drawn):
            for table, errors in zip(tables, measure(values, seed, harsh), strict=True):
                table.update({f"{seed}/{name}": error for name, error in errors.items()})
        for name, table in zip(names, tables, strict=True):
            report(f"{name}, {'harsh' if harsh else 'HF initialisation'}", table)
    deep = config_values(
        num_hidden_layers=64, hidden_size=64, head_dim=16, num_attention_heads=5, num_key_value_heads=1
    )
    report("spec - HF, float32, 64 layers", {f"0/{name}": e for name, e in measure(deep, 0, False)[0].items()})


if __name__ == "__main__":
    main()
