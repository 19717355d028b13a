"""Folders of .npy, .safetensors and .npz files as a candidate.

Opening reads names and headers only; a tensor is read on demand. docs/adapters.md is the manual.
"""

from __future__ import annotations

import functools
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...config import Config
from ...errors import GoldenError, UsageError
from ...files import StrPath
from ...formats.safetensors import SafetensorsFile
from ...spec.ops import Array
from ..packs.manifest import FORMAT, MANIFEST, PRECISIONS, read_values
from ..packs.npy import Npy, npy_file, open_archive
from ..packs.pack import as_golden_error
from .candidate import Candidate, Loader, MisfitError
from .namemap import (
    TOKEN_IDS,
    NameMap,
    Take,
    read_name_map,
    read_precision,
)

_MAX_IDS = 1 << 24
_REDUCED = ("stats", "sketch")

Place = Callable[[str], tuple[str, str, str]]  # the name of a tensor in a file -> (phase, name, label)


@dataclass(frozen=True)
class _Stored:
    """One array of a source, not read yet.

    phase  its phase
    name   its name, as a name map matches it
    label  its name in messages: a file in the folder, a tensor in a file
    array  a .npy, or a function that reads a tensor
    where  file and field of its errors
    """

    phase: str
    name: str
    label: str
    array: Npy | Loader
    where: tuple[Path, str | None]

    def read(self, integers: bool = False) -> Array:
        if isinstance(self.array, Npy):
            return self.array.read(integers)
        if integers:
            raise GoldenError(*self.where, "must hold integers; of safetensors files, floating point is read")
        return self.array()


@dataclass
class _Source:
    """The contents of a folder or file: arrays, other names, and the values of its manifest."""

    arrays: list[_Stored] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    manifest: dict[str, Any] = field(default_factory=dict)


def open_candidate(
    path: StrPath, config: Config, name_map: StrPath | None = None, *, precision: str | None = None
) -> Candidate:
    """Open a folder, a .safetensors or a .npz file as a candidate.

    name_map   a .yaml or .json file with the names and layouts of the tensors
    precision  "fp32", "bf16" or "fp16", of all tensors; overrides the source and the map

    Files stay open as long as the Candidate lives. Raises GoldenError, also when a tensor is read; UsageError for an
    unknown precision.
    """
    path = Path(path)
    if precision is not None and precision not in PRECISIONS:
        raise UsageError(None, "precision", f"must be one of {', '.join(PRECISIONS)}, got {precision}")
    names = NameMap(config) if name_map is None else read_name_map(name_map, config)
    source = _folder(path, names) if path.is_dir() else _file(path, names)
    manifest = path / MANIFEST

    reduced = _reduced(source.manifest)
    tensors: dict[tuple[str, str], Loader] = {}
    homes: dict[tuple[str, str], str] = {}
    ids: dict[str, _Stored] = {}
    unknown, kept_small, bfloat16 = list(source.others), 0, 0
    for stored in source.arrays:
        is_ids = stored.name == names.token_ids
        if stored.name in reduced:
            kept_small += 1
            continue
        taps = [(TOKEN_IDS, _unchanged)] if is_ids else names.taps(stored.name)
        if not taps:
            unknown.append(stored.label)
            continue
        if isinstance(stored.array, Npy):
            bfloat16 += stored.array.header(integers=is_ids).bfloat16
        for tap, take in taps:
            key = (stored.phase, tap)
            if key in homes:
                raise GoldenError(path, tap, f"is there twice in {key[0]}: as {homes[key]}, and as {stored.label}")
            homes[key] = stored.label
            if is_ids:
                ids[stored.phase] = stored
            else:
                tensors[key] = _loader(stored, take)
    if kept_small and not tensors:
        raise GoldenError(path, None, "holds nothing but statistics and sketches of taps, which cannot be compared")
    if not tensors:
        raise GoldenError(path, None, _nothing(unknown, names, name_map is not None))

    notes = []
    if bfloat16:
        notes.append(f"{bfloat16} arrays of two bytes without a type are read as bfloat16, which ml_dtypes saves so")
    if kept_small:
        notes.append(f"{kept_small} tensors are statistics or sketches of taps, and not compared")
    return Candidate(
        source=str(path),
        tensors=tensors,
        token_ids=_token_ids(source.manifest, manifest, ids, config),
        precision=_precision(precision, names, source.manifest, manifest),
        unknown=tuple(unknown),
        notes=tuple(notes),
    )


def _unchanged(x: Array, phase: str) -> Array:
    return x


def _loader(stored: _Stored, take: Take) -> Loader:
    def load() -> Array:
        array = stored.read()
        try:
            return take(array, stored.phase)
        except MisfitError as problem:
            raise GoldenError(*stored.where, str(problem)) from None

    return load


def _folder(path: Path, names: NameMap) -> _Source:
    """Read a folder, and its subfolders that are named after a phase; deeper folders are left out."""
    source = _Source()
    for name, is_folder in _listing(path):
        inner, phase = path / name, names.phase(name)
        if is_folder and phase is not None:
            for file, is_deeper in _listing(inner):
                if file.endswith(".npy") and not is_deeper:
                    source.arrays.append(_npy(inner / file, phase, f"{name}/{file}"))
                else:
                    source.others.append(f"{name}/{file}" + "/" * is_deeper)
        elif is_folder:
            source.others.append(f"{name}/")
        elif name == MANIFEST:
            source.manifest = read_values(inner)
        elif name.endswith(".npy"):
            source.arrays.append(_npy(inner, "prompt", name))
        elif inner.suffix in _ARCHIVES and (phase := names.phase(inner.stem)) is not None:
            _ARCHIVES[inner.suffix](inner, source, _in_phase(phase, name))
        else:
            source.others.append(name)
    return source


