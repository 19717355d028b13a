"""The manifest of a golden pack: its fields, and its strict reader. docs/pack.md describes the format."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ... import __version__
from ...config import Config
from ...errors import ConfigError, GoldenError
from ...files import read_json
from ...formats.write import write_atomically
from ...spec import rope_frequencies
from ..graph import (
    CORRECT,
    Phase,
    letters,
    shape_of,
    tap_names,
)
from .sizes import SIZES, SKETCH

FORMAT = "qwq-golden"
VERSION = (1, 1)
MANIFEST = "manifest.json"
PRECISIONS = tuple(CORRECT)
_MANIFEST_BYTES = 64 << 20


@dataclass(frozen=True)
class Origin:
    """The quantised files that a pack was recorded from.

    kind   "gguf", "awq", "gptq" or "mlx"
    types  type -> the number of tensors that the files store in it
    """

    kind: str
    types: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "types": dict(self.types)}


@dataclass(frozen=True)
class Manifest:
    """The contents of a pack's manifest.json.

    model     the name of the model, for people
    sizes     tap -> "full", "last", "stats" or "sketch"; in the order of the computation
    rounding  phase -> tap -> precision -> the largest relative error of a correct implementation in that precision;
              infinite (null in the file) where correct implementations overflow
    weights   name -> SHA-256 of the tensor's float32 values, little-endian
    files     phase -> (file, SHA-256 of the file)
    folder    the folder of the model in the pack; None if the pack holds no model
    source    the quantised files whose dequantised weights these are; None for a checkpoint of floats
    """

    model: str
    config: Config
    phases: tuple[Phase, ...]
    sizes: Mapping[str, str]
    rounding: Mapping[str, Mapping[str, Mapping[str, float]]]
    weights: Mapping[str, str]
    files: Mapping[str, tuple[str, str]]
    folder: str | None = None
    source: Origin | None = None

    @property
    def token_ids(self) -> list[int]:
        return [token for phase in self.phases for token in phase.ids]

    def to_dict(self) -> dict[str, Any]:
        """Return the values of manifest.json, in the oldest version that has these keys."""
        source = {} if self.source is None else {"source": self.source.to_dict()}
        inv_freq = np.asarray(rope_frequencies(self.config.rope, self.config.E), np.float32)
        return {
            "format": FORMAT,
            "version": ".".join(map(str, VERSION if source else (1, 0))),
            "made_by": f"qwq_ref {__version__}",
            "model": {"name": self.model, "folder": self.folder, "config": self.config.to_dict()} | source,
            "rope": {
                "inv_freq_bits": [f"{bits:08x}" for bits in inv_freq.view(np.uint32).tolist()],
                "attention_scaling": self.config.rope.attention_scaling,
            },
            "token_ids": self.token_ids,
            "phases": [
                {
                    "name": phase.name,
                    "start": phase.start,
                    "tokens": phase.T,
                    "file": self.files[phase.name][0],
                    "sha256": self.files[phase.name][1],
                }
                for phase in self.phases
            ],
            "taps": dict(self.sizes),
            "rounding": {
                phase: {
                    tap: {precision: value if math.isfinite(value) else None for precision, value in errors.items()}
                    for tap, errors in taps.items()
                }
                for phase, taps in self.rounding.items()
            },
            "weights": dict(self.weights),
        }


def stored_shape(tap: str, size: str, config: Config, phase: Phase) -> tuple[int, ...]:
    """Return the shape of a tap as a pack stores it."""
    if size == "stats":
        return (phase.T, 4)
    if size == "sketch":
        return (phase.T, SKETCH)
    shape = shape_of(tap, config, phase)
    if size == "last":
        return tuple(1 if letter == "T" else n for letter, n in zip(letters(tap), shape, strict=True))
    return shape


def write_manifest(folder: Path, values: Mapping[str, Any]) -> None:
    """Write manifest.json into a folder."""
    text = json.dumps(values, indent=1) + "\n"
    write_atomically(folder / MANIFEST, lambda file: file.write(text.encode("utf-8")))


def read_values(path: Path) -> dict[str, Any]:
    """Read the values of a manifest.json, unchecked. Raises GoldenError."""
    return read_json(path, _MANIFEST_BYTES, GoldenError)


class Fields:
    """An object of a manifest. Every error names the file and the field.

    values  the object, which may hold anything
    prefix  the path of the object in the file: "phases[0]."
    """

    def __init__(self, path: Path, values: Mapping[str, Any], prefix: str = "") -> None:
        self.path = path
        self.values = values
        self.prefix = prefix

    @classmethod
    def of(cls, path: Path, values: Any, field: str) -> Fields:
        """The object at `field`. Raises GoldenError if it is something else."""
        if not isinstance(values, dict):
            raise GoldenError(path, field, "must be an object")
        return cls(path, values, f"{field}.")

    def error(self, name: str, problem: str) -> GoldenError:
        return GoldenError(self.path, self.prefix + name, problem)

    def wrong(self, name: str, wanted: str) -> GoldenError:
        """The error for a value that is not what the format demands."""
        return self.error(name, f"must be {wanted}, got {str(self.values.get(name))[:60]}")

    def take(self, name: str, kind: type) -> Any:
        """Return the value of a field. Raises GoldenError if it is missing or of another type."""
        value = self.values.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self.wrong(name, _KINDS[kind])
        return value

    def inner(self, name: str) -> Fields:
        """Return the object in a field. Raises GoldenError."""
        return Fields(self.path, self.take(name, dict), f"{self.prefix}{name}.")

    def match(self, name: str, pattern: re.Pattern[str], wanted: str) -> str:
        """Return a string that has a form. Raises GoldenError."""
        value: str = self.take(name, str)
        if not pattern.fullmatch(value):
            raise self.wrong(name, wanted)
        return value

    def rounding(self, name: str) -> float:
        """Return a relative error >= 0; null is infinite: correct implementations overflow. Raises GoldenError."""
        value = self.values.get(name, "")
        if value is None:
            return math.inf
        if type(value) not in (int, float) or not 0 <= value < 1e30:
            raise self.error(name, f"must be a number >= 0, or null, got {str(value)[:60] or 'nothing'}")
        return float(value)


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of a golden pack. Raises GoldenError."""
    fields = Fields(path, read_values(path))
    read_version(fields, FORMAT, VERSION)
    model = fields.inner("model")
    try:
        config = Config.from_dict(model.take("config", dict), path)
    except ConfigError as problem:
        raise model.error(f"config.{problem.field}", problem.problem) from None
    folder = model.values.get("folder")
    if folder is not None and not _is_base_name(folder):
        raise model.wrong("folder", "the name of a folder in the pack")
    phases, files = _read_phases(fields, config)
    sizes = _read_sizes(fields, config)
    all_measured = fields.inner("rounding")
    rounding = {}
    for phase in phases:
        of_phase = all_measured.inner(phase.name)
        rounding[phase.name] = {tap: {p: of_phase.inner(tap).rounding(p) for p in PRECISIONS} for tap in sizes}
    digests = fields.inner("weights")
    for name in config.tensors():
        digests.match(name, _SHA256, _SHA256_WORDS)
    name = str(model.values.get("name", ""))[:200]
    return Manifest(name, config, phases, sizes, rounding, digests.values, files, folder, _read_source(model))


