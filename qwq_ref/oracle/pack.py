"""The golden pack: right values of every tap, and how far correct implementations are from them. docs/pack.md has
the format for those who read it without this package.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..checkpoint.safetensors import SafetensorsFile
from ..checkpoint.write import write_atomically
from ..config import Config
from ..errors import ConfigError, GoldenError, QwqError
from ..files import StrPath, open_regular, pread_exactly, read_json
from ..spec import rope_frequencies
from ..spec.ops import Array
from .graph import CORRECT, Phase, letters, shape_of, tap_names
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
    rounding  phase -> tap -> precision -> the largest relative error of a correct implementation in that precision
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
                phase: {tap: dict(errors) for tap, errors in taps.items()} for phase, taps in self.rounding.items()
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
        if not path.is_dir():
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

    def verify(self) -> None:
        """Hold every file against its SHA-256 in the manifest."""
        for phase, (name, wanted) in self.manifest.files.items():
            path = self.path / name
            if _sha256(path) != wanted:
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


def _sha256(path: Path) -> str:
    descriptor = open_regular(path, GoldenError)
    try:
        size, digest = os.fstat(descriptor).st_size, hashlib.sha256()
        buffer = bytearray(_HASHED_AT_ONCE)
        for offset in range(0, size, len(buffer)):
            part = memoryview(buffer)[: size - offset]
            pread_exactly(descriptor, part, offset, path, GoldenError)
            digest.update(part)
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

    if values.get("format") != FORMAT:
        raise error("format", f"must be {FORMAT}, got {str(values.get('format'))[:60]}")
    version = take(values, "version", str)
    parts = version.split(".")
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() and len(part) < 6 for part in parts):
        raise error("version", f"must be MAJOR.MINOR, got {version[:60]}")
    if int(parts[0]) != VERSION[0]:
        raise error("version", f"is {version}; this reader knows {VERSION[0]}.x")

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
    start = 0
    for i, entry in enumerate(take(values, "phases", list)):
        prefix = f"phases[{i}]."
        if not isinstance(entry, dict):
            raise error(prefix[:-1], "must be an object")
        name, count = take(entry, "name", str, prefix), take(entry, "tokens", int, prefix)
        if take(entry, "start", int, prefix) != start:
            raise error(f"{prefix}start", f"must be {start}, where the phase before it ends")
        if count < 1 or start + count > len(ids):
            raise error(f"{prefix}tokens", f"is {count}, of {len(ids)} token_ids that begin at {start}")
        file = take(entry, "file", str, prefix)
        if not _is_base_name(file) or not file.endswith(".safetensors"):
            raise error(f"{prefix}file", f"must be the name of a .safetensors file in the pack, got {file[:60]}")
        if name in files:
            raise error(f"{prefix}name", f"{name[:60]} is used twice")
        files[name] = (file, take(entry, "sha256", str, prefix))
        phases.append(Phase(name, start, tuple(ids[start : start + count])))
        start += count
    if start != len(ids):
        raise error("phases", f"cover {start} of {len(ids)} token_ids")

    sizes = take(values, "taps", dict)
    known = set(tap_names(config))
    for tap, size in sizes.items():
        if tap not in known:
            raise error(f"taps.{tap}", "is no tap of this config")
        if size not in SIZES:
            raise error(f"taps.{tap}", f"must be one of {', '.join(SIZES)}, got {str(size)[:60]}")
    rounding = take(values, "rounding", dict)
    for phase in phases:
        errors = take(rounding, phase.name, dict, "rounding.")
        for tap in sizes:
            measured = take(errors, tap, dict, f"rounding.{phase.name}.")
            for precision in PRECISIONS:
                value = measured.get(precision)
                if type(value) not in (int, float) or value < 0:
                    raise error(
                        f"rounding.{phase.name}.{tap}.{precision}", f"must be a number >= 0, got {str(value)[:60]}"
                    )
    weights = take(values, "weights", dict)
    ordered = {tap: sizes[tap] for tap in tap_names(config) if tap in sizes}
    return Manifest(str(model.get("name", ""))[:200], config, tuple(phases), ordered, rounding, weights, files, folder)


_KINDS: dict[type, str] = {dict: "an object", list: "a list", str: "a string", int: "an integer"}


def _is_base_name(name: Any) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and set(name).isdisjoint("/\\\0")
