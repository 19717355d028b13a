"""Name maps: how somebody else's tensors are called and laid out, and what taps that makes. docs/adapters.md is the
manual.

A map is data: patterns of names, and a few ways in which a layout can differ. Every mistake in one is a GoldenError of
one line, and as many as possible are found before any tensor is read.
"""

from __future__ import annotations

import difflib
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...config import Config
from ...errors import GoldenError
from ...files import StrPath, parse_json, read_file
from ...spec.ops import Array
from ..graph import (
    CORRECT,
    COS,
    LAYER,
    SIN,
    absolute,
    letters,
    split_name,
    tap_names,
)
from .candidate import MisfitError

Take = Callable[[Array, str], Array]  # (a tensor as it is stored, the phase) -> the tap, in a shape that `fit` takes

PRECISIONS = tuple(CORRECT)
TOKEN_IDS = "token_ids"
_MAP_BYTES = 256 << 10  # every tap of QwQ-32B by its full name is 0.1 MB; PyYAML takes 8 s for the worst of this size
_MAX_DEPTH = 16
_MAX_AXES = 8
_RELATIVE = tuple(op.tap for op in LAYER)
_TURNED = (COS, SIN, *(f"self_attn.{x}_{kind}" for x in "qk" for kind in ("matmul", "proj", "rope")))

_TOP = ("tensors", "first_layer", "phases", "token_ids", "precision")
_PIECE = ("repeated", "permute", "half", "scale")
_WHOLE = ("reverse", "transpose", "rows")
_LAYOUTS = ("concat", "interleaved", "groups")


@dataclass(frozen=True)
class Piece:
    """One tap of a tensor, and what is done to get it."""

    tap: str
    repeated: bool = False
    permute: bool = False
    half: bool = False
    scale: float = 1.0

    @property
    def head_letter(self) -> str:
        """H or K; nothing where the tap is not made of heads."""
        return next((part[0] for part in letters(self.tap) if part[0] in "HK"), "")

    def heads(self, config: Config) -> int:
        """How many heads the tensor has for it; 0 where the tap has none."""
        letter = "H" if self.repeated else self.head_letter
        return int(getattr(config, letter)) if letter else 0

    def width(self, config: Config) -> int | None:
        """How many numbers the tensor has of it for each token; None for scores and probabilities."""
        if "S" in letters(self.tap):
            return None
        heads = self.heads(config)
        width = heads * config.E if heads else int(getattr(config, letters(self.tap)[-1]))
        return width // 2 if self.half else width


