"""The manifest of a folder that `qwq convert` wrote: the source, the parameters, and the checksum of each file.

A model loads without it. The header of a weight file tells the size of the file, and loading compares them. The
manifest tells whether a byte has changed since.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..files import StrPath, is_gguf, open_regular, read_json
from .gguf.header import read_header
from .names import MANIFEST
from .source import Source
from .unfinished import Count, command_of, not_finished, sha256_of
from .write import write_json

_BYTES = 1 << 24
VERSION = 1


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the conversions by their names: {"q4": {"files": ..., ...}}; empty without a manifest.

    Raises CheckpointError.
    """
    path = folder / MANIFEST
    if not os.path.lexists(path):
        return {}
    values = read_json(path, _BYTES, CheckpointError)
    if values.get("format") != "qwq-manifest" or values.get("version") != VERSION:
        raise CheckpointError(path, "version", f"must be {VERSION} of the format qwq-manifest")
    conversions = values.get("conversions")
    if not isinstance(conversions, dict):
        raise CheckpointError(path, "conversions", "must be an object")
    if not conversions:
        raise CheckpointError(path, "conversions", "has none")
    for name, entry in conversions.items():
        if not isinstance(entry, dict) or not _are_files(entry.get("files")):
            raise CheckpointError(path, f"conversions.{name}.files", "must give bytes and sha256 of each file")
    return conversions


def _are_files(files: Any) -> bool:
    return isinstance(files, dict) and all(
        isinstance(each, dict)
        and type(each.get("bytes")) is int
        and each["bytes"] >= 0
        and isinstance(each.get("sha256"), str)
        and Path(name).name
        and name.isprintable()
        and not os.path.isabs(name)
        and ".." not in Path(name).parts
        for name, each in files.items()
    )


def add_to_manifest(folder: Path, name: str, entry: dict[str, Any]) -> None:
    """Write what one conversion made, beside the others of the folder. Raises CheckpointError, FileError."""
    conversions = read_manifest(folder) | {name: entry}
    ordered = {each: conversions[each] for each in sorted(conversions)}
    write_json(folder / MANIFEST, {"format": "qwq-manifest", "version": VERSION, "conversions": ordered})


def identity(source: Source) -> dict[str, Any]:
    """Return what tells a source from another one: the names, sizes and headers of its files, and its config.

    Two files with equal headers and other weights have the same identity, as their checksums would cost reading all.
    Raises CheckpointError.
    """
    sizes = {path: path.stat().st_size for path in _weight_files(source)}
    files = {path.name: {"bytes": size, "header_sha256": _header(path)} for path, size in sizes.items()}
    return {"files": files, "config": source.config.to_dict()}


def times(source: Source) -> list[int]:
    """Return the times at which the files of a source were changed. They are no part of the identity of a copy."""
    return [path.stat().st_mtime_ns for path in _weight_files(source)]


def _weight_files(source: Source) -> list[Path]:
    """Return the files that hold a source's tensors, in the order of their names."""
    floats = source.floats
    assert floats is not None
    return sorted({Path(file) for name in source.config.tensors() if (file := floats.file(name)) is not None})


def _header(path: Path) -> str:
    """Return the SHA-256 of the header of a weight file."""
    descriptor = open_regular(path, CheckpointError)
    try:
        size = read_header(path).end if is_gguf(path) else 8 + int.from_bytes(os.pread(descriptor, 8, 0), "little")
        return sha256_of(descriptor, size, path)
    finally:
        os.close(descriptor)


def described(data: bytes) -> dict[str, Any]:
    """Return the entry of a small file in the manifest."""
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def total_bytes(folder: Path) -> int:
    """Return the bytes that `check` reads at most."""
    return sum(each["bytes"] for each in _files(read_manifest(folder)).values())


def check(folder: StrPath, count: Count | None = None) -> Iterator[tuple[str, str | None]]:
    """Compare the files of a folder with its manifest -> (name, the fault or None) of each.

    count  called with the number of bytes read since its last call

    Raises CheckpointError for a folder without a manifest.
    """
    folder = Path(folder)
    conversions = read_manifest(folder)
    if not conversions:
        if not folder.is_dir():
            raise CheckpointError(folder, None, "is not a folder")
        command = command_of(folder)
        if command is not None:
            raise CheckpointError(folder, None, not_finished(command))
        raise CheckpointError(folder / MANIFEST, None, "is not here: only `qwq convert` writes it")
    for name, wanted in sorted(_files(conversions).items()):
        yield name, _fault(folder / name, wanted, count)


def _files(conversions: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: each for entry in conversions.values() for name, each in entry["files"].items()}


def _fault(path: Path, wanted: dict[str, Any], count: Count | None) -> str | None:
    if not os.path.lexists(path):
        return "is missing"
    try:
        descriptor = open_regular(path, CheckpointError)
    except CheckpointError as problem:
        return problem.problem
    try:
        size = os.fstat(descriptor).st_size
        if size != wanted["bytes"]:
            return f"has {size:,} bytes; the manifest says {wanted['bytes']:,}"
        same = sha256_of(descriptor, size, path, count) == wanted["sha256"]
    finally:
        os.close(descriptor)
    return None if same else "has other contents than the manifest says"
