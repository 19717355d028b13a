"""llama.cpp's tensors as a candidate: a run under its evaluation callback, recorded, and told apart.

`capture` runs a GGUF file through llama-cpp-python and records every tensor that the graph computes. llama.cpp's own
names do not say what a tensor is: `Qcur-0` is the product, the sum with the bias, the reshaped sum and the rotated
query in turn; the output projection is called `node_31` today and was `kqv_out-0` once, which today is its input. What
stays the same from version to version is what an operation reads: a weight of the file, by the file's name for it. So
`taps_of` follows the graph from the weights, and from there forward (to RoPE and softmax) and back (to the residual).

ggml writes shapes with the fastest axis first: ne = [n, T] is our [T, n]. Queries and keys need no permutation: GGUF
keeps Qwen2's rows as Hugging Face has them, and llama.cpp rotates halves (its "NEOX" type), not neighbours.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import GoldenError, UsageError
from ...files import StrPath, read_json
from ...interop.llama_cpp.bindings import CACHE_TYPES, Library
from ...spec.ops import Array
from ..graph import (
    COS,
    EMBED,
    LOGITS,
    NORM,
    SIN,
    Phase,
)
from ..packs.npy import npy_file
from .candidate import Candidate, Loader

FORMAT = "qwq_ref llama.cpp dump 1"
INDEX = "dump.json"
NO_TAP = (COS, SIN)  # llama.cpp computes them inside its RoPE and keeps neither
_JSON_BYTES = 1 << 28
# How a tensor of a ggml type is kept: NumPy has no bfloat16, so it is widened, which loses nothing.
_STORED = {"f32": "<f4", "f16": "<f2", "bf16": "<f4", "i32": "<i4", "i64": "<i8"}
_VIEWS = ("VIEW", "RESHAPE", "PERMUTE", "TRANSPOSE")
_SILENT = (*_VIEWS, "NONE", "SET_ROWS", "CPY")  # not recorded: another tensor's data, or a whole cache
_PRECISIONS = ("fp32", "fp16", "bf16")  # from the finest to the coarsest
_PRECISION = {"f32": "fp32", "f16": "fp16"}


@dataclass(frozen=True)
class Node:
    """One tensor of a graph, in the order of the computation.

    name         llama.cpp's, not unique
    op           as ggml_op_desc has it: MUL_MAT, ROPE, SWIGLU; LEAF for an input that was recorded: a mask
    type         f32, f16, bf16, ...
    ne           its four sizes, the fastest axis first
    inputs       what it is made from: an index into the same list, or the name of a weight or an input
    input_types  their types
    offset       of a view: where it begins in what it views, in bytes
    scale        of a SOFT_MAX: what its input is multiplied by
    stored       whether its values were recorded
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
    """What `taps_of` makes of a graph.

    recipes    tap -> (the nodes that it is made from, how): arrays [ne3, ne2, ne1, ne0] -> one of the tap's shape
    precision  tap -> the coarsest type that an operand of a matrix product was rounded to, up to there
    unknown    names of computed tensors that are none of ours
    notes      what a reader of the comparison has to know
    """

    recipes: Mapping[str, tuple[tuple[int, ...], Callable[..., Array]]]
    precision: Mapping[str, str]
    unknown: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


# What an operation is, by the weight that it reads: the tap that it computes.
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
# And the tap that it reads. Of a norm this is what its RMS_NORM reads.
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
    """The nodes, with what leads from one to another."""

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
        """The k-th input of a node, if it is one that was computed."""
        source = self.inputs[i][k] if k < len(self.inputs[i]) else None
        return source if isinstance(source, int) else None

    def weight(self, i: int) -> tuple[str | None, str, int]:
        """(layer, name in it, the place of the other input), of the weight that a node reads; "" for none."""
        for k, source in enumerate(self.inputs[i]):
            match = _WEIGHT.fullmatch(source) if isinstance(source, str) else None
            if match:
                return match[1], match[2], 1 - k
        return None, "", 0

    def through(self, i: int | None, ops: tuple[str, ...]) -> int | None:
        """What a node is a view or a copy of, through any number of the operations named."""
        while i is not None and self.nodes[i].op in ops:
            i = self.input(i)
        return i


