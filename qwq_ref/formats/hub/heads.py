"""Stand-ins of GGUF files of the hub: the header of a file, and its size, without its weights.

A header has some MB. It is fetched by a range, before a file of many GB is. The stand-in is a sparse file: the bytes
behind the header are zeros that take no place on the disk. `GGUFSource` opens it as the whole file, and knows the
config, the tokenizer, the chat template, and the type of each tensor. The files lie in a temporary folder, which is
removed when the process ends.
"""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ...files import GGUF, writes
from ..gguf import read_header
from ..gguf.header import HEADER_BYTES
from .cache import constants
from .choice import size_of

FIRST = 8 << 20  # bytes of the first request: Qwen2's header has 6 MB, of which the vocabulary is most

Request = Callable[[str, int], bytes]  # the name of a file, and a number of bytes -> the first bytes of the file


def stand_in(place: str, name: str, nbytes: int | None, request: Request) -> Path:
    """Return the stand-in of a file.

    place   a folder for the files of one commit, relative to the temporary folder
    name    of the file, in that folder
    nbytes  of the file; None: as its header says

    Raises CheckpointError with the path in the temporary folder, FileError, and the errors of `request`.
    """
    path = Path(_folder().name, place, name)
    if path.exists():
        return path
    with writes(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f"{path.name}.part")
    for count in (FIRST, HEADER_BYTES):
        data = request(name, count)
        with writes(path):
            new.write_bytes(data)
        try:
            header = read_header(new, whole=False)
            break
        except CheckpointError as problem:
            if not data.startswith(GGUF) or len(data) < count or count == HEADER_BYTES:
                raise CheckpointError(path, problem.field, problem.problem) from None
    end = max((tensor.end for tensor in header.tensors.values()), default=len(data))
    if size_of(end) is None:
        raise CheckpointError(path, None, f"has {end:,} bytes, as its header says")
    with writes(path):
        os.truncate(new, nbytes or end)
        new.rename(path)
    return path


def name_in(path: str) -> str | None:
    """Return the name of a stand-in in the folder of its commit; None for another path."""
    if not Path(path).is_relative_to(_folder().name):
        return None
    return os.path.relpath(path, _folder().name).partition("/")[2]


def forget() -> None:
    """Delete all stand-ins."""
    for each in Path(_folder().name).iterdir():
        shutil.rmtree(each)


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="qwq-")


def first_bytes(repo: str, commit: str, name: str, count: int) -> bytes:
    """Return the first bytes of a file of the hub, at most `count`. Raises errors of the hub's library."""
    from huggingface_hub import hf_hub_url, utils

    library: Any = utils
    session, raise_for_status = library.get_session(), library.hf_raise_for_status
    address = hf_hub_url(repo, name, revision=commit)
    # Without a compression: a page that unpacks to many GB does not come from a file of weights.
    headers = library.build_hf_headers() | {"Range": f"bytes=0-{count - 1}", "Accept-Encoding": "identity"}
    how: dict[str, Any] = {"headers": headers, "timeout": constants().HF_HUB_DOWNLOAD_TIMEOUT}
    if callable(getattr(session, "stream", None)):  # since version 1 of the library
        with session.stream("GET", address, follow_redirects=True, **how) as response:
            raise_for_status(response)
            return _taken(response.iter_raw(), count)
    with session.get(address, stream=True, **how) as response:
        raise_for_status(response)
        return _taken(response.iter_content(1 << 16), count)


def _taken(pieces: Iterable[bytes], count: int) -> bytes:
    """Return `count` bytes of an answer: a server that honours no ranges would send all of a file."""
    data = bytearray()
    for piece in pieces:
        data += piece
        if len(data) >= count:
            break
    return bytes(data[:count])
