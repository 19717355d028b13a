"""Hugging Face as the peer: build a `Qwen2ForCausalLM` from given weights, and tap its intermediate results."""

import functools
from contextlib import contextmanager
from unittest import mock

import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.models.qwen2 import modeling_qwen2

from qwq_ref.oracle.adapters import torch_hooks
from qwq_ref.spec import rope_frequencies


def build(config, values, weights, dtype=torch.float32):
    """The HF model of config.json `values` with our weights; the RoPE frequencies are the spec's bits.

    (`test_rope_frequencies` holds the two sets of bits together: HF's are up to one ulp from correctly rounded.)
    """
    hf = Qwen2ForCausalLM._from_config(Qwen2Config(**values), attn_implementation="eager", dtype=torch.float32)
    state = {name: torch.from_numpy(np.array(value)) for name, value in weights.items()}
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    hf.load_state_dict(state, strict=True)
    hf = hf.to(dtype).eval()
    hf.model.rotary_emb.inv_freq = torch.from_numpy(rope_frequencies(config.rope, config.E))  # stays float32
    return hf


def taps(hf, ids, past=None):
    """Every tap of the spec, under the spec's names, as HF computes it -> ({name: float array}, cache).

    bfloat16 comes back as float32. Shapes are the spec's: no batch axis, heads split.
    """
    return torch_hooks.run(hf, ids, past)


@contextmanager
def in_float64(hf):
    """Make `.double()` true: HF forces float32 in RMSNorm, softmax and the RoPE tables. Same float32 frequencies."""
    inv_freq = hf.model.rotary_emb.inv_freq.clone()
    hf.double()
    hf.model.rotary_emb.inv_freq = inv_freq
    true_softmax = torch.nn.functional.softmax

    def rmsnorm(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    def tables(self, x, position_ids):
        angles = position_ids[..., None].double() * inv_freq.double()
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling

    @functools.wraps(true_softmax)
    def softmax(x, dim, dtype=None, _stacklevel=3):
        return true_softmax(x, dim=dim)

    with (
        mock.patch.object(modeling_qwen2.Qwen2RMSNorm, "forward", rmsnorm),
        mock.patch.object(modeling_qwen2.Qwen2RotaryEmbedding, "forward", tables),
        mock.patch.object(torch.nn.functional, "softmax", softmax),
    ):
        yield hf


def spec_taps(spec_forward, *args, **kwargs):
    """The same from the spec -> ({name: array}, cache)."""
    seen = {}

    def tap(name, value):
        assert name not in seen
        seen[name] = value

    _, cache = spec_forward(*args, tap=tap, **kwargs)
    return seen, cache


def nmse(got, wanted, energy=None):
    """sum (got - wanted)^2 / sum wanted^2, in float64. NaN fails; infinities must match in place and sign.

    `energy` replaces the denominator where the result can be much smaller than the terms of its sum.
    """
    got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    assert got.shape == wanted.shape
    infinite = np.isinf(wanted)
    assert np.array_equal(got[infinite], wanted[infinite])
    got, wanted = got[~infinite], wanted[~infinite]
    assert np.isfinite(got).all()
    assert np.isfinite(wanted).all()
    difference = np.sum((got - wanted) ** 2)
    return 0.0 if difference == 0 else difference / (np.sum(wanted**2) if energy is None else energy)


def errors(config, ours, theirs, cache):
    """NMSE of every tap -> {name: float}; `ours` and its `cache` are the spec's.

    A score is one dot product, which can cancel to nothing while its rounding error stays. So its error is measured
    against the norms of its query and key. Where HF's sliding cache has dropped keys that no query sees, the scores and
    probabilities of the other keys are compared.
    """
    assert set(ours) == set(theirs)
    result = {}
    for name, value in ours.items():
        energy = None
        if name.endswith((".scores", ".probs")):
            value = value[..., -theirs[name].shape[-1] :]
        if name.endswith(".scores"):
            layer = int(name.split(".")[2])
            q = np.float64(ours[name.replace("scores", "q_rope")]) ** 2
            k = np.float64(cache[layer][0]) ** 2
            energy = np.sum(q.sum(axis=(0, 2)) * np.repeat(k.sum(axis=(0, 2)), config.G)) / config.E
        result[name] = nmse(value, theirs[name], energy)
    return result
