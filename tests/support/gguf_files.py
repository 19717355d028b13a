"""GGUF files byte by byte, good and broken: the published layout, written without the code under test."""

import struct

STRUCT = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
U32, I32, F32, BOOL, STRING, ARRAY, U64 = 4, 5, 6, 7, 8, 9, 10
M64 = (1 << 64) - 1


def number(value, kind=U64):
    return struct.pack(f"<{STRUCT[kind]}", value)


def text(value, length=None):
    """A string; `value` may be bytes, and its length may lie."""
    data = value if isinstance(value, bytes) else value.encode()
    return number(len(data) if length is None else length) + data


def of_kind(kind, value):
    return text(value) if kind == STRING else number(value, kind)


def field(key, kind, value):
    return text(key) + number(kind, U32) + of_kind(kind, value)


def array_field(key, kind, values, count=None):
    """An array; `values` are bytes, or a list. Its count may lie."""
    data = values if isinstance(values, bytes) else b"".join(of_kind(kind, value) for value in values)
    length = len(values) if count is None else count
    return text(key) + number(ARRAY, U32) + number(kind, U32) + number(length) + data


def tensor(name, sizes, kind, offset):
    """An entry. `sizes` are in the order of the file: the columns come first."""
    dimensions = b"".join(map(number, sizes))
    return text(name) + number(len(sizes), U32) + dimensions + number(kind, U32) + number(offset)


def whole(fields=(), tensors=(), data=b"", *, version=3, counts=None, magic=b"GGUF", alignment=32):
    """A file of these parts. `counts` are those of tensors and of fields, if they lie."""
    n_tensors, n_fields = counts or (len(tensors), len(fields))
    start = magic + number(version, U32) + number(n_tensors) + number(n_fields)
    header = start + b"".join(fields) + b"".join(tensors)
    return header + b"\0" * (-len(header) % alignment if tensors or data else 0) + data


def places(data):
    """Walk over a sound file -> (the place and the size of each number of its header, the place of each entry).

    Numbers are counts, lengths, types, dimensions, offsets and values. Entries are fields and tensors: (begin, end).
    """
    numbers, entries = [(4, 4), (8, 8), (16, 8)], []
    n_tensors, n_fields = struct.unpack_from("<QQ", data, 8)
    at = 24

    def read(kind):
        nonlocal at
        size = struct.calcsize(STRUCT[kind])
        numbers.append((at, size))
        at += size
        return struct.unpack_from(f"<{STRUCT[kind]}", data, at - size)[0]

    def skip(kind):
        nonlocal at
        if kind == STRING:
            length = read(U64)
            at += length
        else:
            read(kind)

    for _ in range(n_fields):
        begin = at
        skip(STRING)
        kind = read(U32)
        if kind == ARRAY:
            inner, count = read(U32), read(U64)
            for _ in range(count):
                skip(inner)
        else:
            skip(kind)
        entries.append((begin, at))
    for _ in range(n_tensors):
        begin = at
        skip(STRING)
        for _ in range(read(U32)):
            read(U64)
        read(U32)
        read(U64)
        entries.append((begin, at))
    return numbers, entries