def _listing(folder: Path) -> list[tuple[str, bool]]:
    """-> [(name, whether it is a folder)], sorted"""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry.name, entry.is_dir()) for entry in entries)
    except OSError as problem:
        raise GoldenError(folder, None, f"cannot be listed ({problem.strerror})") from None


def _in_phase(phase: str, file: str) -> Place:
    return lambda name: (phase, name, f"{file}: {name}")


def _npy(path: Path, phase: str, label: str) -> _Stored:
    return _Stored(phase, path.name.removesuffix(".npy"), label, npy_file(path), (path, None))


def _file(path: Path, names: NameMap) -> _Source:
    """Read one file with all tensors. Their names may begin with a phase and a slash."""
    if not os.path.lexists(path):
        raise GoldenError(path, None, "no such file or folder")
    if path.suffix not in _ARCHIVES:
        raise GoldenError(path, None, "must be a folder, a .safetensors or a .npz file")

    def place(name: str) -> tuple[str, str, str]:
        prefix, slash, rest = name.partition("/")
        phase = names.phase(prefix) if slash else None
        return ("prompt", name, name) if phase is None else (phase, rest, name)

    source = _Source()
    _ARCHIVES[path.suffix](path, source, place)
    return source


class _OpenFile:
    """A safetensors file that closes itself when its last reader is gone."""

    def __init__(self, path: Path) -> None:
        with as_golden_error():
            self.file = SafetensorsFile(path)
        weakref.finalize(self, self.file.close)

    def read(self, name: str) -> Array:
        with as_golden_error():
            return self.file.read(name)


def _safetensors(path: Path, source: _Source, place: Place) -> None:
    opened = _OpenFile(path)
    for name in opened.file.tensors:
        source.arrays.append(_Stored(*place(name), functools.partial(opened.read, name), (path, name)))


def _npz(path: Path, source: _Source, place: Place) -> None:
    arrays, others = open_archive(path)
    source.arrays += [_Stored(*place(name), array, (path, name)) for name, array in arrays]
    source.others += [place(name)[2] for name in others]


_ARCHIVES: dict[str, Callable[[Path, _Source, Place], None]] = {".safetensors": _safetensors, ".npz": _npz}


def _reduced(manifest: Mapping[str, Any]) -> frozenset[str]:
    """Return the taps that a golden pack keeps as statistics or sketches. They cannot be compared."""
    sizes = manifest.get("taps") if manifest.get("format") == FORMAT else None
    return frozenset(tap for tap, size in sizes.items() if size in _REDUCED) if isinstance(sizes, dict) else frozenset()


def _precision(argument: str | None, names: NameMap, manifest: Mapping[str, Any], path: Path) -> dict[str, str]:
    """Return the declared precision: the argument, or else the map's, or else the manifest's."""
    if argument is not None:
        return {"": argument}
    declared = {}
    if "precision" in manifest:
        declared = read_precision(manifest["precision"], names.config, path)
    return {**declared, **names.precision}


def _token_ids(
    manifest: Mapping[str, Any], path: Path, arrays: Mapping[str, _Stored], config: Config
) -> list[int] | None:
    """Return the ids of the manifest, or of the arrays of that name: one of all tokens, or one a phase."""
    declared = None
    if "token_ids" in manifest:
        declared = _checked_ids(manifest["token_ids"], config, (path, TOKEN_IDS))
    stored: list[int] = []
    for phase in ("prompt", *(f"decode-{i}" for i in range(len(arrays)))):
        if phase not in arrays:
            break
        values = arrays[phase].read(integers=True)
        if values.size > _MAX_IDS or values.size != max(values.shape, default=0):
            raise GoldenError(*arrays[phase].where, f"must be a list of token ids, got shape {list(values.shape)}")
        stored += _checked_ids(values.ravel().tolist(), config, arrays[phase].where)
    if declared is not None and stored and declared[: len(stored)] != stored:
        raise GoldenError(path, TOKEN_IDS, f"are not those of {arrays['prompt'].label}")
    return declared if declared is not None else stored or None


def _checked_ids(values: Any, config: Config, where: tuple[Path, str | None]) -> list[int]:
    good = isinstance(values, list) and values and all(type(n) is int and 0 <= n < config.V for n in values)
    if not good:
        raise GoldenError(*where, f"must be a list of token ids below vocab_size {config.V}")
    return list(values)


def _nothing(unknown: Sequence[str], names: NameMap, mapped: bool) -> str:
    expected = f"expected are names like {', '.join(names.expected())}"
    if not unknown:
        return f"holds no tensors; {expected}"
    found = f"holds no tensor of this model: found {', '.join(name[:80] for name in unknown[:3])}"
    return f"{found}; {expected}" + ("" if mapped else "; a name map translates others (docs/adapters.md)")
