"""The command line: `qwq COMMAND`, one module a command. Only the module of the given command is imported.

stdout carries the result and nothing else. An error is one line on stderr, and an exit status: see `ending`.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from .. import __version__
from ..errors import UsageError
from . import ending, streams

COMMANDS = {
    "generate": "answer a prompt",
    "info": "show the size of a model: parameters, memory, bytes read and operations for each token",
    "convert": "pack the weights of a model into a new folder, so that the model loads faster",
    "eval": "measure how many small problems a model answers correctly",
    "golden": "record reference values of a model; compare an implementation with them",
    "train": "run one stage of the training recipe",
    "doctor": "show which models fit on this machine, how fast they can be, and how to fix problems",
    "bench": "measure the speed of a model or an operation, and the limits of the machine",
}


class _Parser(argparse.ArgumentParser):
    """A parser that raises its errors: argparse itself prints the usage and exits."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options | {"exit_on_error": False})

    def error(self, message: str) -> NoReturn:
        raise UsageError(None, None, f"{message} (see {self.prog} --help)")


class _Version(argparse.Action):
    """Prints the version and what computes, then exits. Only this option imports the core."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from ..host.doctor import engine_summary

        print(f"qwq {__version__} ({engine_summary()})")
        parser.exit()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status. `ending` lists them."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = argparse.Namespace(verbose=False)

    def command() -> int:
        _parse(given, options)
        status: int = importlib.import_module(f"{__name__}.{options.command}").run(options)
        return status

    with ending.signals(own=arguments is None), streams.standard():
        return ending.run(command, lambda: options.verbose)


def _parse(given: list[str], options: argparse.Namespace) -> None:
    """Read the arguments into `options`. Raises UsageError."""
    parser = _Parser(
        prog="qwq",
        description="Run and examine QwQ-32B and other models of the Qwen2 architecture, on a CPU.",
        epilog="`qwq COMMAND --help` lists the options of a command.",
    )
    version = "print the version, the instruction set of the C core, and the number of threads"
    parser.add_argument("--version", action=_Version, nargs=0, help=version)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        if name in given[:1]:
            importlib.import_module(f"{__name__}.{name}").add_arguments(command)
        command.add_argument("-v", "--verbose", action="store_true", help="print details, and tracebacks of errors")
    try:
        parser.parse_args(given, options)
    except argparse.ArgumentError as error:
        option = error.argument_name and error.argument_name.split("/")[-1].lstrip("-")
        raise UsageError(None, option, error.message) from None
