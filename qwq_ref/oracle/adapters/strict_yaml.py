"""A strict reader of YAML: plain data only, each key once."""

from __future__ import annotations

import re
from typing import Any

from ...errors import GoldenError
from ...files import StrPath

_MAX_DEPTH = 16


def parse_yaml(data: bytes, path: StrPath) -> dict[str, Any]:
    """Parse a YAML mapping of plain data. Raises GoldenError.

    PyYAML keeps the last of two equal keys, and expands a kilobyte of anchors and aliases into gigabytes. This reader
    refuses both. It also refuses tags, several documents, and keys that are not strings.
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
        raise GoldenError(path, None, f"must hold a mapping, not {show(value)}")
    return value


class _YamlReader:
    """Turns the events of PyYAML into dicts, lists and scalars. `yaml` and the loader are Any: PyYAML has no types."""

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
                raise self.error(inner, f"the key {show(key)} is no string; put it in quotes")
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


def show(value: Any) -> str:
    """Return a value of a file in at most 60 characters, for a message."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return f"a {type(value).__name__} that is too large to print"
    return text if len(text) <= 60 else text[:57] + "..."
