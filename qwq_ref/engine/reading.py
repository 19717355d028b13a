"""Read a model's weights into memory, in one weight form."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ..core import Packed
from ..core.magnitude import check_finite
from ..errors import CheckpointError
from ..footprint import parameters
from ..formats.source import Source, Tensors
from ..forms import AnyForm, FileForm
from ..spec.ops import Array
from .packing import Packer, in_one_piece, pack_weights
from .parts_packing import PartsPacker
from .pieces import InMemory, Pieces, Progress, Target
from .plan import model_bytes, plan
from .weights import ModelWeights


def read_model(source: Source, form: AnyForm, threads: int, progress: Progress | None = None) -> ModelWeights:
    """Read a model's weights: as they are if the source holds them so, or else pack its floats.

    progress  called with the number of weights read since its last call, of `footprint.parameters`

    Raises CheckpointError; CoreError as `packed_tensors` does.
    """
    config = source.config
    if str(form) in source.forms:
        share = parameters(config) / model_bytes(config, form)
        told = progress and (lambda count: progress(count * share))
        with source.open_packed(str(form), plan(config, form)) as file:
            tensors = file.read(threads, progress=told)
        for name, tensor in tensors.items():  # `convert` has checked the others, which are many
            if not isinstance(tensor, Packed) and tensor.ndim == 1 and tensor.dtype == np.float32:
                check_finite(tensor, file.path, name)
        return ModelWeights.of(config, form, tensors)
    if isinstance(form, FileForm):
        return in_one_piece(config, form, lambda allocate: in_memory(source, form, threads, progress, allocate))
    if source.floats is None:
        raise CheckpointError(source.path, None, f"holds no weights in {form}, and no floats to pack")
    return pack_weights(config, source.floats, form, threads, progress)


def packer(source: Source, form: AnyForm, threads: int, target: Target, floats: Tensors | None = None) -> Pieces:
    """Return the pool of threads that packs a source's floats, or what it stores, into a target.

    floats  to read in place of the source's own
    """
    floats, kept = floats or source.floats, source.kept
    assert floats is not None
    if not isinstance(form, FileForm):
        return Packer(source.config, floats, form, threads, target)
    assert kept is not None
    return PartsPacker(source.config, floats, kept, form, threads, target)


def in_memory(
    source: Source, form: AnyForm, threads: int, progress: Progress | None, allocate: Callable[[int], Array]
) -> Iterator[tuple[str, Packed | Array]]:
    """Yield the tensors of `plan`, packed as `packer` does, in memory that `allocate` returns for each matrix."""
    target = InMemory(plan(source.config, form), allocate)
    with packer(source, form, threads, target) as pool:
        for name in pool.run(progress):
            yield name, target.pop(name)
