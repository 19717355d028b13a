"""A talk: messages are read, and answered in the conversation so far, until the user leaves."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from ...engine.turns import certain_prefix
from ...errors import FileError, QwqError, UsageError
from ...formats.write import write_atomically
from ..ending import say, was_ctrl_c
from ..screen import tell
from .commands import is_replaceable, run_command
from .conversation import ChatTurn, Dialogue
from .keyboard import Keyboard
from .settings import SettingTable
from .typed import command
from .view import STOPPED, AnswerView

if TYPE_CHECKING:
    from ...engine.model import Model
    from ...engine.scheduler import Scheduler
    from ...engine.session import Session

_CACHE = ".qwqcache"  # what the name of a saved conversation's cache ends with
_ROOM = 1024  # tokens for an answer that /trim makes room for, where the context has four times as many


class Talk:
    """A conversation with a user.

    name      of the model, as the user gave it
    table     the settings of the answers to come
    pending   a message that did not fit
    attached  texts that go with the next message
    caches    whether /save writes the KV cache, too
    exported  files that /export wrote, which it may replace
    over      whether the user wants to leave
    """

    def __init__(
        self,
        name: str,
        model: Model,
        scheduler: Scheduler,
        conversation: Dialogue,
        asked: dict[str, Any],
        keyboard: Keyboard,
        thinking: bool,
        caches: bool = True,
    ) -> None:
        self.name, self.model, self.keyboard = name, model, keyboard
        self._scheduler, self._caches = scheduler, caches
        self.conversation = conversation
        self.table = SettingTable(model, asked)
        self.view = AnswerView(scheduler, thinking, keyboard.interactive)
        self.pending: str | None = None
        self.attached: list[str] = []
        self.exported: set[str] = set()
        self.over = False
        self._warned = False  # of Ctrl-C at an empty line
        self._warmed: list[int] = []

    def run(self, first: str | None = None) -> None:
        """Talk until the user leaves. Raises what ends the command.

        first  a message that begins the talk
        """
        text = first
        while not self.over:
            try:
                if text is None:
                    self._prepare()
                    text = self.keyboard.read()
                    if text is None:
                        return
                self._warned = False
                self._take(text, typed=first is None)
            except QwqError as problem:
                if not self.keyboard.interactive:
                    raise
                say(str(problem))
            except KeyboardInterrupt as stop:
                self._heed(stop)
            text = first = None

    def _heed(self, stop: KeyboardInterrupt) -> None:
        """Go on after Ctrl-C, unless it is the second one at an empty line."""
        if not self.keyboard.interactive or not was_ctrl_c() or (self._warned and not any(stop.args)):
            raise stop
        self._warned = not any(stop.args)
        if self._warned:
            tell("Ctrl-C again, or Ctrl-D, leaves")

    def _take(self, text: str, typed: bool) -> None:
        words = command(text) if typed else None
        if words is not None:
            run_command(self, *words)
        elif text.strip() or self.attached:
            self.ask("\n\n".join([*([text] if text.strip() else []), *self.attached]))
        elif self.pending is not None:
            self.ask(self.pending)

    def _prepare(self) -> None:
        """Compute the prefix of the next prompt, while the user reads and types."""
        prefix = self._prefix()
        if prefix and prefix != self._warmed and len(prefix) < self.model.context:
            self._scheduler.warm(prefix)
            self._warmed = prefix

    def ask(self, text: str, seed: int | None = None) -> bool:
        """Answer a message, and add both to the conversation. False: it does not fit, and is pending.

        seed  in place of that of the settings
        """
        asked = self.table.asked | {"system": self.conversation.system}
        if seed is not None:
            asked["seed"] = seed
        try:
            prepared = self.model.prepare(self.conversation.messages(text), **asked)
        except UsageError as problem:
            if problem.field != "prompt" or not self.keyboard.interactive:
                raise
            self.pending, self.attached = text, []
            self._tell_overflow(text)
            return False
        self.pending, self.attached = None, []
        with self.view.stoppable():
            generation, ending = self.view.show(prepared)
            texts = generation.texts
            self.conversation.turns.append(
                ChatTurn(text, texts["answer"], texts["thinking"], ending, generation.run.seed)
            )
            self.view.tell_end(generation, ending, self.model.context)
        return True

    def again(self, text: str, seed: int | None = None) -> None:
        """Ask the last message again, as `text`. The old turn stays where nothing new comes.

        seed  None: a random one
        """
        old = self.conversation.turns.pop()
        before = self.table.asked
        try:
            if text == old.user:
                self.table.asked = before | {"seed": None}  # the same one would give the same answer
            done = self.ask(text, seed)
        except BaseException:
            self.conversation.turns.append(old)
            raise
        finally:
            self.table.asked = before
        new = self.conversation.turns[-1] if done else None
        if new is not None and new.ending == STOPPED and not (new.answer or new.thinking):
            self.conversation.turns[-1] = old
        elif not done:
            self.conversation.turns.append(old)

    def _needed(self, text: str | None) -> int:
        """Return the tokens of the prompt that asks a message, and those of an answer of the length asked for."""
        messages = self.conversation.messages("" if text is None else text)
        return len(self.model.prompt_ids(messages, self.conversation.system)) + (self.table.asked["max_tokens"] or 1)

    def _tell_overflow(self, text: str) -> None:
        most = self.table.asked["max_tokens"]
        answer = "one token of an answer" if most is None else f"an answer of up to {most:,}"
        say(f"this needs {self._needed(text):,} tokens, with {answer}; the context has {self.model.context:,}")
        if self.conversation.turns:
            tell("/trim drops the oldest turns and asks again; /undo and /clear make room, and Enter then asks again")
        else:
            tell("/edit changes the message; a larger context needs another start with --ctx-size")

    def trim(self, count: int | None) -> None:
        """Drop the oldest turns, each by its name, and ask a pending message again.

        count  None: as many as the pending message needs, with room for an answer
        """
        if not self.conversation.turns:
            raise UsageError(None, "/trim", "finds no turn to drop")
        room = 0 if self.table.asked["max_tokens"] else min(_ROOM, self.model.context // 4)
        dropped = 0
        while self.conversation.turns and (
            dropped < count if count is not None else self._needed(self.pending) + room > self.model.context
        ):
            tell(f"dropped: {self.conversation.turns.pop(0).name}")
            dropped += 1
        if not dropped:
            tell("everything fits: nothing was dropped")
        if self.pending is not None:
            self.ask(self.pending)

    def last_turn(self, command: str) -> ChatTurn:
        """Return the last turn. Raises UsageError where there is none."""
        if not self.conversation.turns:
            raise UsageError(None, command, "finds no message: the conversation is empty")
        return self.conversation.turns[-1]

    def replace(self, conversation: Dialogue) -> None:
        self.conversation = conversation
        self.exported = set()

    def computed(self) -> Session:
        """Return a session with what is computed of the conversation."""
        return self._scheduler.held(self._prefix())

    def _prefix(self) -> list[int]:
        return certain_prefix(self.model, self.conversation.messages(), self.conversation.system)

    def save(self, path: str) -> None:
        """Write the conversation to a file, and the KV cache of it to another beside it.

        Raises FileError, also for a file of another kind that it would replace.
        """
        from ...engine.session_file import save_session

        if not is_replaceable(path):
            raise FileError(path, None, "exists already, and is no conversation")
        self.write(path, json.dumps(self.conversation.to_json(self.name), ensure_ascii=False, indent=1).encode("utf-8"))
        if self._caches and (session := self.computed()).held:
            save_session(session, path + _CACHE)
            tell(f"{path}{_CACHE}: {session.held:,} tokens, so that /load computes nothing again")

    def load(self, path: str, conversation: Dialogue) -> None:
        """Go on with a conversation. A cache beside it that is of no use here is told, and left alone."""
        from ...engine.session_file import load_session

        self.replace(conversation)
        turns = len(conversation.turns)
        tell(f"{path}: {turns} turn{'' if turns == 1 else 's'}, {self._needed(None) - 1:,} tokens")
        if self._caches and os.path.lexists(path + _CACHE):
            try:
                session = load_session(self.model, path + _CACHE)
                self._scheduler.call(lambda: self._scheduler.keep(session))
            except QwqError as problem:
                say(f"{problem}; the conversation is computed again")

    def write(self, path: str, data: bytes) -> None:
        write_atomically(path, lambda file: file.write(data))
        tell(f"{path}: written")

    def stats(self) -> list[str]:
        """Return lines about the conversation and the work for it."""
        from ...host.memory import peak_bytes

        counts = self._scheduler.counts
        used = self._needed(None) - (self.table.asked["max_tokens"] or 1)
        return [
            f"model: {self.name}; {self.model.backend.description}",
            f"conversation: {len(self.conversation.turns)} turns; context {used:,} of {self.model.context:,} tokens",
            f"computed: {counts.prompt_tokens:,} prompt tokens, {counts.output_tokens:,} output tokens; "
            f"{counts.cached_tokens:,} prompt tokens were cached",
            f"time: {counts.seconds:.1f} s in {counts.passes:,} passes; peak memory: {peak_bytes() / 2**20:.0f} MiB",
        ]
