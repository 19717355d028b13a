"""Read files of problems, one JSON object a line. Each error names the file, the line and the field."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ...errors import FileError, SuiteError
from ...files import StrPath, parse_json, read_file

T = TypeVar("T")
_MOST = 1 << 30  # bytes of a file, and of an unpacked one
_SHOWN = 40


@dataclass(frozen=True)
class Row:
    """An object of a file. `text` and the other readers raise SuiteError for a field of another kind.

    path, line  its place
    """

    path: StrPath
    line: int
    values: dict[str, Any]

    def text(self, name: str, default: str | None = None) -> str:
        """Return a field that holds a text; without `default` it must be there, and not be empty."""
        value = self.values.get(name, default)
        if not isinstance(value, str) or (default is None and not value.strip()):
            raise self.wrong(name, "must be a text")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise self.wrong(name, "holds half a character")
        return value

    def texts(self, name: str, least: int = 1) -> list[str]:
        """Return a field that holds a list of texts."""
        value = self.values.get(name)
        if not isinstance(value, list) or len(value) < least or not all(isinstance(each, str) for each in value):
            raise self.wrong(name, f"must be a list of {least} or more texts")
        return value

    def wrong(self, name: str, problem: str) -> SuiteError:
        """Return the error for a field."""
        shown = f", got {self.values[name]!r:.{_SHOWN}}" if name in self.values else ""
        return SuiteError(self.path, f"line {self.line}, {name}", problem + shown)


def read_rows(path: StrPath, what: str) -> tuple[list[Row], str]:
    """Return the objects of a file, which may be packed with gzip, and the SHA-256 of its bytes.

    Raises SuiteError for a line that is no JSON object, and for a file without any.
    """
    file = Path(path)
    if not file.exists():
        raise FileError(path, None, f"is not there: it should hold {what}, one JSON object a line")
    data = read_file(file, _MOST, SuiteError)
    digest = hashlib.sha256(data).hexdigest()
    if data.startswith(b"\x1f\x8b"):
        data = _unpacked(data, path)
    rows = []
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.strip():
            try:
                rows.append(Row(path, number, parse_json(line, path, SuiteError)))
            except SuiteError as problem:
                where = ", ".join([f"line {number}", *filter(None, [problem.field])])
                raise SuiteError(path, where, problem.problem) from None
    if not rows:
        raise SuiteError(path, None, f"holds no {what}")
    return rows, digest


def unique(rows: list[Row], name: Callable[[Row], str], field: str) -> dict[str, Row]:
    """Return the rows by their names. Raises SuiteError for a name that comes twice."""
    found: dict[str, Row] = {}
    for row in rows:
        identity = name(row)
        if identity in found:
            raise row.wrong(field, f"is that of line {found[identity].line}, too")
        found[identity] = row
    return found


def _unpacked(data: bytes, path: StrPath) -> bytes:
    try:
        unpacker = zlib.decompressobj(wbits=31)
        whole = unpacker.decompress(data, _MOST)
    except (zlib.error, gzip.BadGzipFile) as problem:
        raise SuiteError(path, None, f"is not gzip ({problem})") from None
    if unpacker.unconsumed_tail:
        raise SuiteError(path, None, f"unpacks to more than {_MOST:,} bytes")
    if not unpacker.eof:
        raise SuiteError(path, None, "is cut off: it is not all of a file of gzip")
    return whole
