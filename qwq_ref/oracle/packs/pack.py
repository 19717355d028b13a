"""The golden pack: right values of every tap, and how far correct implementations are from them. docs/pack.md has
the format for those who read it without this package.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ... import __version__
from ...config import Config
from ...errors import ConfigError, GoldenError, QwqError
from ...files import (
    StrPath,
    open_regular,
    pread_exactly,
    read_json,
)
from ...formats.safetensors import SafetensorsFile
from ...formats.write import write_atomically
from ...spec import rope_frequencies
from ...spec.ops import Array
from ..graph import (
    CORRECT,
    Phase,
    letters,
    shape_of,
    tap_names,
)
from .sizes import SIZES, SKETCH

FORMAT = "qwq-golden"
VERSION = (1, 0)
MANIFEST = "manifest.json"
PRECISIONS = tuple(CORRECT)
_MANIFEST_BYTES = 64 << 20
_HASHED_AT_ONCE = 8 << 20


@dataclass(frozen=True)
class Manifest:
    """What a pack says of itself.

    model     its name, for people
    sizes     tap -> "full", "last", "stats" or "sketch"; in the order of the computation
    rounding  phase -> tap -> precision -> the largest relative error of a correct implementation in that precision;
              infinite (null in the file) where correct ones overflow
    weights   name -> SHA-256 of the tensor's float32 values, little-endian
    files     phase -> (file, SHA-256 of it)
    folder    where in the pack the model itself lies, if it does
    """

    model: str
    config: Config
    phases: tuple[Phase, ...]
    sizes: Mapping[str, str]
    rounding: Mapping[str, Mapping[str, Mapping[str, float]]]
    weights: Mapping[str, str]
    files: Mapping[str, tuple[str, str]]
    folder: str | None = None

    @property
    def token_ids(self) -> list[int]:
        return [token for phase in self.phases for token in phase.ids]

    def to_dict(self) -> dict[str, Any]:
        """The contents of manifest.json."""
        inv_freq = np.asarray(rope_frequencies(self.config.rope, self.config.E), np.float32)
        return {
            "format": FORMAT,
            "version": ".".join(map(str, VERSION)),
            "made_by": f"qwq_ref {__version__}",
            "model": {"name": self.model, "folder": self.folder, "config": self.config.to_dict()},
            "rope": {
                "inv_freq_bits": [f"{bits:08x}" for bits in inv_freq.view(np.uint32).tolist()],
                "attention_scaling": self.config.rope.attention_scaling,
            },
            "token_ids": self.token_ids,
            "phases": [
                {
                    "name": phase.name,
                    "start": phase.start,
                    "tokens": phase.T,
                    "file": self.files[phase.name][0],
                    "sha256": self.files[phase.name][1],
                }
                for phase in self.phases
            ],
            "taps": dict(self.sizes),
            "rounding": {
                phase: {
                    tap: {precision: value if math.isfinite(value) else None for precision, value in errors.items()}
                    for tap, errors in taps.items()
                }
                for phase, taps in self.rounding.items()
            },
            "weights": dict(self.weights),
        }


def stored_shape(tap: str, size: str, config: Config, phase: Phase) -> tuple[int, ...]:
    """The shape of what a pack keeps of a tap."""
    if size == "stats":
        return (phase.T, 4)
    if size == "sketch":
        return (phase.T, SKETCH)
    shape = shape_of(tap, config, phase)
    if size == "last":
        return tuple(1 if letter == "T" else n for letter, n in zip(letters(tap), shape, strict=True))
    return shape


def write_manifest(folder: Path, manifest: Manifest) -> None:
    import json

    text = json.dumps(manifest.to_dict(), indent=1) + "\n"
    write_atomically(folder / MANIFEST, lambda file: file.write(text.encode("utf-8")))


class Golden:
    """An open pack. Raises GoldenError, wherever it is not what it says.

    manifest  see `Manifest`
    path      its folder
    """

    def __init__(self, path: Path, manifest: Manifest, files: Mapping[str, SafetensorsFile]) -> None:
        self.path = path
        self.manifest = manifest
        self._files = files

    @classmethod
    def open(cls, path: StrPath) -> Golden:
        """Open a pack's folder: reads its manifest and the headers of its files, and holds them against each other."""
        path = Path(path)
        if not os.path.isdir(path):
            raise GoldenError(path, None, "is not a folder")
        manifest = _read_manifest(path / MANIFEST)
        with contextlib.ExitStack() as stack:
            files = {}
            for phase in manifest.phases:
                with as_golden_error():
                    files[phase.name] = SafetensorsFile(path / manifest.files[phase.name][0])
                stack.callback(files[phase.name].close)
                _check_file(files[phase.name], manifest, phase)
            stack.pop_all()
        return cls(path, manifest, files)

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def __enter__(self) -> Golden:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def model_path(self) -> Path | None:
        """The model that it was recorded from, where it is part of the pack."""
        folder = self.manifest.folder
        return None if folder is None else self.path / folder

    def read(self, phase: str, tap: str) -> Array:
        """What the pack keeps of a tap, float32. KeyError for one that it does not keep."""
        file = self._files[phase]
        with as_golden_error():
            value = file.read(tap)
        wrong = np.isnan(value) | np.isposinf(value)
        if not tap.endswith(".scores"):
            wrong |= np.isneginf(value)
        if wrong.any():
            index = [int(i) for i in np.unravel_index(int(wrong.argmax()), value.shape)]
            raise GoldenError(file.path, tap, f"holds a NaN or infinity at {index}")
        return value

    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for file in self._files.values() for tensor in file.tensors.values())

    def verify(self, progress: Callable[[int], object] = lambda count: None) -> None:
        """Hold every file against its SHA-256 in the manifest; `progress` is called with the bytes of each piece."""
        for phase, (name, wanted) in self.manifest.files.items():
            path = self.path / name
            if _sha256(path, progress) != wanted:
                raise GoldenError(path, None, f"is not the file that {MANIFEST} names for {phase}: its SHA-256 differs")


