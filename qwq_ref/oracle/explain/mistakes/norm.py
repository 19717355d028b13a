"""Mistakes of the norms."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from ....config import Config
from ....spec import rmsnorm
from ....spec.ops import Array, Round, exact
from ...graph import NORM, Op, Run, same
from .base import Mistake, Replaces, changed, line, only

_NORMS = ("input_layernorm", "post_attention_layernorm", NORM)


def _norm_as(how: Callable[[Array, Array, float, Round], Array]) -> Replaces:
    run: Run = lambda at, values, weights: how(values[0], weights[0], at.config.rms_norm_eps, at.rnd)  # noqa: E731
    return changed(*_NORMS, run=run)


def _eps_outside(x: Array, w: Array, eps: float, rnd: Round) -> Array:
    return rnd(w * rnd(x / (np.sqrt(np.mean(x * x, axis=-1, keepdims=True)) + eps)))


def _sum_of_squares(x: Array, w: Array, eps: float, rnd: Round) -> Array:
    return rnd(w * rnd(x / np.sqrt(np.sum(x * x, axis=-1, keepdims=True) + eps)))


def _norms_swapped(config: Config) -> dict[str, Op]:
    first, second = (line(config, tap) for tap in _NORMS[:2])
    return {
        first.tap: dataclasses.replace(first, vectors=second.vectors),
        second.tap: dataclasses.replace(second, vectors=first.vectors),
    }


MISTAKES = (
    Mistake(
        "eps-1e-6",
        "the norms use eps 1e-6 instead of the config's rms_norm_eps",
        "fp32, or an input whose mean square is not far above eps",
        only(
            lambda config: config.rms_norm_eps != 1e-6,
            _norm_as(lambda x, w, eps, rnd: rmsnorm(x, w, 1e-6, rnd)),
        ),
    ),
    Mistake(
        "eps-outside-root",
        "the norms add eps to the root; it belongs under it",
        "fp32, or an input whose mean square is not far above eps",
        _norm_as(_eps_outside),
    ),
    Mistake(
        "layernorm",
        "the norms subtract the mean (LayerNorm); RMSNorm does not",
        "any tokens",
        _norm_as(lambda x, w, eps, rnd: rmsnorm(x - x.mean(axis=-1, keepdims=True), w, eps, rnd)),
    ),
    Mistake(
        "norm-sum-of-squares",
        "the norms divide by the root of the sum of squares; it is the mean",
        "any tokens",
        _norm_as(_sum_of_squares),
    ),
    Mistake(
        "norm-plus-one",
        "the norms multiply by 1 + weight (Gemma's way)",
        "any tokens",
        _norm_as(lambda x, w, eps, rnd: rmsnorm(x, rnd(1 + w), eps, rnd)),
    ),
    Mistake(
        "norm-weight-missing",
        "the norms do not multiply by their weight",
        "norm weights other than 1",
        _norm_as(lambda x, w, eps, rnd: rmsnorm(x, np.ones_like(w), eps, rnd)),
    ),
    Mistake(
        "norm-weights-swapped",
        "the weights of input_layernorm and post_attention_layernorm are swapped",
        "two norms with different weights",
        _norms_swapped,
    ),
    Mistake(
        "final-norm-missing",
        "the last norm, model.norm, is left out before the head",
        "any tokens",
        changed(NORM, run=same, vectors=()),
    ),
    Mistake(
        "norm-weight-before-cast",
        "the norms multiply by the weight before they round; Hugging Face rounds, then multiplies",
        "bf16 or fp16, and Hugging Face's bits: it is no larger an error, only another one",
        _norm_as(lambda x, w, eps, rnd: rnd(rmsnorm(x, w, eps, exact))),
        rounding=True,
    ),
)
