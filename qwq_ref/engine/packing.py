"""Read a model's weights, and pack them if the source holds them as floats.

Threads read and pack some rows of a matrix at a time, so that little more than the result is held, and of a result in a
file even less. A bfloat16 checkpoint that is packed as bf16 is never widened: its bits are read into the processor's
cache and copied into panels.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from .. import core
from ..config import Config
from ..core import PANEL, Packed
from ..core.formats import ALIGN, LARGEST_SCALE
from ..core.magnitude import FLOAT32_MAX
from ..core.weights import MOST_LOST, energy, lost_energy, quantise_groups
from ..errors import FormError
from ..formats.decoded import DecodedSource
from ..formats.packed import Stored
from ..formats.source import Tensors
from ..forms import FILE, FORMS, AnyForm
from ..spec.ops import Array
from .pieces import BF16, Arrays, InMemory, Job, Notes, Pieces, Progress, Rows, Target, copy_floats
from .plan import EMBEDDING, HEAD, NORM, gate_up_names, layer_names, plan, qkv_names
from .weights import ModelWeights

BF16_LIMIT = float(np.array(0x7F7F7FFF, np.uint32).view(np.float32))  # beyond it, float32 is rounded to infinity
_ROWS = 1 << 10  # of a tensor that are read at a time to measure its energy


def pack_weights(
    config: Config, weights: Tensors | Mapping[str, Array], form: str, threads: int, progress: Progress | None = None
) -> ModelWeights:
    """Pack all tensors of a model, in one piece of memory: see `packed_tensors`."""

    def packed(allocate: Callable[[int], Array]) -> Iterator[tuple[str, Packed | Array]]:
        return packed_tensors(config, weights, form, threads, progress, allocate)

    return in_one_piece(config, form, packed)


def in_one_piece(
    config: Config, form: AnyForm, packed: Callable[[Callable[[int], Array]], Iterator[tuple[str, Packed | Array]]]
) -> ModelWeights:
    """Return the weights that `packed` yields, with memory from the function that it is given."""
    sizes = [stored.nbytes + ALIGN for stored in plan(config, form).values() if len(stored.shape) == 2]
    # The system gives large pages to large pieces: they cost less to fill, and fewer look-ups when they are read.
    memory, used = core.aligned(sum(sizes)), 0

    def allocate(size: int) -> Array:
        nonlocal used
        begin, used = used, used - -size // ALIGN * ALIGN
        return memory[begin : begin + size]

    return ModelWeights.of(config, form, dict(packed(allocate)))


def packed_tensors(
    config: Config,
    weights: Tensors | Mapping[str, Array],
    form: str,
    threads: int,
    progress: Progress | None = None,
    allocate: Callable[[int], Array] = core.aligned,
) -> Iterator[tuple[str, Packed | Array]]:
    """Yield the tensors of `plan`, one after another, packed from floats.

    The head comes first, or follows the embedding.

    weights   a source's tensors, or name -> array
    progress  called with the number of weights read since its last call
    allocate  returns so many bytes of memory for a matrix

    Two matrices are held at a time, besides small ones, to keep the threads busy. The form bf16 keeps the upper half of
    each float32. Raises FormError if the lower half of a matrix's weight is not zero: no precision is lost silently.
    Raises CheckpointError for a weight that is not finite, with its tensor and its place. Raises FormError for one that
    is too large for its format, and for a tensor with weights that are too small for it.
    """
    tensors = weights if isinstance(weights, Tensors) else Arrays(weights)
    target = InMemory(plan(config, form), allocate)
    with Packer(config, tensors, form, threads, target) as packer:
        for name in packer.run(progress):
            yield name, target.pop(name)


class _Losses:
    """The energy that each tensor of a matrix loses by weights too small for their scales; threads add to it.

    lost   for each tensor: see `lost_energy`
    least  less than the energy of each tensor
    """

    def __init__(self, rows: Rows, stored: Stored) -> None:
        self.lost, self.least = np.zeros(len(rows.names)), np.zeros(len(rows.names))
        self.rows, self._lock = rows, threading.Lock()
        codes = "" if stored.format is None else stored.format.codes
        self._half = core.LARGEST.get(codes, 0) / LARGEST_SCALE / 2  # of the largest level

    def add(self, begin: int, packed: tuple[Array, Array | None] | None) -> None:
        """Add rows from `begin` on, which were packed: their scales, and their `lost_energy`. None: without scales."""
        if packed is None:
            return
        scale, lost = packed
        wide = scale.astype(np.float32)
        # A group's largest weight is near the largest level times its scale.
        least = self.rows.by_name(begin, np.einsum("nm,nm->n", wide, wide) * self._half**2)
        with self._lock:
            self.least += least
            if lost is not None:
                self.lost += self.rows.by_name(begin, lost)


class Packer(Pieces):
    """A pool of threads that read floats and pack the matrices of a model."""

    def __init__(self, config: Config, tensors: Tensors, form: str, threads: int, target: Target) -> None:
        super().__init__(plan(config, form), tensors, threads, target)
        self._config, self._only_from = config, FORMS[form].only_from
        self._overflow = f"overflow when the swiglu_beta of {config.swiglu_beta:g} is folded into them"

    def jobs(self) -> Iterator[Job]:
        """Return the jobs that fill all tensors, in the order of the computation."""
        config = self._config
        if EMBEDDING in self._plan:
            yield self._embedding()
        if EMBEDDING not in self._plan or not config.tie_word_embeddings:
            yield self._matrix(HEAD, self._joined([config.head_name]))
        for i in range(config.L):
            path = f"model.layers.{i}."
            norm, qkv, bias, o, post_norm, gate_up, down = layer_names(i)
            yield self._vector(norm, [norm])
            yield self._matrix(qkv, self._joined(qkv_names(i)))
            yield self._vector(bias, [f"{path}self_attn.{name}_proj.bias" for name in "qkv"])
            yield self._matrix(o, self._joined([o]))
            yield self._vector(post_norm, [post_norm])
            yield self._matrix(gate_up, self._gate_up(*gate_up_names(i)))
            yield self._matrix(down, self._joined([down]))
        yield self._vector(NORM, [NORM])

    def _matrix(self, name: str, rows: Rows) -> Job:
        stored = self._plan[name]
        losses, limit = _Losses(rows, stored), _limit(stored)

        def piece(begin: int, end: int) -> int:
            out = self._scratch((end - begin, stored.shape[1]), rows.dtype)
            count = rows.fill(begin, end, out)
            self._check(out, rows.names, limit)
            self._put(name, begin, out, losses)
            return count

        return Job([name], rows.names, piece, lambda: self._check_losses(losses, rows, stored))

    def _put(self, name: str, begin: int, rows: Array, losses: _Losses) -> None:
        """Pack rows of floats, and give them to the target."""
        form, end = self._plan[name].format, begin + len(rows)
        assert form is not None
        if form.codes == "bf16" and rows.dtype != BF16:
            rows = self._narrowed(rows, begin, losses.rows)
        data = self._target.room(name, begin, end)
        losses.add(begin, _pack(rows, Packed(form, data, (len(rows), rows.shape[1]))))
        self._target.put(name, begin, end, data)

    def _narrowed(self, rows: Array, begin: int, of: Rows) -> Array:
        """Return float rows [n, K] from `begin` on as bfloat16. Raises FormError if that would change a number."""
        bits = np.ascontiguousarray(rows, np.float32).view(np.uint32)
        wrong = np.flatnonzero(np.any(bits & 0xFFFF, axis=1))
        if len(wrong):
            name = of.names[int(of.owner(begin + wrong[:1])[0])]
            own = f"{FILE}, " if isinstance(self._tensors, DecodedSource) else ""
            problem = f"is not bfloat16: take weights {own}fp32, q8 or q4"
            raise FormError(self._tensors.file(name), name, problem)
        return (bits >> 16).astype(np.uint16).view(BF16)

    def _embedding(self) -> Job:
        """Read the embedding. If the head is tied to it, pack the head from the same rows, in another format."""
        stored, rows = self._plan[EMBEDDING], self._joined([EMBEDDING])
        dtype = np.dtype(np.float32) if stored.dtype == "F32" else BF16
        head = self._plan[HEAD] if self._config.tie_word_embeddings else None
        limit = min(_limit(stored), _limit(head) if head is not None else FLOAT32_MAX)
        losses = None if head is None else _Losses(rows, head)

        def piece(begin: int, end: int) -> int:
            data = self._target.room(EMBEDDING, begin, end)
            of_array = data.view(dtype).reshape(end - begin, stored.shape[1])
            out = of_array if rows.dtype == dtype else self._scratch(of_array.shape, rows.dtype)
            count = rows.fill(begin, end, out)
            self._check(out, rows.names, limit)
            if out is not of_array:
                if self._only_from:
                    self._narrowed(out, begin, rows)
                copy_floats(of_array, out)
            self._target.put(EMBEDDING, begin, end, data)
            if losses is not None:
                self._put(HEAD, begin, out, losses)
            return count

        if head is None or losses is None:
            return Job([EMBEDDING], rows.names, piece)
        return Job([EMBEDDING, HEAD], rows.names, piece, lambda: self._check_losses(losses, rows, head))

    def _check_losses(self, losses: _Losses, rows: Rows, stored: Stored) -> Notes | None:
        """Raise FormError if a tensor loses too much of its energy in weights too small for the scales of its format.

        The energy of the whole tensor is computed only where it may be too little: it costs a second reading.
        """
        (N, K), codes = stored.shape, "" if stored.format is None else stored.format.codes
        if codes not in MOST_LOST or not np.any(losses.lost > MOST_LOST[codes] * losses.least):
            return None
        whole = np.zeros(len(rows.names))
        for begin in range(0, N, _ROWS):
            out = np.empty((min(_ROWS, N - begin), K), rows.dtype)
            rows.fill(begin, begin + len(out), out)
            whole += rows.by_name(begin, energy(out))
        for name, lost, of_all in zip(rows.names, losses.lost, whole, strict=True):
            if lost > MOST_LOST[codes] * of_all:
                problem = f"has weights too small for the scales of {codes}, which would lose them: take bf16 or fp32"
                raise FormError(self._tensors.file(name), name, problem)
        return None

    def _gate_up(self, gate: str, up: str) -> Rows:
        """Return the rows of gate_proj and up_proj as `core.interleave` orders them; `begin` is a multiple of 64.

        A beta means silu(beta g) u / beta. It is folded into the weights.
        """
        beta, (F, _) = np.float32(self._config.swiglu_beta), self._tensors.shape(gate)

        def fill(begin: int, end: int, out: Array) -> int:
            first, last = begin // 2, min(end // 2, F)
            pairs = out.reshape(-1, 2, PANEL, out.shape[1])
            rest = (last - first) % PANEL
            if rest:
                pairs[-1, :, rest:] = 0
            count = 0
            for i, name in enumerate((gate, up)):
                panels = list(pairs[:, i])
                if rest:
                    panels[-1] = panels[-1][:rest]
                count += self._read(name, first, panels)
            if beta != 1:
                with np.errstate(all="ignore"):
                    pairs[:, 0] *= beta
                    pairs[:, 1] /= beta
            return count

        dtype = np.dtype(np.float32) if beta != 1 else self._dtype([gate, up])
        return Rows([gate, up], dtype, fill, lambda rows: rows // PANEL % 2)


def _limit(stored: Stored) -> float:
    """Return the largest magnitude that a format holds; a larger one would be cut, or become infinity."""
    if stored.format is None:
        return FLOAT32_MAX if stored.dtype == "F32" else BF16_LIMIT
    return core.LARGEST.get(stored.format.codes, FLOAT32_MAX)


def _pack(rows: Array, out: Packed) -> tuple[Array, Array | None] | None:
    """Pack rows of floats (float32, float16 or bfloat16) into `out` -> scales, and `lost_energy`, of q4 and q8."""
    codes = out.format.codes
    if codes in core.LARGEST:
        given = rows.view(np.uint16) if rows.dtype == BF16 else rows
        _, code, scale = quantise_groups(given, codes, out=out)
        return scale, lost_energy(codes, rows, code, scale)
    if rows.dtype == BF16:
        rows = rows.astype(np.float32) if codes == "fp32" else rows.view(np.uint16)
    core.quantise(rows, codes, out=out, checked=True)
    return None
