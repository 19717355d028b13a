"""A conversation: its turns, as messages for the template, as a file, and as a page of Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ...errors import FileError
from ...files import parse_json

_FORM = "qwq_chat"  # the field that tells a file of a conversation, with its version
VERSION = 1


@dataclass
class ChatTurn:
    """A message of the user, and what the model said.

    ending  why the answer is not whole; None: it is
    seed    of its draws
    """

    user: str
    answer: str = ""
    thinking: str = ""
    ending: str | None = None
    seed: int | None = None

    @property
    def name(self) -> str:
        """The beginning of the user's message, on one line."""
        words = " ".join(self.user.split())
        return words if len(words) <= 40 else words[:39] + "…"


@dataclass
class Dialogue:
    """Turns, the oldest first, under a system prompt."""

    turns: list[ChatTurn] = field(default_factory=list)
    system: str | None = None

    def messages(self, new: str | None = None) -> list[dict[str, Any]]:
        """Return the messages for the template: it decides what becomes of earlier reasoning.

        new  the next message of the user
        """
        messages: list[dict[str, Any]] = []
        for turn in self.turns:
            messages.append({"role": "user", "content": turn.user})
            said = {"role": "assistant", "content": turn.answer}
            messages.append(said | ({"reasoning_content": turn.thinking} if turn.thinking else {}))
        return messages if new is None else [*messages, {"role": "user", "content": new}]

    def to_json(self, model: str) -> dict[str, Any]:
        return {_FORM: VERSION, "model": model, "system": self.system, "turns": [asdict(turn) for turn in self.turns]}

    def markdown(self, model: str) -> str:
        """Return the conversation as a page. The reasoning is folded."""
        parts = [f"# A conversation with {model}"]
        if self.system is not None:
            parts += ["## System", self.system]
        for turn in self.turns:
            parts += ["## User", turn.user, "## Assistant"]
            if turn.thinking.strip():
                parts += ["<details><summary>Reasoning</summary>", turn.thinking.strip(), "</details>"]
            parts += [turn.answer.strip()] * bool(turn.answer.strip())
            if turn.ending is not None:
                parts.append(f"*({turn.ending})*")
        return "\n\n".join(parts) + "\n"


def read_conversation(data: bytes, path: str) -> Dialogue:
    """Return the conversation in a file's bytes. Raises FileError."""
    content = parse_json(data, path, FileError)
    if type(content.get(_FORM)) is not int or content[_FORM] != VERSION:
        raise FileError(path, _FORM, f"must be {VERSION}: the file is no conversation that this version saves")
    system, turns = content.get("system"), content.get("turns")
    if not (system is None or _is_text(system)):
        raise FileError(path, "system", "must be a text or null")
    if not isinstance(turns, list):
        raise FileError(path, "turns", "must be a list")
    return Dialogue([_turn(each, f"turns[{number}]", path) for number, each in enumerate(turns)], system)


def is_conversation(data: bytes) -> bool:
    """Return whether bytes look like a file that `to_json` made."""
    return data.lstrip()[:1] == b"{" and f'"{_FORM}"'.encode() in data[:200]


def _turn(value: Any, where: str, path: str) -> ChatTurn:
    if not isinstance(value, Mapping):
        raise FileError(path, where, "must be an object")
    known = {each.name for each in fields(ChatTurn)}
    for name, given in value.items():
        if name not in known:
            raise FileError(path, f"{where}.{name[:40]}", "is not a field of a turn")
        fits = _is_text(given) or (given is None and name in ("ending", "seed"))
        if name == "seed":
            fits = given is None or (type(given) is int and 0 <= given < 2**64)
        if not fits:
            raise FileError(path, f"{where}.{name}", "has a value of another kind")
    if "user" not in value:
        raise FileError(path, f"{where}.user", "is missing")
    return ChatTurn(**value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)
