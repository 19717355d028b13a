"""Text from a file or standard input: bytes of UTF-8, whole or in pieces. The same bytes give the same text."""

from __future__ import annotations

import codecs
import os
import stat
from collections.abc import Iterable, Iterator
from typing import BinaryIO, cast

from ..errors import FileError
from .streams import STDIN, input_stream, read_pieces

HYPHEN = "-"  # standard input
PIECE = 1 << 16  # bytes of a long text that are held at a time: while it encodes, the tokenizer takes 250 times as much
# The longer marks first: that of UTF-32 begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def open_input(path: str) -> BinaryIO:
    """Open a file, or what stands for one: `<(command)` of a shell is a pipe. Raises FileError."""
    try:
        return cast(BinaryIO, open(path, "rb", buffering=0))
    except OSError as problem:
        raise FileError.from_os(problem, path, "cannot be read") from None
    except ValueError as problem:  # a NUL in the name
        raise FileError(path, None, f"cannot be read ({problem})") from None


def decoded(pieces: Iterable[bytes], name: str | os.PathLike[str]) -> Iterator[str]:
    """Yield UTF-8 as text, without a byte order mark, with \\n at line ends, and without the last line end.

    Programs add the last line end: `echo` and editors. Raises FileError for bytes that are no text in UTF-8.

    pieces  of any lengths; a mark of another encoding is found if the first one holds it
    """
    decoder, held, at = codecs.getincrementaldecoder("utf-8")(), "", 0
    for data in pieces:
        if at == 0:
            for mark, encoding in _MARKS.items():
                if data.startswith(mark):
                    raise FileError(name, None, f"is {encoding}: save it as UTF-8")
        nul = data.find(0)
        if nul >= 0:
            # Text in a European language or in JSON has a zero in every second byte of UTF-16.
            guess = "; UTF-16 has such bytes" if data[:64].count(0) * 4 >= len(data[:64]) else ""
            raise FileError(name, None, f"is not text: byte {at + nul} is 0{guess}")
        text = held + _utf8(decoder, data, at, name)
        if at == 0:
            text = text.removeprefix("\ufeff")
        at += len(data)
        held = "\r\n" if text.endswith("\r\n") else text[-1:] if text.endswith(("\r", "\n")) else ""
        yield _plain(text[: len(text) - len(held)])
    _utf8(decoder, b"", at, name, final=True)


def whole(data: bytes, name: str | os.PathLike[str]) -> str:
    """Return UTF-8 as text: see `decoded`."""
    return "".join(decoded([data], name))


def _utf8(
    decoder: codecs.IncrementalDecoder, data: bytes, at: int, name: str | os.PathLike[str], final: bool = False
) -> str:
    waiting = len(decoder.getstate()[0])
    try:
        return decoder.decode(data, final)
    except UnicodeDecodeError as problem:
        raise FileError(name, None, f"is not UTF-8 (byte {at - waiting + problem.start})") from None


def _plain(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


class LongText:
    """A text that is read while it is used, in pieces. Use it as a context, and iterate over it once.

    name   the file, or "standard input"
    size   the bytes of a file; None for a pipe
    read   the bytes that were read so far
    ended  whether all of it was read
    """

    def __init__(self, path: str) -> None:
        """`path`: a hyphen is standard input. Raises FileError if it cannot be opened."""
        self.name = STDIN if path == HYPHEN else path
        self._stream = input_stream() if path == HYPHEN else open_input(path)
        self.size, self.read, self.ended = _size(self._stream), 0, False

    def __enter__(self) -> LongText:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def __iter__(self) -> Iterator[str]:
        return decoded(self._pieces(), self.name)

    def _pieces(self) -> Iterator[bytes]:
        for data in read_pieces(self._stream, self.name, PIECE):
            self.read += len(data)
            yield data
        self.ended = True


def _size(stream: BinaryIO) -> int | None:
    try:
        status = os.fstat(stream.fileno())
    except OSError:  # standard input, replaced by a program that calls `main`
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None
