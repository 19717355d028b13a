"""Tool calls in the text of an answer, as the templates of Qwen2.5 and QwQ ask for them (Hermes).

    <tool_call>
    {"name": "weather", "arguments": {"place": "Ulm"}}
    </tool_call>

`<tool_call>` is one token for some models, and plain characters for others. So the parser reads text, not ids.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

CALL, END = "<tool_call>", "</tool_call>"

_SPACE = " \t\n\r"  # JSON's
_WORD = re.compile(r"true|false|null|-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_DEPTH = 100  # objects and lists within each other


@dataclass(frozen=True)
class Content:
    """Text that belongs to no call."""

    text: str


@dataclass(frozen=True)
class CallBegins:
    """A call of the function `name`. Calls count from 0."""

    index: int
    name: str


@dataclass(frozen=True)
class Arguments:
    """A fragment of a call's arguments. Joined, they are the JSON text of an object, as the model wrote it."""

    index: int
    text: str


@dataclass(frozen=True)
class CallEnds:
    """A call is complete."""

    index: int


Event = Content | CallBegins | Arguments | CallEnds


class ToolParser:
    """Finds the calls in an answer that is fed in pieces. Every cut gives the same content and the same calls.

    A call has a `name`, and `arguments`: an object, the JSON text of one, or nothing. Other fields are ignored. Text
    between the markers that is no such call is content, unchanged; so is a call without its end. Of the white space
    around complete calls, only the first between two texts is content. Objects and lists may be 100 deep.

    sure  the answer is known to follow a grammar of calls: fragments of arguments come out as they are written. Without
          it, a call comes out at its end marker, because until there it may turn out to be content. A sure call that
          is cut off, or breaks, has no CallEnds, and only the text after the break is content
    """

    def __init__(self, *, sure: bool = False) -> None:
        self._sure = sure
        self._held = ""  # text that is not given out yet
        self._call: _Call | None = None  # reads the text behind a marker
        self._space = ""  # before that marker
        self._count = 0
        self._said = self._trim = False  # whether there was content; whether a call stands behind it
        self._gap = ""  # white space between that content and the call

    def feed(self, text: str) -> list[Event]:
        """Return what a piece of the answer makes certain."""
        events: list[Event] = []
        self._held += text
        while self._find(events) if self._call is None else self._read(self._call, events):
            pass
        return events

    def finish(self) -> list[Event]:
        """Return what remains at the end of the answer."""
        events: list[Event] = []
        call, self._call = self._call, None
        if call is None:
            self._say(self._held, events)
        elif not call.begun:
            self._say(self._space + CALL + call.body, events)
        self._held = ""
        return events

    def _find(self, events: list[Event]) -> bool:
        """Look for a marker in the held text -> whether there is one."""
        text, marker, rest = self._held.partition(CALL)
        if marker:
            said = text.rstrip(_SPACE)
            self._say(said, events)
            self._space, self._held, self._call = text[len(said) :], rest, _Call()
            return True
        partial = next((size for size in range(len(CALL) - 1, 0, -1) if text.endswith(CALL[:size])), 0)
        kept = len(text[: len(text) - partial].rstrip(_SPACE))
        self._say(text[:kept], events)
        self._held = text[kept:]
        return False

    def _read(self, call: _Call, events: list[Event]) -> bool:
        """Let the call read the held text -> whether it ended, so that text after it may remain."""
        call.feed(self._held)
        self._held = ""
        if call.name is not None and (call.complete or self._sure):
            events += call.news(self._count)
        if call.broken:
            self._held = call.body[call.at :]
            if not call.begun:  # the body may hold another marker
                self._say(self._space + CALL, events)
                self._held = call.body
        elif call.complete:
            events.append(CallEnds(self._count))
            self._gap = self._gap or (self._space if self._said else "")
            self._held, self._trim = call.body[call.at :], True
        else:
            return False
        self._count += call.begun
        self._call = None
        return True

    def _say(self, text: str, events: list[Event]) -> None:
        if self._trim:
            text = text.lstrip(_SPACE)
        if not text:
            return
        text, self._gap, self._said, self._trim = self._gap + text, "", True, False
        last = events[-1] if events else None
        if isinstance(last, Content):
            events[-1] = Content(last.text + text)
        else:
            events.append(Content(text))