def _read_source(model: Fields) -> Origin | None:
    if model.values.get("source") is None:
        return None
    source = model.inner("source")
    kind, types = source.match("kind", _KIND, "lower-case letters and digits"), source.inner("types")
    if not types.values:
        raise source.error("types", "is empty")
    for name in types.values:
        if not _TYPE.fullmatch(name):
            raise source.error("types", f"has a type {name[:60]!r}: letters, digits, spaces, - and _ are known")
        if types.take(name, int) < 1:
            raise types.wrong(name, "at least 1")
    return Origin(kind, types.values)


def _read_phases(fields: Fields, config: Config) -> tuple[tuple[Phase, ...], dict[str, tuple[str, str]]]:
    """-> the phases, their files and digests by name"""
    ids = fields.take("token_ids", list)
    if not ids or not all(type(token) is int and 0 <= token < config.V for token in ids):
        raise fields.error("token_ids", f"must be a list of token ids below vocab_size {config.V}")
    phases: list[Phase] = []
    files: dict[str, tuple[str, str]] = {}
    start = 0
    for i, values in enumerate(fields.take("phases", list)):
        entry = Fields.of(fields.path, values, f"phases[{i}]")
        name, count = entry.match("name", _PHASE, "letters, digits, - and _"), entry.take("tokens", int)
        if entry.take("start", int) != start:
            raise entry.error("start", f"must be {start}, where the phase before it ends")
        if count < 1 or start + count > len(ids):
            raise entry.error("tokens", f"is {count}, of {len(ids)} token_ids that begin at {start}")
        file = entry.take("file", str)
        if not _is_base_name(file) or not file.endswith(".safetensors"):
            raise entry.wrong("file", "the name of a .safetensors file in the pack")
        if name in files:
            raise entry.error("name", f"{name[:60]} is used twice")
        if file in (used for used, _ in files.values()):
            raise entry.error("file", f"{file[:60]} is used twice")
        files[name] = (file, entry.match("sha256", _SHA256, _SHA256_WORDS))
        phases.append(Phase(name, start, tuple(ids[start : start + count])))
        start += count
    if start != len(ids):
        raise fields.error("phases", f"cover {start} of {len(ids)} token_ids")
    return tuple(phases), files


def _read_sizes(fields: Fields, config: Config) -> dict[str, str]:
    """Tap -> size, in the order of the computation"""
    sizes = fields.inner("taps")
    if not sizes.values:
        raise fields.error("taps", "is empty")
    names = tap_names(config)
    known = set(names)
    for tap, size in sizes.values.items():
        if tap not in known:
            raise sizes.error(tap, "is no tap of this config")
        if size not in SIZES:
            raise sizes.wrong(tap, f"one of {', '.join(SIZES)}")
    return {tap: sizes.values[tap] for tap in names if tap in sizes.values}


def read_version(fields: Fields, wanted: str, known: tuple[int, int]) -> tuple[int, int]:
    """Return (major, minor). Raises GoldenError for another format or another major version."""
    if fields.values.get("format") != wanted:
        raise fields.wrong("format", wanted)
    version = fields.values.get("version")
    match = re.fullmatch(r"([0-9]{1,5})\.([0-9]{1,5})", version) if isinstance(version, str) else None
    if match is None:
        raise fields.wrong("version", "MAJOR.MINOR")
    if int(match[1]) != known[0]:
        raise fields.error("version", f"is {version}; this reader knows {known[0]}.x")
    return int(match[1]), int(match[2])


_SHA256, _SHA256_WORDS = re.compile(r"[0-9a-f]{64}"), "a SHA-256 in hexadecimal digits"
_KIND, _TYPE = re.compile(r"[a-z0-9]{1,20}"), re.compile(r"[A-Za-z0-9][A-Za-z0-9 _-]{0,39}")
_PHASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_KINDS: dict[type, str] = {dict: "an object", list: "a list", str: "a string", int: "an integer"}


def _is_base_name(name: Any) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and set(name).isdisjoint("/\\\0")
