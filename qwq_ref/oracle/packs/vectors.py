"""Test vectors of single operations, to test one kernel without a model.

A case holds inputs that the precisions represent exactly, the outputs of the spec in float64, and the relative error of
correct implementations in float32, bfloat16 and float16.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from ... import __version__
from ...errors import GoldenError
from ...files import StrPath
from ...formats.safetensors import SafetensorsFile
from ...formats.write import write_safetensors
from ...spec.ops import Array
from ..graph import UNIT
from .folder import new_folder
from .manifest import MANIFEST, Fields, read_values, read_version, write_manifest
from .pack import as_golden_error
from .vector_cases import OPERATIONS, Case, cases

FORMAT, VERSION = "qwq-vectors", (1, 0)


def write_vectors(out: StrPath) -> int:
    """Write a folder with manifest.json and one safetensors file an operation -> how many cases

    docs/pack.md describes the format. An interrupted call leaves nothing behind. Raises UsageError if the folder
    exists, FileError if it cannot be written.
    """
    with new_folder(Path(out), "a set of vectors") as folder:
        return _write_vectors(folder)


def _write_vectors(out: Path) -> int:
    tensors: dict[str, dict[str, Array]] = {}
    entries = []
    for case in cases():
        of_op = tensors.setdefault(case.op, {})
        for key, value in (*case.arrays.items(), ("y", case.y)):
            of_op[f"{case.name}/{key}"] = value.astype(np.float32)  # ids, positions and masks are exact in it
        entries.append(
            {
                "op": case.op,
                "case": case.name,
                "inputs": list(case.arrays),
                "attributes": dict(case.attributes),
                "rounding": dict(case.rounding),
            }
        )
    for op, arrays in tensors.items():
        write_safetensors(out / f"{op}.safetensors", arrays, "F32")
    version = ".".join(map(str, VERSION))
    write_manifest(out, {"format": FORMAT, "version": version, "made_by": f"qwq_ref {__version__}", "cases": entries})
    return len(entries)


def read_vectors(folder: StrPath) -> list[Case]:
    """Read the cases of a folder that `write_vectors` wrote; all arrays are float32. Raises GoldenError."""
    path = Path(folder) / MANIFEST
    fields = Fields(path, read_values(path))
    newer = read_version(fields, FORMAT, VERSION) > VERSION
    read: dict[tuple[str, str], Case] = {}
    files: dict[str, SafetensorsFile] = {}
    try:
        for i, values in enumerate(fields.take("cases", list)):
            entry = Fields.of(path, values, f"cases[{i}]")
            op, name, inputs, rounding = _checked(entry)
            if op not in OPERATIONS and newer:
                continue
            if op not in OPERATIONS:
                raise entry.error("op", f"{op[:40]} is no operation")
            if (op, name) in read:
                raise entry.error("case", f"{name} of {op} is there twice")
            if op not in files:
                with as_golden_error():
                    files[op] = SafetensorsFile(path.with_name(f"{op}.safetensors"))
            arrays = {key: _read_array(files[op], f"{name}/{key}") for key in (*inputs, "y")}
            y = arrays.pop("y")
            read[op, name] = Case(op, name, arrays, entry.values["attributes"], y, rounding)
    finally:
        for file in files.values():
            file.close()
    return list(read.values())


def _checked(entry: Fields) -> tuple[str, str, list[str], dict[str, float]]:
    """-> the operation, the case, names of the inputs, rounding by precision"""
    for key in ("op", "case"):
        if not _is_name(entry.values.get(key)):
            raise entry.wrong(key, "letters, digits, - and _")
    inputs: Any = entry.values.get("inputs")
    if (
        not isinstance(inputs, list)
        or not all(map(_is_name, inputs))
        or "y" in inputs
        or len(set(inputs)) < len(inputs)
    ):
        raise entry.wrong("inputs", "a list of different names, not y")
    attributes, rounding = entry.values.get("attributes"), entry.values.get("rounding")
    if not isinstance(attributes, dict) or not all(type(value) in (int, float) for value in attributes.values()):
        raise entry.wrong("attributes", "an object of numbers")
    if not isinstance(rounding, dict) or None in rounding.values():
        raise entry.wrong("rounding", "an object of numbers")
    measured = entry.inner("rounding")
    known = {precision: measured.rounding(precision) for precision in rounding if precision in UNIT}
    return entry.values["op"], entry.values["case"], inputs, known


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", value) is not None


def _read_array(file: SafetensorsFile, name: str) -> Array:
    tensor = file.tensors.get(name)
    if tensor is None or tensor.dtype != "F32":
        raise GoldenError(file.path, name, "is missing" if tensor is None else f"must be F32, is {tensor.dtype}")
    with as_golden_error():
        value = file.read(name)
    if np.isnan(value).any():
        raise GoldenError(file.path, name, "holds a NaN")
    return value


def is_vectors(folder: StrPath) -> bool:
    """Whether the manifest of a folder is that of test vectors."""
    path = Path(folder, MANIFEST)
    return path.is_file() and read_values(path).get("format") == FORMAT