def taps_of(nodes: Sequence[Node], T: int, S: int, source: str | None = None) -> Taps:
    """What each tensor of one graph is, for T tokens, the last of S positions of a fresh context.

    GoldenError, which names `source`, if a tap is computed twice: a batch that was cut cannot be put together again.
    """
    return _Reader(nodes, T, S, source).read()


class _Reader:
    """The graph, read three times: what touches a weight, what rotates one of those, what makes probabilities of it."""

    def __init__(self, nodes: Sequence[Node], T: int, S: int, source: str | None) -> None:
        self.graph, self.nodes, self.T, self.S, self.source = _Graph(nodes), nodes, T, S, source
        self.recipes: dict[str, tuple[tuple[int, ...], Callable[..., Array]]] = {}
        self.at: dict[int, str] = {}  # node -> the tap that it computes
        self.fused: list[tuple[str, int]] = []
        self.notes: dict[str, None] = {}

    def put(self, tap: str, sources: Sequence[int | None], how: Callable[..., Array]) -> None:
        """Declare a tap, if all that it is made from was recorded."""
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
        """An operation that reads a weight: its result is a tap, and often its input."""
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
            if node.op == "MUL" and source is not None:  # a norm's weight: beyond is the norm itself
                source = graph.input(source)
            if name in _READS:
                self.put(f"model.layers.{layer}.{_READS[name]}", [source], _matrix)
            previous = int(layer) - 1 if layer is not None else self._layers() - 1
            if node.op == "MUL" and name != "post_attention_layernorm" and previous >= 0:
                self.put(f"model.layers.{previous}.resid_post", [source], _matrix)

    def _layers(self) -> int:
        """How many layers the graph has: their norms are all behind us when the last norm comes."""
        return sum(tap.endswith(".input_layernorm") for tap in self.at.values())

    def _rope(self, i: int) -> None:
        source = self.graph.input(i)
        offset = 0
        while source is not None and self.nodes[source].op in (*_VIEWS, "CONT"):
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
        query = None if product is None else graph.through(graph.input(product, 1), (*_VIEWS, "CONT"))
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
        """One product for query, key and value: their rows lie behind each other. The query is as wide as the heads."""
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
        """A product rounds its right operand to the type of its left one; what follows is no more exact than that."""
        coarsest, upto = 0, []
        for i, node in enumerate(self.nodes):
            operands = {"MUL_MAT": (0,), "FLASH_ATTN_EXT": (1, 2)}.get(node.op, ())
            for kind in [node.input_types[k] for k in operands if k < len(node.input_types)]:
                coarsest = max(coarsest, _PRECISIONS.index(_PRECISION.get(kind, "bf16")))
                self._remark(i, kind)
            upto.append(coarsest)
        return {tap: _PRECISIONS[max(upto[i] for i in sources)] for tap, (sources, _) in self.recipes.items()}

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
        """Whether a computed tensor is a step on the way to a tap, that has no tap of its own."""
        node = self.nodes[i]
        if node.op == "GET_ROWS" and node.ne[1] < self.T:
            self.notes["the last layer goes on with those rows alone whose logits were asked for"] = None
        if node.op == "MUL_MAT":
            return any(self.nodes[s].op == "SOFT_MAX" for s in self.graph.inputs[i] if isinstance(s, int))
        return i in self.at or node.op in ("RMS_NORM", "GET_ROWS", "CONT", "SILU", "LEAF")


def _matrix(x: Array) -> Array:
    """[1, 1, T, n] or [1, T, H, E] -> without the leading ones: [T, n] or [T, H, E]."""
    return np.asarray(x[0, 0] if x.shape[1] == 1 else x[0])


def _cropped(x: Array, S: int, beyond: float) -> Array:
    """[H, T, cells] -> [H, T, S]. llama.cpp attends to a multiple of 32 or 256 cells, and masks those not in use."""
    if x.shape[-1] < S or not np.all(x[..., S:] == beyond):
        raise ValueError(f"looks at other cells than the first {S}; the context was not a fresh one")
    return x[..., :S]


