"""llama.cpp as a candidate: run a GGUF file, or read the recording of a run, and find its taps.

`qwq_ref.interop.llama_cpp` records the tensors (`capture`) and identifies them (`graph`). This module makes a
`Candidate` of them, and keeps a recording in a folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import GoldenError
from ...files import StrPath, read_json
from ...interop.llama_cpp.bindings import STORED
from ...interop.llama_cpp.capture import record
from ...interop.llama_cpp.graph import PRECISIONS, Node, taps_of
from ...spec.ops import Array
from ..graph import COS, SIN, Phase
from ..packs.folder import new_folder
from ..packs.npy import npy_file
from .candidate import Candidate, Loader

FORMAT = "qwq_ref llama.cpp dump 1"
INDEX = "dump.json"
NO_TAP = (COS, SIN)  # llama.cpp computes these inside its RoPE and keeps neither
_JSON_BYTES = 1 << 28


@dataclass
class Recording:
    """The graphs of a run, phase by phase.

    about  a description of the run: model, version, settings
    load   (index of the phase, index of the node) -> the values [ne3, ne2, ne1, ne0]
    """

    source: str
    phases: Sequence[Phase]
    graphs: list[list[Node]]
    load: Callable[[int, int], Array]
    about: Mapping[str, str] = field(default_factory=dict)

    def candidate(self) -> Candidate:
        """Return the taps. Raises GoldenError for a graph that is not a Qwen2's."""
        tensors: dict[tuple[str, str], Loader] = {}
        precision: dict[str, str] = {"": "fp32"}
        unknown: dict[str, None] = {}
        notes: dict[str, None] = {}
        for p, (phase, nodes) in enumerate(zip(self.phases, self.graphs, strict=True)):
            taps = taps_of(nodes, phase.T, phase.S, self.source)
            for tap, (sources, how) in taps.recipes.items():
                tensors[phase.name, tap] = self._loader(p, tap, sources, how)
            for tap, kind in taps.precision.items():
                precision[tap] = max(precision.get(tap, kind), kind, key=PRECISIONS.index)
            precision[""] = max(precision.values(), key=PRECISIONS.index)
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
            except (ValueError, IndexError) as problem:  # sizes that do not fit together
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
    """Run a GGUF file on the tokens of `phases`, and record the tensors that its graphs compute.

    folder           a new folder for the tensors (see `read_dump`); None keeps them in memory
    threads          the number of threads; None: llama.cpp's default
    cache_type       the type of keys and values: f32, f16 (llama.cpp's default), bf16 or q8_0. None: f32, or f16 with
                     flash attention, which older versions refuse for other types
    flash_attention  one fused operation, which has no scores and no probs, and rounds keys and values to f16
    all_logits       compute the logits of every prompt token. Otherwise only of the last one, and the last layer
                     continues with that row alone
    gpu_layers       the number of layers to offload
    context          other fields of llama_context_params, such as {"rope_scaling_type": 2, "yarn_orig_ctx": 32768}

    llama.cpp stops after each tensor to show it, so a backend cannot fuse operations as it may otherwise do.
    Raises UsageError without llama-cpp-python (0.3.2 or later), or for a setting that it lacks. Raises GoldenError for
    a file that llama.cpp refuses: it needs D = H E, and every tensor of the model in the file.
    """
    settings: dict[str, Any] = {
        "threads": threads,
        "cache_type": cache_type,
        "flash_attention": flash_attention,
        "all_logits": all_logits,
        "gpu_layers": gpu_layers,
        "context": context,
    }
    if folder is None:
        values: dict[tuple[int, int], Array] = {}

        def remember(phase: int, i: int, node: Node, value: Array) -> None:
            values[phase, i] = value

        run = record(gguf_path, phases, remember, **settings)
        return Recording(str(gguf_path), phases, run.graphs, lambda p, i: values[p, i], run.about).candidate()

    with new_folder(Path(folder), "a dump") as unfinished:

        def save(phase: int, i: int, node: Node, value: Array) -> None:
            np.save(_file(unfinished, phases[phase].name, i, node), value, allow_pickle=False)

        for phase in phases:
            (unfinished / phase.name).mkdir()
        run = record(gguf_path, phases, save, **settings)
        _write_index(unfinished, {"model": Path(gguf_path).name, **run.about}, phases, run.graphs)
    return read_dump(folder)


# --- A recording in a folder -----------------------------------------------------------------------------------------


def read_dump(folder: StrPath) -> Candidate:
    """Return the candidate that `capture` wrote into a folder.

    The folder holds one .npy file a computed tensor, `<phase>/<place in the graph>-<op>-<name>.npy`, of shape
    [ne3, ne2, ne1, ne0] in float32 or float16. `dump.json` holds the graphs: for each tensor its name, op, type, ne
    and inputs. Raises GoldenError for anything else.
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
    """Return one node of dump.json. Raises ValueError, KeyError or TypeError for a malformed one."""
    inputs = tuple(source if isinstance(source, int) else str(source) for source in fields["inputs"])
    if any(isinstance(source, int) and not 0 <= source < i for source in inputs):
        raise ValueError(f"tensor {i} is made from a later one")
    types = tuple(str(kind) for kind in fields["input_types"])
    ne = tuple(int(n) for n in fields["ne"])
    if len(types) != len(inputs) or len(ne) != 4 or min(ne) < 0:
        raise ValueError(f"tensor {i} has {len(inputs)} inputs of {len(types)} types, ne {ne}")
    node = Node(str(fields["name"]), str(fields["op"]), str(fields["type"]), ne, inputs, types)
    rest = {"offset": int(fields["offset"]), "scale": float(fields["scale"]), "stored": bool(fields["stored"])}
    if rest["stored"] and node.type not in STORED:
        raise ValueError(f"tensor {i} is of type {node.type}, which is not recorded")
    return Node(**{**vars(node), **rest})


def _file(folder: Path, phase: str, i: int, node: Node) -> Path:
    """Return the file of a tensor's values. A name may hold anything; the number in front keeps files apart."""
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
    """Return the values of a node. GoldenError if the file does not match the graph."""
    file = npy_file(path)
    header = file.header()
    shape, kind = node.ne[::-1], np.dtype(STORED[node.type])
    if (header.shape, header.dtype, header.fortran) != (shape, kind, False):
        raise GoldenError(path, None, f"must hold {kind} of shape {list(shape)}, as {INDEX} says")
    return file.read()
