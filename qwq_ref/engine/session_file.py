"""Files that hold a session: its tokens and their KV cache, so that a long prompt is computed once.

A file is a safetensors file: `ids`, the arrays of the sequence, and in its metadata the identity of the model and a
checksum. A cache is of use for the same weights, in the same forms, alone. A file of another model is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import CheckpointError, SessionFileError, UsageError
from ..files import StrPath
from ..formats.safetensors import DTYPES, SafetensorsFile
from ..formats.write import atomic_file
from ..spec.ops import Array
from .session import Session

if TYPE_CHECKING:
    from .model import Model

_FORMAT, _VERSION = "qwq_ref session", "1"
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_PIECE = 8 << 20  # bytes that are read and hashed at a time


def save_session(session: Session, path: StrPath) -> None:
    """Write a session to a file, which appears when it is complete. Raises FileError, UsageError for an empty one."""
    if not session.held:
        raise UsageError(None, "session", "holds no token")
    backend, ids = session.backend, np.array(session.ids[: session.held], np.int32)
    copy = session.fork(len(ids))
    arrays = {"ids": ids} | {f"cache.{i}": array for i, array in enumerate(copy.arrays())}
    digest = hashlib.sha256()
    for array in arrays.values():
        digest.update(array.data.cast("B"))
    about = {"identity": _identity(backend.identity()), "length": str(len(ids)), "sha256": digest.hexdigest()}
    header = _header(arrays, {"format": _FORMAT, "version": _VERSION} | about)
    with atomic_file(path) as file:
        file.write(header)
        for array in arrays.values():
            file.write(array.data.cast("B"))


def load_session(model: Model, path: StrPath) -> Session:
    """Read a session of a model. Raises SessionFileError for a file that is damaged, of another model, or too long.

    All of the header is checked before memory is taken, and the checksum before the session is returned.
    """
    try:
        with contextlib.closing(SafetensorsFile(path, ("I32", "U8", "F32"))) as file:
            return _read(model, file, path)
    except CheckpointError as problem:
        raise SessionFileError(path, problem.field, problem.problem) from None


def _read(model: Model, file: SafetensorsFile, path: StrPath) -> Session:
    about, backend = file.metadata, model.backend
    if about.get("format") != _FORMAT:
        raise SessionFileError(path, None, "is not a saved session")
    if about.get("version") != _VERSION:
        raise SessionFileError(path, "version", f"is {about.get('version')!s:.20}, not {_VERSION}: save it again")
    if about.get("identity") != _identity(backend.identity()):
        ours, theirs = backend.identity(), _parsed(about.get("identity", ""))
        raise SessionFileError(path, "identity", f"is of another model or form{_difference(ours, theirs)}")
    length = file.tensors["ids"].shape[0] if "ids" in file.tensors and len(file.tensors["ids"].shape) == 1 else 0
    if about.get("length") != str(length) or not length:
        raise SessionFileError(path, "ids", "are not those of the length that the file tells")
    if length > model.context:
        raise SessionFileError(path, "ids", f"are {length}, and the context has room for {model.context}")
    shapes: dict[str, tuple[tuple[int, ...], str]] = {"ids": ((length,), "I32")}
    for i, (shape, dtype) in enumerate(backend.array_shapes(length)):
        shapes[f"cache.{i}"] = shape, _NAMES[dtype]
    for name, wanted in shapes.items():
        if name not in file.tensors or (file.tensors[name].shape, file.tensors[name].dtype) != wanted:
            raise SessionFileError(path, name, f"must be {wanted[1]} {list(wanted[0])}")
    if len(file.tensors) > len(shapes):
        raise SessionFileError(path, None, "holds more tensors than a session has")
    digest, ids = hashlib.sha256(), np.empty(length, np.int32)
    _fill(file, digest, "ids", ids)
    if ids.min() < 0 or ids.max() >= model.config.V:
        raise SessionFileError(path, "ids", f"must be in [0, {model.config.V})")

    def fill(arrays: Iterable[Array]) -> None:
        for i, array in enumerate(arrays):
            _fill(file, digest, f"cache.{i}", array)
        if digest.hexdigest() != about.get("sha256"):
            raise SessionFileError(path, "sha256", "is not that of the contents: the file is damaged")

    return Session(backend, model.path, backend.restored(length, fill), ids.tolist())


def _fill(file: SafetensorsFile, digest: Any, name: str, array: Array) -> None:
    flat = array.reshape(len(array), -1)
    rows = max(1, _PIECE // max(1, flat[:1].nbytes))
    for begin in range(0, len(array), rows):
        piece = array[begin : begin + rows]
        file.read_into(name, begin, [piece])
        digest.update(piece.data.cast("B"))


def _header(arrays: dict[str, Array], metadata: dict[str, str]) -> bytes:
    fields: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for name, array in arrays.items():
        place = [at, at + array.nbytes]
        fields[name] = {"dtype": _NAMES[array.dtype], "shape": list(array.shape), "data_offsets": place}
        at += array.nbytes
    text = json.dumps(fields).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _identity(identity: dict[str, str]) -> str:
    return json.dumps(identity, sort_keys=True)


def _parsed(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _difference(ours: dict[str, str], theirs: dict[str, Any]) -> str:
    """Return the first field that differs, for people."""
    for name in ("weights form", "KV cache", "backend"):
        if name in theirs and theirs[name] != ours.get(name):
            return f": its {name} is {theirs[name]!s:.20}, and here it is {ours.get(name)!s:.20}"
    return ""
