"""Recording a golden pack: one pass over the weights, a block of a matrix at a time, in every arithmetic at once."""

from __future__ import annotations

import contextlib
import fnmatch
import math
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ...config import Config
from ...errors import GoldenError, UsageError
from ...files import StrPath
from ...formats.write import SafetensorsStream, write_json
from ...host import memory
from ...spec.ops import Array
from ..graph import (
    CORRECT,
    LAYER,
    LOGITS,
    TRUTH,
    UNIT,
    Phase,
    letters,
    phases_of,
    shape_of,
    split_name,
    tap_names,
)
from ..judge.metrics import error
from ..walk import (
    Stream,
    Weights,
    check_weights,
    walk,
)
from .pack import Manifest, stored_shape, write_manifest
from .sizes import SIZES, reduce

_SMALLEST_BLOCK, _LARGEST_BLOCK = 1 << 19, 4 << 20  # what is larger leaves the cache
# Copies of a block that are alive at once: as read, in float64, rounded to bfloat16 and float16, and on the way there.
_COPIES = 9
_COPIES_A_THREAD = 4
_WHOLE_COPIES = 6  # of a tensor that is rounded to bfloat16 and written
_MOST = 300_000  # tensors in a pack: its manifest must be short enough to be read again
MODEL = "model"


def record(
    config: Config,
    weights: Mapping[str, Array],
    out: StrPath,
    token_ids: Sequence[int],
    decode: int = 0,
    *,
    name: str = "",
    taps: Sequence[str] = ("*",),
    layers: Collection[int] | None = None,
    sizes: str | Mapping[str, str] = "full",
    max_memory: int | None = None,
    include_weights: bool = False,
    threads: int = 1,
    progress: Callable[[int], object] = lambda count: None,
) -> Path:
    """Record a pack of a model -> its folder.

    weights          by the names of `Config.tensors()`: a mapping, or a Checkpoint, which is read a block at a time
    token_ids        the last `decode` of them are fed one at a time after the others
    taps             patterns of tap names, as of a shell, that are kept
    layers           of these layers only; taps outside of the layers are not concerned
    sizes            what is kept of them: one of full, last, stats, sketch, or patterns -> one; the first that fits, or
                     else full
    max_memory       bytes that this process may hold; None: what the system has to spare
    include_weights  put the model itself into the pack (bfloat16 where that loses nothing, else float32)
    threads          that share the work on each block; give a BLAS one of its own then
    progress         called with the number of parameters read since its last call, of `parameters(config)`

    Raises UsageError, and MemoryLimitError before anything is read; GoldenError for weights that overflow float32. What
    is interrupted leaves nothing behind.
    """
    out = Path(out)
    phases = _checked_phases(config, token_ids, decode)
    kept = _kept(config, taps, layers, sizes)
    if len(phases) * len(kept) > _MOST:
        raise UsageError(None, "decode", f"makes {len(phases)} phases of {len(kept)} taps; at most {_MOST:,} in all")
    if misfit := check_weights(config, weights):
        raise UsageError(name or None, "weights", misfit)
    if os.path.lexists(out):
        raise UsageError(out, None, "exists already; a pack is written to a new folder")
    plain = [TRUTH, *(arithmetic for several in CORRECT.values() for arithmetic in several)]
    block_bytes = _block_bytes(config, phases, len(plain), max_memory, name or out, include_weights, threads)
    reader = Weights(weights, block_bytes, digest=True, progress=progress)
    unfinished = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        unfinished.mkdir(parents=True)
    except OSError as problem:
        raise UsageError(out, None, f"cannot be written ({problem.strerror})") from None
    try:
        with contextlib.ExitStack() as files:
            streams = {
                phase.name: SafetensorsStream(
                    files.enter_context(_new(unfinished / f"{phase.name}.safetensors")),
                    {tap: stored_shape(tap, size, config, phase) for tap, size in kept.items()},
                    "F32",
                )
                for phase in phases
            }
            rounding: dict[str, dict[str, dict[str, float]]] = {phase.name: {} for phase in phases}

            def visit(p: int, tap: str, results: dict[int, Array]) -> None:
                if tap not in kept:
                    return
                right = reduce(results[0], letters(tap), kept[tap])
                if not _holds(right, tap):
                    raise GoldenError(name or out, tap, f"is no number that float32 holds, in {phases[p].name}")
                streams[phases[p].name].append(tap, right)
                worst = dict(UNIT)  # an implementation may always round a result once
                names = [precision for precision, several in CORRECT.items() for _ in several]
                for precision, s in zip(names, range(1, len(plain)), strict=True):
                    measured = error(reduce(results[s], letters(tap), kept[tap]), right)
                    worst[precision] = float(f"{max(worst[precision], measured):.4g}")
                rounding[phases[p].name][tap] = worst

            with np.errstate(all="ignore"):  # float16 overflows where others do not
                walk(config, phases, [Stream(arithmetic) for arithmetic in plain], reader, visit, threads=threads)
            files_of = {phase: (f"{phase}.safetensors", stream.digest.hexdigest()) for phase, stream in streams.items()}
        if include_weights:
            _write_model(unfinished / MODEL, config, weights)
        manifest = Manifest(
            name,
            config,
            phases,
            kept,
            _smoothed(rounding),
            reader.digests,
            files_of,
            MODEL if include_weights else None,
        )
        write_manifest(unfinished, manifest)
        unfinished.rename(out)
    except BaseException as problem:
        shutil.rmtree(unfinished, ignore_errors=True)
        if isinstance(problem, OSError):
            raise UsageError(out, None, f"cannot be written ({problem.strerror})") from None
        raise
    return out


