"""Graphs of llama.cpp: find the taps among the tensors, and bring them into the shapes of the spec.

The names of llama.cpp's tensors do not identify them. `Qcur-0` names the product, the sum with the bias, the reshaped
sum and the rotated query. The output projection is `node_31` in one version and `kqv_out-0` in an older one; today
`kqv_out-0` is its input. The weight that it reads identifies an operation, for weights have the same names in every
file. `taps_of` starts at the weights, and follows the graph forward to RoPE and softmax and back to the residual.

ggml writes shapes with the fastest axis first: ne = [n, T] is [T, n] in the spec. Queries and keys need no
permutation: GGUF keeps Qwen2's rows in Hugging Face's order, and llama.cpp rotates halves (its "NEOX" type).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import GoldenError
from ...spec.ops import Array

EMBED, NORM, LOGITS = "model.embed_tokens", "model.norm", "lm_head"  # taps outside the layers
PRECISIONS = ("fp32", "fp16", "bf16")  # from the finest to the coarsest
VIEWS = ("VIEW", "RESHAPE", "PERMUTE", "TRANSPOSE")
_PRECISION = {"f32": "fp32", "f16": "fp16"}


@dataclass(frozen=True)
class Node:
    """One tensor of a graph. A graph is a list of nodes in the order of the computation.

    name         llama.cpp's name; several nodes may have the same
    op           the operation as ggml_op_desc names it: MUL_MAT, ROPE, SWIGLU; LEAF for a recorded input, the mask
    type         f32, f16, bf16, ...
    ne           the four sizes, the fastest axis first
    inputs       the tensors that the operation reads: indices into the same list, or names of weights and inputs
    input_types  the types of the inputs
    offset       of a VIEW: the place where it begins in the viewed tensor, in bytes
    scale        of a SOFT_MAX: the factor of its input
    stored       whether the values were recorded
    """

    name: str
    op: str
    type: str
    ne: tuple[int, ...]
    inputs: tuple[int | str, ...] = ()
    input_types: tuple[str, ...] = ()
    offset: int = 0
    scale: float = 1.0
    stored: bool = False


@dataclass(frozen=True)
class Taps:
    """The taps that `taps_of` found in a graph.

    recipes    tap -> (nodes, function); the function takes the nodes' arrays [ne3, ne2, ne1, ne0], returns the tap's
    precision  tap -> the coarsest type to which an operand of a matrix product was rounded, up to that tap
    unknown    names of computed tensors that belong to no tap
    notes      facts that a reader of the comparison has to know
    """

    recipes: Mapping[str, tuple[tuple[int, ...], Callable[..., Array]]]
    precision: Mapping[str, str]
    unknown: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


# (operation, the weight that it reads) -> the tap that it computes.
_RESULTS = {
    ("MUL", "attn_norm.weight"): "input_layernorm",
    ("MUL_MAT", "attn_q.weight"): "self_attn.q_matmul",
    ("MUL_MAT", "attn_k.weight"): "self_attn.k_matmul",
    ("MUL_MAT", "attn_v.weight"): "self_attn.v_matmul",
    ("MUL_MAT", "attn_qkv.weight"): "self_attn.*_matmul",
    ("ADD", "attn_q.bias"): "self_attn.q_proj",
    ("ADD", "attn_k.bias"): "self_attn.k_proj",
    ("ADD", "attn_v.bias"): "self_attn.v_proj",
    ("ADD", "attn_qkv.bias"): "self_attn.*_proj",
    ("MUL_MAT", "attn_output.weight"): "self_attn.o_proj",
    ("MUL", "ffn_norm.weight"): "post_attention_layernorm",
    ("MUL_MAT", "ffn_gate.weight"): "mlp.gate_proj",
    ("MUL_MAT", "ffn_up.weight"): "mlp.up_proj",
    ("MUL_MAT", "ffn_down.weight"): "mlp.down_proj",
    ("GET_ROWS", "token_embd.weight"): EMBED,
    ("MUL", "output_norm.weight"): NORM,
    ("MUL_MAT", "output.weight"): LOGITS,
    ("MUL_MAT", "token_embd.weight"): LOGITS,  # tied
}
# The tap that the same operation reads; for a norm, the input of its RMS_NORM.
_READS = {
    "input_layernorm": "resid_pre",
    "self_attn.o_proj": "self_attn.heads",
    "post_attention_layernorm": "resid_mid",
    "mlp.down_proj": "mlp.act",
}
_WEIGHT = re.compile(r"(?:blk\.(\d{1,5})\.)?(\w+\.(?:weight|bias))")
# A tensor that the scheduler copied to another device: "CUDA0#blk.0.attn_q.weight#0"
_COPY = re.compile(r"[^#]*#(.*)#\d+")


class _Graph:
    """The nodes, with the links between them."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = nodes
        last: dict[str, int] = {}
        self.inputs: list[tuple[int | str, ...]] = []
        for i, node in enumerate(nodes):
            self.inputs.append(tuple(self._resolved(source, last) for source in node.inputs))
            last[node.name] = i

    @staticmethod
    def _resolved(source: int | str, last: Mapping[str, int]) -> int | str:
        copy = _COPY.fullmatch(source) if isinstance(source, str) else None
        return last.get(copy[1], copy[1]) if copy else source

    def input(self, i: int, k: int = 0) -> int | None:
        """Return the k-th input of a node if that is a computed tensor, else None."""
        source = self.inputs[i][k] if k < len(self.inputs[i]) else None
        return source if isinstance(source, int) else None

    def weight(self, i: int) -> tuple[str | None, str, int]:
        """Return the weight that a node reads: (layer, name in the layer, index of the other input); "" for none."""
        for k, source in enumerate(self.inputs[i]):
            match = _WEIGHT.fullmatch(source) if isinstance(source, str) else None
            if match:
                return match[1], match[2], 1 - k
        return None, "", 0

    def through(self, i: int | None, ops: tuple[str, ...]) -> int | None:
        """Follow first inputs as long as the operation is one of `ops`."""
        while i is not None and self.nodes[i].op in ops:
            i = self.input(i)
        return i


