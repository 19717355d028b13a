"""A suite: tasks with their prompts, and a judge for each answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...tasks.verifiers import Verdict


@dataclass(frozen=True)
class Scored(Verdict):
    """A verdict with further counts.

    parts  name -> how many of how many hold, such as {"loose": (1, 1)}; a share of a point counts, too
    """

    parts: Mapping[str, tuple[float, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Form:
    """The way to ask, beside the prompt itself.

    name    of the form, as a user chooses it
    system  a system prompt; None: the template's own, if it has one
    begun   the text that the answer begins with, given to the model; see `engine.settings`
    stop    texts that end the answer
    raw     whether the prompt is continued as plain text, without the chat template
    """

    name: str = "chat"
    system: str | None = None
    begun: str = ""
    stop: tuple[str, ...] = ()
    raw: bool = False


@dataclass(frozen=True)
class Task:
    """One problem.

    id      unique in its suite
    prompt  the user's message, or the text to continue
    judge   takes an answer without its reasoning, and with the text that the form began; never raises
    group   its category; "" for a suite without any
    """

    id: str
    prompt: str
    judge: Callable[[str], Verdict]
    group: str = ""


@dataclass(frozen=True)
class Suite:
    """Problems of one kind.

    form        how they are asked
    max_tokens  of an answer, reasoning included, where the user names no number
    facts       whatever else decides the results, such as the data's digest: a file of answers keeps to them
    note        one line that a user should know; "" for none
    """

    name: str
    tasks: Sequence[Task]
    form: Form = Form()
    max_tokens: int = 4096
    facts: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
