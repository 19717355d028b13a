"""The grammar of the command line: which words are a command, an option or a value, and what is wrong with them.

Options may stand before the command. An option may be spelled as other programs spell it (`spellings`), and with
underscores for hyphens, but never cut short. Every error names the option as it was typed.
"""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from .. import __version__
from ..errors import QwqError, UsageError, did_you_mean
from .spellings import ALIASES, foreign

COMMANDS = {
    "generate": "answer a prompt",
    "chat": "hold a conversation",
    "batch": "answer a file of requests in OpenAI's batch format",
    "info": "show the size of a model: parameters, memory, bytes read and operations for each token",
    "tokenize": "show the token ids of a text, or the text of token ids",
    "serve": "answer the clients of OpenAI's API over HTTP",
    "convert": "write a model to a new folder: packed, so that it loads faster, or as floats for transformers",
    "eval": "measure how many problems a model answers correctly",
    "perplexity": "measure how well a model predicts a text, and how far it is from another run at the same text",
    "plot": "draw what happens inside a model, or how accuracy grows with reasoning",
    "golden": "record reference values of a model; compare an implementation with them",
    "train": "run one stage of the training recipe",
    "doctor": "show which models fit on this machine, how fast they can be, and how to fix problems",
    "bench": "measure the speed of a model or an operation, and the limits of the machine",
    "completion": "print the script with which a shell completes commands and options",
}
_TEXTS = ("prompt", "suffix", "system", "op")  # options whose value may be empty
_HELP = ("-h", "--help")
_VERSION = ("-V", "--version")
_NAMES = {alias: name for name, aliases in ALIASES.items() for alias in aliases}


def parse(given: Sequence[str], options: argparse.Namespace) -> None:
    """Parse the words after `qwq` into `options`. Raises UsageError; exits after --help and --version.

    options.command   the name of the command
    options.verbose   whether -v was given
    options.flags     {dest: option} of the command's options, each as it was typed, or as it is called
    options.typed     the dests of the options that were typed
    """
    words = list(given)
    while words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    words = _command_first(words, COMMANDS)
    options.verbose, options.flags = False, {}
    build(words[:1]).parse_args(words, options)


def build(loaded: Container[str]) -> Parser:
    """Return the parser of all commands. Only those in `loaded` get their options, and have their module imported."""
    parser = Parser(
        prog="qwq",
        description="Run and examine QwQ-32B and other models of the Qwen2 architecture, on a CPU.",
        epilog="`qwq help COMMAND` lists the options of a command.",
    )
    version = "print the version, the instruction set of the C core, and the number of threads"
    parser.add_argument(*_VERSION, action=_Version, nargs=0, help=version)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        if name in loaded:
            importlib.import_module(f"{__package__}.{name}").add_arguments(command)
            for leaf in command.leaves():
                what = "print details, and tracebacks of errors"
                leaf.add_argument("-v", "--verbose", action="store_true", default=argparse.SUPPRESS, help=what)
    return parser


def named(error: QwqError, flags: Mapping[str, str]) -> QwqError:
    """Return an error about an option with the name that was typed, where the library calls it otherwise."""
    flag = flags.get((error.field or "").replace("-", "_"))
    return UsageError(error.file, flag, error.problem) if flag and isinstance(error, UsageError) else error


