"""The tensors that a model consists of in one weight form, and their sizes to the byte.

`qwq info`, `qwq doctor`, the loader and `qwq convert` take their numbers from here. They equal the packed file's
bytes and the memory that the loader allocates. No compiled core is needed.
"""

from __future__ import annotations

import numpy as np

from ..config import Config
from ..core import FORMATS, Array
from ..formats.packed import Stored, columns_name
from ..formats.parts import common
from ..forms import FORMS, AnyForm, FileForm, same_columns

# Tensors of a layer in the order of `core.layer.LayerWeights`: those of a checkpoint, or several of them joined.
_LAYER = (
    "input_layernorm.weight",
    "self_attn.qkv_proj.weight",
    "self_attn.qkv_proj.bias",
    "self_attn.o_proj.weight",
    "post_attention_layernorm.weight",
    "mlp.gate_up_proj.weight",
    "mlp.down_proj.weight",
)
EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


def plan(config: Config, form: AnyForm) -> dict[str, Stored]:
    """Return the tensors of a model in one weight form: name -> shape and format, in the order of the computation.

    The MLP is padded to a multiple of 32. A tied head in floats is the embedding, too: there is no other one. In q8 it
    is a tensor of its own, because its format differs from the embedding's.

    In the form of a file, q, k and v are one matrix only if their formats agree. The embedding is packed. Beside a
    matrix whose columns have an order of their own stands a tensor of that order.
    """
    if isinstance(form, FileForm):
        return _plan_of_file(config, form)
    kept = FORMS[form]
    matrix, head = FORMATS[kept.matrix], FORMATS[kept.head]
    D, q, k = config.D, config.H * config.E, config.K * config.E
    F = -(-config.F // 32) * 32
    stored = {} if head_is_embedding(config, form) else {EMBEDDING: Stored((config.V, D), dtype=kept.embedding)}
    of_layer = (
        Stored((D,)),
        Stored((q + 2 * k, D), matrix),
        Stored((q + 2 * k,)),
        Stored((D, q), matrix),
        Stored((D,)),
        Stored((2 * F, D), matrix),
        Stored((D, F), matrix),
    )
    for i in range(config.L):
        stored |= zip(layer_names(i), of_layer, strict=True)
    return stored | {NORM: Stored((D,)), HEAD: Stored((config.V, D), head)}


def _plan_of_file(config: Config, form: FileForm) -> dict[str, Stored]:
    stored, shapes = {}, config.tensors()
    F = -(-config.F // 32) * 32

    def matrix(name: str) -> Stored:
        return Stored((shapes[name][0], shapes[name][1]), form.formats[name])

    if not config.tie_word_embeddings:
        stored[EMBEDDING] = matrix(EMBEDDING)
    for i in range(config.L):
        norm, qkv, bias, o, post_norm, gate_up, down = layer_names(i)
        apart = [matrix(name) for name in qkv_names(i)]
        gate, up = (form.formats[name] for name in gate_up_names(i))
        stored[norm] = Stored((config.D,))
        orders = [form.columns.get(name) for name in qkv_names(i)]
        if len({each.format for each in apart}) == 1 and all(same_columns(orders[0], each) for each in orders):
            stored[qkv] = Stored((sum(each.shape[0] for each in apart), config.D), apart[0].format)
        else:
            stored |= zip(qkv_names(i), apart, strict=True)
        stored[bias] = Stored((sum(each.shape[0] for each in apart),))
        stored[o] = matrix(o)
        stored[post_norm] = Stored((config.D,))
        stored[gate_up] = Stored((2 * F, config.D), common(gate, up))
        stored[down] = Stored((config.D, F), form.formats[down])
    stored |= {NORM: Stored((config.D,)), HEAD: Stored((config.V, config.D), form.formats[config.head_name])}
    ordered = {columns_name(name): columns_of(config, form, name) for name in stored}
    return stored | {name: Stored(order.shape, dtype="I32") for name, order in ordered.items() if order is not None}


def columns_of(config: Config, form: AnyForm, name: str) -> Array | None:
    """Return the order of the packed columns of a matrix of the plan, int32 [K]; None for its own order.

    Columns of down that the padding of the MLP adds keep their place.
    """
    if not isinstance(form, FileForm) or not form.columns:
        return None
    first = name.replace("qkv_proj", "q_proj").replace("gate_up_proj", "gate_proj")
    order = form.columns.get(config.head_name if name == HEAD else first)
    if order is None or not name.endswith("down_proj.weight"):
        return order
    return np.concatenate([order, np.arange(config.F, -(-config.F // 32) * 32, dtype=np.int32)])


def qkv_names(layer: int) -> list[str]:
    """Return the names of the matrices of q, k and v in a checkpoint, and in a plan where they are apart."""
    return [f"model.layers.{layer}.self_attn.{name}_proj.weight" for name in "qkv"]


def gate_up_names(layer: int) -> list[str]:
    """Return the names of the matrices of gate and up in a checkpoint."""
    return [f"model.layers.{layer}.mlp.{name}_proj.weight" for name in ("gate", "up")]


def head_is_embedding(config: Config, form: AnyForm) -> bool:
    """Return whether the head of a tied model holds the same numbers as its embedding would, and so replaces it."""
    if isinstance(form, FileForm):
        return config.tie_word_embeddings
    kept = FORMS[form]
    return config.tie_word_embeddings and kept.head == {"F32": "fp32", "BF16": "bf16"}[kept.embedding]


def layer_names(layer: int) -> list[str]:
    """Return the names of one layer's tensors in a plan."""
    return [f"model.layers.{layer}.{name}" for name in _LAYER]


def model_bytes(config: Config, form: AnyForm) -> int:
    """Return the bytes of all weights in one form."""
    return sum(stored.nbytes for stored in plan(config, form).values())


def step_bytes(config: Config, form: AnyForm) -> int:
    """Return the bytes of weights that decoding one token reads: all, but of the embedding one row."""
    planned = plan(config, form)
    embedding = planned.pop(EMBEDDING, None)
    row = 0 if embedding is None else embedding.nbytes // config.V  # 0: the head is read whole
    return sum(stored.nbytes for stored in planned.values()) + row