class _Call:
    """The text behind a marker.

    body      all of it, at: the characters that were read
    name      the function, once it is known
    complete  whether the end marker was read
    broken    whether the text is no call
    begun     whether `news` has told of it
    """

    def __init__(self) -> None:
        self.body = ""
        self.at = 0
        self.name: str | None = None
        self.complete = self.broken = self.begun = False
        self._json = _Json()
        self._seen: set[str] = set()
        self._arguments: str | None = None  # once they are whole, as JSON text
        self._start: int | None = None  # of an object of arguments
        self._given = 0  # characters of the arguments that `news` has told
        self._tail = ""

    def feed(self, text: str) -> None:
        """Read on, up to the end marker or to a character that no call has there."""
        self.body += text
        while self.at < len(self.body) and not self.complete and not self.broken:
            self.broken = not (self._after if self._json.done else self._within)(self.body[self.at])
            if not self.broken:
                self.at += 1
                self.complete = self._tail == END

    def news(self, index: int) -> list[Event]:
        """Return what is known since the last call; the name must be known."""
        events: list[Event] = []
        if not self.begun:
            self.begun = True
            events.append(CallBegins(index, self.name or ""))
        text = self._arguments
        if text is None:
            text = "" if self._start is None else self.body[self._start : self.at]
        if len(text) > self._given:
            events.append(Arguments(index, text[self._given :]))
            self._given = len(text)
        return events

    def _within(self, character: str) -> bool:
        """Read a character of the object -> whether a call may have it there."""
        json_ = self._json
        if not json_.begun and character not in _SPACE and character != "{":
            return False
        if not json_.read(character, self.at):
            return False
        if json_.started is not None and self._key() == "arguments" and self.body[json_.started] == "{":
            self._start = json_.started
        if json_.ended is not None and not self._field(self._key(), self.body[slice(*json_.ended)]):
            return False
        if json_.done:
            self._arguments = self._arguments or "{}"
            return self.name is not None
        return True

    def _key(self) -> str:
        key: str = json.loads(self.body[slice(*self._json.key)])
        return key

    def _field(self, key: str, text: str) -> bool:
        """Take a field of the call -> whether a call may have it."""
        if key not in ("name", "arguments"):
            return True
        value = _string(text)
        if key in self._seen or (key == "name" and not value):
            return False
        self._seen.add(key)
        if key == "name":
            self.name = value
        elif text[0] == "{":
            self._arguments = text
        elif value is not None and _is_object(value):
            self._arguments = value
        else:
            return text == "null"
        return True

    def _after(self, character: str) -> bool:
        """Read a character behind the object."""
        if character in _SPACE and not self._tail:
            return True
        self._tail += character
        return END.startswith(self._tail)


class _Json:
    """Checks one JSON value, a character at a time.

    begun, done  whether the value has begun, and ended
    key          the place of the last key of the outermost object
    started      the place of a value of the outermost object that the last character began, or None
    ended        the place of one that the last character ended, or None
    """

    def __init__(self) -> None:
        self.begun = self.done = False
        self.key = (0, 0)
        self.started: int | None = None
        self.ended: tuple[int, int] | None = None
        self._open: list[str] = []  # the closing characters of objects and lists
        self._wants = "value"  # or "first" of an object or a list, "key", ":" or ","
        self._word = ""  # a number or a literal so far
        self._string: str | None = None  # within a string: an escape so far
        self._is_key = False
        self._begin = 0

    def read(self, character: str, at: int) -> bool:
        """Read the character at a place -> whether JSON may have it there."""
        self.started = self.ended = None
        if self._string is not None:
            return self._in_string(character, at)
        if self._word:
            if character.isascii() and (character.isalnum() or character in "+-."):
                self._word += character
                return True
            if not _WORD.fullmatch(self._word):
                return False
            self._word = ""
            self._ends(at)
        return character in _SPACE or self._between(character, at)

    def _between(self, character: str, at: int) -> bool:
        """Read a character that is no white space, outside of strings, numbers and literals."""
        closes = self._open[-1] if self._open else ""
        if self._wants in ("first", ",") and character == closes:
            self._open.pop()
            self._ends(at + 1)
            return True
        if self._wants in (":", ","):
            if character != self._wants or (character == "," and not closes):
                return False
            self._wants = "key" if character == "," and closes == "}" else "value"
            return True
        self._is_key = self._wants == "key" or (self._wants == "first" and closes == "}")
        if self._is_key and character != '"':
            return False
        if not self._is_key and len(self._open) == 1:
            self.started = at
        if len(self._open) <= 1:
            self._begin = at
        self.begun = True
        if character == '"':
            self._string = ""
        elif character in "{[":
            self._open.append("}" if character == "{" else "]")
            self._wants = "first"
            return len(self._open) <= _DEPTH
        elif character.isascii() and (character.isalnum() or character == "-"):
            self._word = character
        else:
            return False
        return True

    def _in_string(self, character: str, at: int) -> bool:
        if self._string:  # an escape
            if self._string == "\\":
                self._string = "\\u" if character == "u" else ""
                return character in '"\\/bfnrtu'
            self._string = "" if len(self._string) == 5 else self._string + character
            return character in "0123456789abcdefABCDEF"
        if character == "\\":
            self._string = character
        elif character == '"':
            self._string = None
            if not self._is_key:
                self._ends(at + 1)
            else:
                self._wants = ":"
                if len(self._open) == 1:
                    self.key = (self._begin, at + 1)
        return character >= " "

    def _ends(self, end: int) -> None:
        """A value ends before the place `end`."""
        self._wants = ","
        self.done = not self._open
        if len(self._open) == 1:
            self.ended = (self._begin, end)


def _string(text: str) -> str | None:
    """Return the value of a JSON text that is a string without lone surrogates; None for any other."""
    if text[0] != '"':
        return None
    value: str = json.loads(text)
    return None if re.search("[\ud800-\udfff]", value) else value


def _is_object(text: str) -> bool:
    reader = _Json()
    return (
        text.lstrip(_SPACE).startswith("{")
        and all(
            reader.read(character, at) if not reader.done else character in _SPACE for at, character in enumerate(text)
        )
        and reader.done
    )
