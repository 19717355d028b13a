"""Every mistake of the oracle's catalogue, made by Hugging Face's model: what the oracle has to find.

`planted(name, hf, config)` patches a model that `hf.build` made, in the way in which somebody would have written the
mistake in torch, in whatever type the model computes in. Nothing here comes from the spec or the oracle. Enter it
first and `hf.taps` inside it: modules are called as ever, so that the taps show what the mistaken model computes.

Start with `past=None`: the mistaken model makes its cache, which in layers with a window keeps what a wrong window
needs, or all keys for "mask-missing" and "softmax-over-heads", where those behind the window still count. The scores of
such a layer have the keys that its cache holds, the last ones of the S.
"""

import copy
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.qwen2 import modeling_qwen2
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb, eager_attention_forward

from tests.support.models import yarn


class Site:
    """The model to plant in, and the way back: what is changed through a site is restored at the end."""

    def __init__(self, hf, config, layers, stack: ExitStack) -> None:
        self.hf = hf
        self.config = config
        self.everywhere = layers is None
        self.layers = set(range(config.L)) if layers is None else set(layers)
        self.blocks = [block for i, block in enumerate(hf.model.layers) if i in self.layers]
        self.rotary = hf.model.rotary_emb
        self.current: int | None = None  # the layer whose attention runs: functions that HF looks up do not know it
        self._stack = stack
        for i, block in enumerate(hf.model.layers):
            stack.callback(block.self_attn.register_forward_pre_hook(partial(self._enter, i)).remove)

    def _enter(self, layer, module, args) -> None:
        self.current = layer

    @property
    def norms(self):
        inner = [norm for block in self.blocks for norm in (block.input_layernorm, block.post_attention_layernorm)]
        return [*inner, self.hf.model.norm] if self.everywhere else inner

    @property
    def matrices(self):
        """The linear modules of the chosen layers."""
        return [module for block in self.blocks for module in block.modules() if isinstance(module, torch.nn.Linear)]

    def set(self, owner, name, value) -> None:
        """An attribute, a buffer, or a method of one instance."""
        own = name in vars(owner) or name in vars(owner).get("_buffers", ())
        restore = partial(setattr, owner, name, getattr(owner, name)) if own else partial(delattr, owner, name)
        self._stack.callback(restore)
        setattr(owner, name, value)

    def edit(self, parameter, value) -> None:
        self._stack.callback(parameter.data.copy_, parameter.detach().clone())
        parameter.data.copy_(value.detach().clone())  # a copy, since it may be a view of this very parameter


@dataclass(frozen=True)
class Plant:
    """How to plant a mistake.

    put     (site) -> None: plants it
    values  changes for `config_values` that give a small model on which the mistake has an effect
    whole   it is one of the whole model, not of a layer
    grid    the weights have to lie on a 4-bit grid: see `on_grid`
    silent  the types in which it changes no bit
    quiet    it takes a long prompt to show
    flips    it rounds what two correct implementations compute a bit differently, so that some of it falls elsewhere
    """

    put: Callable[[Site], None]
    values: Mapping[str, Any] = field(default_factory=dict)
    whole: bool = False
    grid: bool = False
    silent: frozenset[torch.dtype] = frozenset()
    quiet: bool = False
    flips: bool = False


@contextmanager
def planted(name, hf, config, layers=None):
    """Within it, `hf` makes the mistake: in every layer, or in a set of `layers` only."""
    plant = PLANTS[name]
    if layers is not None:
        if plant.whole:
            raise ValueError(f"{name} is a mistake of the whole model: it cannot be planted in layers {sorted(layers)}")
        if not set(layers) <= set(range(config.L)):
            raise ValueError(f"layers {sorted(layers)} of a model of {config.L}")
    with ExitStack() as stack:
        plant.put(Site(hf, config, layers, stack))
        yield


# The ways to plant.


