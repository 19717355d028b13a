"""Mistakes of the norms, the MLP and the residual stream."""

import torch

from tests.support.planted.site import forwards


def norm(scale=None, weigh=None):
    """Qwen2RMSNorm with another divisor or another weight. `scale(module, x)` gives x, normalised, in float32."""

    def forward(module, true, x):
        def normalise(x):
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + module.variance_epsilon)

        normalised = scale(module, x.float(), normalise) if scale else normalise(x.float())
        if weigh:
            return weigh(module.weight, normalised, x.dtype)
        return module.weight * normalised.to(x.dtype)

    return forwards(lambda site: site.norms, forward)


def eps(value):
    def put(site):
        for module in site.norms:
            site.set(module, "variance_epsilon", value)

    return put


def norm_weights_swapped(site):
    for block in site.blocks:
        first, second = (norm.weight for norm in (block.input_layernorm, block.post_attention_layernorm))
        kept = first.detach().clone()
        site.edit(first, second)
        site.edit(second, kept)


def activation(wrong):
    return forwards(lambda site: [block.mlp.act_fn for block in site.blocks], lambda module, true, x: wrong(x))


def gate_up_swapped(mlp, true, x):
    return mlp.down_proj(mlp.act_fn(mlp.up_proj(x)) * mlp.gate_proj(x))


def residual(add):
    """Qwen2DecoderLayer with other sums: `add(stream, normalised, result)`."""

    def forward(block, true, stream, **kwargs):
        normalised = block.input_layernorm(stream)
        stream = add(stream, normalised, block.self_attn(hidden_states=normalised, **kwargs)[0])
        normalised = block.post_attention_layernorm(stream)
        return add(stream, normalised, block.mlp(normalised))

    return forwards(lambda site: site.blocks, forward)


def mlp_in_parallel(site):
    """x + attention(norm(x)) + mlp(norm'(x)), with the sums in HF's order. The second norm is given what it is given
    in HF and reads x instead, so that its input is still the sum that the tap resid_mid means."""
    before = []

    def first(module, true, x):
        before[:] = [x]
        return true(x)

    forwards(lambda site: [block.input_layernorm for block in site.blocks], first)(site)
    second = forwards(
        lambda site: [block.post_attention_layernorm for block in site.blocks],
        lambda module, true, x: true(before.pop()),
    )
    second(site)