def taps_of(nodes: Sequence[Node], T: int, S: int, source: str | None = None) -> Taps:
    """Find the taps of one graph, computed for T tokens, the last of S positions of a fresh context.

    Raises GoldenError, which names `source`, if a tap is computed twice: the taps of a divided batch cannot be joined.
    """
    return _Reader(nodes, T, S, source).read()


class _Reader:
    """Three passes over a graph: operations that read a weight, then rotations, then softmax."""

    def __init__(self, nodes: Sequence[Node], T: int, S: int, source: str | None) -> None:
        self.graph, self.nodes, self.T, self.S, self.source = _Graph(nodes), nodes, T, S, source
        self.recipes: dict[str, tuple[tuple[int, ...], Callable[..., Array]]] = {}
        self.at: dict[int, str] = {}  # node -> the tap that it computes
        self.fused: list[tuple[str, int]] = []
        self.notes: dict[str, None] = {}

    def put(self, tap: str, sources: Sequence[int | None], how: Callable[..., Array]) -> None:
        """Declare a tap, if all its sources were recorded."""
        known = tuple(i for i in sources if i is not None and self.nodes[i].stored)
        if len(known) < len(sources):
            return
        if tap in self.recipes:
            problem = "is computed twice in one phase; a prompt has to be one batch (n_ubatch)"
            raise GoldenError(self.source, tap, problem)
        self.recipes[tap] = known, how

    def read(self) -> Taps:
        for i in range(len(self.nodes)):
            self._weighted(i)
        for i, node in enumerate(self.nodes):
            if node.op == "ROPE":
                self._rope(i)
        for i, node in enumerate(self.nodes):
            if node.op == "SOFT_MAX":
                self._softmax(i)
        self._split_fused()
        precision = self._precision()
        used = {i for sources, _ in self.recipes.values() for i in sources}
        unknown = dict.fromkeys(
            node.name for i, node in enumerate(self.nodes) if node.stored and i not in used and not self._between(i)
        )
        return Taps(self.recipes, precision, tuple(unknown), tuple(self.notes))

    def _weighted(self, i: int) -> None:
        """Declare the result of an operation that reads a weight, and its input where that is a tap, too."""
        node, graph = self.nodes[i], self.graph
        layer, weight, other = graph.weight(i)
        name = _RESULTS.get((node.op, weight))
        if name is None:
            return
        tap = name if layer is None else f"model.layers.{layer}.{name}"
        if "*" in tap:
            self.fused.append((tap, i))
            return
        self.at[i] = tap
        self.put(tap, [i], _matrix)
        source = graph.through(graph.input(i, other), ("RESHAPE",))
        if name in _READS or name == NORM:
            if node.op == "MUL" and source is not None:  # the factor of a norm reads an RMS_NORM
                source = graph.input(source)
            if name in _READS:
                self.put(f"model.layers.{layer}.{_READS[name]}", [source], _matrix)
            previous = int(layer) - 1 if layer is not None else self._layers() - 1
            if node.op == "MUL" and name != "post_attention_layernorm" and previous >= 0:
                self.put(f"model.layers.{previous}.resid_post", [source], _matrix)

    def _layers(self) -> int:
        """Return the number of layers. The norms of all layers stand before the last norm."""
        return sum(tap.endswith(".input_layernorm") for tap in self.at.values())

    def _rope(self, i: int) -> None:
        source = self.graph.input(i)
        offset = 0
        while source is not None and self.nodes[source].op in (*VIEWS, "CONT"):
            offset += self.nodes[source].offset
            source = self.graph.input(source)
        tap = "" if source is None else self.at.get(source, "")
        fused = next((tap for tap, j in self.fused if j == source and tap.endswith("_proj")), None)
        if fused:  # the query comes first
            tap = fused.replace("*", "k" if offset else "q")
        if tap.endswith(("self_attn.q_proj", "self_attn.k_proj")):
            rotated = tap.removesuffix("_proj") + "_rope"
            self.at[i] = rotated
            self.put(rotated, [i], lambda x: x[0])

    def _softmax(self, i: int) -> None:
        graph, node = self.graph, self.nodes[i]
        product = graph.input(i)
        query = None if product is None else graph.through(graph.input(product, 1), (*VIEWS, "CONT"))
        tap = "" if query is None else self.at.get(query, "")
        if not tap.endswith(".q_rope"):
            return
        attention, scale, T, S = tap.removesuffix(".q_rope"), np.float32(node.scale), self.T, self.S

        def scores(product: Array, mask: Array) -> Array:
            scaled = product[0] * scale + mask[0, 0, :T].astype(np.float32)
            return _cropped(scaled, S, -np.inf)

        self.put(f"{attention}.scores", [product, graph.input(i, 1)], scores)
        self.put(f"{attention}.probs", [i], lambda probs: _cropped(probs[0], S, 0))

    def _split_fused(self) -> None:
        """Divide one product for query, key and value by rows. The query is as wide as the heads."""
        for tap, i in self.fused:
            layer = tap.split(".self_attn.")[0]
            heads = self.recipes.get(f"{layer}.self_attn.heads")
            if heads is None:
                continue
            query = math.prod(self.nodes[heads[0][0]].ne) // self.T
            key = (self.nodes[i].ne[0] - query) // 2
            ends = (0, query, query + key, query + 2 * key)
            for letter, start, stop in zip("qkv", ends[:-1], ends[1:], strict=True):
                part = slice(start, stop)
                self.put(tap.replace("*", letter), [i], lambda x, part=part: _matrix(x)[:, part])

    def _precision(self) -> dict[str, str]:
        """Return the precision of each tap.

        A product rounds its right operand to the type of its left one. Later tensors are at most as exact.
        """
        coarsest, upto = 0, []
        for i, node in enumerate(self.nodes):
            operands = {"MUL_MAT": (0,), "FLASH_ATTN_EXT": (1, 2)}.get(node.op, ())
            for kind in [node.input_types[k] for k in operands if k < len(node.input_types)]:
                coarsest = max(coarsest, PRECISIONS.index(_PRECISION.get(kind, "bf16")))
                self._remark(i, kind)
            upto.append(coarsest)
        return {tap: PRECISIONS[max(upto[i] for i in sources)] for tap, (sources, _) in self.recipes.items()}

    def _remark(self, i: int, kind: str) -> None:
        node = self.nodes[i]
        weight = self.graph.weight(i)[1]
        if node.op == "FLASH_ATTN_EXT":
            self.notes[f"flash attention: no scores and no probs; keys and values are read as {kind}"] = None
        elif not weight and kind != "f32":
            self.notes[f"keys and values are cached as {kind}: queries and probabilities are rounded to it, too"] = None
        elif weight and kind not in ("f32", "f16", "bf16"):
            self.notes[f"weights are {kind}: compare with what they dequantise to; inputs are quantised as well"] = None
        elif weight and kind != "f32":
            self.notes[f"weights are {kind}: the input of each product is rounded to it, its result is not"] = None

    def _between(self, i: int) -> bool:
        """Return whether a computed tensor is a step on the way to a tap, without a tap of its own."""
        node = self.nodes[i]
        if node.op == "GET_ROWS" and node.ne[1] < self.T:
            self.notes["the last layer continues with only those rows whose logits were asked for"] = None
        if node.op == "MUL_MAT":
            return any(self.nodes[s].op == "SOFT_MAX" for s in self.graph.inputs[i] if isinstance(s, int))
        return i in self.at or node.op in ("RMS_NORM", "GET_ROWS", "CONT", "SILU", "LEAF")


def _matrix(x: Array) -> Array:
    """Return [1, 1, T, n] as [T, n], or [1, T, H, E] as [T, H, E]."""
    return np.asarray(x[0, 0] if x.shape[1] == 1 else x[0])


def _cropped(x: Array, S: int, beyond: float) -> Array:
    """Cut [H, T, cells] to [H, T, S]. llama.cpp attends to a multiple of 32 or 256 cells and masks the unused ones."""
    if x.shape[-1] < S or not np.all(x[..., S:] == beyond):
        raise ValueError(f"looks at other cells than the first {S}; the context was not a fresh one")
    return x[..., :S]
