"""A golden pack, opened for reading: reference values of every tap, and the rounding of correct implementations.

docs/pack.md describes the format for readers without this package.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from ...errors import GoldenError, QwqError
from ...files import StrPath, open_regular, pread_exactly
from ...formats.safetensors import SafetensorsFile
from ...spec.ops import Array
from ..graph import Phase
from .manifest import MANIFEST, Manifest, read_manifest, stored_shape

_HASHED_AT_ONCE = 8 << 20


class Golden:
    """An open golden pack. Its methods raise GoldenError where the files contradict the manifest.

    manifest  see `Manifest`
    path      the folder
    """

    def __init__(self, path: Path, manifest: Manifest, files: Mapping[str, SafetensorsFile]) -> None:
        self.path = path
        self.manifest = manifest
        self._files = files

    @classmethod
    def open(cls, path: StrPath) -> Golden:
        """Open the folder of a pack: read the manifest, and check the headers of the files against it."""
        path = Path(path)
        if not os.path.isdir(path):
            raise GoldenError(path, None, "is not a folder")
        if not os.path.lexists(path / MANIFEST):
            raise GoldenError(path, None, f"is not a golden pack: {MANIFEST} is missing")
        manifest = read_manifest(path / MANIFEST)
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
        """The folder of the recorded model; None if the pack holds no model."""
        folder = self.manifest.folder
        return None if folder is None else self.path / folder

    def read(self, phase: str, tap: str) -> Array:
        """Return what the pack keeps of a tap, in float32. Raises KeyError if it keeps nothing of it."""
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
        """Return the size of all tensors in bytes."""
        return sum(tensor.nbytes for file in self._files.values() for tensor in file.tensors.values())

    def verify(self, progress: Callable[[int], object] = lambda count: None) -> None:
        """Check the SHA-256 of every file. `progress` is called with the number of bytes of each piece."""
        for phase, (name, wanted) in self.manifest.files.items():
            path = self.path / name
            if _sha256(path, progress) != wanted:
                raise GoldenError(path, None, f"is not the file that {MANIFEST} names for {phase}: its SHA-256 differs")


@contextlib.contextmanager
def as_golden_error() -> Iterator[None]:
    """Turn the errors of a file in a pack into a GoldenError."""
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
