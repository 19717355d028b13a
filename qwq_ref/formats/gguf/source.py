"""A GGUF file, or the shards of one model, as a `Source`."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...config import Config
from ...core import Format
from ...errors import CheckpointError, UsageError
from ...files import StrPath, open_regular, pread_exactly
from ..decoded import FLOAT_TYPES, DecodedSource
from ..generation_config import GenerationConfig
from ..parts import Parts
from ..safetensors import forget_range
from . import metadata
from .blocks import NATIVE, floats, parts
from .header import GGUFTensor, Header, read_header_of
from .kept import GGUFKept
from .names import EMBEDDING, HEAD, MOST_SHARDS, fused_name, gguf_name, shard_name, shard_of
from .types import GGMLType


@dataclass(frozen=True)
class Shard:
    """One open file."""

    path: Path
    descriptor: int
    header: Header


@dataclass(frozen=True)
class Place:
    """The rows of a tensor in a file.

    name    of the tensor
    shard   the file
    tensor  the whole tensor there, of which these rows may be a part
    first   the first row
    rows    the number of rows
    """

    name: str
    shard: Shard
    tensor: GGUFTensor
    first: int
    rows: int

    @property
    def kind(self) -> GGMLType:
        return self.tensor.type

    @property
    def type(self) -> str:
        return self.kind.name

    @property
    def path(self) -> Path:
        return self.shard.path

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.rows, *self.tensor.shape[1:])

    @property
    def row_bytes(self) -> int:
        return self.tensor.nbytes // self.tensor.shape[0]

    @property
    def nbytes(self) -> int:
        return self.rows * self.row_bytes

    def read(self, begin: int, buffers: Sequence[NDArray[Any]]) -> None:
        """Fill arrays, one after another, with the bytes of rows from `begin` on. Raises CheckpointError."""
        at = self.tensor.begin + (self.first + begin) * self.row_bytes
        views = [buffer.reshape(-1).view(np.uint8).data for buffer in buffers]
        pread_exactly(self.shard.descriptor, views, at, self.shard.path, CheckpointError)

    def raw(self, begin: int, end: int) -> NDArray[np.uint8]:
        """Return the bytes of rows [begin, end) [end - begin, bytes]. Raises CheckpointError."""
        data = np.empty((end - begin, self.row_bytes), np.uint8)
        self.read(begin, [data])
        return data

    def floats(self, begin: int, end: int) -> NDArray[np.float32]:
        """Return rows [begin, end), decoded. Raises CheckpointError; UsageError as `blocks.floats`, with the tensor."""
        raw = self.raw(begin, end)
        try:
            return np.asarray(floats(self.kind, raw), np.float32)
        except UsageError as error:
            raise UsageError(self.path, self.name, error.problem) from None

    def forget(self, begin: int, end: int) -> None:
        """Tell the system to drop its copy of these rows."""
        at = self.tensor.begin + (self.first + begin) * self.row_bytes
        forget_range(self.shard.descriptor, at, (end - begin) * self.row_bytes)


class GGUFSource(DecodedSource):
    """See `DecodedSource`.

    path       the file that was opened: of a model in shards, the first
    config     from the metadata and the shape of the embedding
    tokenizer  the file itself, and `template` too: its metadata hold both
    header     of the first file
    """

    kind = "gguf"
    _what = "a GGUF file"

    def __init__(self, shards: Sequence[Shard], config: Config, places: Mapping[str, Place], files: ExitStack) -> None:
        super().__init__(shards[0].path, shards[0].path, config, places, files)
        self.header = shards[0].header
        self.places = places

    @classmethod
    def open(cls, path: StrPath) -> GGUFSource:
        """Open a .gguf file, or all shards of the model that it is a shard of. Raises ConfigError, CheckpointError."""
        with ExitStack() as files:
            shards = _open_shards(Path(path), files)
            header = shards[0].header
            metadata.check_architecture(header)
            found = _tensors(shards)
            embedding = found.get(EMBEDDING)
            rows = embedding[1].shape[0] if embedding is not None else None
            config = metadata.config_of(header, rows, tied=HEAD not in found)
            return cls(shards, config, _places(found, config, header.path), files.pop_all())

    @functools.cached_property
    def kept(self) -> GGUFKept:
        return GGUFKept(self)

    def stored(self, name: str) -> tuple[str, Format, Parts, None] | None:
        place = self.places[name]
        kind = place.kind
        if kind.name in FLOAT_TYPES or kind.name not in NATIVE:
            return None
        return kind.name, NATIVE[kind.name], parts(kind, place.raw(0, place.rows)), None

    def generation_config(self) -> GenerationConfig:
        """Return the sampling defaults and end tokens of the metadata. Raises ConfigError."""
        return metadata.generation_of(self.header, self.config)


def _open(path: Path, files: ExitStack) -> Shard:
    descriptor = open_regular(path, CheckpointError)
    files.callback(os.close, descriptor)
    return Shard(path, descriptor, read_header_of(descriptor, path))


def _open_shards(path: Path, files: ExitStack) -> list[Shard]:
    """Open a file, and all others of its model -> the shards in their order.

    The names tell the shards, and each file's `split.no` and `split.count` must agree with its name.
    """
    named = shard_of(path.name)
    shard = _open(path, files)
    count = _split(shard, "count", default=1)
    if count <= 1:
        return [shard]
    if named is None:
        problem = f"is one of {count} shards, whose names must end in {shard_name('', 1, count)}: rename it"
        raise CheckpointError(path, None, problem)
    stem, number, of_name = named
    if of_name != count or count > MOST_SHARDS:
        raise CheckpointError(path, "split.count", f"is {count}, but the name of the file says {of_name}")
    absent = [name for i in range(count) if not os.path.lexists(path.parent / (name := shard_name(stem, i + 1, count)))]
    if absent:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise CheckpointError(path, None, f"is one of {count} shards, but {absent[0]}{more} is missing beside it")
    shards = []
    for i in range(count):
        other = shard if i + 1 == number else _open(path.parent / shard_name(stem, i + 1, count), files)
        for key, wanted in (("no", i), ("count", count)):
            if (found := _split(other, key, default=None)) != wanted:
                raise CheckpointError(other.path, f"split.{key}", f"must be {wanted} by the file's name, got {found}")
        shards.append(other)
    total = _split(shards[0], "tensors.count", default=None)
    found = sum(len(each.header.tensors) for each in shards)
    if total is not None and total != found:
        raise CheckpointError(path, "split.tensors.count", f"is {total}, but the shards hold {found} tensors")
    return shards


def _split(shard: Shard, name: str, default: int | None) -> Any:
    value = shard.header.fields.get(f"split.{name}", default)
    if value is not None and type(value) is not int:
        raise CheckpointError(shard.path, f"split.{name}", "must be an integer")
    return value


def _tensors(shards: Sequence[Shard]) -> dict[str, tuple[Shard, GGUFTensor]]:
    """Return the tensors of all shards by the file's own names. Raises CheckpointError for one in two shards."""
    found: dict[str, tuple[Shard, GGUFTensor]] = {}
    for shard in shards:
        for name, tensor in shard.header.tensors.items():
            if name in found:
                raise CheckpointError(shard.path, name, f"is in {found[name][0].path.name}, too")
            found[name] = shard, tensor
    return found


