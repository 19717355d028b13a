"""The command line: `qwq COMMAND`. One module per command; each is imported only when it is the one that runs.

stdout carries the result and nothing else. An error is one line on stderr: exit status 2 for a wrong use, 1 for the
rest, 130 after Ctrl-C. A reader that goes away ends the program in silence.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from .. import __version__
from ..errors import QwqError, UsageError

COMMANDS = {
    "generate": "answer a prompt",
    "info": "what a model costs: parameters, bytes, memory, traffic",
    "convert": "pack the weights of a model once, so that loading is reading",
    "eval": "how good a model is at the recipe's 23 categories",
    "golden": "right values of every intermediate result, and whether somebody's are",
    "train": "run a stage of the recipe",
    "bench": "how fast a model is here, or an operation, and how near to what the processor can do",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line; argparse prints the usage too."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command -> its exit status."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    parser = _Parser(prog="qwq", description="QwQ-32B and other Qwen2 models, on a CPU.")
    parser.add_argument("--version", action="version", version=f"qwq {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        if name in given[:1]:
            importlib.import_module(f"{__name__}.{name}").add_arguments(command)
        command.add_argument("-v", "--verbose", action="store_true", help="details on stderr, tracebacks of errors")
    options = parser.parse_args(given)
    try:
        status: int = importlib.import_module(f"{__name__}.{options.command}").run(options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Python flushes stdout once more at exit: give it something that takes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except QwqError as error:
        if options.verbose:
            raise
        print(f"qwq: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