@dataclass(frozen=True)
class Entry:
    """One line of a map: the names that it is about, how their tensors lie, and the taps that they hold."""

    pattern: str
    pieces: tuple[Piece, ...]
    reverse: str = ""
    transpose: tuple[int, ...] = ()
    layout: str = "concat"
    rows: str = ""

    @functools.cached_property
    def _regex(self) -> re.Pattern[str]:
        return re.compile("([0-9]{1,6})".join(map(re.escape, self.pattern.split("{layer}"))))

    @property
    def in_layers(self) -> bool:
        return "{layer}" in self.pattern

    def match(self, name: str) -> int | None:
        """The number in a name that this is about (-1 if it has none); None for other names."""
        found = self._regex.fullmatch(name)
        return None if found is None else int(found[1]) if self.in_layers else -1

    def take(self, config: Config, index: int, x: Array, phase: str) -> Array:
        """A tensor as it is stored -> the tap of its `index`th piece. Raises MisfitError."""
        stored, piece = x.shape, self.pieces[index]
        if self.reverse:
            x = x.T if self.reverse == "axes" else x.reshape(x.shape[::-1])
        if self.transpose:
            if len(self.transpose) != x.ndim:
                raise MisfitError(f"has {x.ndim} axes {list(stored)}; transpose lists {len(self.transpose)}")
            x = x.transpose(self.transpose)
        if len(self.pieces) > 1:
            x = _part(x, [p.width(config) or 0 for p in self.pieces], index, self.layout, config)
        if piece.repeated:
            x = _unrepeat(x, config)
        if piece.permute:
            x = _pairs_to_halves(_flat(x, _width(piece, config)), config.E)
        if piece.half:
            x = _flat(x, config.E // 2)
            x = np.concatenate([x, x], axis=-1)
        if self.rows == "last" or (self.rows == "cache" and phase != "prompt"):
            x = _last_row(x, piece, config)
        if piece.scale != 1:
            wide = x.astype(np.float32) if x.dtype == np.float16 else x  # float16 would overflow, and round again
            x = wide * wide.dtype.type(piece.scale)
        return x


def _width(piece: Piece, config: Config) -> int:
    """The tap's own width, once heads are no longer repeated nor angles halved."""
    width = Piece(piece.tap).width(config)
    assert width is not None
    return width


def _flat(x: Array, width: int) -> Array:
    """x [..., n, m] -> [..., width]: trailing axes merged until they hold a token's values. Raises MisfitError."""
    size = 1
    for axis in reversed(range(x.ndim)):
        size *= x.shape[axis]
        if size == width:
            return x.reshape(*x.shape[:axis], width)
    raise MisfitError(f"shape {list(x.shape)}, but its last axes must make up {width} values a token")


def _part(x: Array, widths: Sequence[int], index: int, layout: str, config: Config) -> Array:
    """One of several taps in a tensor [..., sum of widths] -> [..., its width]"""
    x = _flat(x, sum(widths))
    if layout == "interleaved":
        return x[..., index :: len(widths)]
    groups = config.K if layout == "groups" else 1
    x = x.reshape(*x.shape[:-1], groups, -1)
    begin = sum(widths[:index]) // groups
    x = x[..., begin : begin + widths[index] // groups]
    return x.reshape(*x.shape[:-2], widths[index])


def _unrepeat(x: Array, config: Config) -> Array:
    """x [..., H E] -> [..., K E]. Raises MisfitError where a head repeats another than it should."""
    x = _flat(x, config.H * config.E)
    x = x.reshape(*x.shape[:-1], config.K, config.G, config.E)
    first = x[..., :1, :]
    differs = (x != first) & ~(np.isnan(x) & np.isnan(first))
    if differs.any():
        *_, group, copy, _ = (int(i) for i in np.unravel_index(int(differs.argmax()), differs.shape))
        head = group * config.G
        raise MisfitError(f"is mapped as repeated {config.G} times, but head {head + copy} is no copy of head {head}")
    return np.ascontiguousarray(first).reshape(*x.shape[:-3], config.K * config.E)


def _pairs_to_halves(x: Array, E: int) -> Array:
    """x [..., n E] -> the same, where dimensions 2i and 2i + 1 of each head have become i and i + E/2"""
    pairs = x.reshape(*x.shape[:-1], -1, E // 2, 2)
    return np.swapaxes(pairs, -1, -2).reshape(x.shape)


def _last_row(x: Array, piece: Piece, config: Config) -> Array:
    """x [.., T, n] -> [1, n], also where only the last token is there; scores [.., H, T, S] -> [H, 1, S]"""
    if "S" in letters(piece.tap):
        if x.ndim < 2 or x.size == 0 or math.prod(x.shape[:-3]) != 1:
            raise MisfitError(f"shape {list(x.shape)}, but rows: last needs [{config.H}, tokens, keys]")
        return x[:, None, :] if x.ndim == 2 else x.reshape(x.shape[-3:])[:, -1:]
    x = _flat(x, _width(piece, config))
    if x.size == 0 or max(x.shape[:-1], default=1) != math.prod(x.shape[:-1]):
        raise MisfitError(f"shape {list(x.shape)}, where rows needs [tokens, {x.shape[-1]}]")
    return x.reshape(-1, x.shape[-1])[-1:]


@dataclass(frozen=True)
class NameMap:
    """What the names in a source mean. Without a file, tensors are called what the taps are called.

    token_ids  the name of the tensor with the ids
    precision  "fp32", "bf16" or "fp16" by tap, or of all others under ""
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
        """The phase that a folder, a file or a prefix of that name stands for."""
        if name == self.prompt:
            return "prompt"
        before, after = self.decode.split("{n}")
        found = re.fullmatch(f"{re.escape(before)}([0-9]{{1,6}}){re.escape(after)}", name)
        step = -1 if found is None else int(found[1]) - self.first
        return f"decode-{step}" if step >= 0 else None

    def taps(self, name: str) -> list[tuple[str, Take]]:
        """The taps that a tensor of that name holds, and how each is taken from it. GoldenError if two entries fit."""
        found = [(entry, number) for entry in self.entries if (number := entry.match(name)) is not None]
        if len(found) > 1:
            others = " and ".join(entry.pattern for entry, _ in found[1:])
            raise GoldenError(self.path, f"tensors.{found[0][0].pattern}", f"matches {name}, and so does {others}")
        if not found:  # also under a map: names that are right already need no entry
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
        """A few names that it knows, for people who have none of them."""
        names = [entry.pattern for entry in self.entries] or tap_names(self.config)
        middle = [name for name in names if name.endswith("q_proj")] or names[1:2]
        return list(dict.fromkeys([*names[2:3], *middle[:1], *names[-1:]]))


def _as_it_is(x: Array, phase: str) -> Array:
    return x


def read_name_map(path: StrPath, config: Config) -> NameMap:
    """Read a .yaml, .yml or .json file. Raises GoldenError for the first thing in it that cannot be."""
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in (".json", ".yaml", ".yml"):
        raise GoldenError(path, None, "is no name map: it must be a .yaml or a .json file")
    data = read_file(path, _MAP_BYTES, GoldenError)
    values = parse_json(data, path, GoldenError) if kind == ".json" else parse_yaml(data, path)
    return _MapReader(path, config).read(values)


def read_precision(value: Any, config: Config, path: StrPath) -> dict[str, str]:
    """A precision, or an object of them by tap -> by tap, with the default under "". Raises GoldenError.

    A tap relative to its layer is meant in all layers.
    """
    taps = tap_names(config)
    by_tap = value if isinstance(value, dict) else {"": value}
    result: dict[str, str] = {}
    for tap, name in by_tap.items():
        where = f"precision.{tap}" if isinstance(value, dict) else "precision"
        if not isinstance(name, str) or name not in PRECISIONS:
            raise GoldenError(path, where, f"must be one of {', '.join(PRECISIONS)}, got {_show(name)}")
        if tap in _RELATIVE:
            result |= {absolute(layer, tap): name for layer in range(config.L)}
        elif tap == "" or tap in taps:
            result[tap] = name
        else:
            raise GoldenError(path, where, f"is no tap of this config{_hint(tap, [*taps, *_RELATIVE])}")
    return result


class _MapReader:
    """One map, read field by field; every refusal names the file and the field."""

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
            raise self.error("tensors", f"must map names to taps, got {_show(tensors)}")
        entries = tuple(self._entry(pattern, value) for pattern, value in tensors.items())
        self._check_collisions(entries)
        first_layer = self._integer(values.get("first_layer", 0), "first_layer")
        token_ids = values.get("token_ids", TOKEN_IDS)
        if not isinstance(token_ids, str) or not token_ids:
            raise self.error("token_ids", f"must be the name of a tensor, got {_show(token_ids)}")
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
            raise self.error(where, f"must be an integer from 0 to 999,999, got {_show(value)}")
        return value

    def _phases(self, values: Any) -> dict[str, Any]:
        if not isinstance(values, dict):
            raise self.error("phases", f"must be an object with prompt, decode and first, got {_show(values)}")
        self._known(values, ("prompt", "decode", "first"), "phases.")
        plain = NameMap(self.config)
        prompt, decode = values.get("prompt", plain.prompt), values.get("decode", plain.decode)
        first = self._integer(values.get("first", 0), "phases.first")
        for key, name in (("prompt", prompt), ("decode", decode)):
            if not isinstance(name, str) or not name or "/" in name:
                raise self.error(f"phases.{key}", f"must be the name of a folder or file, got {_show(name)}")
        if _placeholders(prompt):
            raise self.error("phases.prompt", f"must be one name, without braces, got {_show(prompt)}")
        if _placeholders(decode) != ["{n}"]:
            raise self.error("phases.decode", f"must have {{n}} in it, once, got {_show(decode)}")
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
            raise self.error(where, f"must be a tap, or an object with tap or split, got {_show(value)}")
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
            raise self.error(f"{where}.split", f"must list two taps or more, got {_show(parts)}")
        pieces = []
        for i, part in enumerate(parts):
            inner = f"{where}.split[{i}]"
            part = {"tap": part} if isinstance(part, str) else part
            if not isinstance(part, dict) or "tap" not in part:
                raise self.error(inner, f"must be a tap, or an object with tap, got {_show(parts[i])}")
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
            raise self.error(f"{where}.tap", f"must be the name of a tap, got {_show(tap)}")
        if tap in _RELATIVE:
            if not in_layers:
                raise self.error(where, f"needs {{layer}} in its name: {tap} is a tap of every layer")
        elif tap not in self.taps:
            known = [*_RELATIVE, *(name for name in self.taps if split_name(name)[0] is None)]
            raise self.error(f"{where}.tap", f"{_show(tap)} is no tap of this config{_hint(tap, known)}")
        elif in_layers:
            raise self.error(where, f"has {{layer}} in its name, but {tap} is one tap")
        inner = split_name(tap)[1]
        repeated, half = (self._boolean(options.get(key, False), f"{where}.{key}") for key in ("repeated", "half"))
        permute = False
        if "permute" in options:
            permute = bool(self._one_of(options["permute"], ("pairs-to-halves",), f"{where}.permute"))
        scale = options.get("scale", 1.0)
        if type(scale) not in (int, float) or not 1e-30 <= abs(scale) <= 1e30:  # also false for NaN
            raise self.error(f"{where}.scale", f"must be a number that is not 0, got {_show(scale)}")
        if repeated and Piece(inner).head_letter != "K":
            raise self.error(f"{where}.repeated", f"is for key and value heads; {tap} has none")
        if permute and inner not in _TURNED:
            raise self.error(
                f"{where}.permute", f"is for what is turned in pairs: heads of q and k, cos, sin; not {tap}"
            )
        if half and inner not in (COS, SIN):
            raise self.error(f"{where}.half", f"is for {COS} and {SIN}")
        if half and permute:
            raise self.error(f"{where}.permute", "has no meaning with half: each angle is there once")
        return Piece(tap, repeated, permute, half, float(scale))

    def _boolean(self, value: Any, where: str) -> bool:
        if not isinstance(value, bool):
            raise self.error(where, f"must be true or false, got {_show(value)}")
        return value

    def _reverse(self, value: Any, where: str) -> str:
        if value is True or value is False:
            return "axes" if value else ""
        return self._one_of(value, ("axes", "shape"), where)

    def _one_of(self, value: Any, known: Sequence[str], where: str) -> str:
        if not isinstance(value, str) or value not in known:
            raise self.error(where, f"must be {' or '.join(known)}, got {_show(value)}")
        return value

    def _transpose(self, value: Any, where: str) -> tuple[int, ...]:
        axes = value if isinstance(value, list) else []
        if not axes or any(type(n) is not int for n in axes) or sorted(axes) != list(range(len(axes))):
            raise self.error(where, f"must list every axis once, like [1, 0, 2], got {_show(value)}")
        if len(axes) > _MAX_AXES:
            raise self.error(where, f"lists {len(axes)} axes; tensors have at most {_MAX_AXES}")
        return tuple(axes)

    def _check_collisions(self, entries: Sequence[Entry]) -> None:
        """No tap may be given by two entries, nor by two parts of one."""
        homes: dict[str, str] = {}
        for entry in entries:
            for piece in entry.pieces:
                layers = range(self.config.L) if piece.tap in _RELATIVE else (0,)
                for tap in (absolute(layer, piece.tap) for layer in layers):
                    if tap in homes:
                        also = " twice" if homes[tap] == entry.pattern else f", and so does {homes[tap]}"
                        raise self.error(f"tensors.{entry.pattern}", f"gives {piece.tap}{also}")
                    homes[tap] = entry.pattern


def parse_yaml(data: bytes, path: StrPath) -> dict[str, Any]:
    """Parse a YAML mapping of plain data strictly. Raises GoldenError.

    PyYAML keeps the last of two equal keys, and lets a kilobyte of anchors and aliases stand for gigabytes. Here both
    are refused, and so are tags, several documents, and keys that are not strings.
    """
    try:
        import yaml
    except ImportError:
        raise GoldenError(path, None, "is YAML, and PyYAML is not installed; a .json map does without") from None
    try:
        loader = yaml.SafeLoader(data.decode("utf-8-sig"))
        value = _YamlReader(yaml, loader, path).document()
    except UnicodeDecodeError as problem:
        raise GoldenError(path, None, f"is not UTF-8 (byte {problem.start})") from None
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise GoldenError(path, None, f"is not YAML ({where}{problem.problem})") from None
    except (yaml.YAMLError, ValueError) as problem:  # ValueError: an integer of more digits than Python converts
        raise GoldenError(path, None, f"is not YAML ({str(problem).splitlines()[0]})") from None
    if not isinstance(value, dict):
        raise GoldenError(path, None, f"must hold a mapping, not {_show(value)}")
    return value


class _YamlReader:
    """YAML's events -> dicts, lists and scalars. `yaml` and the loader are Any: the package has no types."""

    def __init__(self, yaml: Any, loader: Any, path: StrPath) -> None:
        self.yaml = yaml
        self.loader = loader
        self.path = path

    def error(self, event: Any, problem: str) -> GoldenError:
        return GoldenError(self.path, None, f"line {event.start_mark.line + 1}: {problem}")

    def document(self) -> Any:
        self.loader.get_event()  # the stream starts
        event = self.loader.get_event()
        if isinstance(event, self.yaml.StreamEndEvent):
            return None
        value = self._value(self.loader.get_event(), 0)
        self.loader.get_event()  # the document ends
        event = self.loader.get_event()
        if not isinstance(event, self.yaml.StreamEndEvent):
            raise self.error(event, "a second document begins; a map is one")
        return value

    def _value(self, event: Any, depth: int) -> Any:
        if isinstance(event, self.yaml.AliasEvent) or event.anchor is not None:
            raise self.error(event, "anchors and aliases are not read")
        if depth > _MAX_DEPTH:
            raise self.error(event, "is nested too deeply")
        if isinstance(event, self.yaml.ScalarEvent):
            return self._scalar(event)
        if event.tag is not None:
            raise self.error(event, f"tags ({event.tag[:60]}) are not read")
        if isinstance(event, self.yaml.SequenceStartEvent):
            return [self._value(inner, depth + 1) for inner in self._until(self.yaml.SequenceEndEvent)]
        mapping: dict[str, Any] = {}
        for inner in self._until(self.yaml.MappingEndEvent):
            key = self._value(inner, depth + 1)
            if not isinstance(key, str):
                raise self.error(inner, f"the key {_show(key)} is no string; put it in quotes")
            if key in mapping:
                raise GoldenError(self.path, key, f"appears twice (line {inner.start_mark.line + 1})")
            mapping[key] = self._value(self.loader.get_event(), depth + 1)
        return mapping

    def _until(self, end: Any) -> Any:
        while not isinstance(event := self.loader.get_event(), end):
            yield event

    def _scalar(self, event: Any) -> Any:
        if event.tag is not None:
            raise self.error(event, f"tags ({event.tag[:60]}) are not read")
        if not event.implicit[0]:  # in quotes
            return event.value
        if re.fullmatch(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+", event.value):  # YAML 1.1 wants a dot in 1e-3
            return float(event.value)
        tag = self.loader.resolve(self.yaml.ScalarNode, event.value, event.implicit)
        kind = tag.rpartition(":")[2]
        if kind not in ("str", "int", "float", "bool", "null"):
            return event.value  # a date, or a lone = or <<: text, here
        return self.loader.construct_object(self.yaml.ScalarNode(tag, event.value, event.start_mark, event.end_mark))


def _placeholders(text: str) -> list[str]:
    return re.findall(r"\{[^{}]*\}|[{}]", text)


def _hint(name: Any, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(name)[:200], known, 1, 0.5)
    return f"; did you mean {near[0]}?" if near else ""


def _show(value: Any) -> str:
    """A value from a file, short enough for a one-line message."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return f"a {type(value).__name__} that is too large to print"
    return text if len(text) <= 60 else text[:57] + "..."
