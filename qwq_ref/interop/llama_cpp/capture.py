"""Run a GGUF file under llama.cpp's evaluation callback, and record the tensors that its graphs compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ...errors import GoldenError, UsageError
from ...files import StrPath
from ...spec.ops import Array
from .bindings import CACHE_TYPES, STORED, Ggml
from .graph import VIEWS, Node

_SILENT = (*VIEWS, "NONE", "SET_ROWS", "CPY")  # not recorded: data of another tensor, or a whole cache

Keep = Callable[[int, int, Node, Array], None]


class Phase(Protocol):
    """One call of the model: its name, the position of its first token, and its token ids."""

    @property
    def name(self) -> str: ...
    @property
    def start(self) -> int: ...
    @property
    def ids(self) -> Sequence[int]: ...


@dataclass(frozen=True)
class Run:
    """The graphs of a run, one a phase, and a description of the run for its reader."""

    graphs: list[list[Node]]
    about: Mapping[str, str]


def record(
    path: StrPath,
    phases: Sequence[Phase],
    keep: Keep,
    *,
    threads: int | None = None,
    cache_type: str | None = None,
    flash_attention: bool = False,
    all_logits: bool = True,
    gpu_layers: int = 0,
    context: Mapping[str, float] | None = None,
) -> Run:
    """Run a GGUF file on the tokens of `phases`, one batch a phase.

    keep  called with (index of the phase, index of the node, node, its values [ne3, ne2, ne1, ne0]) for each tensor

    The other arguments, and the errors, are those of `qwq_ref.oracle.adapters.llama_cpp.capture`.
    """
    cache_type = cache_type or ("f16" if flash_attention else "f32")
    if cache_type not in CACHE_TYPES:
        raise UsageError(None, "cache_type", f"must be one of {', '.join(CACHE_TYPES)}, got {cache_type}")
    if not phases:
        raise UsageError(None, "phases", "must be at least one")
    library = Ggml(GoldenError)
    most = max(len(phase.ids) for phase in phases)
    settings: dict[str, Any] = {
        "n_ctx": max(phase.start + len(phase.ids) for phase in phases),
        # One graph a phase: llama.cpp must not divide the prompt.
        "n_batch": most,
        "n_ubatch": most,
        "type_k": CACHE_TYPES[cache_type],
        "type_v": CACHE_TYPES[cache_type],
    }
    if threads is not None:
        settings |= {"n_threads": threads, "n_threads_batch": threads}
    settings |= context or {}
    about = {"llama.cpp": f"({library.version})", "KV cache": cache_type}
    if gpu_layers:
        about["layers on the GPU"] = str(gpu_layers)

    with (
        library.log() as log,
        library.model(path, {"n_gpu_layers": gpu_layers}, log) as model,
        _Recorder(library, keep) as recorder,
        library.context(path, model, settings | {"cb_eval": recorder.callback}, flash_attention, log) as run,
    ):
        tokens = library.vocabulary(model)
        for phase in phases:
            if not all(0 <= token < tokens for token in phase.ids):  # older versions abort the process
                raise GoldenError(path, phase.name, f"has tokens that are not among the model's {tokens}")
            recorder.begin()
            wanted = [all_logits or i == len(phase.ids) - 1 for i in range(len(phase.ids))]
            with library.batch(phase.ids, phase.start, wanted) as batch:
                status = library.decode(run, batch)
            if recorder.problem is not None:
                raise recorder.problem
            if status:
                raise GoldenError(path, phase.name, f"llama.cpp cannot decode it: status {status} ({log.problem()})")
        return Run(recorder.graphs, about)


class _Recorder:
    """The evaluation callback: ggml's scheduler announces each tensor, computes it, and then shows it."""

    def __init__(self, library: Ggml, keep: Keep) -> None:
        self.library = library
        self.keep = keep
        self.graphs: list[list[Node]] = []
        self.problem: BaseException | None = None
        self.indices: dict[int, int] = {}
        self.callback = library.api.ggml_backend_sched_eval_callback(self._called)

    def __enter__(self) -> _Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.callback = None  # the callback and the recorder refer to each other

    def begin(self) -> None:
        """Begin a phase. llama.cpp builds a new graph, perhaps of tensors at the same addresses."""
        self.graphs.append([])
        self.indices = {}

    def _called(self, address: int, ask: bool, _: object) -> bool:
        """Return whether to show an announced tensor, or whether to go on after a shown one."""
        try:
            if not self.graphs:  # a warm-up
                return False
            if ask:
                return self._announced(address)
            i = self.indices[address]
            self.keep(len(self.graphs) - 1, i, self.graphs[-1][i], self.library.values(address))
        except BaseException as problem:  # C cannot pass it on; `record` raises it
            self.problem = self.problem or problem
            return False
        return True

    def _announced(self, address: int) -> bool:
        """Add a tensor to the graph; return whether its values are wanted."""
        nodes = self.graphs[-1]
        tensor = self.library.tensor(address)
        op = self.library.op(address)
        sources = [int(source) for source in tensor.src if source and source != address]  # a cast names itself, too
        if op == "SOFT_MAX" and len(sources) > 1 and sources[1] not in self.indices:
            # The mask is an input: no operation computes it. Its values are still there now.
            mask = self.library.tensor(sources[1])
            kind = self.library.type(mask.type)
            node = Node(self.library.name(sources[1]), "LEAF", kind, tuple(mask.ne), stored=True)
            self.indices[sources[1]] = len(nodes)
            self.keep(len(self.graphs) - 1, len(nodes), node, self.library.values(sources[1]))
            nodes.append(node)
        kind = self.library.type(tensor.type)
        stored = op not in _SILENT and kind in STORED
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
