"""The commands within a conversation: /help and the rest. Each is a row of `COMMANDS`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import FileError, UsageError, did_you_mean
from ..screen import tell
from ..streams import argument_text, read_stream
from ..text_input import open_input, whole
from ..values import integer
from . import settings
from .conversation import Dialogue, is_conversation, read_conversation

if TYPE_CHECKING:
    from .talk import Talk


@dataclass(frozen=True)
class Command:
    """A command: what follows its name, what it does, and what completes its argument.

    run    called with the talk and the text behind the name
    file   whether the argument is a file
    words  return the words that the argument may begin with
    """

    name: str
    arguments: str
    help: str
    run: Callable[[Talk, str], None]
    file: bool = False
    words: Callable[[], Iterable[str]] = tuple


def run_command(talk: Talk, name: str, arguments: str) -> None:
    """Run a command. Raises UsageError for an unknown one, and what the command raises."""
    name = {"?": "help", "quit": "exit", "bye": "exit", "q": "exit", "h": "help"}.get(name, name)
    command = COMMANDS.get(name)
    if command is None:
        near = did_you_mean(name, COMMANDS)
        raise UsageError(None, f"/{name[:40]}", f"is not a command{near or ': /help lists them'}")
    if arguments and not command.arguments:
        raise UsageError(None, f"/{name}", "takes nothing behind it")
    if not arguments and command.arguments and not command.arguments.startswith("["):
        raise UsageError(None, f"/{name}", f"needs {command.arguments}")
    command.run(talk, arguments)


def _help(talk: Talk, _: str) -> None:
    rows = [(f"/{each.name} {each.arguments}".rstrip(), each.help) for each in COMMANDS.values()]
    width = max(len(usage) for usage, _ in rows)
    lines = [f"{usage:{width}}  {text}" for usage, text in rows]
    lines.append('A backslash at the end of a line, or """ around lines, makes a message of several lines.')
    if talk.keyboard.edits:
        lines.append("Alt+Enter begins a line, Ctrl-R searches earlier messages, Ctrl-X Ctrl-E opens your editor.")
    lines.append("Ctrl-C stops an answer and keeps what is there. Ctrl-D leaves.")
    for line in lines:
        tell(line)


def _clear(talk: Talk, _: str) -> None:
    talk.replace(Dialogue(system=talk.conversation.system))
    tell("the conversation is empty")


def _undo(talk: Talk, _: str) -> None:
    turn = talk.last_turn("/undo")
    talk.conversation.turns.pop()
    tell(f"dropped: {turn.name}")


def _trim(talk: Talk, count: str) -> None:
    talk.trim(_number("/trim", count) if count else None)


def _regen(talk: Talk, seed: str) -> None:
    turn = talk.last_turn("/regen")
    talk.again(turn.user, _number("/regen", seed, 0) if seed else None)


def _edit(talk: Talk, text: str) -> None:
    pending = talk.pending
    old = pending if pending is not None else talk.last_turn("/edit").user
    if not text:
        if not talk.keyboard.edits:
            raise UsageError(None, "/edit", "needs TEXT, the message in place of the last one")
        text = talk.keyboard.read(old) or ""
    if not text.strip():
        tell("nothing changed")
    elif pending is not None:
        talk.ask(text)
    else:
        talk.again(text)


def _save(talk: Talk, name: str) -> None:
    talk.save(_path(name))


def _load(talk: Talk, name: str) -> None:
    path = _path(name)
    with open_input(path) as stream:
        talk.load(path, read_conversation(read_stream(stream, path), path))


def _export(talk: Talk, name: str) -> None:
    path = _path(name)
    if os.path.lexists(path) and path not in talk.exported:
        raise FileError(path, None, "exists already")
    talk.write(path, talk.conversation.markdown(talk.name).encode("utf-8"))
    talk.exported.add(path)


def _file(talk: Talk, name: str) -> None:
    path = _path(name)
    with open_input(path) as stream:
        text = whole(read_stream(stream, path), path)
    talk.attached.append(text)
    tell(f"{path}: {len(talk.model.tokenizer.encode(text)):,} tokens go with your next message")


