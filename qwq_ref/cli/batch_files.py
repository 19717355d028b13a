"""The files of `qwq batch`: requests, and the answers that an earlier run has written.

The output is in the order of the input. An answer that comes before its turn waits in a file beside the output, so that
a run that is killed loses none. The next run goes on behind the complete lines of both.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import FileError
from ..files import writes
from .streams import STDIN, input_stream, print_json, read_lines
from .text_input import HYPHEN, open_input

URLS = ("/v1/chat/completions", "/v1/completions")
_LONG = 8 << 20  # bytes of a request
_EARLY = ".early"  # what the name of the file of early answers ends with


@dataclass(frozen=True)
class BatchRequest:
    """A line of the input.

    line       its number, from 1
    custom_id  None: it has none
    url, body  of the request, as JSON; empty where `problem` tells that the line is none
    """

    line: int
    custom_id: str | None
    url: str = ""
    body: bytes = b""
    problem: str | None = None


def read_requests(path: str) -> Iterator[BatchRequest]:
    """Yield the requests of a file, one at a time. Raises FileError for one that cannot be read."""
    seen: set[str] = set()
    with input_stream() if path == HYPHEN else open_input(path) as stream:
        for number, data in enumerate(read_lines(stream, STDIN if path == HYPHEN else path, _LONG), 1):
            if data.strip():
                request = _request(number, data)
                if request.custom_id in seen and request.problem is None:
                    problem = "custom_id: is that of an earlier line"
                    request = BatchRequest(number, request.custom_id, problem=problem)
                seen |= {request.custom_id} - {None}  # type: ignore[arg-type]
                yield request


def count_requests(path: str) -> int | None:
    """Return the number of lines with a request; None for a stream, which cannot be read twice."""
    if path == HYPHEN or not os.path.isfile(path):
        return None
    with open_input(path) as stream:
        return sum(bool(data.strip()) for data in read_lines(stream, path, _LONG))


def _request(number: int, data: bytes) -> BatchRequest:
    try:
        content = json.loads(data.decode("utf-8").removeprefix("\ufeff"))
    except (ValueError, RecursionError):
        return BatchRequest(number, None, problem="is not JSON in UTF-8")
    if not isinstance(content, dict):
        return BatchRequest(number, None, problem="must be an object")
    name = content.get("custom_id")
    if not isinstance(name, str) or not name or any("\ud800" <= each <= "\udfff" for each in name):
        return BatchRequest(number, None, problem="custom_id: must be a text")
    problem = None
    if content.get("method", "POST") != "POST":
        problem = "method: must be POST"
    elif content.get("url") not in URLS:
        problem = f"url: must be one of {', '.join(URLS)}"
    elif not isinstance(content.get("body"), dict):
        problem = "body: must be an object"
    elif content["body"].get("stream"):
        problem = "stream: a batch has no streams"
    if problem is not None:
        return BatchRequest(number, name, problem=problem)
    try:
        body = json.dumps(content["body"]).encode()
    except RecursionError:
        return BatchRequest(number, name, problem="body: is nested too deeply")
    return BatchRequest(number, name, content["url"], body)


class Output:
    """The answers, in the order of the requests: in a file, or on stdout. Use it as a context.

    path  None: stdout, where no later run can go on
    done  answers that an earlier run has written, at the beginning of the output
    """

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._early_path = None if path is None else Path(f"{path}{_EARLY}")
        self._names: list[str | None] = []
        self._waiting: dict[int, dict[str, Any]] = {}
        self._early: dict[int, dict[str, Any]] = {}
        self._written = 0
        self._file: BinaryIO | None = None
        self._early_file: BinaryIO | None = None

    def __enter__(self) -> Output:
        """Raise FileError for a file that cannot be written, or holds something else."""
        if self._path is None:
            return self
        assert self._early_path is not None
        with contextlib.ExitStack() as files:
            self._file = files.enter_context(_opened(Path(self._path)))
            self._early_file = files.enter_context(_opened(self._early_path))
            self._names = [_name(line, self._path, number) for number, line in _whole_lines(self._file, self._path)]
            for number, line in _whole_lines(self._early_file, self._early_path):
                place = line.pop("place", None)
                _name(line, self._early_path, number)
                if type(place) is int:
                    self._early[place] = line
            self._files = files.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        if self._path is not None:
            self._files.close()

    @property
    def done(self) -> int:
        return len(self._names)

    def has(self, place: int, request: BatchRequest) -> bool:
        """Return whether the answer to a request is there. Raises FileError for an answer to another request.

        place  of the request among all, from 0
        """
        if place < len(self._names):
            found = self._names[place]
        elif place in self._early:
            found = self._early[place]["custom_id"]
        else:
            return False
        if found != request.custom_id:
            said = f"line {place + 1}" if place < len(self._names) else f"the answer kept in {self._early_path}"
            problem = f"has the custom_id {found!r:.40}, and the input has {request.custom_id!r:.40} there"
            raise FileError(self._path, said, problem)
        if place in self._early:
            self.write(place, self._early.pop(place), kept=True)
        return True

    def write(self, place: int, answer: dict[str, Any], kept: bool = False) -> None:
        """Take an answer, and write all whose turn has come.

        kept  whether the file of early answers has it already
        """
        at = self.done + self._written
        self._waiting[place] = answer
        if place > at and not kept and self._early_file is not None:
            _append(self._early_file, {**answer, "place": place}, self._early_path)
        while (at := self.done + self._written) in self._waiting:
            self._put(self._waiting[at])
            del self._waiting[at]
            self._written += 1

    def finish(self, whole: bool) -> None:
        """Write what has waited for an answer that did not come, on stdout; forget early answers once all are there."""
        if self._path is None:
            for place in sorted(self._waiting):
                self._put(self._waiting[place])
        elif whole:
            assert self._early_path is not None
            with writes(self._early_path):
                self._early_path.unlink(missing_ok=True)

    def _put(self, answer: dict[str, Any]) -> None:
        if self._file is None:
            print_json(answer)
            sys.stdout.flush()
        else:
            _append(self._file, answer, self._path)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    with writes(path):
        file = open(path, "a+b", buffering=0)  # noqa: SIM115 (errors of the block are not those of this file)
    with file:
        yield file


def _append(file: BinaryIO, value: dict[str, Any], path: Any) -> None:
    with writes(path):
        data = json.dumps(value, ensure_ascii=True).encode() + b"\n"
        while data:
            data = data[file.write(data) :]


def _whole_lines(file: BinaryIO, path: Any) -> Iterable[tuple[int, dict[str, Any]]]:
    """Yield the complete lines of a file, and cut off a torn last one. Raises FileError for lines of another kind."""
    file.seek(0)
    end = 0
    for number, data in enumerate(read_lines(file, str(path), 1 << 30), 1):
        if not data.endswith(b"\n"):
            break
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise FileError(path, f"line {number}", "is no answer of a batch: give another name, or move the file away")
        yield number, value
        end += len(data)
    with writes(path):
        file.truncate(end)
        file.seek(end)


def _name(line: dict[str, Any], path: Any, number: int) -> str | None:
    name = line.get("custom_id")
    if not ({"custom_id", "response", "error"} <= line.keys() and (name is None or isinstance(name, str))):
        raise FileError(path, f"line {number}", "is no answer of a batch: give another name, or move the file away")
    return name