def _places(found: Mapping[str, tuple[Shard, GGUFTensor]], config: Config, path: StrPath) -> dict[str, Place]:
    """Return the place of each tensor of a config. Raises CheckpointError for missing, extra or misshapen ones."""
    places, missing, used = {}, [], set()
    rows = {"q": config.H * config.E, "k": config.K * config.E, "v": config.K * config.E}
    for name, shape in config.tensors().items():
        own, fused = gguf_name(name), fused_name(name)
        if own in found:
            shard, tensor = found[own]
            first, whole = 0, shape
        elif fused is not None and fused[0] in found:
            own, letter = fused
            shard, tensor = found[own]
            first, whole = sum(rows[each] for each in "qkv"[: "qkv".index(letter)]), (sum(rows.values()), *shape[1:])
        else:
            missing.append(own)
            continue
        used.add(own)
        _check_tensor(tensor, own, whole, shard.path)
        places[name] = Place(own, shard, tensor, first, shape[0])
    if missing:
        problem = f"missing: {len(missing)} of the tensors that the metadata imply"
        raise CheckpointError(path, ", ".join(missing[:3]), problem)
    extra = [name for name in found if name not in used]
    if extra:
        some = "1 tensor" if len(extra) == 1 else f"{len(extra)} tensors"
        raise CheckpointError(path, ", ".join(extra[:3]), f"unexpected: {some} that the metadata do not imply")
    return places


def _check_tensor(tensor: GGUFTensor, name: str, shape: tuple[int, ...], path: Path) -> None:
    if tensor.shape != shape:
        problem = f"shape {list(tensor.shape)}, but the metadata imply {list(shape)}"
        raise CheckpointError(path, name, problem)
    kind = tensor.type.name
    if kind in ("I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K"):
        raise CheckpointError(path, name, f"has the type {kind}, which no model stores its weights in")
    if len(shape) == 1 and kind not in FLOAT_TYPES:
        raise CheckpointError(path, name, f"must be F32, F16 or BF16, being a vector, got {kind}")
