"""The command line: `qwq COMMAND`, one module a command. Only the module of the given command is imported.

stdout carries the result and nothing else. An error is one line on stderr, and an exit status: see `ending`.
"""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
from collections.abc import Sequence

from ..errors import ChoiceError, UsageError
from . import ending, streams
from .parser import COMMANDS, build, named, parse

__all__ = ["COMMANDS", "main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status. `ending` lists them."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = argparse.Namespace(verbose=False, flags={}, line=shlex.join(["qwq", *given]))

    def command() -> int:
        if not given:
            build(()).print_help(sys.stderr)
            return 2
        try:
            parse(given, options)
            status: int = importlib.import_module(f"{__name__}.{options.command}").run(options)
        except UsageError as error:
            raise named(error, options.flags) from error
        except ChoiceError as choice:
            from .choice import show

            show(choice, options.line)
            raise
        return status

    with ending.signals(own=arguments is None), streams.standard():
        return ending.run(command, lambda: options.verbose)
