"""Read files that must not be trusted: size, kind and JSON are checked first. Name the file that cannot be written."""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .errors import FileError, QwqError

StrPath = str | os.PathLike[str]
_MOST_BUFFERS = 1024  # of one preadv: IOV_MAX of Linux
GGUF = b"GGUF"  # the first bytes of such a file
_AGAIN = "download the file again"
_STARTS = (
    (b"version https://git-lfs.github.com/spec/", "a git-lfs pointer to it: run `git lfs pull` in its folder"),
    (b"# xet version ", "a git-xet pointer to it: run `git xet pull` in its folder"),
    (b"<!doctype html", f"a web page, such as a login or an error page: {_AGAIN}"),
    (b"<html", f"a web page, such as a login or an error page: {_AGAIN}"),
    (b"<?xml", f"an XML document, such as the error of a server: {_AGAIN}"),
    (GGUF, "a GGUF file of llama.cpp: give the file itself, with a name that ends in .gguf"),
    (b"lmgg", "a GGML file of llama.cpp: take the checkpoint that it was made from"),
    (b"tjgg", "a GGML file of llama.cpp: take the checkpoint that it was made from"),
    (b"PK\3\4", "a zip archive, such as a .bin file of PyTorch or an .npz file"),
    (b"\x80\2", "a pickle, such as an old .bin file of PyTorch"),
    (b"\x80\4", "a pickle, such as an old .bin file of PyTorch"),
    (b"\x89HDF", "an HDF5 file, such as an .h5 file of TensorFlow"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x1f\x8b", "a gzip archive: unpack it"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive: unpack it"),
    (b"\xfd7zXZ", "an xz archive: unpack it"),
    (b"BZh", "a bzip2 archive: unpack it"),
)
START = 512  # bytes that `foreign` looks at


@contextlib.contextmanager
def writes(path: StrPath) -> Iterator[None]:
    """Raise the FileError `path: cannot be written (reason)` for an OSError in the block, which writes `path`."""
    try:
        yield
    except FileError:
        raise
    except OSError as problem:
        raise FileError.from_os(problem, path) from problem


def is_gguf(path: Path) -> bool:
    """Return whether a path is meant as a GGUF file: by its name, or by its first bytes if it has another name."""
    if path.suffix == ".gguf":
        return not path.is_dir()
    try:
        descriptor = open_regular(path, QwqError)
    except QwqError:
        return False
    try:
        return os.pread(descriptor, len(GGUF), 0) == GGUF
    finally:
        os.close(descriptor)


