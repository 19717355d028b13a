"""The line of `qwq chat` on a terminal, by prompt_toolkit: history, several lines, completion, search."""

from __future__ import annotations

import contextlib
import os
import sys
import termios
from collections.abc import Iterable, Iterator
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input import create_input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import ColorDepth
from prompt_toolkit.output.vt100 import Vt100_Output

from ..screen import styles, tell
from ..streams import argument_text
from .keyboard import MORE, PROMPT
from .typed import BLOCK, is_whole, message


class Editor:
    """Messages from a terminal, whose line can be edited."""

    interactive = edits = True

    def __init__(self, history: bool) -> None:
        self._session: PromptSession[str] = PromptSession(
            PROMPT,
            multiline=True,
            prompt_continuation=MORE,
            history=open_history() if history else InMemoryHistory(),
            key_bindings=_keys(),
            completer=Commands(),
            complete_while_typing=True,
            enable_open_in_editor=True,
            color_depth=None if styles(sys.stderr) else ColorDepth.DEPTH_1_BIT,
            reserve_space_for_menu=4,
            input=create_input(sys.stdin),
            output=Vt100_Output.from_pty(sys.stderr, term=os.environ.get("TERM")),
        )

    def read(self, draft: str = "") -> str | None:
        """Return the next message; None for Ctrl-D. Raises KeyboardInterrupt, whose argument is the text so far."""
        try:
            text = self._session.prompt(default=draft)
        except EOFError:
            return None
        except KeyboardInterrupt:
            raise KeyboardInterrupt(self._session.default_buffer.text) from None
        finally:
            self._brackets(True)
        return argument_text(message(text), "message")

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Keep what is typed between two messages for the next one: unseen, and a paste as one message.

        Ctrl-D is a key like others then. Only the editor's own mode, during `read`, takes away that Ctrl-C is a signal.
        """
        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
        silent = [*before]
        silent[3] &= ~(termios.ECHO | termios.ICANON)
        termios.tcsetattr(descriptor, termios.TCSANOW, silent)
        self._brackets(True)
        try:
            yield
        finally:
            self._brackets(False)
            termios.tcsetattr(descriptor, termios.TCSANOW, before)

    def _brackets(self, on: bool) -> None:
        """Let the terminal put marks around a paste, or not."""
        output = self._session.app.output
        (output.enable_bracketed_paste if on else output.disable_bracketed_paste)()
        output.flush()


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        """Send a complete message. A backslash at the end, or a block that is open, asks for another line."""
        buffer = event.current_buffer
        if buffer.complete_state is not None and buffer.complete_state.current_completion is not None:
            buffer.complete_state = None  # the completion is taken, and not sent
        elif buffer.document.is_cursor_at_the_end and buffer.text.endswith("\\") and not buffer.text.startswith(BLOCK):
            buffer.delete_before_cursor()
            buffer.newline(copy_margin=False)
        elif is_whole(buffer.text):
            buffer.validate_and_handle()
        else:
            buffer.newline(copy_margin=False)

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        """Begin another line."""
        event.current_buffer.newline(copy_margin=False)

    return keys


class Commands(Completer):
    """Completes the names of commands, of their words, of settings, and of files."""

    def __init__(self) -> None:
        from .commands import COMMANDS

        self._commands = COMMANDS
        self._files = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return
        name, space, rest = text[1:].partition(" ")
        if not space:
            for command in self._commands.values():
                if command.name.startswith(name):
                    yield Completion(f"/{command.name}", -len(text), display_meta=command.help)
            return
        known = self._commands.get(name)
        if known is None:
            return
        if known.file:
            yield from self._files.get_completions(Document(rest.lstrip()), complete_event)
        elif " " not in rest:
            for word in known.words():
                if word.startswith(rest):
                    yield Completion(word, -len(rest))


class _Kept(FileHistory):
    """A history in a file. A disk that takes no more loses a line of it, and no conversation."""

    def store_string(self, string: str) -> None:
        with contextlib.suppress(OSError, UnicodeError):
            super().store_string(string)


def open_history() -> History:
    """Return the history in the user's folder for state, which only the user can read."""
    state = os.environ.get("XDG_STATE_HOME", "")
    folder = Path(state if os.path.isabs(state) else os.path.expanduser("~/.local/state")) / "qwq"
    path = folder / "chat_history"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.fchmod(descriptor, 0o600)  # of a file that was there before
        finally:
            os.close(descriptor)
    except OSError as problem:
        tell(f"qwq: {path}: no history is kept ({problem.strerror})")
        return InMemoryHistory()
    return _Kept(path)
