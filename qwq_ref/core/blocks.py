"""Blocks of ggml's types, as a GGUF file holds them: packed in C, in one pass over the file's own bytes."""

from __future__ import annotations

from ._ffi import Array, CoreError, at, ffi, library, names, shape_of
from ._ffi import check as check_code
from .formats import Format, names_of
from .threads import checked_threads
from .weights import Packed

_TYPES = {name: i for i, name in enumerate(names("qwq_block_name"))}
BLOCK_TYPES = tuple(_TYPES)


def block_of(name: str) -> tuple[Format, int, int]:
    """Return the format that holds the numbers of a type of `BLOCK_TYPES`, and the columns and bytes of its blocks.

    Raises CoreError for another name.
    """
    if name not in _TYPES:
        raise CoreError(None, "type", f"must be one of {', '.join(BLOCK_TYPES)}, got {name[:40]}")
    format, columns = ffi.new("qwq_format *"), ffi.new("size_t *")
    size = library().qwq_block_of(format, columns, _TYPES[name])
    return names_of(format), columns[0], size


def pack_blocks(name: str, data: Array, out: Packed, step: int = 1, threads: int = 1) -> bool:
    """Pack data uint8 [n, bytes of a row], blocks of a type of `BLOCK_TYPES` -> whether all scales are finite.

    out   what `empty` returned, rows of it, or for step 2 what `every_second` returned
    step  see `pack`

    Raises CoreError for bytes that are no whole blocks, or that do not fit `out`.
    """
    format, columns, size = block_of(name)
    N, of_row = shape_of("data", data, 2)
    if data.dtype != "u1" or not data.flags.c_contiguous or of_row % size:
        raise CoreError(None, "data", f"must be contiguous bytes, whole blocks of {size}, got {data.dtype} {of_row}")
    out.expect(format, (N, of_row // size * columns), step)
    threads = checked_threads(threads)
    code = library().qwq_pack_blocks(at(out.packed), at(data), _TYPES[name], *out.shape, step, threads)
    if code == library().QWQ_ERANGE:
        return False
    check_code(code)
    return True