def forwards(pick, wrong):
    """Another `forward` of some modules: `wrong(module, true forward, arguments of the call...)`."""

    def put(site):
        for module in pick(site):
            site.set(module, "forward", partial(wrong, module, module.forward))

    return put


def function(owner, name, wrong):
    """Another function where HF's attention looks one up, in the chosen layers."""

    def put(site):
        true = getattr(owner, name)

        @wraps(true)  # those who watch functions know them by name
        def chosen(*args, **kwargs):
            return (wrong if site.current in site.layers else true)(*args, **kwargs)

        site.set(owner, name, chosen)

    return put


# Positions.

YARN = {"rope_scaling": yarn()}
RAMP = {"rope_scaling": yarn(original_max_position_embeddings=512)}  # has a pair in the middle of the ramp
BF16, FP16 = torch.bfloat16, torch.float16


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


# Norms.


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


# Attention.


def scaling(wrong):
    def put(site):
        for block in site.blocks:
            site.set(block.self_attn, "scaling", wrong(site.config))

    return put


def seen(key, query, W):
    """HF's mask: what lies behind, and no further than the window; W is infinite where there is none."""
    return (key <= query) & (key > query - W)


def mask(wrong=seen, window=lambda W, configured: W, forgets=True):
    """Other keys are seen: `wrong(positions of the keys [S], of the queries [T, 1], W)` -> bool [T, S].

    `window(W, the config's W)` is the wrong W of a layer. The cache keeps what that needs, or all if it never forgets.
    """

    def put(site):
        config = site.hf.config
        configured = config.sliding_window or math.inf
        true = [configured if kind == "sliding_attention" else math.inf for kind in config.layer_types]
        windows = [window(W, configured) if i in site.layers else W for i, W in enumerate(true)]

        def new_cache(config):
            past = DynamicCache(config=config)
            past.layers = [
                DynamicSlidingWindowLayer(W) if forgets and math.isfinite(W) else DynamicLayer() for W in windows
            ]
            return past

        def attention(module, q, k, v, attention_mask, position_ids, **kwargs):
            # HF makes one mask for all layers of a kind, which no longer keep the same keys.
            query = position_ids[0, :, None]
            key = torch.arange(int(query[-1]) + 1)[-k.shape[2] :]
            look = wrong if module.layer_idx in site.layers else seen
            hidden = ~look(key, query, windows[module.layer_idx])
            changed = torch.zeros(hidden.shape, dtype=q.dtype).masked_fill(hidden, torch.finfo(q.dtype).min)
            return eager_attention_forward(module, q, k, v, changed[None, None], position_ids=position_ids, **kwargs)

        site.set(modeling_qwen2, "DynamicCache", new_cache)
        site.set(modeling_qwen2, "eager_attention_forward", attention)

    return put


def hides_self(key, query, W):
    strict = seen(key, query, W) & (key != query)
    return torch.where(strict.any(-1, keepdim=True), strict, seen(key, query, W))


def in_decode(wrong):
    return lambda key, query, W: (wrong if query[0] > 0 else seen)(key, query, W)


def softmax(wrong):
    """Like torch's own function, it tells a function mode of its call, so that those who watch see one softmax."""

    def softmax(x, dim, dtype):
        if torch.overrides.has_torch_function_unary(x):
            return torch.overrides.handle_torch_function(softmax, (x,), x, dim=dim, dtype=dtype)
        return wrong(x, dim, dtype)

    return function(functional, "softmax", softmax)


def bf16_softmax(x, dim, dtype):
    """As it is written out; torch's own, given bfloat16, rounds only its input and its result."""
    x = x.bfloat16()
    e = (x - x.amax(dim, keepdim=True)).exp()
    return e / e.sum(dim, keepdim=True)


def softmax_of_bf16(x, dim, dtype):
    """What torch makes of it: the input and the result are rounded, nothing between them."""
    return torch.softmax(x.bfloat16(), dim=dim)


