"""Recording a golden pack: one pass over the weights, block by block, computes all arithmetics side by side."""

from __future__ import annotations

import contextlib
import fnmatch
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ...config import Config
from ...engine.ahead import check_room
from ...errors import GoldenError, UsageError, did_you_mean
from ...files import StrPath
from ...formats import Download
from ...formats.decoded import DecodedSource
from ...formats.write import SafetensorsStream, write_json
from ...host import memory
from ...spec.ops import Array, to_bf16
from ..distance import error
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
from ..walk import (
    Stream,
    Weights,
    check_weights,
    walk,
)
from .folder import new_folder
from .manifest import Manifest, Origin, stored_shape, write_manifest
from .sizes import SIZES, reduce

_SMALLEST_BLOCK, _LARGEST_BLOCK = 1 << 19, 4 << 20  # larger blocks leave the processor's cache
# Copies of a block alive at once: as read, in float64, rounded to bfloat16 and float16, and intermediate ones.
_COPIES = 9
_COPIES_A_THREAD = 4
_WHOLE_COPIES = 6  # of a tensor while it is rounded to bfloat16 and written
_ARITHMETICS = [TRUTH, *(arithmetic for several in CORRECT.values() for arithmetic in several)]
_MAX_TENSORS = 300_000  # tensors in a pack; the reader limits the length of a manifest
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
    """Record a golden pack of a model -> its folder

    weights          name -> array, by the names of `Config.tensors()`; the files of a model are read a block at a time
    token_ids        the prompt, then `decode` ids that are fed one at a time
    taps             shell patterns of the taps to keep
    layers           layers to keep; None: all. Taps outside the layers are kept in any case
    sizes            how much of a tap to keep: full, last, stats or sketch; or pattern -> size: the first match counts,
                     and full without a match
    max_memory       bytes that this process may hold; None: the memory that the system has available
    include_weights  put the model into the pack: in bfloat16 if that is exact, else in float32
    threads          threads that share the work on each block; set the BLAS to one thread
    progress         called with the number of parameters read since its last call, of `parameters(config)` in all

    An interrupted call leaves nothing behind. Raises UsageError; MemoryLimitError before anything is read; FileError
    for a folder that cannot be written; GoldenError for weights that overflow float32.
    """
    out = Path(out)
    phases, kept, block_bytes = check_record(
        config,
        out,
        token_ids,
        decode,
        name=name,
        taps=taps,
        layers=layers,
        sizes=sizes,
        max_memory=max_memory,
        include_weights=include_weights,
        threads=threads,
    )
    if misfit := check_weights(config, weights):
        raise UsageError(name or None, "weights", misfit)
    plain = _ARITHMETICS
    reader = Weights(weights, block_bytes, digest=True, progress=progress)
    with new_folder(out, "a pack") as unfinished:
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
            _origin(weights),
        )
        write_manifest(unfinished, manifest.to_dict())
    return out


def check_record(
    config: Config,
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
    download: Download | None = None,
) -> tuple[tuple[Phase, ...], dict[str, str], int]:
    """Check what `record` is asked for, which needs no weights. Return the phases, tap -> size, and bytes of a block.

    The arguments are those of `record`.

    download  the model, if it is to be downloaded before: its disk must have room for both

    Raises UsageError; MemoryLimitError; FileError for a disk that is too small.
    """
    phases = _checked_phases(config, token_ids, decode)
    kept = _kept(config, taps, layers, sizes)
    if len(phases) * len(kept) > _MAX_TENSORS:
        raise UsageError(
            None, "decode", f"makes {len(phases)} phases of {len(kept)} taps; at most {_MAX_TENSORS:,} in all"
        )
    block_bytes = _block_bytes(config, phases, len(_ARITHMETICS), max_memory, name or out, include_weights, threads)
    numbers = sum(math.prod(stored_shape(tap, size, config, each)) for tap, size in kept.items() for each in phases)
    weights = 2 * sum(math.prod(shape) for shape in config.tensors().values()) if include_weights else 0
    check_room(Path(out), 4 * numbers + weights, download)
    return phases, kept, block_bytes


def _origin(weights: Mapping[str, Array]) -> Origin | None:
    return Origin(weights.kind, weights.types) if isinstance(weights, DecodedSource) else None


def _holds(right: Array, tap: str) -> bool:
    """Whether float32 holds every value. Scores of hidden keys may be -inf."""
    finite = np.abs(right) <= np.finfo(np.float32).max
    return bool((finite | np.isneginf(right) if tap.endswith(".scores") else finite).all())


@contextlib.contextmanager
def _new(path: Path) -> Iterator[BinaryIO]:
    """Open a new file; at the end, force it to disk."""
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
    """-> tap: size, of the taps to keep"""
    by_pattern = {"*": sizes} if isinstance(sizes, str) else dict(sizes)
    for size in by_pattern.values():
        if size not in SIZES:
            raise UsageError(None, "size", f"must be one of {', '.join(SIZES)}, got {size}")
    for chosen in layers or ():
        if not 0 <= chosen < config.L:
            raise UsageError(None, "layers", f"must be 0 to {config.L - 1}, got {chosen}")
    names = tap_names(config)
    for field, patterns in (("taps", taps), ("size", by_pattern)):
        for pattern in patterns:
            if not fnmatch.filter(names, pattern):
                near = did_you_mean(pattern, names)
                raise UsageError(None, field, f"{pattern} matches no tap{near}; they are named like {names[4]}")
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
    """Return the bytes of a matrix to hold at once. Raises MemoryLimitError if the smallest block does not fit."""
    names = [f"model.layers.0.{op.tap}" for op in LAYER]
    per_layer = sum(math.prod(shape_of(tap, config, phase)) for tap in names for phase in phases)
    logits = sum(math.prod(shape_of(LOGITS, config, phase)) for phase in phases)
    # The truth in float64, the others in float32, and two float64 copies of one result while it is measured.
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
    if include_weights:  # tensors are copied whole
        parts["copying the weights"] = _WHOLE_COPIES * 4 * max(math.prod(shape) for shape in config.tensors().values())
    memory.require(parts, model, available)
    spare = available - held - activations - vectors
    return max(_SMALLEST_BLOCK, min(_LARGEST_BLOCK, spare // copies))


def _smoothed(rounding: dict[str, dict[str, dict[str, float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Give all decode steps the largest rounding among them: one step has one token, too few numbers to measure."""
    steps = [taps for phase, taps in rounding.items() if phase != "prompt"]
    for tap in rounding["prompt"] if steps else ():
        worst = {precision: max(taps[tap][precision] for taps in steps) for precision in CORRECT}
        for taps in steps:
            taps[tap] = worst
    return rounding


def _write_model(folder: Path, config: Config, weights: Mapping[str, Array]) -> None:
    """Write the model in the Hugging Face layout."""
    folder.mkdir()
    write_json(folder / "config.json", config.to_dict())
    shapes = config.tensors()
    exact = all((to_bf16(array) == array).all() for array in (weights[name] for name in shapes))
    with _new(folder / "model.safetensors") as file:
        stream = SafetensorsStream(file, shapes, "BF16" if exact else "F32")
        for name in shapes:
            stream.append(name, weights[name])