def open_regular(path: StrPath, error: type[QwqError]) -> int:
    """Open a regular file for reading. Return the file descriptor, which the caller closes.

    The call does not block, so that a FIFO or a device cannot hang the process before `fstat` refuses it.
    Symbolic links are followed: the Hugging Face cache consists of them. Raises `error`.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as problem:  # ValueError: a NUL in the name
        reason = problem.strerror if isinstance(problem, OSError) else str(problem)
        raise error(path, None, f"cannot be opened ({reason})") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise error(path, None, "is not a regular file")
    return descriptor


def pread_exactly(
    descriptor: int, buffers: Sequence[memoryview], offset: int, path: StrPath, error: type[QwqError]
) -> None:
    """Fill buffers of bytes, one after another, from the file at `offset`.

    A file that shrank raises `error`. In a memory map it would end the process with SIGBUS.
    """
    waiting = [buffer for buffer in buffers if len(buffer)]
    while waiting:
        try:
            got = os.preadv(descriptor, waiting[:_MOST_BUFFERS], offset)
        except OSError as problem:  # a failing disk, or a network file system that went away
            raise error(path, None, f"cannot be read ({problem.strerror})") from None
        if got == 0:
            raise error(path, None, f"ends at byte {offset}: it is shorter than it was when opened")
        if got == sum(map(len, waiting)):
            return
        offset += got
        done = 0
        while done < len(waiting) and got >= len(waiting[done]):
            got -= len(waiting[done])
            done += 1
        waiting = waiting[done:]
        if got:
            waiting[0] = waiting[0][got:]


def read_file(path: StrPath, limit: int, error: type[QwqError]) -> bytes:
    """Return the contents of a regular file of at most `limit` bytes. Raises `error`."""
    descriptor = open_regular(path, error)
    try:
        size = os.fstat(descriptor).st_size
        if size > limit:
            raise error(path, None, f"is {size:,} bytes long; at most {limit:,} are read")
        data = bytearray(size)
        pread_exactly(descriptor, [memoryview(data)], 0, path, error)
        return bytes(data)
    finally:
        os.close(descriptor)


def foreign(start: bytes) -> str | None:
    """Return a phrase for a file that is none of a model's: its kind, and where it helps what to do with it.

    start  the first `START` bytes of the file, or all of a shorter one
    """
    if start[5:9] == b"\0\0\0{":  # the length of a header and its brace
        return "a safetensors file"
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    for magic, phrase in _STARTS:
        data = text.lower() if magic.startswith(b"<") else start
        if data.startswith(magic):
            return phrase
    if start[257:262] == b"ustar":
        return "a tar archive: unpack it"
    if len(start) >= START and not any(start):
        return f"zeros, such as an interrupted download leaves: {_AGAIN}"
    return None


def foreign_text(start: bytes) -> str | None:
    """Return a phrase for a short text, such as the answer of a server, in a file that should hold weights."""
    text = start[:START].decode("utf-8", "replace").strip()
    if not text or len(start) >= START or not text.replace("\n", " ").isprintable():
        return None
    return f'the text "{text.splitlines()[0][:80]}": {_AGAIN}'


def parse_json(data: bytes, path: StrPath, error: type[QwqError]) -> dict[str, Any]:
    """Parse a JSON object strictly: UTF-8, no duplicate keys, no NaN or infinity. Raises `error`.

    `json.loads` alone accepts all three. It keeps the last of two equal keys, and reads 1e999 as infinity. A byte order
    mark, which some editors write, is skipped.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise error(path, twice, "appears twice")
        return result

    def finite(text: str) -> float:
        value = float(text)
        if value in (float("inf"), float("-inf")):
            raise error(path, None, f"holds a number beyond the range of a double ({text[:40]})")
        return value

    def not_a_number(text: str) -> float:
        raise error(path, None, f"holds {text}, which is not JSON")

    try:
        value = json.loads(
            data.decode("utf-8").removeprefix("\ufeff"),
            object_pairs_hook=unique,
            parse_float=finite,
            parse_constant=not_a_number,
        )
    except UnicodeDecodeError as problem:
        kind = foreign(data[:START])
        problem_text = f"is not JSON, but {kind}" if kind else f"is not UTF-8 (byte {problem.start})"
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            problem_text = "is not UTF-8, but UTF-16: save it as UTF-8"
        raise error(path, None, problem_text) from None
    except RecursionError:
        raise error(path, None, "is nested too deeply") from None
    except json.JSONDecodeError as problem:
        kind = foreign(data[:START])
        if kind or not data.strip():
            raise error(path, None, f"is not JSON, but {kind or 'empty'}") from None
        raise error(path, None, f"is not JSON (line {problem.lineno}, column {problem.colno}: {problem.msg})") from None
    except ValueError as problem:  # an integer of more digits than Python converts
        raise error(path, None, f"is not JSON ({problem})") from None
    if not isinstance(value, dict):
        raise error(path, None, f"must hold a JSON object, not a {type(value).__name__}")
    return value


def read_json(path: StrPath, limit: int, error: type[QwqError]) -> dict[str, Any]:
    """Parse a regular file of at most `limit` bytes: see `parse_json`."""
    return parse_json(read_file(path, limit, error), Path(path), error)