class Parser(argparse.ArgumentParser):
    """A parser that raises UsageError, and reads the other spellings of its options.

    The words are checked and spelled out before argparse sees them: `--max_tokens 5`, `--n-predict 5` and `-n5` all
    become `--max-tokens=5`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options | {"exit_on_error": False})

    def error(self, message: str) -> NoReturn:
        raise UsageError(None, None, f"{message} (see {self.prog} --help)")

    def actions(self) -> dict[str, Parser]:
        """Return the parsers of this one's commands, by their names; {} if it has none."""
        below = [action for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        return dict(below[0].choices) if below else {}

    def leaves(self) -> Iterator[Parser]:
        """Yield the parsers below this one that have no commands of their own, or this one."""
        below = self.actions()
        for parser in below.values():
            yield from parser.leaves()
        if not below:
            yield self

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse all words: none is left over. Raises UsageError."""
        words, typed = self._spell_out(_command_first(list(args), self.actions()))
        flags = self._flags(typed)
        try:
            namespace, surplus = super().parse_known_args(words, namespace)
        except argparse.ArgumentError as error:
            if error.argument_name is None:  # since Python 3.13, where an argument is missing
                self.error(error.message)
            names = (argparse._get_action_name(action) for action in self._actions)
            dests = dict(zip(names, (action.dest for action in self._actions), strict=True))
            dest = dests.get(error.argument_name or "", "")
            raise UsageError(None, flags.get(dest, dest or error.argument_name), error.message) from None
        if surplus:
            raise UsageError(None, next((word for word in surplus if word != "--"), "--"), self._too_many())
        self._refuse_empty(namespace, flags)
        namespace.flags = flags | getattr(namespace, "flags", {})
        namespace.typed = {*typed, *getattr(namespace, "typed", ())}
        return namespace, []

    def _spell_out(self, words: list[str]) -> tuple[list[str], dict[str, str]]:
        """Return the words as argparse needs them, and {dest: typed} of the options among them. Raises UsageError."""
        options: list[str] = []
        others: list[str] = []
        typed: dict[str, str] = {}
        rest, below = list(words), self.actions()
        while rest:
            word = rest.pop(0)
            if word == "--":
                others += rest
                break
            found = self._option(word)
            if found is None and below:
                if word not in below:
                    raise UsageError(None, word, self._no_command(word, below))
                return [*options, word, *rest], typed
            if found is None:
                others.append(word)
                continue
            flag, action, value = found
            if action is None:
                if below:  # the options of a command, without a command
                    missing = self._get_positional_actions()[0].metavar
                    self.error(f"the following arguments are required: {missing}")
                if set(_HELP).isdisjoint(words):
                    raise UsageError(None, flag, self._no_option(flag))
                continue
            typed[action.dest] = flag
            name = action.option_strings[-1]
            if action.nargs == 0 and value is not None:
                if word.startswith("--") or not value:
                    raise UsageError(None, flag, f"takes no value, got {value or 'nothing'}")
                rest.insert(0, f"-{value}")  # -vn5 is -v -n5
                value = None
            elif action.nargs != 0 and value is None:
                if rest and rest[0] != "--" and not self._known(rest[0]):
                    value = rest.pop(0)
                elif action.nargs is None:
                    got = f", got {rest[0]}" if rest else ""
                    raise UsageError(None, self._flags(typed)[action.dest], f"needs a value{got}")
            options.append(name if value is None else f"{name}={value}")
        return [*options, *(["--", *others] if others else [])], typed

    def _option(self, word: str) -> tuple[str, argparse.Action | None, str | None] | None:
        """Return the option, its action and the value in a word: (name, None, None) if there is no such option.

        None if the word is no option: it is a value, a text with spaces, or a negative number.
        """
        if not word.startswith("-") or word == "-":
            return None
        head, equals, tail = word.partition("=")
        value = tail if equals else None
        action = self._action(head)
        if action is not None:
            return head, action, value
        short = self._option_string_actions.get(word[:2])
        if short is not None and not word.startswith("--") and foreign(head) is None:
            value = word[2:]
            if short.nargs == 0 or short.type is None or not value[0].isalpha():  # -n5, but not -nx
                return word[:2], short, value
        if re.match(r"-\.?\d", word) or re.search(r"\s", word):
            return None
        return head, None, None

    def _action(self, flag: str) -> argparse.Action | None:
        """Return the action of an option in any spelling, or None."""
        spelled = flag.replace("_", "-") if flag.startswith("--") else flag
        return self._option_string_actions.get(spelled) or self._option_string_actions.get(_NAMES.get(spelled, ""))

    def _known(self, word: str) -> bool:
        found = self._option(word)
        return found is not None and found[1] is not None and not re.search(r"\s", word)

    def _flags(self, typed: Mapping[str, str]) -> dict[str, str]:
        """Return {dest: option}, as it was typed or as it is called. A short one is followed by its long name."""
        flags = {}
        given_plainly = {str(action.metavar).lower() for action in self._get_positional_actions()}
        for action in self._get_optional_actions():
            name = action.option_strings[-1]
            flag = typed.get(action.dest, name)
            if action.dest in typed or action.dest not in given_plainly:
                flags[action.dest] = flag if flag.startswith("--") or name == flag else f"{flag}/{name}"
        return flags

    def _no_option(self, flag: str) -> str:
        if flag in _VERSION:
            return "stands alone: qwq --version"
        says = foreign(flag.replace("_", "-"))
        if says is not None and all(map(self._action, re.findall(r" (--[\w-]+)", re.sub("`.*?`", "", says)))):
            return says
        known = [*self._option_string_actions, *(alias for alias, name in _NAMES.items() if self._action(name))]
        near = did_you_mean(flag, [name for name in known if name not in _HELP])
        return f"is not an option of {self.prog}{near or f' (see {self.prog} --help)'}"

    def _no_command(self, word: str, below: Mapping[str, Parser]) -> str:
        what = "a command" if self.prog == "qwq" else f"an action of {self.prog}"
        if re.search(r"\s", word) and "generate" in below:
            return f"is not {what}: qwq generate answers a prompt"
        return f"is not {what}{did_you_mean(word, below) or '; there are ' + ', '.join(below)}"

    def _refuse_empty(self, namespace: argparse.Namespace, flags: Mapping[str, str]) -> None:
        """Raise UsageError for an empty name of a file or a model: a shell's variable that is not set."""
        for action in self._actions:
            if action.type is None and action.dest not in _TEXTS and action.metavar != "PROMPT":
                value = getattr(namespace, action.dest, None)
                if value == "" or (isinstance(value, list) and "" in value):
                    raise UsageError(None, flags.get(action.dest, str(action.metavar or action.dest)), "is empty")

    def _too_many(self) -> str:
        if self._action("--prompt"):
            return "is one word too many: put quotes around a prompt of several words"
        if self._action("--model"):
            return "is one word too many: give a model with -m"
        return f"is one word too many (see {self.prog} --help)"


class _Version(argparse.Action):
    """Prints the version and what computes, then exits. Only this option imports the core."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from ..host.doctor import engine_summary

        print(f"qwq {__version__} ({engine_summary()})")
        parser.exit()


def _command_first(words: list[str], commands: Container[str]) -> list[str]:
    """Move the options that stand before a command behind it: -m FOLDER info becomes info -m FOLDER."""
    if not words or not words[0].startswith("-") or not set(_VERSION).isdisjoint(words):
        return words
    at = next((at for at, word in enumerate(words) if word in commands), 0)
    return [words[at], *words[:at], *words[at + 1 :]]