@contextlib.contextmanager
def as_golden_error() -> Iterator[None]:
    """A file of a pack that is malformed makes the pack malformed."""
    try:
        yield
    except GoldenError:
        raise
    except QwqError as error:
        raise GoldenError(error.file, error.field, error.problem) from None


def _sha256(path: Path, progress: Callable[[int], object]) -> str:
    descriptor = open_regular(path, GoldenError)
    try:
        size, digest = os.fstat(descriptor).st_size, hashlib.sha256()
        buffer = bytearray(_HASHED_AT_ONCE)
        for offset in range(0, size, len(buffer)):
            part = memoryview(buffer)[: size - offset]
            pread_exactly(descriptor, [part], offset, path, GoldenError)
            digest.update(part)
            progress(len(part))
        return digest.hexdigest()
    finally:
        os.close(descriptor)


def _check_file(file: SafetensorsFile, manifest: Manifest, phase: Phase) -> None:
    for tap, size in manifest.sizes.items():
        wanted = stored_shape(tap, size, manifest.config, phase)
        tensor = file.tensors.get(tap)
        if tensor is None:
            raise GoldenError(file.path, tap, f"is missing, but {MANIFEST} has it as {size}")
        if tensor.shape != wanted or tensor.dtype != "F32":
            raise GoldenError(
                file.path,
                tap,
                f"is {tensor.dtype} {list(tensor.shape)}, but {MANIFEST} implies F32 {list(wanted)} ({size})",
            )
    for name in file.tensors:
        if name not in manifest.sizes:
            raise GoldenError(file.path, name, f"is not among the taps of {MANIFEST}")


