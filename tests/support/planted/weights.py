"""Weights read wrongly, and matrices multiplied in lesser precision."""

import numpy as np
import torch
from torch.nn import functional


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


def columns(order, run):
    """The codes of each `run` columns taken in another order: `order(indices of a run)`"""
    places = order(torch.arange(run))

    def wrong(w):
        return w if w.shape[1] % run else w.unflatten(1, (-1, run))[:, :, places].flatten(1)

    return weights(wrong)


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

    Each row has a scale and a zero point for every `group` columns, or for all columns if it has fewer. A matrix whose
    columns are no multiple of `group` stays unchanged. A scale has four significant bits, so every weight is exact in
    bfloat16. Every group has two neighbouring values, so its scale follows from its values.
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