def _system(talk: Talk, text: str) -> None:
    if text:
        talk.conversation.system = None if text == "none" else argument_text(text, "system")
    tell(f"system prompt: {talk.conversation.system or 'none'}")


def _think(talk: Talk, words: str) -> None:
    what, _, value = words.partition(" ")
    if what in ("show", "hide") and not value:
        talk.view.thinking = what == "show"
    elif what in ("budget", "effort") and value:
        talk.table.set({"budget": "think-budget", "effort": "reasoning-effort"}[what], value.strip())
    elif words:
        raise UsageError(None, "/think", "takes show, hide, budget N or effort NAME")
    asked = talk.table.asked
    budget = asked.get("think_budget")
    effort = asked.get("reasoning_effort")
    limit = f"budget {budget}" if budget is not None else f"effort {effort}" if effort else "no limit"
    tell(f"reasoning: {'shown' if talk.view.thinking else 'folded'}, {limit}")


def _set(talk: Talk, words: str) -> None:
    name, *values = re.split(r"[=\s]", words, maxsplit=1)
    value = "".join(values)
    if not name:
        for line in talk.table.lines():
            tell(line)
    elif not value.strip():
        raise UsageError(None, "/set", f"needs a value for {name[:40]}; default takes it back")
    else:
        talk.table.set(name, value.strip())


def _seed(talk: Talk, value: str) -> None:
    if value:
        talk.table.set("seed", "default" if value in ("random", "-1") else value)
    seed = talk.table.asked.get("seed")
    turns = talk.conversation.turns
    last = f"; the last answer had {turns[-1].seed}" if turns and turns[-1].seed is not None else ""
    tell(f"seed: {'a random one for each answer' if seed is None else seed}{last}")


def _stats(talk: Talk, _: str) -> None:
    for line in talk.stats():
        tell(line)


def _exit(talk: Talk, _: str) -> None:
    talk.over = True


def _path(name: str) -> str:
    return os.path.expanduser(argument_text(name, "file"))


def _number(command: str, text: str, least: int = 1) -> int:
    import argparse

    try:
        return integer(least, (1 << 64) - 1)(text)
    except argparse.ArgumentTypeError as problem:
        raise UsageError(None, command, str(problem)) from None


def is_replaceable(path: str) -> bool:
    """Return whether /save may replace a file: there is none, or it is a conversation."""
    try:
        with open(path, "rb") as file:
            return is_conversation(file.read(1 << 12))
    except FileNotFoundError:
        return True
    except OSError:
        return False


_ROWS: tuple[tuple[Any, ...], ...] = (
    ("help", "", "list the commands", _help),
    ("clear", "", "begin a new conversation, under the same system prompt", _clear),
    ("undo", "", "drop the last message and its answer", _undo),
    ("trim", "[N]", "drop the N oldest turns, or as many as a message needs", _trim),
    ("regen", "[SEED]", "answer the last message again, with another seed", _regen),
    ("edit", "[TEXT]", "change the last message, and ask again", _edit),
    ("file", "PATH", "send the text of a file with the next message", _file, True),
    ("system", "[TEXT]", "show or set the system prompt, or none", _system),
    (
        *("think", "[WORDS]", "show or hide the reasoning; budget N or effort NAME limits it", _think, False),
        lambda: ("show", "hide", "budget", "effort"),
    ),
    (
        *("set", "[NAME VALUE]", "show the settings, or change one; default undoes it", _set, False),
        lambda: settings.names().values(),
    ),
    ("seed", "[N]", "show or set the seed, or random", _seed),
    ("save", "FILE", "save the conversation", _save, True),
    ("load", "FILE", "go on with a saved conversation", _load, True),
    ("export", "FILE.md", "write the conversation as Markdown", _export, True),
    ("stats", "", "show tokens, speed and memory", _stats),
    ("exit", "", "leave, as Ctrl-D does", _exit),
)
COMMANDS = {row[0]: Command(*row) for row in _ROWS}
