"""The engine's bits equal recorded ones: every weight form and cache form, every instruction set, fixed random models.

A changed hash is a changed result: a packed file or a stored cache of an earlier version would then give other tokens.
The models are made of raw PCG64 output and exact arithmetic alone, so they are the same with every NumPy.
"""

import hashlib

import numpy as np
import pytest

from qwq_ref import core
from qwq_ref.config import Config
from qwq_ref.engine.backends import ALL, LAST
from qwq_ref.engine.backends import logits as logits_of
from qwq_ref.engine.backends.core import CoreBackend
from qwq_ref.engine.packing import pack_weights
from tests.support.models import config_values, yarn

if not core.available():
    pytest.skip("the C core is not built: there was no compiler", allow_module_level=True)

MODELS = {
    "grouped": {},
    "wide": {
        "hidden_size": 192,
        "intermediate_size": 328,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "vocab_size": 211,
        "tie_word_embeddings": True,
    },
    "yarn and windows": {
        "rope_scaling": yarn(),
        "use_sliding_window": True,
        "sliding_window": 9,
        "max_window_layers": 1,
        "num_hidden_layers": 3,
        "head_dim": 16,
    },
}
PROMPT, DECODED, LEFT = 70, 3, 41  # tokens; LEFT: what a roll-back leaves

RECORDED = {
    "grouped": {
        "bf16+fp32": "7132285e67e09e0d6e3dcab7d96bbe59",
        "bf16+int8": "868d2a1b92bbb84e34bfbdbd635a0358",
        "fp32+fp32": "7132285e67e09e0d6e3dcab7d96bbe59",
        "fp32+int8": "868d2a1b92bbb84e34bfbdbd635a0358",
        "q4+fp32": "acfbe032910d97461715e78afa9197b2",
        "q4+int8": "1f2438a7c25b3febb858dc409c4401f3",
        "q8+fp32": "b5a259e651a041b410c979b4b7e76b68",
        "q8+int8": "655d589ce015071be57d006ccdfb73ee",
    },
    "wide": {
        "bf16+fp32": "2cc00105d02fa64ac062f8e7c6c9ab3e",
        "bf16+int8": "94706924f582ad01fa96481a92b944b8",
        "fp32+fp32": "2cc00105d02fa64ac062f8e7c6c9ab3e",
        "fp32+int8": "94706924f582ad01fa96481a92b944b8",
        "q4+fp32": "b4aaec0b46a392edaa2a6f47aec9b654",
        "q4+int8": "84d208faaa8f3c8cc659f58fd8f70d5e",
        "q8+fp32": "169b585d172e85c640927480379314b4",
        "q8+int8": "e43cb0cf8fb0a6354fc6cd67ee120609",
    },
    "yarn and windows": {
        "bf16+fp32": "a85f9ec93e5577974ddfa31dd84fae28",
        "bf16+int8": "131a5521d07086f13b880350dc6661ce",
        "fp32+fp32": "a85f9ec93e5577974ddfa31dd84fae28",
        "fp32+int8": "131a5521d07086f13b880350dc6661ce",
        "q4+fp32": "17a6f86aac59751ee50d9ab4b162cb88",
        "q4+int8": "edcd2ae2a9fa1ce1fd52cc50fe4fc370",
        "q8+fp32": "e4551b15459f22a73528e90d1f9f9797",
        "q8+int8": "598fd3e11da3f9d601f1229382871b3c",
    },
}


def raw_weights(config, seed):
    """Return bfloat16 numbers in float32, most of them small, a few large."""
    bits = np.random.PCG64(seed)
    weights = {}
    for name, shape in config.tensors().items():
        integers = bits.random_raw(int(np.prod(shape))) >> np.uint64(40)
        uniform = integers.astype(np.float32) * np.float32(2**-23) - np.float32(1)
        value = uniform * uniform * uniform * np.float32(0.25)
        value = value + np.float32(1) if name.endswith("norm.weight") else value
        kept = value.view(np.uint32) & np.uint32(0xFFFF0000)
        weights[name] = kept.view(np.float32).reshape(shape)
    return weights


def digest(config, weights, form, kv, isa, threads):
    """Hash the logits of a whole prompt, of decoded tokens, and of tokens after a roll-back."""
    packed = pack_weights(config, weights, form, threads)
    backend = CoreBackend(config, packed, PROMPT + DECODED + 1, kv, isa, threads)
    ids = [(7 * i * i + 3 * i) % config.V for i in range(PROMPT + DECODED)]
    logits = [logits_of(backend, ids[:PROMPT])]
    sequence = backend.sequence()
    backend.run(ids[:PROMPT], sequence, LAST)
    logits += [backend.run([id], sequence, LAST) for id in ids[PROMPT:]]
    sequence.rollback(LEFT)
    logits.append(backend.run(ids[LEFT : LEFT + 5], sequence, ALL))
    return hashlib.sha256(np.concatenate(logits).astype("<f4").tobytes()).hexdigest()[:32]


@pytest.mark.parametrize("isa", core.isas())
@pytest.mark.parametrize("name", MODELS)
def test_logits_have_the_recorded_bits(name, isa):
    config = Config.from_dict(config_values(**MODELS[name]))
    weights = raw_weights(config, 20261129)
    for form in ("fp32", "bf16", "q8", "q4"):
        for kv in ("fp32", "int8"):
            for threads in (1, 3):
                found = digest(config, weights, form, kv, isa, threads)
                assert found == RECORDED[name][f"{form}+{kv}"], (form, kv, threads)