def softmax_over_heads(site):
    def over_heads(x, dim, dtype):
        # -1e4 is what masks were made of before they had a type's least number, beneath which heads can overflow.
        x = torch.where(x <= torch.finfo(x.dtype).min / 2, -1e4, x)
        return torch.softmax(x, dim=1, dtype=dtype)

    mask(forgets=False)(site)  # what all heads hide, they share: that it was forgotten would show
    softmax(over_heads)(site)


def not_transposed(module, *args, **kwargs):
    heads, probs = eager_attention_forward(module, *args, **kwargs)
    return heads.transpose(1, 2).contiguous(), probs


class Cache:
    """What attention sees of HF's cache: one `update`, that of the mistake."""

    def __init__(self, past, wrong) -> None:
        self.past = past
        self.wrong = wrong

    def update(self, keys, values, layer, **_):
        return self.wrong(self.past, keys, values, layer)


def cache(wrong):
    """`wrong(cache, keys, values, layer, cos and sin)` -> all keys, all values"""

    def attend(attn, true, *args, position_embeddings, **kwargs):
        name = "cache" if "cache" in kwargs else "past_key_values"  # transformers renamed it in 5.24
        kwargs[name] = Cache(kwargs[name], partial(wrong, tables=position_embeddings))
        return true(*args, position_embeddings=position_embeddings, **kwargs)

    return forwards(lambda site: [block.self_attn for block in site.blocks], attend)


def bf16_cache(past, keys, values, layer, tables):
    return past.update(keys.bfloat16().to(keys.dtype), values.bfloat16().to(values.dtype), layer)


def values_rotated(past, keys, values, layer, tables):
    return past.update(keys, apply_rotary_pos_emb(values, values, *tables)[1], layer)


def cache_unrotated(site):
    plain = []

    def rotate(q, k, cos, sin):
        plain[:] = [k]
        return apply_rotary_pos_emb(q, k, cos, sin)

    def update(past, keys, values, layer, tables):
        kept, values = past.update(plain.pop(), values, layer)
        return torch.cat((kept[..., : -keys.shape[2], :], keys), dim=2), values

    rotation(rotate)(site)
    cache(update)(site)


def without_bias(names):
    def put(site):
        for block in site.blocks:
            for name in names:
                bias = getattr(block.self_attn, f"{name}_proj").bias
                site.edit(bias, torch.zeros_like(bias))

    return put


# MLP and residual stream.


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


# Weights.


def weights(wrong):
    def put(site):
        for module in site.matrices:
            site.edit(module.weight, wrong(module.weight))

    return put


