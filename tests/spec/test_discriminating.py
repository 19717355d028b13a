"""Known mistakes must fail the gates of the spec: a tolerance that a mistake passes is useless.

The mistakes are the oracle's catalogue. Each runs in the place of the spec, in float32, and is compared with Hugging
Face at every tap. The spec must be within the gate, and the mistake must exceed it ten times.
"""

import numpy as np
import pytest
import torch

from qwq_ref.config import Config
from qwq_ref.oracle.explain.mistakes import BY_NAME
from qwq_ref.oracle.graph import Arithmetic, phases_of
from qwq_ref.oracle.walk import Stream, Weights, walk
from qwq_ref.spec import forward, ops
from qwq_ref.spec.ops import to_bf16
from tests.oracle.test_planted import loud_weights
from tests.support import hf
from tests.support.models import config_values, random_weights
from tests.support.planted import PLANTS, on_grid

GATE = 1e-11


# Those of readers of quantised files need such a file. tests/oracle/test_misread.py compares them with decoders.
OF_FLOATS = [name for name, plant in PLANTS.items() if not plant.source]


@pytest.mark.parametrize(
    "name", [name for name in OF_FLOATS if not PLANTS[name].quiet and torch.float32 not in PLANTS[name].silent]
)
def test_the_gates_see(name):
    values = config_values() | PLANTS[name].values
    config = Config.from_dict(values)
    weights = loud_weights(config)
    if PLANTS[name].grid:
        weights = on_grid(weights)
    phases = phases_of(np.random.default_rng(2).integers(0, config.V, 30), 2)
    model, past, theirs = hf.build(config, values, weights), None, []
    for phase in phases:
        seen, past = hf.taps(model, phase.ids, past)
        theirs.append(seen)
    worst = [0.0, 0.0]

    def visit(p, tap, results):
        wanted = theirs[p][tap]
        for i, value in enumerate((results[0], results.get(1, results[0]))):
            value = value.reshape(*value.shape[: wanted.ndim - 1], -1)
            got = value[..., -wanted.shape[-1] :].reshape(wanted.shape)
            worst[i] = max(worst[i], hf.nmse(finite(got), finite(wanted)))

    plain = Arithmetic(np.float32)
    walk(config, phases, [Stream(plain), Stream(plain, BY_NAME[name].replaces(config))], Weights(weights), visit)
    right, wrong = worst
    assert right <= GATE
    assert wrong > 10 * GATE


def finite(x):
    """Masks differ on purpose here: hidden scores count as zero."""
    return np.where(np.isinf(x), 0, x)


def test_a_missing_k_bias_is_seen_where_it_is_large():
    """A small bias on the keys hardly changes a softmax, because it shifts all scores of a query nearly alike. The
    biases of the published models are large."""
    values = config_values()
    config = Config.from_dict(values)
    weights = random_weights(config, 1, harsh=True)
    ids = np.random.default_rng(2).integers(0, config.V, 40)
    theirs, _ = hf.taps(hf.build(config, values, weights), ids)
    right, _ = forward(config, weights, ids)
    without = {name: np.zeros_like(w) if "k_proj.bias" in name else w for name, w in weights.items()}
    wrong, _ = forward(config, without, ids)
    assert hf.nmse(wrong, theirs["lm_head"]) > 1e6 * hf.nmse(right, theirs["lm_head"])


def test_bf16_norm_casts_before_the_weight():
    """Rounding after the weight changes a quarter of the outputs, which fails the 99 % gate of `test_ops`."""
    rng = np.random.default_rng(0)
    x, w = to_bf16(rng.standard_normal((64, 96))), to_bf16(rng.standard_normal(96))
    norm = hf.modeling_qwen2.Qwen2RMSNorm(96, eps=1e-5).bfloat16()
    norm.weight.data = torch.from_numpy(w).bfloat16()
    theirs = norm(torch.from_numpy(x).bfloat16()).detach().float().numpy()
    right = np.mean(ops.rmsnorm(x, w, 1e-5, to_bf16) == theirs)
    wrong = np.mean(to_bf16(ops.rmsnorm(x, w, 1e-5)) == theirs)
    assert right >= 0.99
    assert 0.6 < wrong < 0.9


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("softmax in bfloat16", lambda x: to_bf16(to_bf16(np.exp(to_bf16(x - x.max(-1, keepdims=True)))))),
        ("softmax without a sum", lambda x: np.exp(x - x.max(-1, keepdims=True))),
    ],
)
def test_softmax_mistakes(name, changed):
    x = np.random.default_rng(0).standard_normal((5, 200)).astype(np.float32)
    theirs = torch.nn.functional.softmax(torch.from_numpy(x), dim=-1).numpy()
    assert hf.nmse(ops.softmax(x), theirs) <= 1e-12
    assert hf.nmse(changed(x), theirs) > 1e-7
