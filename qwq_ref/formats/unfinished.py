"""Files that threads write together, some rows at a time. A run that was killed can be resumed.

A hidden folder holds the files until all are complete, beside a journal of the tensors that are finished. The first
entry of the journal names the work: other work does not resume it. Each later entry has the checksums of one tensor's
rows, and they are compared with the file before the tensor counts as finished.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import core
from ..core import Array
from ..errors import CheckpointError, FileError
from ..files import pread_exactly
from .journal import append_entry, read_journal
from .layout import Layout
from .names import UNFINISHED
from .packed import Stored
from .write import sync_folder

_JOURNAL = "journal"
_PIECE = 1 << 24  # bytes that are read at a time for a checksum
_NO_ROOM = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)  # of a file system that cannot reserve room

Count = Callable[[int], object]  # called with the number of bytes that were read since the last call


@dataclass(frozen=True)
class Work:
    """Files to be written.

    name     of the kind of work: a folder can hold one unfinished work of each kind
    key      differs where the files would differ
    command  that resumes the work
    layouts  name -> plan of a file, in the order in which the files appear
    planned  name -> shape and format of a tensor
    """

    name: str
    key: str
    command: str
    layouts: Mapping[str, Layout]
    planned: Mapping[str, Stored]

    @property
    def nbytes(self) -> int:
        return sum(layout.size for layout in self.layouts.values())


@dataclass
class _Rows:
    """The checksums of one tensor's rows: (begin, end, CRC-32). Threads add to it."""

    pieces: list[tuple[int, int, int]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Unfinished:
    """A `Target` of the engine: see there. Use it in a `with`, which closes the files.

    notes  name of a finished tensor -> what was noted of it
    """

    def __init__(self, folder: Path, work: Work) -> None:
        self._folder, self._work = folder, work
        self._hidden = folder / f"{UNFINISHED}{work.name}"
        self._homes = {name: file for file, layout in work.layouts.items() for name in layout.places}
        self._files: dict[str, int] = {}
        self._journal = -1
        self._rows: dict[str, _Rows] = {}
        self._thread = threading.local()
        self.notes: dict[str, dict[str, int]] = {}

    def __enter__(self) -> Unfinished:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in (*self._files.values(), self._journal):
            if descriptor >= 0:
                os.close(descriptor)
        self._files, self._journal = {}, -1

    def is_begun(self) -> bool:
        """Return whether work of this name was begun in the folder."""
        return bool(read_journal(self._hidden / _JOURNAL)[0])

    def matches(self) -> bool:
        """Return whether this work was begun in the folder, and can be resumed."""
        entries, _ = read_journal(self._hidden / _JOURNAL)
        return bool(entries) and entries[0].get("key") == self._work.key

    def open(self, threads: int, progress: Callable[[int], Count] | None = None) -> None:
        """Resume this work, or begin it. The caller holds the lock of the folder. Raises OSError.

        progress  called with the number of bytes that are compared with the journal, to get a `Count`
        """
        entries, good = read_journal(self._hidden / _JOURNAL)
        if not self.matches() or not self._resume(entries, threads, progress):
            self._begin()
            return
        os.truncate(self._hidden / _JOURNAL, good)
        self._journal = os.open(self._hidden / _JOURNAL, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    def _begin(self) -> None:
        self.__exit__()
        self.discard()
        self._hidden.mkdir()
        for name, layout in self._work.layouts.items():
            with open(self._hidden / name, "x+b", buffering=0) as file:
                self._files[name] = os.dup(file.fileno())
                _reserve(file.fileno(), layout.size)
                _pwrite(file.fileno(), layout.header, 0)
        # The journal comes last: where it is, the files have their sizes and their headers.
        with open(self._hidden / _JOURNAL, "xb", buffering=0) as file:
            os.fsync(file.fileno())
        self._journal = os.open(self._hidden / _JOURNAL, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        append_entry(self._journal, {"key": self._work.key, "command": self._work.command})

    def _resume(self, entries: list[dict[str, Any]], threads: int, progress: Callable[[int], Count] | None) -> bool:
        """Open the files of an earlier run, and compare them with its journal. Return whether they are usable."""
        appeared = False
        for name, layout in self._work.layouts.items():
            for path in (self._hidden / name, self._folder / name):
                with suppress(OSError):
                    self._files[name] = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
                    break
            else:
                return False
            appeared |= path.parent == self._folder
            start = os.pread(self._files[name], len(layout.header), 0)
            if os.fstat(self._files[name]).st_size != layout.size or start != layout.header:
                return False
        told = {entry["tensor"]: entry for entry in entries[1:] if entry.get("tensor") in self._homes}
        done = {name: entry for name, entry in told.items() if _covers(entry.get("rows"), self._work.planned[name])}
        count = progress(sum(self._work.planned[name].nbytes for name in done)) if progress is not None else None
        pieces = [(name, *piece) for name, entry in done.items() for piece in entry["rows"]]
        with ThreadPoolExecutor(threads) as pool:
            try:
                agree = list(pool.map(lambda piece: self._agrees(piece, count), pieces))
            finally:
                pool.shutdown(cancel_futures=True)
        wrong = {piece[0] for piece, agrees in zip(pieces, agree, strict=True) if not agrees}
        self.notes = {name: dict(entry.get("notes", {})) for name, entry in done.items() if name not in wrong}
        # A file that has appeared is complete, or another one.
        return not appeared or len(self.notes) == len(self._homes)

    def _agrees(self, piece: tuple[str, int, int, int], count: Count | None) -> bool:
        """Return whether rows of a tensor have their checksum: (name, begin, end, CRC-32)."""
        name, begin, end, checksum = piece
        start, stop = self._work.planned[name].span(begin, end)
        at, found = self._place(name), 0
        for first in range(start, stop, _PIECE):
            data = bytearray(min(stop - first, _PIECE))
            pread_exactly(self._descriptor(name), [memoryview(data)], at + first, name, CheckpointError)
            found = zlib.crc32(data, found)
            if count is not None:
                count(len(data))
        return found == checksum

    def _place(self, name: str) -> int:
        return self._work.layouts[self._homes[name]].places[name]

    def _descriptor(self, name: str) -> int:
        return self._files[self._homes[name]]

    def has(self, name: str) -> bool:
        return name in self.notes

    def begin(self, name: str) -> None:
        self._rows[name] = _Rows()

    def room(self, name: str, begin: int, end: int) -> Array:
        start, stop = self._work.planned[name].span(begin, end)
        # The caller may read the memory of the last call while it fills that of this one: a thread has two pieces.
        memory, self._thread.last = getattr(self._thread, "last", None), getattr(self._thread, "memory", None)
        if memory is None or len(memory) < stop - start:
            memory = core.aligned(stop - start)
        self._thread.memory = memory
        room: Array = memory[: stop - start]
        return room

    def put(self, name: str, begin: int, end: int, data: Array) -> None:
        start, _ = self._work.planned[name].span(begin, end)
        rows, checksum = self._rows[name], zlib.crc32(data.data)
        _pwrite(self._descriptor(name), data.data, self._place(name) + start)
        with rows.lock:
            rows.pieces.append((begin, end, checksum))

    def finish(self, name: str, notes: Mapping[str, int]) -> None:
        self.notes[name] = dict(notes)
        append_entry(
            self._journal, {"tensor": name, "rows": sorted(self._rows.pop(name).pieces), "notes": self.notes[name]}
        )

    def complete(self, threads: int, progress: Callable[[int], Count] | None = None) -> dict[str, dict[str, Any]]:
        """Flush the files to the disk. Return the number of bytes and the SHA-256 of each."""
        missing = self._homes.keys() - self.notes.keys()
        assert not missing, missing
        count = progress(self._work.nbytes) if progress is not None else None

        def described(name: str) -> dict[str, Any]:
            os.fsync(self._files[name])
            size = self._work.layouts[name].size
            return {"bytes": size, "sha256": sha256_of(self._files[name], size, self._folder / name, count)}

        with ThreadPoolExecutor(threads) as pool:
            try:
                return dict(zip(self._files, pool.map(described, self._files), strict=True))
            finally:
                pool.shutdown(cancel_futures=True)

    def appear(self) -> None:
        """Move the files to their folder, where they replace earlier ones. Raises OSError."""
        for name in self._files:
            with suppress(FileNotFoundError):  # it has appeared in an earlier run
                os.replace(self._hidden / name, self._folder / name)
        sync_folder(self._folder)

    def discard(self) -> None:
        """Remove the hidden folder. Raises OSError."""
        with suppress(FileNotFoundError):
            (self._hidden / _JOURNAL).unlink()  # first: without it, nothing is resumed
        with suppress(FileNotFoundError):
            for path in self._hidden.iterdir():
                path.unlink()
            self._hidden.rmdir()


def held_bytes(folder: Path, name: str) -> int:
    """Return the bytes on the disk that an unfinished work holds: it is resumed, or removed before another begins."""
    held = 0
    with suppress(OSError):
        for path in (folder / f"{UNFINISHED}{name}").iterdir():
            held += path.stat().st_blocks * 512
    return held


def command_of(folder: Path) -> str | None:
    """Return the command that resumes an unfinished work in a folder; None if there is none."""
    with suppress(OSError):
        for path in sorted(folder.glob(f"{UNFINISHED}*")):
            entries, _ = read_journal(path / _JOURNAL)
            command = entries[0].get("command") if entries else None
            if isinstance(command, str):
                return command
    return None


def not_finished(command: str) -> str:
    """Return the problem of a folder that such a command was writing."""
    return f"holds a conversion that is not finished: finish it with `{command}`"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other conversions away from a folder while the block runs. Raises FileError if one is at work there."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileError(folder, None, "is being written by another conversion: wait for its end") from None
        except OSError:
            pass  # a file system without such locks, such as some of a network
        yield
    finally:
        os.close(descriptor)


def sha256_of(descriptor: int, size: int, path: Path, count: Count | None = None) -> str:
    """Return the SHA-256 of an open file. Raises CheckpointError for one that is shorter than `size`."""
    digest, data = hashlib.sha256(), bytearray(_PIECE)
    for begin in range(0, size, _PIECE):
        piece = memoryview(data)[: min(_PIECE, size - begin)]
        pread_exactly(descriptor, [piece], begin, path, CheckpointError)
        digest.update(piece)
        if count is not None:
            count(len(piece))
    return digest.hexdigest()


def _covers(rows: Any, stored: Stored) -> bool:
    """Return whether the pieces of an entry are all rows of a tensor, each once."""
    try:
        ends = [0, *(end for _, end, _ in rows)]
        return [begin for begin, _, _ in rows] == ends[:-1] and ends[-1] == stored.shape[0]
    except (TypeError, ValueError):
        return False


def _reserve(descriptor: int, size: int) -> None:
    """Give a file its size, and its room on the disk where the file system can: a full disk is seen at once."""
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size)
    except OSError as problem:
        if problem.errno not in _NO_ROOM:
            raise
    if os.fstat(descriptor).st_size != size:
        os.ftruncate(descriptor, size)


def _pwrite(descriptor: int, data: bytes | memoryview, at: int) -> None:
    left = memoryview(data)
    while left:
        written = os.pwrite(descriptor, left, at)
        left, at = left[written:], at + written
