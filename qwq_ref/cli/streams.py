"""The standard streams of a command: characters that they cannot show, and their faults.

`standard` replaces sys.stdout and sys.stderr while a command runs. Everything that prints goes through them: the
command, argparse, `warnings`, `logging`.

stdout  A fault is a FileError: a full disk, a closed stream. A reader that went away is a ReaderGoneError.
stderr  carries messages only. A fault loses the message and never the result, which goes to stdout.

A character that a stream cannot show is written as its escape, such as \\u4e2d. JSON stays JSON: see `print_json`.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import json
import os
import select
import sys
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, TextIO, TypeVar, cast

from ..errors import FileError, UsageError
from .screen import screen

_ESCAPE = "qwq_ref.escape"  # an error handler of codecs
STDIN = "standard input"
_DEFAULTS = ("strict", "surrogateescape")  # handlers that nobody chose

Kind = TypeVar("Kind", bound="_Stream")


class ReaderGoneError(BrokenPipeError):
    """The program that read stdout ended, as `head` does: there is nobody to tell."""


# --- The streams -----------------------------------------------------------------------------------------------------


class _Stream(io.TextIOWrapper):
    """stdout or stderr, on a duplicate of its descriptor. After a fault, everything is dropped.

    Python's own buffers are below: they know what is written, also if Ctrl-C comes right after the system call.
    """

    def __init__(self, descriptor: int, like: TextIO | None) -> None:
        """`like`: the stream to replace; None if Python found it closed."""
        self.descriptor = descriptor
        self.lost: OSError | None = None
        self.on_screen = False
        if like is None:
            super().__init__(io.BufferedWriter(_Closed()), "utf-8", _ESCAPE)
            return
        try:
            own, closes = os.dup(descriptor), True
        except OSError:  # too many open files
            own, closes = descriptor, False
        kind = io.FileIO if os.get_blocking(own) else _Waiting
        super().__init__(
            io.BufferedWriter(kind(own, "wb", closefd=closes)),
            like.encoding,
            like.errors if like.errors not in _DEFAULTS else _ESCAPE,
            newline="\n",
            line_buffering=bool(like.line_buffering),
            write_through=getattr(like, "write_through", False),
        )

    def write(self, text: str) -> int:
        with self._without_bar(text):
            self._attempt(super().write, text)
            if self.write_through:
                self._attempt(super().flush)
        return len(text)

    def flush(self) -> None:
        with self._without_bar(""):
            self._attempt(super().flush)

    def check(self) -> None:
        """Raise the error for a fault of the stream, if there was one, and if it ends the command."""

    def shares(self, terminal: int) -> None:
        """Keep clear of the bar, if this is the same terminal."""
        self.on_screen = self.isatty() and os.fstat(self.fileno()).st_rdev == os.fstat(terminal).st_rdev

    def _without_bar(self, text: str) -> contextlib.AbstractContextManager[None]:
        return screen.without_bar(text) if self.on_screen else contextlib.nullcontext()

    def _attempt(self, call: Callable[..., object], *arguments: object) -> None:
        if self.lost is not None:
            return
        try:
            call(*arguments)
        except OSError as problem:
            self.lost = problem
            self._drop()
            self.check()

    def _drop(self) -> None:
        """Let go of what is still in the buffers: they would be written at the end of the process."""
        if isinstance(raw := self.buffer.raw, _Closed):  # type: ignore[attr-defined]
            raw.drops = True
        else:
            with contextlib.suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, raw.fileno(), inheritable=False)
                os.close(nowhere)
        with contextlib.suppress(OSError):
            super().flush()


class _Closed(io.RawIOBase):
    """The bytes of a closed stream."""

    drops = False

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self.drops:
            return len(data)
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))


class _Waiting(io.FileIO):
    """The bytes of a stream that another program made non-blocking: wait until the reader takes more."""

    def write(self, data: Any) -> int:
        while (written := super().write(data)) is None:
            ready = select.poll()
            ready.register(self.fileno(), select.POLLOUT)
            ready.poll()
        return written


class _Output(_Stream):
    """stdout."""

    def check(self) -> None:
        if self.lost is not None and isinstance(self.buffer.raw, _Closed):  # type: ignore[attr-defined]
            raise FileError("standard output", None, "is closed") from None
        if self.lost is not None and self.lost.errno == errno.EPIPE:
            raise ReaderGoneError(*self.lost.args) from None
        if self.lost is not None:
            raise FileError.from_os(self.lost, "standard output") from None


class _Errors(_Stream):
    """stderr. Where it shares its pipe with stdout, `2>&1 | head`, the end of the reader ends the program."""

    def check(self) -> None:
        if self.lost is not None and self.lost.errno == errno.EPIPE and _one_pipe():
            raise ReaderGoneError(*self.lost.args) from None


def _one_pipe() -> bool:
    try:
        return os.path.sameopenfile(1, 2)
    except OSError:
        return False


@contextlib.contextmanager
def standard() -> Iterator[None]:
    """Run the block with streams that keep the promises of this module. A caller that replaced them keeps its own."""
    for descriptor in range(3):
        _reserve(descriptor)
    before: tuple[TextIO | None, TextIO | None] = sys.stdout, sys.stderr
    output, errors = _replacement(before[0], _Output, 1), _replacement(before[1], _Errors, 2)
    if output is not None:
        sys.stdout = output
    if errors is not None:
        sys.stderr = errors
        if errors.isatty():
            screen.descriptor = errors.fileno()
            for stream in filter(None, (output, errors)):
                stream.shares(screen.descriptor)
            screen.echoes = False
            screen.has_output = output is not None and output.on_screen
    try:
        yield
    finally:
        screen.draw("")
        screen.descriptor = None
        for stream in filter(None, (output, errors)):
            with contextlib.suppress(FileError, OSError):  # `ending.run` has reported them
                stream.flush()
        sys.stdout, sys.stderr = before


def _reserve(descriptor: int) -> None:
    """Keep a file from taking the number of a closed stream: a library's message would be written into that file."""
    try:
        os.fstat(descriptor)
    except OSError:
        with contextlib.suppress(OSError):
            opened = os.open(os.devnull, os.O_RDWR)
            if opened == descriptor:
                os.set_inheritable(opened, True)  # a child needs it as much
            else:
                os.close(opened)


