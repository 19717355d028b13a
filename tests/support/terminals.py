"""A command on a terminal of a given size: what its screen shows, and keys for it."""

import codecs
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time

_SEQUENCE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])")


class Screen:
    """All lines that a terminal has shown, as a reader sees them. It knows what the commands send."""

    def __init__(self, columns):
        self.columns = columns
        self.cells = [[]]
        self.row = self.column = 0

    def feed(self, text):
        while text:
            if match := _SEQUENCE.match(text):
                if match[2] == "K":
                    assert match[1] == ""
                    del self.cells[self.row][self.column :]
                else:
                    assert match[2] == "m", match[0]
                text = text[match.end() :]
                continue
            self._put(text[0])
            text = text[1:]

    def _put(self, character):
        if character == "\r":
            self.column = 0
        elif character == "\n":
            self._next_row()
        elif character == "\b":
            self.column = max(0, self.column - 1)
        elif character.isprintable():  # a model may say anything
            if self.column == self.columns:  # a terminal wraps when the next character comes
                self.column = 0
                self._next_row()
            line = self.cells[self.row]
            line += " " * (self.column + 1 - len(line))
            line[self.column] = character
            self.column += 1

    def _next_row(self):
        self.row += 1
        if self.row == len(self.cells):
            self.cells.append([])

    @property
    def lines(self):
        return ["".join(line).rstrip() for line in self.cells]


class Terminal:
    """`qwq` with these arguments as the session leader of a new terminal, so that keys such as Ctrl-C reach it.

    environment  variables that change; None removes one
    to           a file for stdout; None: the terminal
    """

    def __init__(self, *arguments, columns=80, rows=24, environment=(), to=None, command=None):
        self.controller, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        variables = os.environ | {"TERM": "xterm-256color", "PYTHONUTF8": "1", "NO_COLOR": None} | dict(environment)

        def lead():
            os.setsid()
            fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a test run in the background ignores some
                signal.signal(number, signal.SIG_DFL)

        self.process = subprocess.Popen(
            command or [sys.executable, "-m", "qwq_ref", *map(str, arguments)],
            stdin=terminal,
            stdout=terminal if to is None else to,
            stderr=terminal,
            env={name: value for name, value in variables.items() if value is not None},
            preexec_fn=lead,
        )
        os.close(terminal)
        self.screen = Screen(columns)
        self.raw = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def read(self, seconds):
        """Read what comes within some seconds; return whether more can come."""
        if not select.select([self.controller], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self.controller, 1 << 16)
        except OSError:  # the command ended
            data = b""
        text = self._decoder.decode(data)
        self.raw += text
        self.screen.feed(text)
        return bool(data)

    def until(self, pattern, seconds=60):
        """Read until the text that came matches a pattern."""
        deadline = time.monotonic() + seconds
        while not re.search(pattern, self.raw):
            assert time.monotonic() < deadline, f"no {pattern!r} within {seconds} s: {self.screen.lines}"
            assert self.read(0.2), f"ended without {pattern!r}: {self.screen.lines}"

    def press(self, keys):
        os.write(self.controller, keys.encode())

    def end(self, seconds=60):
        """Read to the end; return the exit status and the lines of the screen."""
        deadline = time.monotonic() + seconds
        while self.read(0.2):
            assert time.monotonic() < deadline, f"runs for more than {seconds} s: {self.screen.lines}"
        status = self.process.wait(timeout=seconds)
        os.close(self.controller)
        return status, self.screen.lines
