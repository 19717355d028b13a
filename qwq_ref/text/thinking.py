"""Tell the reasoning from the answer, by token ids alone.

QwQ's template opens the reasoning inside the prompt, so the output holds only `</think>`. If plain tokens spell
"</think>", the model writes *about* the marker; such tokens end nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from .tokenizer import Tokenizer

Part = Literal["thinking", "answer", "marker"]


def prompt_is_thinking(prompt_ids: Sequence[int], tokenizer: Tokenizer) -> bool:
    """Return whether a prompt ends inside reasoning: its last turn has a <think> without a </think>.

    A special token, such as <|im_start|>, begins or ends a turn. It also ends reasoning that was left open. Where
    </think> is a token and <think> is none, a template that spells <think> at the end of the prompt opens reasoning.
    """
    turn = []
    for identity in reversed(prompt_ids):
        if identity == tokenizer.think_start:
            return True
        if identity == tokenizer.think_end or identity in tokenizer.special:
            break
        turn.append(identity)
    if tokenizer.think_start is not None or tokenizer.think_end is None:
        return False
    return tokenizer.decode(reversed(turn)).rstrip().endswith("<think>")


class ThinkingSplitter:
    """The state of an output: whether it is inside its reasoning. It classifies generated ids, one at a time.

    <think> opens reasoning, and </think> closes it. A marker that changes nothing, such as a second </think>, is still
    a marker, and no text.

    thinking  the current state; before the first id, give `prompt_is_thinking` of the prompt
    opened    whether there has been reasoning; give it for a prompt that has closed its reasoning
    count     ids of reasoning so far, without the markers
    """

    def __init__(self, tokenizer: Tokenizer, thinking: bool, opened: bool = False) -> None:
        self._tokenizer = tokenizer
        self.thinking = thinking
        self.opened = thinking or opened
        self.count = 0

    def feed(self, identity: int) -> Part:
        """Return the part that an id belongs to."""
        if identity == self._tokenizer.think_start:
            self.thinking = self.opened = True
            return "marker"
        if identity == self._tokenizer.think_end:
            self.thinking = False
            return "marker"
        self.count += self.thinking
        return "thinking" if self.thinking else "answer"


def split_thinking(ids: Iterable[int], tokenizer: Tokenizer, thinking: bool) -> tuple[list[int], list[int]]:
    """Split generated ids into those of the reasoning and those of the answer, without the markers."""
    splitter = ThinkingSplitter(tokenizer, thinking)
    parts: dict[Part, list[int]] = {"thinking": [], "answer": [], "marker": []}
    for identity in ids:
        parts[splitter.feed(identity)].append(identity)
    return parts["thinking"], parts["answer"]
