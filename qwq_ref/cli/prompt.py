"""The text of a prompt: from the arguments, a file or standard input. The same bytes give the same text from each."""

from __future__ import annotations

import argparse
import codecs
import os
import sys

from ..errors import FileError, UsageError
from .options import given_once
from .streams import argument_text, read_input, read_stream

STDIN = "-"
_NAME = "standard input"
# The longer marks first: that of UTF-32 begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def read_prompt(options: argparse.Namespace) -> str:
    """Return the prompt: the argument and the file, or standard input without either.

    A hyphen as PROMPT or as the file is standard input. Raises UsageError, and FileError for text that cannot be read.
    """
    text = given_once(options, "prompt")
    parts = [] if text is None else [argument_text(text, "prompt")]
    if options.positional == STDIN:
        if options.file == STDIN:
            raise UsageError(None, "file", f"{STDIN} is standard input, which is the prompt already")
        parts = [_decoded(read_input(), _NAME)]
    if options.file == STDIN:
        parts.append(_decoded(read_input(), _NAME))
    elif options.file is not None:
        parts.append(_decoded(_read_file(options.file), options.file))
    if not parts:
        if sys.stdin is None or sys.stdin.isatty():
            raise UsageError(None, "prompt", "is missing: give it as an argument, with -f, or on standard input")
        parts.append(_decoded(read_input(), _NAME))
    prompt = "\n\n".join(parts)
    if not prompt.strip():
        raise UsageError(None, "prompt", "is empty")
    return prompt


def _read_file(path: str) -> bytes:
    """Read a file, or what stands for one: `<(command)` of a shell is a pipe. Raises FileError."""
    try:
        stream = open(path, "rb", buffering=0)  # noqa: SIM115 - closed below
    except OSError as problem:
        raise FileError.from_os(problem, path, "cannot be read") from None
    except ValueError as problem:  # a NUL in the name
        raise FileError(path, None, f"cannot be read ({problem})") from None
    with stream:
        return read_stream(stream, path)


def _decoded(data: bytes, name: str | os.PathLike[str]) -> str:
    """Return UTF-8 as text, without a byte order mark, with \\n at line ends, and without the last line end.

    Programs add the last line end: `echo` and editors. Raises FileError for bytes that are no text in UTF-8.
    """
    for mark, encoding in _MARKS.items():
        if data.startswith(mark):
            raise FileError(name, None, f"is {encoding}: save it as UTF-8")
    nul = data.find(0)
    if nul >= 0:
        # Text in a European language or in JSON has a zero in every second byte of UTF-16.
        guess = "; UTF-16 has such bytes" if data[:64].count(0) * 4 >= len(data[:64]) else ""
        raise FileError(name, None, f"is not text: byte {nul} is 0{guess}")
    try:
        text = data.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as problem:
        raise FileError(name, None, f"is not UTF-8 (byte {problem.start})") from None
    return text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n")