@dataclass
class Recording:
    """The graphs of a run, phase by phase.

    about   what was run, and by which version
    load    (phase, node) -> the values, [ne3, ne2, ne1, ne0]
    """

    source: str
    phases: list[Phase]
    graphs: list[list[Node]]
    load: Callable[[int, int], Array]
    about: Mapping[str, str] = field(default_factory=dict)

    def candidate(self) -> Candidate:
        """Its taps. Raises GoldenError for a graph that is not a Qwen2's."""
        tensors: dict[tuple[str, str], Loader] = {}
        precision: dict[str, str] = {"": "fp32"}
        unknown: dict[str, None] = {}
        notes: dict[str, None] = {}
        for p, (phase, nodes) in enumerate(zip(self.phases, self.graphs, strict=True)):
            taps = taps_of(nodes, phase.T, phase.S, self.source)
            for tap, (sources, how) in taps.recipes.items():
                tensors[phase.name, tap] = self._loader(p, tap, sources, how)
            for tap, kind in taps.precision.items():
                precision[tap] = max(precision.get(tap, kind), kind, key=_PRECISIONS.index)
            precision[""] = max(precision.values(), key=_PRECISIONS.index)
            unknown |= dict.fromkeys(taps.unknown)
            notes |= dict.fromkeys(taps.notes)
        if not tensors:
            raise GoldenError(self.source, None, "holds no tensor of a Qwen2 model")
        about = ", ".join(f"{key} {value}" for key, value in self.about.items())
        ids = [token for phase in self.phases for token in phase.ids]
        return Candidate(self.source, tensors, ids, precision, tuple(unknown), (*([about] if about else []), *notes))

    def _loader(self, phase: int, tap: str, sources: tuple[int, ...], how: Callable[..., Array]) -> Loader:
        def read() -> Array:
            try:
                return np.asarray(how(*(self.load(phase, i) for i in sources)))
            except (ValueError, IndexError) as problem:  # sizes that do not go together
                raise GoldenError(self.source, f"{self.phases[phase].name}: {tap}", str(problem)) from None

        return read


