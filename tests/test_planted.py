"""The planted mistakes are those of the catalogue: the oracle's prediction comes true, tap by tap, and nothing stays.

Two independent versions of each mistake meet here: a change of the table in NumPy, and a patch of HF's model.
"""

import functools

import hf
import numpy as np
import planted
import pytest
import torch
from models import config_values, random_weights

from qwq_ref.config import Config
from qwq_ref.oracle.graph import CORRECT, TRUTH, phases_of, split_name, tap_names
from qwq_ref.oracle.mistakes import BY_NAME, grid_scale
from qwq_ref.oracle.walk import Stream, Weights, walk

F32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
NAMES = list(planted.PLANTS)
IDS = np.random.default_rng(2).integers(0, 53, 17)
PHASES = phases_of(IDS, 3)
LAYER_WISE = [name for name, plant in planted.PLANTS.items() if not plant.whole]


def loud_weights(config, seed=1):
    """Weights under which no mistake is small, and none makes numbers overflow float16."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in config.tensors().items():
        value = rng.standard_normal(shape)
        if name.endswith("norm.weight"):
            value = 1 + 0.3 * value
        elif name.endswith("bias"):
            value *= 0.3
        elif "embed_tokens" not in name:
            value /= np.sqrt(shape[-1])
        weights[name] = value.astype(np.float32)
    return weights


@functools.cache
def setting(changes, grid, dtype):
    """-> (config, weights, HF's model, what it computes), shared by the mistakes that it suits"""
    values = config_values(num_hidden_layers=3, **dict(changes))
    config = Config.from_dict(values)
    weights = loud_weights(config)
    if grid:
        weights = planted.on_grid(weights)
    model = hf.build(config, values, weights, dtype)
    return config, weights, model, run(config, model)
