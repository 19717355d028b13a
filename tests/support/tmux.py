"""A real terminal: a command in tmux, with a server of its own, whose screen can be read."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import uuid

import pytest

needs_tmux = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")


class Tmux:
    """A command in a tmux of its own. Use it as a context.

    environment  variables that change
    """

    def __init__(self, command, columns=80, rows=24, environment=(), folder=None):
        self._socket = f"qwq-{uuid.uuid4().hex[:12]}"
        variables = {"PYTHONPATH": os.environ.get("PYTHONPATH", ""), "PYTHONUTF8": "1"} | dict(environment)
        # The shell tells the status: that of tmux is missing at times. Ctrl-C must not end the shell.
        words = ["sh", "-c", 'trap : INT; "$@"; echo "status $?"', "sh"]
        words += ["env", "-u", "NO_COLOR", *(f"{name}={value}" for name, value in variables.items()), *command]
        size = ["-x", str(columns), "-y", str(rows)]
        place = [] if folder is None else ["-c", str(folder)]
        self._tmux(
            *("-f", os.devnull, "set-option", "-g", "remain-on-exit", "on", ";"),
            *("set-option", "-g", "history-limit", "5000", ";"),
            *("new-session", "-d", "-s", "it", *size, *place, shlex.join(words)),
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        subprocess.run(["tmux", "-L", self._socket, "kill-server"], capture_output=True)

    def _tmux(self, *arguments):
        done = subprocess.run(["tmux", "-u", "-L", self._socket, *arguments], capture_output=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode()

    def type(self, text):
        """Type a text as it is."""
        self._tmux("send-keys", "-t", "it", "-l", text)

    def press(self, *keys):
        """Press keys by their names of tmux, such as Enter, C-c or M-Enter."""
        self._tmux("send-keys", "-t", "it", *keys)

    def paste(self, text):
        """Paste a text, in brackets if the program asks for them."""
        self._tmux("set-buffer", text)
        self._tmux("paste-buffer", "-p", "-t", "it")

    def resize(self, columns, rows):
        self._tmux("resize-window", "-t", "it", "-x", str(columns), "-y", str(rows))

    def status(self):
        """Wait until the command has ended -> its exit status."""
        return int(re.search(r"\nstatus (\d+)", self.until("\nstatus "))[1])

    def screen(self, styles=False):
        """Return the text of the screen and of what scrolled away; with its escape sequences, if asked for."""
        return self._tmux("capture-pane", "-p", "-J", "-S", "-", *(["-e"] if styles else []), "-t", "it").rstrip("\n")

    def until(self, true, seconds=60):
        """Wait until a text is on the screen, or until a function of the screen is true -> the screen."""
        deadline = time.monotonic() + seconds
        while True:
            screen = self.screen()
            if true in screen if isinstance(true, str) else true(screen):
                return screen
            assert time.monotonic() < deadline, f"no {true!r} within {seconds} s on:\n{screen}"
            time.sleep(0.05)


def chat(*arguments, **how):
    """`qwq chat` in tmux."""
    return Tmux([sys.executable, "-m", "qwq_ref", "chat", *map(str, arguments)], **how)