def capture(
    gguf_path: StrPath,
    phases: Sequence[Phase],
    folder: StrPath | None = None,
    *,
    threads: int | None = None,
    cache_type: str | None = None,
    flash_attention: bool = False,
    all_logits: bool = True,
    gpu_layers: int = 0,
    context: Mapping[str, float] | None = None,
) -> Candidate:
    """Run a GGUF file on the tokens of `phases`, and record what its graphs compute.

    folder           keep the tensors there (see `read_dump`), not in memory; it must not exist
    threads          for the computation; None: llama.cpp's own default
    cache_type       of keys and values: f32, f16 (llama.cpp's default), bf16 or q8_0. None: f32, or f16 with flash
                     attention, which older versions refuse for others
    flash_attention  one fused operation, which has no scores and no probs, and rounds keys and values to f16
    all_logits       of every token of the prompt; else of its last, and the last layer goes on with that row alone
    gpu_layers       how many layers to offload
    context          other fields of llama_context_params, such as {"rope_scaling_type": 2, "yarn_orig_ctx": 32768}

    Between any two tensors the graph is stopped and read, so a backend cannot fuse operations as it may otherwise do.
    UsageError without llama-cpp-python (0.3.2 or later), or for a setting that it lacks. GoldenError for a file that
    llama.cpp refuses: it wants D = H E and, in the file, every tensor of the model.
    """
    cache_type = cache_type or ("f16" if flash_attention else "f32")
    if cache_type not in CACHE_TYPES:
        raise UsageError(None, "cache_type", f"must be one of {', '.join(CACHE_TYPES)}, got {cache_type}")
    if not phases:
        raise UsageError(None, "phases", "must be at least one")
    library = _Library()
    settings: dict[str, Any] = {
        "n_ctx": max(phase.S for phase in phases),
        # One graph per phase: the prompt must not be cut.
        "n_batch": max(phase.T for phase in phases),
        "n_ubatch": max(phase.T for phase in phases),
        "type_k": CACHE_TYPES[cache_type],
        "type_v": CACHE_TYPES[cache_type],
    }
    if threads is not None:
        settings |= {"n_threads": threads, "n_threads_batch": threads}
    settings |= context or {}

    about = {"llama.cpp": f"({library.version})", "KV cache": cache_type}
    if gpu_layers:
        about["layers on the GPU"] = str(gpu_layers)

    def run(keep: Callable[[int, int, Node, Array], None]) -> list[list[Node]]:
        with (
            library.log() as log,
            library.model(gguf_path, {"n_gpu_layers": gpu_layers}, log) as model,
            _Recorder(library, keep) as recorder,
            library.context(
                gguf_path, model, settings | {"cb_eval": recorder.callback}, flash_attention, log
            ) as context,
        ):
            tokens = library.vocabulary(model)
            for phase in phases:
                if not all(0 <= token < tokens for token in phase.ids):  # older versions abort the process
                    raise GoldenError(gguf_path, phase.name, f"has tokens that are not among the model's {tokens}")
                recorder.begin()
                wanted = [all_logits or i == phase.T - 1 for i in range(phase.T)]
                with library.batch(phase.ids, phase.start, wanted) as batch:
                    status = library.decode(context, batch)
                if recorder.problem is not None:
                    raise recorder.problem
                if status:
                    problem = f"llama.cpp cannot decode it: status {status} ({log.problem()})"
                    raise GoldenError(gguf_path, phase.name, problem)
            return recorder.graphs

    if folder is None:
        values: dict[tuple[int, int], Array] = {}

        def remember(phase: int, i: int, node: Node, value: Array) -> None:
            values[phase, i] = value

        graphs = run(remember)
        return Recording(str(gguf_path), list(phases), graphs, lambda p, i: values[p, i], about).candidate()

    folder = Path(folder)
    if folder.exists():
        raise UsageError(folder, None, "exists already; a dump is written to a new folder")
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")

    def save(phase: int, i: int, node: Node, value: Array) -> None:
        np.save(_file(unfinished, phases[phase].name, i, node), value, allow_pickle=False)

    try:
        for phase in phases:
            (unfinished / phase.name).mkdir(parents=True)
        _write_index(unfinished, {"model": Path(gguf_path).name, **about}, phases, run(save))
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return read_dump(folder)


def read_dump(folder: StrPath) -> Candidate:
    """The candidate that `capture` left in a folder.

    It holds one .npy file per computed tensor, `<phase>/<place in the graph>-<op>-<name>.npy`, of shape
    [ne3, ne2, ne1, ne0] in float32 or float16; and `dump.json` with the graphs: of each tensor its name, op, type, ne,
    and what it is made from. Raises GoldenError for anything else.
    """
    folder = Path(folder)
    index = folder / INDEX
    values = read_json(index, _JSON_BYTES, GoldenError)
    if values.get("format") != FORMAT:
        raise GoldenError(index, "format", f'must be "{FORMAT}"')
    phases: list[Phase] = []
    graphs: list[list[Node]] = []
    try:
        about = {str(key): str(value) for key, value in values["about"].items()}
        for given in values["phases"]:
            phases.append(Phase(str(given["name"]), int(given["start"]), tuple(int(i) for i in given["ids"])))
            graphs.append([_node(i, fields) for i, fields in enumerate(given["nodes"])])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as problem:
        raise GoldenError(index, None, f"is not a dump of ours ({type(problem).__name__}: {problem})") from None
    if not all(re.fullmatch(r"prompt|decode-\d+", phase.name) and phase.ids for phase in phases):
        raise GoldenError(index, "phases", "must be called prompt, decode-0, decode-1, ..., and have tokens")

    def load(p: int, i: int) -> Array:
        node = graphs[p][i]
        return _read_npy(_file(folder, phases[p].name, i, node), node)

    return Recording(str(folder), phases, graphs, load, about).candidate()