def _replacement(stream: TextIO | None, kind: type[Kind], descriptor: int) -> Kind | None:
    """Return what replaces a stream; None if it is not the process's own."""
    if stream is None:  # Python found it closed
        return kind(descriptor, None)
    own = sys.__stdout__ if descriptor == 1 else sys.__stderr__
    if own is None or stream is not own:
        return None
    own.flush()
    return kind(descriptor, own)


def _escape(problem: UnicodeError) -> tuple[str | bytes, int]:
    """Escape characters that the encoding lacks. A byte of a file's name that is not UTF-8 is written as it is."""
    if not isinstance(problem, UnicodeEncodeError):
        raise problem
    if 0xDC80 <= ord(problem.object[problem.start]) <= 0xDCFF:
        return bytes([ord(problem.object[problem.start]) - 0xDC00]), problem.start + 1
    return codecs.backslashreplace_errors(problem)


codecs.register_error(_ESCAPE, _escape)


# --- What is printed and read ----------------------------------------------------------------------------------------


def print_json(value: Any, indent: int | None = None) -> None:
    """Print a value on stdout as JSON: in UTF-8 if that is the stream's encoding, else in ASCII with escapes."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    if codecs.lookup(encoding).name != "utf-8" or any("\ud800" <= character <= "\udfff" for character in text):
        text = json.dumps(value, indent=indent)
    print(text)


def require_output() -> None:
    """Raise FileError if stdout takes nothing: before a long computation whose result it should carry, and at the end.

    argparse drops such errors.
    """
    if isinstance(sys.stdout, _Output):
        if isinstance(sys.stdout.buffer.raw, _Closed):  # type: ignore[attr-defined]
            raise FileError("standard output", None, "is closed")
        sys.stdout.check()


def argument_text(text: str, name: str) -> str:
    """Return the text of an argument. In an ASCII locale, Python decodes UTF-8 arguments to surrogates.

    Raises UsageError for bytes that are not UTF-8.
    """
    if not any("\udc80" <= character <= "\udcff" for character in text):
        return text
    try:
        return os.fsencode(text).decode("utf-8")
    except UnicodeError:
        raise UsageError(None, name, "is not UTF-8") from None


def read_input() -> bytes:
    """Return the bytes of standard input, to its end. Raises FileError."""
    with input_stream() as stream:
        return read_stream(stream, STDIN)


def input_stream() -> BinaryIO:
    """Return standard input as a stream of bytes, without a buffer of ours. Raises FileError."""
    if sys.stdin is None:
        raise FileError(STDIN, None, "is closed")
    try:
        descriptor = sys.stdin.fileno()
    except (OSError, AttributeError):  # replaced by a program that calls `main`
        return io.BytesIO(sys.stdin.buffer.read() if hasattr(sys.stdin, "buffer") else sys.stdin.read().encode("utf-8"))
    return cast(BinaryIO, open(descriptor, "rb", buffering=0, closefd=False))


def read_stream(stream: BinaryIO, name: str, limit: int = 1 << 26) -> bytes:
    """Return the bytes of a stream, to its end: a file, a pipe, a terminal. Raises FileError.

    A pipe may be non-blocking, where a plain read would lose what comes later. `limit` is for streams without end.
    """
    data = bytearray()
    while piece := _read(stream, name):
        data += piece
        if len(data) > limit:
            raise FileError(name, None, f"is longer than {limit:,} bytes")
    return bytes(data)


def read_pieces(stream: BinaryIO, name: str, size: int) -> Iterator[bytes]:
    """Yield the bytes of a stream in pieces of `size` or a little more; the last one may be shorter. Raises FileError.

    The first piece is yielded even if it is empty.
    """
    data, ended = bytearray(), False
    while not ended:
        piece = _read(stream, name, size)
        data += piece
        ended = not piece
        if len(data) >= size or ended:
            yield bytes(data)
            data.clear()


def read_lines(stream: BinaryIO, name: str, limit: int = 1 << 26) -> Iterator[bytes]:
    """Yield the lines of a stream with their ends, each as soon as it is there. Raises FileError.

    limit  bytes of a line
    """
    data = bytearray()
    while piece := _read(stream, name, 1 << 16):
        data += piece
        start = 0
        while end := data.find(b"\n", start) + 1:
            yield bytes(data[start:end])
            start = end
        del data[:start]
        if len(data) > limit:
            raise FileError(name, None, f"has a line of more than {limit:,} bytes")
    if data:
        yield bytes(data)


def _read(stream: BinaryIO, name: str, size: int = 1 << 20) -> bytes:
    try:
        while (piece := stream.read(size)) is None:
            ready = select.poll()
            ready.register(stream, select.POLLIN)
            ready.poll()
        return piece
    except OSError as problem:
        raise FileError.from_os(problem, name, "cannot be read") from None