def awq_order(w):
    """The nibbles of an int32 taken as they lie; AWQ has put these outputs there."""
    if len(w) % 8:
        return w

    def moved(x):
        return x.unflatten(0, (-1, 8))[:, [0, 2, 4, 6, 1, 3, 5, 7]].flatten(0, 1)

    step = step_of(w)
    if step is None:
        return moved(w)
    steps = step.expand(-1, -1, w.shape[1] // step.shape[1]).flatten(1)  # scales are not packed: they stay
    return (moved(w) * steps / moved(steps)).to(w.dtype)


def pairs(rows, E):
    """Row i of a head becomes row 2i, row i + E/2 becomes row 2i + 1."""
    first, second = rows.unflatten(0, (-1, E)).chunk(2, dim=1)
    return torch.stack((first, second), dim=2).reshape(rows.shape)


def halves(rows, E):
    """Row 2i of a head becomes row i, row 2i + 1 becomes row i + E/2."""
    heads = rows.unflatten(0, (-1, E))
    return torch.cat((heads[:, ::2], heads[:, 1::2]), dim=1).reshape(rows.shape)


def heads_permuted(order):
    def put(site):
        for block in site.blocks:
            for module in (block.self_attn.q_proj, block.self_attn.k_proj):
                site.edit(module.weight, order(module.weight, site.config.E))
                site.edit(module.bias, order(module.bias, site.config.E))

    return put


def gate_up_weights_swapped(site):
    for block in site.blocks:
        gate, up = block.mlp.gate_proj.weight, block.mlp.up_proj.weight
        kept = gate.detach().clone()
        site.edit(gate, up)
        site.edit(up, kept)


GROUP, LEVELS = 128, 16


def on_grid(weights: dict[str, np.ndarray], group: int = GROUP) -> dict[str, np.ndarray]:
    """The weights with the layers' matrices quantised to 4 bits: scale * (q - zero), q in 0 ... 15.

    Each row has a scale and a zero for every `group` columns, or for all where it has fewer; matrices whose columns
    are no multiple of it stay as they are. A scale has four significant bits, so that bfloat16 holds every weight
    exactly. Every group has two values next to each other, so that its scale can be told from its values.
    """
    return {
        name: quantised(w, group) if ".layers." in name and w.ndim == 2 else w.copy() for name, w in weights.items()
    }


def quantised(w, group):
    size = min(group, w.shape[1])
    if w.shape[1] % size:
        return w.copy()
    groups = w.astype(np.float64).reshape(len(w), -1, size)
    least = np.minimum(groups.min(-1, keepdims=True), 0)
    most = np.maximum(groups.max(-1, keepdims=True), 0)
    mantissa, exponent = np.frexp((most - least) / (LEVELS - 1))
    scale = np.ldexp(np.ceil(mantissa * 16) / 16, exponent)
    zero = np.round(-least / scale)
    q = np.clip(np.round(groups / scale) + zero, 0, LEVELS - 1)
    alone = ~(np.diff(np.sort(q, axis=-1), axis=-1) == 1).any(-1)
    q[alone, 0] = np.where(q[alone, 1] > 0, q[alone, 1] - 1, 1)
    return (scale * (q - zero)).reshape(w.shape).astype(w.dtype)


def step_of(w):
    """The distance of neighbouring values of each group, [out, groups, 1], or None if there is no grid."""
    size = min(GROUP, w.shape[1])
    if w.shape[1] % size:
        return None
    groups = w.double().unflatten(1, (-1, size))
    gaps = groups.sort(dim=-1).values.diff(dim=-1)
    step = gaps.where(gaps > 0, torch.inf).amin(-1, keepdim=True)
    q = groups / step
    return step if (q.round() == q).all() and (q.amax(-1) - q.amin(-1) < LEVELS).all() else None


def steps_off(by):
    """Dequantised with another zero point, where the weights lie on a 4-bit grid."""

    def put(site):
        steps = {module: step for module in site.matrices if (step := step_of(module.weight)) is not None}
        if not steps:
            raise ValueError("no matrix lies on a 4-bit grid: see on_grid")
        for module, step in steps.items():
            w = module.weight
            site.edit(w, w + by * step.expand(-1, -1, w.shape[1] // step.shape[1]).flatten(1).to(w.dtype))

    return put


# Precision.


def multiplied(rounded, result=lambda y: y):
    """Matrices multiplied from rounded inputs, result and bias rounded, too; sums are as precise as ever.

    Through the function below the modules, which the taps of the products without biases call, too.
    """

    def put(site):
        heads = [site.hf.lm_head] if site.everywhere else []
        chosen = {id(module.weight) for module in (*site.matrices, *heads)}

        def linear(x, w, bias=None):
            if id(w) not in chosen:
                return true(x, w, bias)
            return result(true(rounded(x), rounded(w), None if bias is None else result(bias)))

        true = functional.linear
        site.set(functional, "linear", linear)

    return put


def tf32(x):
    """The ten bits behind the first that a tensor core keeps of a float32."""
    mantissa, exponent = torch.frexp(x.float())
    return torch.ldexp(torch.round(mantissa * 2**11), exponent - 11).to(x.dtype)


def cut_to_tf32(x):
    mantissa, exponent = torch.frexp(x.float())
    return torch.ldexp(torch.trunc(mantissa * 2**11), exponent - 11).to(x.dtype)


def through_bf16(x):
    return x.bfloat16().to(x.dtype)


WINDOW = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
EPS = {"rms_norm_eps": 1e-2}  # far enough from 1e-6 to be seen in bfloat16, too

PLANTS: dict[str, Plant] = {
    "rope-interleaved": Plant(rotation(interleaved)),
    "rope-backwards": Plant(rotation(lambda q, k, cos, sin: apply_rotary_pos_emb(q, k, cos, -sin))),
    "rope-missing": Plant(rotation(lambda q, k, cos, sin: (q, k))),
    "positions-from-one": Plant(positions(lambda ids, start: ids + 1), whole=True),
    "decode-position-late": Plant(positions(lambda ids, start: ids - (start > 0).long()), whole=True),
    "decode-position-restarts": Plant(positions(lambda ids, start: ids - start), whole=True),
    "rope-theta-1e4": Plant(reread(rope_theta=1e4), {"rope_theta": 1e6}, whole=True),
    "rope-theta-1e6": Plant(reread(rope_theta=1e6), whole=True),
    "rope-exponent-halved": Plant(frequencies(exponent_halved), whole=True),
    "rope-frequencies-bf16": Plant(frequencies(lambda site, inv_freq: inv_freq.bfloat16()), whole=True),
    "rope-angles-by-ratio": Plant(tables(by_ratio), whole=True, quiet=True),
    "rope-tables-bf16": Plant(tables(bf16_tables), whole=True, silent=frozenset({BF16})),
    "yarn-missing": Plant(reread(rope_type="default"), YARN, whole=True),
    "yarn-no-attention-scaling": Plant(reread(attention_factor=1.0), YARN, whole=True),
    "yarn-scaling-on-cos-only": Plant(tables(cos_only), YARN, whole=True),
    "yarn-factor-twice": Plant(
        frequencies(lambda site, inv_freq: hf_rope(site, factor=site.config.rope.factor**2)[0]), YARN, whole=True
    ),
    "yarn-ramp-untruncated": Plant(
        lambda site: reread(truncate=not site.hf.config.rope_parameters.get("truncate", True))(site), RAMP, whole=True
    ),
    "yarn-ramp-reversed": Plant(frequencies(ramp_reversed), YARN, whole=True),
    "yarn-as-linear": Plant(interpolated, YARN, whole=True),
    "eps-1e-6": Plant(eps(1e-6), EPS),
    "eps-outside-root": Plant(
        norm(lambda module, x, true: x / (x.pow(2).mean(-1, keepdim=True).sqrt() + module.variance_epsilon)), EPS
    ),
    "layernorm": Plant(norm(lambda module, x, true: true(x - x.mean(-1, keepdim=True)))),
    "norm-sum-of-squares": Plant(
        norm(lambda module, x, true: x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + module.variance_epsilon))
    ),
    "norm-plus-one": Plant(norm(weigh=lambda weight, x, dtype: (1 + weight) * x.to(dtype))),
    "norm-weight-missing": Plant(norm(weigh=lambda weight, x, dtype: x.to(dtype))),
    "norm-weights-swapped": Plant(norm_weights_swapped),
    "final-norm-missing": Plant(forwards(lambda site: [site.hf.model.norm], lambda module, true, x: x), whole=True),
    "norm-weight-before-cast": Plant(
        norm(weigh=lambda weight, x, dtype: (weight.float() * x).to(dtype)), silent=frozenset({torch.float32})
    ),
    "heads-tiled": Plant(function(modeling_qwen2, "repeat_kv", lambda x, G: x.repeat(1, G, 1, 1))),
    "scores-not-scaled": Plant(scaling(lambda config: 1.0)),
    "scores-scaled-by-hidden": Plant(scaling(lambda config: (config.D // config.H) ** -0.5)),
    "mask-missing": Plant(mask(lambda key, query, W: key + query >= 0, forgets=False)),
    "mask-hides-self": Plant(mask(hides_self)),
    "mask-one-ahead": Plant(mask(lambda key, query, W: seen(key, query, W) | (key == query + 1))),
    "window-ignored": Plant(mask(window=lambda W, configured: math.inf), WINDOW),
    "window-one-wider": Plant(mask(window=lambda W, configured: W + 1), WINDOW),
    "window-one-narrower": Plant(mask(window=lambda W, configured: max(1, W - 1)), WINDOW),
    "window-everywhere": Plant(mask(window=lambda W, configured: configured), WINDOW),
    "window-on-the-other-layers": Plant(
        mask(window=lambda W, configured: configured if math.isinf(W) else math.inf), WINDOW
    ),
    "softmax-bf16": Plant(softmax(bf16_softmax)),
    "softmax-bf16-inputs": Plant(softmax(softmax_of_bf16), silent=frozenset({BF16}), flips=True),
    "softmax-over-heads": Plant(softmax_over_heads),
    "q-bias-missing": Plant(without_bias("q")),
    "k-bias-missing": Plant(without_bias("k")),
    "v-bias-missing": Plant(without_bias("v")),
    "qkv-biases-missing": Plant(without_bias("qkv")),
    "heads-not-transposed": Plant(function(modeling_qwen2, "eager_attention_forward", not_transposed)),
    "cache-unrotated": Plant(cache_unrotated),
    "decode-misses-newest": Plant(mask(in_decode(hides_self))),
    "decode-misses-oldest": Plant(mask(in_decode(lambda key, query, W: seen(key, query, W) & (key > 0)))),
    "values-rotated": Plant(cache(values_rotated)),
    "cache-bf16": Plant(cache(bf16_cache), silent=frozenset({BF16})),
    "gate-up-swapped": Plant(forwards(lambda site: [block.mlp for block in site.blocks], gate_up_swapped)),
    "gate-up-weights-swapped": Plant(gate_up_weights_swapped),
    "gelu": Plant(activation(functional.gelu)),
    "gelu-tanh": Plant(activation(partial(functional.gelu, approximate="tanh"))),
    "quick-gelu": Plant(activation(lambda x: x * torch.sigmoid(1.702 * x))),
    "swish-beta-ln2": Plant(activation(lambda x: x * torch.sigmoid(math.log(2) * x))),
    "relu": Plant(activation(functional.relu)),
    "activation-missing": Plant(activation(lambda x: x)),
    "residual-from-norm": Plant(residual(lambda stream, normalised, result: normalised + result)),
    "residual-missing": Plant(residual(lambda stream, normalised, result: result)),
    "mlp-in-parallel": Plant(mlp_in_parallel),
    "weights-in-out": Plant(weights(lambda w: w.reshape(w.shape[1], w.shape[0]).T)),
    "heads-permuted": Plant(heads_permuted(pairs)),
    "heads-unpermuted": Plant(heads_permuted(halves)),
    "awq-nibble-order": Plant(weights(awq_order)),
    "gptq-zero-high": Plant(steps_off(-1), grid=True),
    "gptq-zero-low": Plant(steps_off(1), grid=True),
    "head-tied": Plant(lambda site: site.edit(site.hf.lm_head.weight, site.hf.model.embed_tokens.weight), whole=True),
    "embedding-scaled": Plant(
        forwards(
            lambda site: [site.hf.model.embed_tokens], lambda module, true, ids: true(ids) * module.embedding_dim**0.5
        ),
        whole=True,
    ),
    "matmul-tf32": Plant(multiplied(tf32), silent=frozenset({BF16, FP16})),
    "matmul-tf32-truncated": Plant(multiplied(cut_to_tf32), silent=frozenset({BF16, FP16})),
    "matmul-bf16": Plant(multiplied(through_bf16), silent=frozenset({BF16})),
    "matmul-autocast-bf16": Plant(multiplied(through_bf16, through_bf16), silent=frozenset({BF16})),
}
