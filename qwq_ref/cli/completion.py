"""`qwq completion`: print a script that completes commands, options and values in a shell. shtab writes it."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from ..forms import FILE, FORMS, KV_FORMS
from . import parser as grammar
from .values import one_of

SHELLS = ("bash", "zsh", "fish")
_MODELS = ("qwq-nano", "qwq-nano-base", "qwq-32b")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", **one_of(SHELLS), help="the shell; docs/install.md tells where its script belongs")


def run(options: argparse.Namespace) -> int:
    print(script(options.shell))
    return 0


def script(shell: str) -> str:
    """Return the completion script of a shell, for all commands with their options."""
    import shtab

    parser = grammar.build(grammar.COMMANDS)
    for leaf in parser.leaves():
        for action in leaf._actions:
            _describe(action)
    return str(shtab.complete(parser, shell))


def _describe(action: argparse.Action) -> None:
    """Tell shtab how the values of an option or an argument are completed."""
    import shtab

    metavar = str(action.metavar)
    if metavar.startswith("{"):
        action.choices = metavar[1:-1].split(",")
    elif words := {"weights": (*FORMS, FILE), "kv": KV_FORMS}.get(action.dest):
        action.choices = list(words)
    elif action.dest == "model" or metavar == "MODEL":
        action.complete = _words_or_files("models", _MODELS)  # type: ignore[attr-defined]
    elif action.dest == "golden":
        from ..oracle import conformance

        action.complete = _words_or_files("packs", conformance())  # type: ignore[attr-defined]
    elif metavar in ("DIR", "FOLDER"):
        action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    elif metavar == "FILE" or action.dest in ("file", "theirs", "shape"):
        action.complete = shtab.FILE  # type: ignore[attr-defined]


def _words_or_files(name: str, words: Iterable[str]) -> dict[str, object]:
    """Return a completer of words, and of files and folders."""
    function, known = f"_qwq_{name}", " ".join(words)
    return {
        "bash": function,
        "zsh": function,
        "fish": f"({function})",
        "preamble": {
            "bash": f'{function}() {{ compgen -W "{known}" -- "$1"; compgen -f -- "$1"; }}',
            "zsh": f"{function}() {{ _alternative '{name}:{name}:({known})' 'files:file:_files' }}",
            "fish": f"function {function}; printf '%s\\n' {known}; __fish_complete_path (commandline -ct); end",
        },
    }
