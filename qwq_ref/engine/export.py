"""Write a model as a checkpoint of floats that `transformers` loads: safetensors, config.json, tokenizer."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..config import Config
from ..core.magnitude import FLOAT32_MAX
from ..errors import ConfigError, UsageError
from ..files import read_json
from ..formats import Download, GGUFSource, Source, read_config, write
from ..formats.layout import floats_layout
from ..formats.names import CONFIG, GENERATION_CONFIG, HF, INDEX, SHARD, SINGLE
from ..formats.packed import Stored
from ..host.limits import cpus
from ..text.export import tokenizer_files
from .ahead import check_room
from .conversion import Conversion, Observer, Small, Stage, carry_out, check_contents
from .convert import SMALL, copies, is_packed, json_file, opened
from .packing import BF16_LIMIT
from .pieces import BF16, Job, Notes, Pieces, Progress, copy_floats
from .tokens import find_tokenizer

DTYPES = {"bfloat16": "BF16", "float32": "F32"}
SHARD_BYTES = 5_000_000_000  # of weights in one file, as transformers writes them
_CONFIG_BYTES = 1 << 20
_ROUNDED = "rounded"  # the note of a tensor whose numbers were rounded


def export(
    model: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    dtype: str = "bfloat16",
    *,
    threads: int | None = None,
    offline: bool = False,
    progress: Progress | None = None,
    resumed: Progress | None = None,
    stage: Stage | None = None,
) -> int:
    """Write a model as floats to a new folder. Return the number of tensors whose numbers were rounded.

    dtype  "bfloat16", or "float32", which keeps the numbers of all formats exactly

    The other arguments, the errors, and what an interrupted run leaves are those of `convert`.
    """
    if dtype not in DTYPES:
        raise UsageError(None, "dtype", f"must be one of {', '.join(DTYPES)}, got {dtype[:40]}")
    folder = Path(folder)
    check_folder(folder)

    def judge(download: Download) -> None:
        check_download(download, folder, dtype)

    with opened(model, offline, judge, check_small) as (_, source):
        floats, count = source.floats, threads or cpus()
        assert floats is not None
        find_tokenizer(source.tokenizer, source.config.vocab_size)
        planned = {name: Stored(shape, dtype=DTYPES[dtype]) for name, shape in source.config.tensors().items()}
        shards = _shards(planned)
        conversion = Conversion(
            name=HF,
            model=model,
            folder=folder,
            options=["--to", HF, "--dtype", dtype],
            parameters={"to": HF, "dtype": dtype},
            layouts={name: floats_layout(shapes, DTYPES[dtype]) for name, shapes in shards.items()},
            planned=planned,
            small=_small_files(source, dtype),
            pool=lambda target: _Floats(planned, floats, count, target),
            last=_index(shards, planned),
            replaces=False,
        )
        notes = carry_out(conversion, source, count, Observer(progress, resumed, stage))
    return sum(note.get(_ROUNDED, 0) for note in notes.values())


def check_folder(folder: Path) -> None:
    """Check a folder for a checkpoint, before anything is known of the model. Raises UsageError, FileError."""
    shards = [path.name for path in folder.iterdir() if SHARD.fullmatch(path.name)] if folder.is_dir() else []
    check_contents(folder, (*SMALL, SINGLE, INDEX, *shards), packed=False)
    write.check_folder(folder)


def check_download(download: Download, folder: Path, dtype: str) -> None:
    """Check a model that is not downloaded yet, and the disks for it and for the result. Raises a QwqError."""
    if download.forms:
        raise is_packed(download.name)
    check_room(folder, _bytes(download.config, dtype), download)


def check_small(source: Path) -> None:
    """Check the small files of a download, as `resolve` gives them to `inspect`. Raises a QwqError."""
    find_tokenizer(source, read_config(source).vocab_size)


def _bytes(config: Config, dtype: str) -> int:
    return sum(Stored(shape, dtype=DTYPES[dtype]).nbytes for shape in config.tensors().values())


def _shards(planned: Mapping[str, Stored]) -> dict[str, dict[str, tuple[int, ...]]]:
    """Return the tensors of each file: name of the file -> name -> shape."""
    files: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name, stored in planned.items():
        if files[-1] and size + stored.nbytes > SHARD_BYTES:
            files.append({})
            size = 0
        files[-1][name] = stored.shape
        size += stored.nbytes
    if len(files) == 1:
        return {SINGLE: files[0]}
    return {f"model-{i:05}-of-{len(files):05}.safetensors": shapes for i, shapes in enumerate(files, 1)}


def _index(shards: Mapping[str, Mapping[str, Any]], planned: Mapping[str, Stored]) -> Small:
    """Return the index of several files. It comes after them: without it, they are no model."""
    if len(shards) == 1:
        return {}
    size = sum(stored.nbytes for stored in planned.values())
    homes = {name: file for file, names in shards.items() for name in names}
    return {INDEX: json_file({"metadata": {"total_size": size}, "weight_map": homes})}


def _small_files(source: Source, dtype: str) -> Small:
    """Return the files beside the weights."""
    if isinstance(source, GGUFSource):
        values = source.config.to_dict() | {"torch_dtype": dtype}
        small = {CONFIG: json_file(values), GENERATION_CONFIG: json_file(source.generation_config().to_dict())}
        return small | tokenizer_files(source.path, source.config.vocab_size)
    values = read_json(source.tokenizer / CONFIG, _CONFIG_BYTES, ConfigError)
    for name in ("quantization_config", "quantization", "torch_dtype", "dtype"):
        values.pop(name, None)
    return {**copies(source.tokenizer), CONFIG: json_file(values | {"torch_dtype": dtype})}


class _Floats(Pieces):
    """A pool of threads that read tensors and round them to one dtype."""

    def jobs(self) -> Iterator[Job]:
        for name in self._plan:
            yield self._tensor(name)

    def _tensor(self, name: str) -> Job:
        stored, source = self._plan[name], self._tensors.dtype(name)
        dtype = np.dtype(np.float32) if stored.dtype == "F32" else BF16
        limit = FLOAT32_MAX if stored.dtype == "F32" else BF16_LIMIT
        rounded = threading.Event()

        def piece(begin: int, end: int) -> int:
            data = self._target.room(name, begin, end)
            out = data.view(dtype).reshape(end - begin, *stored.shape[1:])
            rows = out if source == dtype else self._scratch(out.shape, source)
            count = self._read(name, begin, [rows])
            self._check(rows, [name], limit)
            if rows is not out:
                copy_floats(out, rows)
                if not rounded.is_set() and not _equal(out, rows):
                    rounded.set()
            self._target.put(name, begin, end, data)
            return count

        def check() -> Notes:
            return {_ROUNDED: int(rounded.is_set())}

        return Job([name], [name], piece, check)


def _equal(out: Any, rows: Any) -> bool:
    """Return whether floats are equal in two dtypes. The first rows tell it mostly."""
    step = max(1, (1 << 16) // max(1, math.prod(out.shape[1:])))
    return all(
        np.array_equal(out[begin : begin + step].astype(np.float32), rows[begin : begin + step].astype(np.float32))
        for begin in range(0, len(out), step)
    )
