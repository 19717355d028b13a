"""Hugging Face as the peer: build a `Qwen2ForCausalLM` from given weights, and tap what it computes on the way."""

import functools
from contextlib import contextmanager
from unittest import mock

import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.models.qwen2 import modeling_qwen2

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
    seen = {}
    handles = []
    config = hf.config
    T, E = len(ids), hf.model.layers[0].self_attn.head_dim

    def keep(name, value):
        value = value.detach()
        seen[name] = (value.float() if value.dtype == torch.bfloat16 else value).numpy().copy()

    def on(module, hook, pre=False):
        register = module.register_forward_pre_hook if pre else module.register_forward_hook
        handles.append(register(hook))

    def output(name, module):
        on(module, lambda m, args, result: keep(name, result[0]))

    def rotary(m, args, result):
        keep("model.rotary_emb.cos", result[0][0])
        keep("model.rotary_emb.sin", result[1][0])

    def projection(path, name, heads):
        def hook(m, args, result):
            keep(f"{path}.{name}_matmul", torch.nn.functional.linear(args[0], m.weight)[0])
            keep(f"{path}.{name}_proj", result[0])

        return hook

    output("model.embed_tokens", hf.model.embed_tokens)
    on(hf.model.rotary_emb, rotary)
    for i, layer in enumerate(hf.model.layers):
        path = f"model.layers.{i}"
        attn, mlp = layer.self_attn, layer.mlp
        on(layer, lambda m, args, path=path: keep(f"{path}.resid_pre", args[0][0]), pre=True)
        output(f"{path}.input_layernorm", layer.input_layernorm)
        for name, heads in (("q", config.num_attention_heads), ("k", config.num_key_value_heads)):
            on(getattr(attn, f"{name}_proj"), projection(f"{path}.self_attn", name, heads))
        on(attn.v_proj, projection(f"{path}.self_attn", "v", config.num_key_value_heads))
        on(attn.o_proj, lambda m, a, path=path: keep(f"{path}.self_attn.heads", a[0][0].reshape(T, -1, E)), pre=True)
        output(f"{path}.self_attn.o_proj", attn.o_proj)
        on(layer.post_attention_layernorm, lambda m, a, path=path: keep(f"{path}.resid_mid", a[0][0]), pre=True)
        output(f"{path}.post_attention_layernorm", layer.post_attention_layernorm)
        output(f"{path}.mlp.gate_proj", mlp.gate_proj)
        output(f"{path}.mlp.up_proj", mlp.up_proj)
        on(mlp.down_proj, lambda m, args, path=path: keep(f"{path}.mlp.act", args[0][0]), pre=True)
        output(f"{path}.mlp.down_proj", mlp.down_proj)
        output(f"{path}.resid_post", layer)
    output("model.norm", hf.model.norm)
    output("lm_head", hf.lm_head)

    layers_turned, layers_attended = iter(range(len(hf.model.layers))), iter(range(len(hf.model.layers)))
    true_rope, true_softmax = modeling_qwen2.apply_rotary_pos_emb, torch.nn.functional.softmax

    def rope(q, k, cos, sin, **kwargs):
        q, k = true_rope(q, k, cos, sin, **kwargs)
        path = f"model.layers.{next(layers_turned)}.self_attn"
        keep(f"{path}.q_rope", q[0].transpose(0, 1))
        keep(f"{path}.k_rope", k[0].transpose(0, 1))
        return q, k

    def softmax(x, **kwargs):
        probs = true_softmax(x, **kwargs)
        path = f"model.layers.{next(layers_attended)}.self_attn"
        keep(f"{path}.scores", torch.where(x <= torch.finfo(x.dtype).min / 2, -torch.inf, x)[0])
        # HF casts the float32 result at once; the tap is what attention goes on with.
        keep(f"{path}.probs", probs.to(x.dtype)[0])
        return probs

    try:
        with (
            mock.patch.object(modeling_qwen2, "apply_rotary_pos_emb", rope),
            mock.patch.object(torch.nn.functional, "softmax", softmax),
            torch.no_grad(),
        ):
            result = hf(torch.tensor([list(map(int, ids))]), past_key_values=past, use_cache=True)
    finally:
        for handle in handles:
            handle.remove()
    return seen, result.past_key_values


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
    def softmax(x, dim, dtype=None):
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

    `energy` replaces the denominator where the size of the result does not tell the size of what it was summed from.
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

    A score is one dot product, which can cancel to nothing while its rounding stays: its error is measured against
    the norms of the query and key that it was made from. Where HF's sliding cache has dropped keys that no query
    sees, the scores and probabilities of the remaining ones are compared.
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
