"""Mistakes of RoPE, YaRN and positions."""

import copy

import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.qwen2 import modeling_qwen2

from tests.support.models import yarn
from tests.support.planted.site import forwards, function

YARN = {"rope_scaling": yarn()}
RAMP = {"rope_scaling": yarn(original_max_position_embeddings=512)}  # has a pair in the middle of the ramp


class Theta(float):
    """HF's functions take powers of theta in float32, where libraries differ. Here they are rounded correctly, as those
    of the model that `hf.build` makes: the mistake is the only difference."""

    def __pow__(self, exponents):
        return (float(self) ** exponents.double()).to(exponents.dtype)


def hf_rope(site, **changes):
    """-> (frequencies, attention scaling) as HF makes them from other `rope_parameters`"""
    config = copy.deepcopy(site.hf.config)
    parameters = config.rope_parameters | changes
    config.rope_parameters = parameters | {"rope_theta": Theta(parameters["rope_theta"])}
    if parameters["rope_type"] == "default":
        return site.rotary.compute_default_rope_parameters(config)
    return ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config)


def plain_rope(site):
    return hf_rope(site, rope_type="default")[0].double()


def reread(**changes):
    """RoPE from other parameters."""

    def put(site):
        inv_freq, scaling = hf_rope(site, **changes)
        site.set(site.rotary, "inv_freq", inv_freq)
        site.set(site.rotary, "attention_scaling", scaling)

    return put


def frequencies(wrong):
    """(site, the right ones) -> the wrong ones"""
    return lambda site: site.set(site.rotary, "inv_freq", wrong(site, site.rotary.inv_freq))


def tables(wrong):
    return forwards(lambda site: [site.rotary], wrong)


def positions(wrong):
    """(positions, the first of them) -> the wrong ones; the first is 0 in the prompt only"""
    return tables(lambda rotary, true, x, ids: true(x, wrong(ids, ids[:, :1])))


def cos_only(rotary, true, x, position_ids):
    cos, _ = true(x, position_ids)
    scaling, rotary.attention_scaling = rotary.attention_scaling, 1.0
    _, sin = true(x, position_ids)
    rotary.attention_scaling = scaling
    return cos, sin


def by_ratio(rotary, true, x, position_ids):
    """As llama.cpp's CPU kernel has it; without YaRN."""
    theta, E = rotary.config.rope_parameters["rope_theta"], 2 * len(rotary.inv_freq)
    ratio = torch.tensor(theta ** (-2 / E), dtype=torch.float32)
    angle, angles = position_ids.float(), []
    for _ in range(E // 2):
        angles.append(angle)
        angle = angle * ratio
    both = torch.cat([torch.stack(angles, dim=-1)] * 2, dim=-1)
    return both.cos().to(x.dtype), both.sin().to(x.dtype)


def bf16_tables(rotary, true, x, position_ids):
    return tuple(table.bfloat16().to(x.dtype) for table in true(x, position_ids))


def exponent_halved(site, inv_freq):
    theta, E = site.hf.config.rope_parameters["rope_theta"], site.config.E
    return (theta ** (-torch.arange(E // 2, dtype=torch.float64) / E)).float()


def ramp_reversed(site, inv_freq):
    """The two ends of the ramp in each other's place: the blend and its mirror image sum to the sum of the ends."""
    plain = plain_rope(site)
    return (plain + plain / site.config.rope.factor - inv_freq.double()).float()


def interpolated(site):
    """Position interpolation, which has no attention scaling."""
    site.set(site.rotary, "inv_freq", (plain_rope(site) / site.config.rope.factor).float())
    site.set(site.rotary, "attention_scaling", 1.0)


def interleaved(q, k, cos, sin):
    cos, sin = (table[..., : table.shape[-1] // 2].repeat_interleave(2, dim=-1)[:, None] for table in (cos, sin))

    def turn(x):
        turned = torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
        return x * cos + turned * sin

    return turn(q), turn(k)


def rotation(wrong):
    return function(modeling_qwen2, "apply_rotary_pos_emb", wrong)
