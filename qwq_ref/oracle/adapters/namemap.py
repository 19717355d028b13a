"""Name maps: the names and layouts of a candidate's tensors, and the taps in them.

docs/adapters.md is the manual. A map is data: patterns of names, and options for a layout. Every error in a map is a
GoldenError of one line. Most are found before any tensor is read.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...config import Config
from ...errors import GoldenError, did_you_mean
from ...files import StrPath, parse_json, read_file
from ...spec.ops import Array
from ..graph import (
    COS,
    LAYER,
    SIN,
    absolute,
    letters,
    split_name,
    tap_names,
)
from ..packs.manifest import PRECISIONS
from .layout import Entry, Piece
from .strict_yaml import parse_yaml, show

Take = Callable[[Array, str], Array]  # (stored tensor, phase) -> the tap, in a shape that `fit` accepts

TOKEN_IDS = "token_ids"
_MAP_BYTES = 256 << 10  # all full names of QwQ-32B's taps: 0.1 MB; PyYAML needs 8 s for the worst file of this size
_MAX_AXES = 8
_RELATIVE = tuple(op.tap for op in LAYER)
_ROTATED = (COS, SIN, *(f"self_attn.{x}_{kind}" for x in "qk" for kind in ("matmul", "proj", "rope")))

_TOP = ("tensors", "first_layer", "phases", "token_ids", "precision")
_PIECE = ("repeated", "permute", "half", "scale")
_WHOLE = ("reverse", "transpose", "rows")
_LAYOUTS = ("concat", "interleaved", "groups")


@dataclass(frozen=True)
class NameMap:
    """The meaning of the names in a source. Without a file, tensors have the names of their taps.

    first_layer  the number of the first layer in names
    prompt       the name of the prompt's folder or file
    decode       the pattern of a decode step's folder or file, with "{n}" in it
    first        the number of the first decode step
    token_ids    the name of the tensor with the ids
    precision    "fp32", "bf16" or "fp16" by tap, or of all other taps under ""
    """

    config: Config
    path: StrPath | None = None
    entries: tuple[Entry, ...] = ()
    first_layer: int = 0
    prompt: str = "prompt"
    decode: str = "decode-{n}"
    first: int = 0
    token_ids: str = TOKEN_IDS
    precision: Mapping[str, str] = field(default_factory=dict)

    @functools.cached_property
    def _taps(self) -> frozenset[str]:
        return frozenset(tap_names(self.config))

    def phase(self, name: str) -> str | None:
        """Return the phase that the name of a folder, file or prefix means; None for another name."""
        if name == self.prompt:
            return "prompt"
        before, after = self.decode.split("{n}")
        found = re.fullmatch(f"{re.escape(before)}([0-9]{{1,6}}){re.escape(after)}", name)
        step = -1 if found is None else int(found[1]) - self.first
        return f"decode-{step}" if step >= 0 else None

    def taps(self, name: str) -> list[tuple[str, Take]]:
        """Return the taps in a tensor of that name, each with its function. Raises GoldenError if two entries match."""
        found = [(entry, number) for entry in self.entries if (number := entry.match(name)) is not None]
        if len(found) > 1:
            others = " and ".join(entry.pattern for entry, _ in found[1:])
            raise GoldenError(self.path, f"tensors.{found[0][0].pattern}", f"matches {name}, and so does {others}")
        if not found:  # the names of taps need no entry in a map
            return [(name, _as_it_is)] if name in self._taps else []
        entry, number = found[0]
        layer = number - self.first_layer
        if entry.in_layers and not 0 <= layer < self.config.L:
            return []
        return [
            (absolute(layer, piece.tap), functools.partial(entry.take, self.config, i))
            for i, piece in enumerate(entry.pieces)
        ]

    def expected(self) -> list[str]:
        """Return a few known names, for an error message."""
        names = [entry.pattern for entry in self.entries] or tap_names(self.config)
        middle = [name for name in names if name.endswith("q_proj")] or names[1:2]
        return list(dict.fromkeys([*names[2:3], *middle[:1], *names[-1:]]))


def _as_it_is(x: Array, phase: str) -> Array:
    return x


def read_name_map(path: StrPath, config: Config) -> NameMap:
    """Read a .yaml, .yml or .json file. Raises GoldenError for its first error."""
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in (".json", ".yaml", ".yml"):
        raise GoldenError(path, None, "is no name map: it must be a .yaml or a .json file")
    data = read_file(path, _MAP_BYTES, GoldenError)
    values = parse_json(data, path, GoldenError) if kind == ".json" else parse_yaml(data, path)
    return _MapReader(path, config).read(values)


def read_precision(value: Any, config: Config, path: StrPath) -> dict[str, str]:
    """Read a precision, or an object of precisions by tap -> by tap, with the default under ""

    The name of a tap within its layer stands for all layers. Raises GoldenError.
    """
    taps = tap_names(config)
    by_tap = value if isinstance(value, dict) else {"": value}
    result: dict[str, str] = {}
    for tap, name in by_tap.items():
        where = f"precision.{tap}" if isinstance(value, dict) else "precision"
        if not isinstance(name, str) or name not in PRECISIONS:
            raise GoldenError(path, where, f"must be one of {', '.join(PRECISIONS)}, got {show(name)}")
        if tap in _RELATIVE:
            result |= {absolute(layer, tap): name for layer in range(config.L)}
        elif tap == "" or tap in taps:
            result[tap] = name
        else:
            raise GoldenError(path, where, f"is no tap of this config{did_you_mean(str(tap), [*taps, *_RELATIVE], 1)}")
    return result


class _MapReader:
    """Reads a map field by field. Every error names the file and the field."""

    def __init__(self, path: Path, config: Config) -> None:
        self.path = path
        self.config = config
        self.taps = tap_names(config)

    def error(self, where: str, problem: str) -> GoldenError:
        return GoldenError(self.path, where, problem)

    def read(self, values: Mapping[str, Any]) -> NameMap:
        self._known(values, _TOP, "")
        tensors = values.get("tensors")
        if not isinstance(tensors, dict) or not tensors:
            raise self.error("tensors", f"must map names to taps, got {show(tensors)}")
        entries = tuple(self._entry(pattern, value) for pattern, value in tensors.items())
        self._check_collisions(entries)
        first_layer = self._integer(values.get("first_layer", 0), "first_layer")
        token_ids = values.get("token_ids", TOKEN_IDS)
        if not isinstance(token_ids, str) or not token_ids:
            raise self.error("token_ids", f"must be the name of a tensor, got {show(token_ids)}")
        if any(entry.match(token_ids) is not None for entry in entries):
            raise self.error("token_ids", f"{token_ids} is among the tensors, too")
        precision = {}
        if "precision" in values:
            precision = read_precision(values["precision"], self.config, self.path)
        return NameMap(
            self.config,
            self.path,
            entries,
            first_layer,
            **self._phases(values.get("phases", {})),
            token_ids=token_ids,
            precision=precision,
        )

    def _known(self, values: Mapping[str, Any], known: Sequence[str], where: str) -> None:
        for key in values:
            if key not in known:
                raise self.error(where + key, f"is unknown; known are {', '.join(known)}")

    def _integer(self, value: Any, where: str) -> int:
        if type(value) is not int or not 0 <= value < 10**6:
            raise self.error(where, f"must be an integer from 0 to 999,999, got {show(value)}")
        return value

    def _phases(self, values: Any) -> dict[str, Any]:
        if not isinstance(values, dict):
            raise self.error("phases", f"must be an object with prompt, decode and first, got {show(values)}")
        self._known(values, ("prompt", "decode", "first"), "phases.")
        plain = NameMap(self.config)
        prompt, decode = values.get("prompt", plain.prompt), values.get("decode", plain.decode)
        first = self._integer(values.get("first", 0), "phases.first")
        for key, name in (("prompt", prompt), ("decode", decode)):
            if not isinstance(name, str) or not name or "/" in name:
                raise self.error(f"phases.{key}", f"must be the name of a folder or file, got {show(name)}")
        if _placeholders(prompt):
            raise self.error("phases.prompt", f"must be one name, without braces, got {show(prompt)}")
        if _placeholders(decode) != ["{n}"]:
            raise self.error("phases.decode", f"must have {{n}} in it, once, got {show(decode)}")
        found = {"prompt": prompt, "decode": decode, "first": first}
        step = NameMap(self.config, prompt="", decode=decode, first=first).phase(prompt)
        if step is not None:
            raise self.error("phases.first", f"must be above the number in {prompt}: that would be {step}, too")
        return found

    def _entry(self, pattern: str, value: Any) -> Entry:
        where = f"tensors.{pattern}"
        in_layers = self._check_pattern(pattern, where)
        options = {"tap": value} if isinstance(value, str) else value
        if not isinstance(options, dict):
            raise self.error(where, f"must be a tap, or an object with tap or split, got {show(value)}")
        if ("tap" in options) == ("split" in options):
            raise self.error(where, "must have one of tap and split")
        whole = {key: options[key] for key in _WHOLE if key in options}
        if "tap" in options:
            self._known(options, ("tap", *_PIECE, *_WHOLE), f"{where}.")
            rest = {key: options[key] for key in options if key not in _WHOLE}
            pieces: tuple[Piece, ...] = (self._piece(rest, in_layers, where),)
        else:
            self._known(options, ("split", "layout", *_WHOLE), f"{where}.")
            pieces = self._split(options, in_layers, where)
        entry = Entry(
            pattern,
            pieces,
            self._reverse(whole.get("reverse", False), f"{where}.reverse"),
            self._transpose(whole["transpose"], f"{where}.transpose") if "transpose" in whole else (),
            options.get("layout", "concat"),
            self._one_of(whole.get("rows"), ("last", "cache"), f"{where}.rows") if "rows" in whole else "",
        )
        if entry.rows == "cache" and any("S" in letters(piece.tap) for piece in pieces):
            raise self.error(f"{where}.rows", "cache is for taps of one row a token; scores hold all keys anyway")
        return entry

    def _check_pattern(self, pattern: str, where: str) -> bool:
        found = _placeholders(pattern)
        if found not in ([], ["{layer}"]):
            raise self.error(where, "may have {layer} in it, once, and no other braces")
        return bool(found)

    def _split(self, options: Mapping[str, Any], in_layers: bool, where: str) -> tuple[Piece, ...]:
        parts = options["split"]
        if not isinstance(parts, list) or len(parts) < 2:
            raise self.error(f"{where}.split", f"must list two taps or more, got {show(parts)}")
        pieces = []
        for i, part in enumerate(parts):
            inner = f"{where}.split[{i}]"
            part = {"tap": part} if isinstance(part, str) else part
            if not isinstance(part, dict) or "tap" not in part:
                raise self.error(inner, f"must be a tap, or an object with tap, got {show(parts[i])}")
            self._known(part, ("tap", *_PIECE), f"{inner}.")
            pieces.append(self._piece(part, in_layers, inner))
            if pieces[-1].width(self.config) is None:
                raise self.error(f"{inner}.tap", f"{pieces[-1].tap} cannot be part of a split: it has no fixed width")
        layout = self._one_of(options.get("layout", "concat"), _LAYOUTS, f"{where}.layout")
        if layout == "interleaved" and len({piece.width(self.config) for piece in pieces}) > 1:
            raise self.error(f"{where}.layout", "interleaved is for taps of one width; heads are dealt out in groups")
        if layout == "groups" and not all(piece.heads(self.config) for piece in pieces):
            raise self.error(f"{where}.layout", "groups is for taps that are made of heads")
        return tuple(pieces)

    def _piece(self, options: Mapping[str, Any], in_layers: bool, where: str) -> Piece:
        tap = options["tap"]
        if not isinstance(tap, str):
            raise self.error(f"{where}.tap", f"must be the name of a tap, got {show(tap)}")
        if tap in _RELATIVE:
            if not in_layers:
                raise self.error(where, f"needs {{layer}} in its name: {tap} is a tap of every layer")
        elif tap not in self.taps:
            known = [*_RELATIVE, *(name for name in self.taps if split_name(name)[0] is None)]
            raise self.error(f"{where}.tap", f"{show(tap)} is no tap of this config{did_you_mean(str(tap), known, 1)}")
        elif in_layers:
            raise self.error(where, f"has {{layer}} in its name, but {tap} is one tap")
        inner = split_name(tap)[1]
        repeated, half = (self._boolean(options.get(key, False), f"{where}.{key}") for key in ("repeated", "half"))
        permute = False
        if "permute" in options:
            permute = bool(self._one_of(options["permute"], ("pairs-to-halves",), f"{where}.permute"))
        scale = options.get("scale", 1.0)
        if type(scale) not in (int, float) or not 1e-30 <= abs(scale) <= 1e30:  # also false for NaN
            raise self.error(f"{where}.scale", f"must be a number that is not 0, got {show(scale)}")
        if repeated and Piece(inner).head_letter != "K":
            raise self.error(f"{where}.repeated", f"is for key and value heads; {tap} has none")
        if permute and inner not in _ROTATED:
            raise self.error(f"{where}.permute", f"is for taps with pairs: heads of q and k, cos, sin; not {tap}")
        if half and inner not in (COS, SIN):
            raise self.error(f"{where}.half", f"is for {COS} and {SIN}")
        if half and permute:
            raise self.error(f"{where}.permute", "has no meaning with half: each angle is there once")
        return Piece(tap, repeated, permute, half, float(scale))

    def _boolean(self, value: Any, where: str) -> bool:
        if not isinstance(value, bool):
            raise self.error(where, f"must be true or false, got {show(value)}")
        return value

    def _reverse(self, value: Any, where: str) -> str:
        if value is True or value is False:
            return "axes" if value else ""
        return self._one_of(value, ("axes", "shape"), where)

    def _one_of(self, value: Any, known: Sequence[str], where: str) -> str:
        if not isinstance(value, str) or value not in known:
            raise self.error(where, f"must be {' or '.join(known)}, got {show(value)}")
        return value

    def _transpose(self, value: Any, where: str) -> tuple[int, ...]:
        axes = value if isinstance(value, list) else []
        if not axes or any(type(n) is not int for n in axes) or sorted(axes) != list(range(len(axes))):
            raise self.error(where, f"must list every axis once, like [1, 0, 2], got {show(value)}")
        if len(axes) > _MAX_AXES:
            raise self.error(where, f"lists {len(axes)} axes; tensors have at most {_MAX_AXES}")
        return tuple(axes)

    def _check_collisions(self, entries: Sequence[Entry]) -> None:
        """Refuse a tap that two entries give, or two parts of one entry."""
        homes: dict[str, str] = {}
        for entry in entries:
            for piece in entry.pieces:
                layers = range(self.config.L) if piece.tap in _RELATIVE else (0,)
                for tap in (absolute(layer, piece.tap) for layer in layers):
                    if tap in homes:
                        also = " twice" if homes[tap] == entry.pattern else f", and so does {homes[tap]}"
                        raise self.error(f"tensors.{entry.pattern}", f"gives {piece.tap}{also}")
                    homes[tap] = entry.pattern


def _placeholders(text: str) -> list[str]:
    return re.findall(r"\{[^{}]*\}|[{}]", text)