def _node(i: int, fields: Mapping[str, Any]) -> Node:
    """One node of dump.json. Raises ValueError or its like."""
    inputs = tuple(source if isinstance(source, int) else str(source) for source in fields["inputs"])
    if any(isinstance(source, int) and not 0 <= source < i for source in inputs):
        raise ValueError(f"tensor {i} is made from a later one")
    types = tuple(str(kind) for kind in fields["input_types"])
    ne = tuple(int(n) for n in fields["ne"])
    if len(types) != len(inputs) or len(ne) != 4 or min(ne) < 0:
        raise ValueError(f"tensor {i} has {len(inputs)} inputs of {len(types)} types, ne {ne}")
    node = Node(str(fields["name"]), str(fields["op"]), str(fields["type"]), ne, inputs, types)
    rest = {"offset": int(fields["offset"]), "scale": float(fields["scale"]), "stored": bool(fields["stored"])}
    if rest["stored"] and node.type not in _STORED:
        raise ValueError(f"tensor {i} is of type {node.type}, which is not recorded")
    return Node(**{**vars(node), **rest})


def _file(folder: Path, phase: str, i: int, node: Node) -> Path:
    """Where a tensor's values lie. Its name may hold anything; the number in front keeps files apart."""
    return folder / phase / f"{i:05d}-{_plain(node.op)}-{_plain(node.name)}.npy"


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:100]


def _write_index(
    folder: Path, about: Mapping[str, str], phases: Sequence[Phase], graphs: Sequence[Sequence[Node]]
) -> None:
    values = {
        "format": FORMAT,
        "about": about,
        "phases": [
            {"name": p.name, "start": p.start, "ids": p.ids, "nodes": [asdict(node) for node in nodes]}
            for p, nodes in zip(phases, graphs, strict=True)
        ],
    }
    (folder / INDEX).write_text(json.dumps(values) + "\n", encoding="utf-8")


def _read_npy(path: Path, node: Node) -> Array:
    """The values of a node; the file must say what the graph says."""
    file = npy_file(path)
    header = file.header()
    shape, kind = node.ne[::-1], np.dtype(_STORED[node.type])
    if (header.shape, header.dtype, header.fortran) != (shape, kind, False):
        raise GoldenError(path, None, f"must hold {kind} of shape {list(shape)}, as {INDEX} says")
    return file.read()


class _Recorder:
    """The evaluation callback. ggml's scheduler asks about each tensor before it computes it, then shows it."""

    def __init__(self, library: _Library, keep: Callable[[int, int, Node, Array], None]) -> None:
        self.library = library
        self.keep = keep
        self.graphs: list[list[Node]] = []
        self.problem: BaseException | None = None
        self.indices: dict[int, int] = {}
        self.callback = library.api.ggml_backend_sched_eval_callback(self._called)

    def __enter__(self) -> _Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.callback = None  # it holds us, and we hold it

    def begin(self) -> None:
        """A new phase. The graph is built anew, perhaps from tensors at the same addresses."""
        self.graphs.append([])
        self.indices = {}

    def _called(self, address: int, ask: bool, _: object) -> bool:
        """-> when asked, whether we want to see the tensor; when shown it, whether to go on."""
        try:
            if not self.graphs:  # a warm-up
                return False
            if ask:
                return self._announced(address)
            i = self.indices[address]
            self.keep(len(self.graphs) - 1, i, self.graphs[-1][i], self.library.values(address))
        except BaseException as problem:  # C cannot pass it on; `decode` raises it
            self.problem = self.problem or problem
            return False
        return True

    def _announced(self, address: int) -> bool:
        nodes = self.graphs[-1]
        tensor = self.library.tensor(address)
        op = self.library.op(address)
        sources = [int(source) for source in tensor.src if source and source != address]  # a cast names itself, too
        if op == "SOFT_MAX" and len(sources) > 1 and sources[1] not in self.indices:
            # The mask is an input, which no operation computes. Now it is still there.
            mask = self.library.tensor(sources[1])
            kind = self.library.type(mask.type)
            node = Node(self.library.name(sources[1]), "LEAF", kind, tuple(mask.ne), stored=True)
            self.indices[sources[1]] = len(nodes)
            self.keep(len(self.graphs) - 1, len(nodes), node, self.library.values(sources[1]))
            nodes.append(node)
        kind = self.library.type(tensor.type)
        stored = op not in _SILENT and kind in _STORED
        self.indices[address] = len(nodes)
        nodes.append(
            Node(
                self.library.name(address),
                op,
                kind,
                tuple(tensor.ne),
                tuple(self.indices.get(source, self.library.name(source)) for source in sources),
                tuple(self.library.type(self.library.tensor(source).type) for source in sources),
                int(tensor.view_offs) if op == "VIEW" else 0,
                float(np.int32(tensor.op_params[0]).view(np.float32)) if op == "SOFT_MAX" else 1.0,
                stored,
            )
        )
        return stored


