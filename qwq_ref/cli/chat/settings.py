"""The settings that a user changes within a conversation: the options of the command line, by their names."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from ...errors import UsageError
from ..answer_options import add_draw_arguments, add_output_arguments, add_thinking_arguments
from ..parser import Parser
from ..streams import argument_text

if TYPE_CHECKING:
    from ...engine.model import Model

_OWN = ("help", "think", "system")  # of these, other commands take care
_DEFAULT = "default"
_UNSET = {
    "max_tokens": "until the model ends its answer",
    "seed": "a random one for each answer",
    "think_budget": "no limit",
    "reasoning_effort": "no limit",
    "stop": "none",
    "loop_guard": "8",
}
_EXCLUDE = {"think_budget": "reasoning_effort", "reasoning_effort": "think_budget"}


class SettingTable:
    """The settings of the answers to come.

    asked  those that were asked for, as `Model.prepare` takes them; None where a default counts
    """

    def __init__(self, model: Model, asked: dict[str, Any]) -> None:
        self._model, self.asked = model, asked

    def set(self, name: str, value: str) -> None:
        """Change a setting, by a name that the command line has; "default" takes it back. Raises UsageError."""
        parser = _parser()
        spelled = name.lstrip("-").replace("_", "-")
        given = argparse.Namespace()
        probe = parser._action(f"--{spelled}")
        if probe is None or probe.dest in _OWN:
            problem = _plainly(parser._no_option(f"--{spelled}")) if probe is None else f"has a command: /{probe.dest}"
            raise UsageError(None, name[:40], problem)
        changed = None
        if value != _DEFAULT:
            try:
                parser.parse_args([f"--{spelled}={argument_text(value, name)}"], given)
            except UsageError as problem:
                raise UsageError(None, name, problem.problem) from None
            changed = getattr(given, probe.dest)
        if probe.dest == "logit_bias":
            changed = None if changed is None else dict(changed)
        self.change(probe.dest, changed)

    def change(self, dest: str, value: Any) -> None:
        """Change a setting under the name of the library. Raises UsageError, and then keeps the old one."""
        from ...engine.settings import Settings

        asked = self.asked | {dest: value}
        if value is not None and dest in _EXCLUDE:
            asked[_EXCLUDE[dest]] = None
        self._model.sampling(**Settings.checked(**asked).sampling)
        self.asked = asked

    def lines(self) -> list[str]:
        """Return a line for each setting: its name and its value."""
        from ...engine.settings import Settings

        sampling = dataclasses.asdict(self._model.sampling(**Settings.checked(**self.asked).sampling))
        rows = []
        for dest, name in names().items():
            asked = self.asked.get(dest)
            value = sampling[dest] if dest in sampling else _UNSET[dest] if asked is None else asked
            rows.append((name, _shown(value), "" if asked is None else "  (set)"))
        width = max(len(name) for name, _, _ in rows)
        return [f"{name:{width}}  {value}{note}" for name, value, note in rows]


def names() -> dict[str, str]:
    """Return the settings: name in the library -> name on the command line."""
    actions = _parser()._get_optional_actions()
    return {action.dest: action.option_strings[-1].lstrip("-") for action in actions if action.dest not in _OWN}


def _parser() -> Parser:
    parser = Parser(prog="/set")
    add_output_arguments(parser)
    add_draw_arguments(parser)
    add_thinking_arguments(parser, ["show", "hide"], "")
    return parser


def _plainly(problem: str) -> str:
    """Return the words of the command line about an option, in which it is a setting."""
    words = problem.replace("is not an option of /set", "is not a setting").replace("--", "")
    return words.replace(" (see /set help)", ": /set lists them")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={number:g}" for key, number in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