def _holds(right: Array, tap: str) -> bool:
    """Whether float32 holds every value; hidden scores are -inf."""
    finite = np.abs(right) <= np.finfo(np.float32).max
    return bool((finite | np.isneginf(right) if tap.endswith(".scores") else finite).all())


@contextlib.contextmanager
def _new(path: Path) -> Iterator[BinaryIO]:
    """A new file; on disk for good when it is left."""
    with open(path, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _checked_phases(config: Config, token_ids: Sequence[int], decode: int) -> tuple[Phase, ...]:
    if not 0 <= decode < max(1, len(token_ids)):
        raise UsageError(None, "decode", f"must leave a prompt: 0 to {len(token_ids) - 1}, got {decode}")
    if not len(token_ids) or min(token_ids) < 0 or max(token_ids) >= config.V:
        raise UsageError(None, "token_ids", f"must be at least one id below vocab_size {config.V}")
    return phases_of(token_ids, decode)


def _kept(
    config: Config, taps: Sequence[str], layers: Collection[int] | None, sizes: str | Mapping[str, str]
) -> dict[str, str]:
    """Tap -> size, of those that are kept."""
    by_pattern = {"*": sizes} if isinstance(sizes, str) else dict(sizes)
    for size in by_pattern.values():
        if size not in SIZES:
            raise UsageError(None, "size", f"must be one of {', '.join(SIZES)}, got {size}")
    for chosen in layers or ():
        if not 0 <= chosen < config.L:
            raise UsageError(None, "layers", f"must be 0 to {config.L - 1}, got {chosen}")
    names = tap_names(config)
    for pattern in taps:
        if not fnmatch.filter(names, pattern):
            raise UsageError(None, "taps", f"{pattern} matches no tap; they are named like {names[4]}")
    kept: dict[str, str] = {}
    for tap in names:
        layer = split_name(tap)[0]
        if layer is not None and layers is not None and layer not in layers:
            continue
        if any(fnmatch.fnmatchcase(tap, pattern) for pattern in taps):
            fitting = [size for pattern, size in by_pattern.items() if fnmatch.fnmatchcase(tap, pattern)]
            kept[tap] = fitting[0] if fitting else "full"
    if not kept:
        raise UsageError(None, "taps", "none are left: there is nothing to keep")
    return kept


def _block_bytes(
    config: Config,
    phases: Sequence[Phase],
    streams: int,
    max_memory: int | None,
    model: StrPath,
    include_weights: bool,
    threads: int,
) -> int:
    """How much of a matrix to hold at once. Raises MemoryLimitError if even a little does not fit."""
    names = [f"model.layers.0.{op.tap}" for op in LAYER]
    per_layer = sum(math.prod(shape_of(tap, config, phase)) for tap in names for phase in phases)
    logits = sum(math.prod(shape_of(LOGITS, config, phase)) for phase in phases)
    # float64 for the truth, float32 for the others, and two float64 copies of one result while it is measured.
    activations = 4 * (streams + 1) * max(per_layer, 2 * logits) + 16 * max(logits, per_layer // 4)
    vectors = 16 * max(config.D, config.H * config.E)
    copies = _COPIES + _COPIES_A_THREAD * (threads - 1)
    held = memory.peak_bytes()
    available = memory.available_bytes() + held if max_memory is None else max_memory
    parts = {
        "this process": held,
        "results": activations,
        "a block of weights": copies * _SMALLEST_BLOCK + vectors,
    }
    if include_weights:  # a whole tensor at a time
        parts["copying the weights"] = _WHOLE_COPIES * 4 * max(math.prod(shape) for shape in config.tensors().values())
    memory.require(parts, model, available)
    spare = available - held - activations - vectors
    return max(_SMALLEST_BLOCK, min(_LARGEST_BLOCK, spare // copies))


def _smoothed(rounding: dict[str, dict[str, dict[str, float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Steps of decoding have one token each, so few numbers: what is allowed in one of them is allowed in all."""
    steps = [taps for phase, taps in rounding.items() if phase != "prompt"]
    for tap in rounding["prompt"] if steps else ():
        worst = {precision: max(taps[tap][precision] for taps in steps) for precision in CORRECT}
        for taps in steps:
            taps[tap] = worst
    return rounding


def _write_model(folder: Path, config: Config, weights: Mapping[str, Array]) -> None:
    """The model in the Hugging Face layout."""
    from ...spec.ops import to_bf16

    folder.mkdir()
    write_json(folder / "config.json", config.to_dict())
    shapes = config.tensors()
    exact = all((to_bf16(array) == array).all() for array in (weights[name] for name in shapes))
    with _new(folder / "model.safetensors") as file:
        stream = SafetensorsStream(file, shapes, "BF16" if exact else "F32")
        for name in shapes:
            stream.append(name, weights[name])