def _layout(*between: tuple[str, Any]) -> type[ctypes.Structure]:
    """struct ggml_tensor up to its name; `between` is what stands in front of its sources."""

    class Tensor(ctypes.Structure):
        _fields_ = (
            ("type", ctypes.c_int),
            ("buffer", ctypes.c_void_p),
            ("ne", ctypes.c_int64 * 4),
            ("nb", ctypes.c_size_t * 4),
            ("op", ctypes.c_int),
            ("op_params", ctypes.c_int32 * 16),
            ("flags", ctypes.c_int32),
            *between,
            ("src", ctypes.c_void_p * 10),
            ("view_src", ctypes.c_void_p),
            ("view_offs", ctypes.c_size_t),
            ("data", ctypes.c_void_p),
            ("name", ctypes.c_char * 64),
        )

    return Tensor


_LAYOUTS = (_layout(), _layout(("grad", ctypes.c_void_p)))  # with a gradient until November 2024


class _Library(Library):
    """The bindings, and the few functions of ggml that they lack."""

    def __init__(self) -> None:
        super().__init__(GoldenError)
        pointer, text, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t
        self._name_at = self._function("ggml_get_name", pointer, pointer)
        self._op = self._function("ggml_op_desc", text, pointer)
        self._type = self._function("ggml_type_name", text, ctypes.c_int)
        self._bytes = self._function("ggml_nbytes", size, pointer)
        self._get = self._function("ggml_backend_tensor_get", None, pointer, pointer, size, size)
        self._layout: type[ctypes.Structure] | None = None

    def _function(self, name: str, result: Any, *arguments: Any) -> Any:
        """A function of ggml's. It is in a library that libllama was linked with, where the system looks it up."""
        try:
            function = getattr(self.api._lib, name)
        except AttributeError:
            extension = importlib.import_module("llama_cpp._ctypes_extensions")
            function = getattr(extension.load_shared_library("ggml-base", self.api._base_path), name)
        function.restype, function.argtypes = result, list(arguments)
        return function

    def tensor(self, address: int) -> Any:
        """The tensor at an address. ggml tells where its name is, which shows whether the fields are where we think."""
        if self._layout is None:
            place = self._name_at(address) - address
            fitting = [layout for layout in _LAYOUTS if layout.name.offset == place]
            if not fitting:
                raise UsageError(None, "llama.cpp", f"this version's tensors are laid out differently ({self.version})")
            self._layout = fitting[0]
        return self._layout.from_address(address)

    def name(self, address: int) -> str:
        return ctypes.string_at(self._name_at(address)).decode("utf-8", "replace")

    def op(self, address: int) -> str:
        return str(self._op(address).decode())

    def type(self, number: int) -> str:
        return str(self._type(number).decode())

    def values(self, address: int) -> Array:
        """A copy of a tensor's values, from whichever device, [ne3, ne2, ne1, ne0]."""
        tensor = self.tensor(address)
        kind = self.type(tensor.type)
        data: Array = np.empty(self._bytes(address), np.uint8)
        self._get(address, data.ctypes.data, 0, len(data))
        raw = "<u2" if kind == "bf16" else _STORED[kind]
        strided: Array = np.ndarray(tuple(tensor.ne)[::-1], raw, data, 0, tuple(tensor.nb)[::-1])
        if kind == "bf16":  # the upper half of a float32
            return (strided.astype(np.uint32) << 16).view(np.float32)
        return strided.copy()
