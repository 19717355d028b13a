"""The plan of a safetensors file whose tensors are written in any order, some rows at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

METADATA = {"format": "pt"}  # transformers refuses files without it
_SIZES = {"F32": 4, "BF16": 2}


@dataclass(frozen=True)
class Layout:
    """The plan of one file.

    header  its beginning, up to the tensors
    places  name -> the first byte of a tensor in the file
    size    of the whole file
    """

    header: bytes
    places: Mapping[str, int]
    size: int


def floats_layout(shapes: Mapping[str, tuple[int, ...]], dtype: str) -> Layout:
    """Return the plan of a file of floats: a length (8 bytes), a JSON header padded to 8 bytes, the tensors.

    dtype  "F32" or "BF16"
    """
    header: dict[str, Any] = {"__metadata__": METADATA}
    begins, end = {}, 0
    for name, shape in shapes.items():
        begins[name], end = end, end + math.prod(shape) * _SIZES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begins[name], end]}
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    data = 8 + len(text)
    places = {name: data + begin for name, begin in begins.items()}
    return Layout(len(text).to_bytes(8, "little") + text, places, data + end)