def _read_manifest(path: Path) -> Manifest:
    values = read_json(path, _MANIFEST_BYTES, GoldenError)

    def error(field: str, problem: str) -> GoldenError:
        return GoldenError(path, field, problem)

    def take(where: Mapping[str, Any], name: str, kind: type, prefix: str = "") -> Any:
        value = where.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise error(prefix + name, f"must be {_KINDS[kind]}, got {str(value)[:60]}")
        return value

    read_version(values, path, FORMAT, VERSION)
    model = take(values, "model", dict)
    try:
        config = Config.from_dict(take(model, "config", dict, "model."), path)
    except ConfigError as problem:
        raise error(f"model.config.{problem.field}", problem.problem) from None
    folder = model.get("folder")
    if folder is not None and not _is_base_name(folder):
        raise error("model.folder", f"must be the name of a folder in the pack, got {str(folder)[:60]}")

    ids = take(values, "token_ids", list)
    if not ids or not all(type(token) is int and 0 <= token < config.V for token in ids):
        raise error("token_ids", f"must be a list of token ids below vocab_size {config.V}")
    phases, files = [], {}
    seen: set[str] = set()
    start = 0
    for i, entry in enumerate(take(values, "phases", list)):
        prefix = f"phases[{i}]."
        if not isinstance(entry, dict):
            raise error(prefix[:-1], "must be an object")
        name, count = take(entry, "name", str, prefix), take(entry, "tokens", int, prefix)
        if not _PHASE.fullmatch(name):
            raise error(f"{prefix}name", f"must be letters, digits, - and _, got {name[:60]}")
        if take(entry, "start", int, prefix) != start:
            raise error(f"{prefix}start", f"must be {start}, where the phase before it ends")
        if count < 1 or start + count > len(ids):
            raise error(f"{prefix}tokens", f"is {count}, of {len(ids)} token_ids that begin at {start}")
        file = take(entry, "file", str, prefix)
        if not _is_base_name(file) or not file.endswith(".safetensors"):
            raise error(f"{prefix}file", f"must be the name of a .safetensors file in the pack, got {file[:60]}")
        if name in files:
            raise error(f"{prefix}name", f"{name[:60]} is used twice")
        if file in seen:
            raise error(f"{prefix}file", f"{file[:60]} is used twice")
        seen.add(file)
        digest = take(entry, "sha256", str, prefix)
        if not _SHA256.fullmatch(digest):
            raise error(f"{prefix}sha256", f"must be a SHA-256 in hexadecimal digits, got {digest[:60]}")
        files[name] = (file, digest)
        phases.append(Phase(name, start, tuple(ids[start : start + count])))
        start += count
    if start != len(ids):
        raise error("phases", f"cover {start} of {len(ids)} token_ids")

    sizes = take(values, "taps", dict)
    if not sizes:
        raise error("taps", "is empty")
    known = set(tap_names(config))
    for tap, size in sizes.items():
        if tap not in known:
            raise error(f"taps.{tap}", "is no tap of this config")
        if size not in SIZES:
            raise error(f"taps.{tap}", f"must be one of {', '.join(SIZES)}, got {str(size)[:60]}")
    all_measured = take(values, "rounding", dict)
    rounding: dict[str, dict[str, dict[str, float]]] = {}
    for phase in phases:
        of_phase = take(all_measured, phase.name, dict, "rounding.")
        rounding[phase.name] = {}
        for tap in sizes:
            measured = take(of_phase, tap, dict, f"rounding.{phase.name}.")
            field = f"rounding.{phase.name}.{tap}"
            rounding[phase.name][tap] = {
                p: read_rounding(measured.get(p, ""), path, f"{field}.{p}") for p in PRECISIONS
            }
    weights = take(values, "weights", dict)
    for name in config.tensors():
        if not _SHA256.fullmatch(take(weights, name, str, "weights.")):
            raise error(f"weights.{name}", f"must be a SHA-256 in hexadecimal digits, got {weights[name][:60]}")
    ordered = {tap: sizes[tap] for tap in tap_names(config) if tap in sizes}
    return Manifest(str(model.get("name", ""))[:200], config, tuple(phases), ordered, rounding, weights, files, folder)


def read_version(values: Mapping[str, Any], path: Path, wanted: str, known: tuple[int, int]) -> tuple[int, int]:
    """(major, minor) of a manifest of this format. Raises GoldenError for another format or another major version."""
    if values.get("format") != wanted:
        raise GoldenError(path, "format", f"must be {wanted}, got {str(values.get('format'))[:60]}")
    version = values.get("version")
    match = re.fullmatch(r"([0-9]{1,5})\.([0-9]{1,5})", version) if isinstance(version, str) else None
    if match is None:
        raise GoldenError(path, "version", f"must be MAJOR.MINOR, got {str(version)[:60]}")
    if int(match[1]) != known[0]:
        raise GoldenError(path, "version", f"is {version}; this reader knows {known[0]}.x")
    return int(match[1]), int(match[2])


def read_rounding(value: Any, path: Path, field: str) -> float:
    """A relative error from a manifest; null is infinite: correct implementations overflow."""
    if value is None:
        return math.inf
    if type(value) not in (int, float) or not 0 <= value < 1e30:
        raise GoldenError(path, field, f"must be a number >= 0, or null, got {str(value)[:60] or 'nothing'}")
    return float(value)


_SHA256 = re.compile(r"[0-9a-f]{64}")
_PHASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_KINDS: dict[type, str] = {dict: "an object", list: "a list", str: "a string", int: "an integer"}


def _is_base_name(name: Any) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and set(name).isdisjoint("/\\\0")
